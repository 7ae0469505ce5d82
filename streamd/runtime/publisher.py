"""From published frames to everything that receives them: sinks, recorder, tracer, clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from streamd.config import Config, sink_names
from streamd.errors import SinkError
from streamd.flow.status import StatusBoard
from streamd.settings.plugins import origin, told
from streamd.sinks import Sink, open_sink
from streamd.sinks.envelope import Outgoing, OutgoingClasses, OutgoingGlance
from streamd.sinks.thread import SinkThread
from streamd.telemetry.metrics import Metrics
from streamd.types import Detections, Glanced


class Publisher:
    """The sinks of one process, and what else is shown its frames. Its methods never wait for a receiver.

    Args:
        boot_id: identity of this process in every message.
        board: statuses that the sinks send.
        metrics: counts.
        generations: by stream, in a fleet; may change. Empty otherwise.
    """

    def __init__(self, boot_id: str, board: StatusBoard, metrics: Metrics, generations: Mapping[str, int]) -> None:
        self._boot_id, self._board, self._metrics, self._generations = boot_id, board, metrics, generations
        self.sinks: list[SinkThread] = []
        self.watchers: tuple[Callable[[Detections], None], ...] = ()
        """Shown each frame; must be quick."""

    def open(self, config: Config, relays: Mapping[str, Sink]) -> None:
        """Opens the configured sinks.

        Args:
            config: the whole configuration.
            relays: in a worker process: the replacements of the configured sinks, by name.

        Raises:
            StreamdError: a sink cannot be opened; those before it are open.
        """
        for settings, name in zip(config.sinks, sink_names(config), strict=True):
            relay = relays.get(name)
            sink = relay or open_sink(settings)
            thread = SinkThread(
                name, sink, settings.ring, self._board, self._metrics, settings.heartbeat_s, boot_id=self._boot_id,
                encoding=settings.payload_encoding, wants=settings.wants, owed=settings.owed,
                generations=self._generations,
            )  # fmt: skip
            thread.set_streams(config.streams)
            with told(origin(settings) if relay is None else None, f"open the sink {name}", SinkError):
                thread.open()
            self.sinks.append(thread)

    def frame(self, detections: Detections) -> None:
        """Publishes one frame's detections."""
        for watch in self.watchers:
            watch(detections)
        outgoing = Outgoing(detections, self._boot_id, self._generations.get(detections.stream, 0))
        for sink in self.sinks:
            sink.put(outgoing)

    def classes(self, found: OutgoingClasses) -> None:
        """Publishes what a classifier says of a frame."""
        for sink in self.sinks:
            sink.put_classes(found)

    def glance(self, glanced: Glanced) -> None:
        """Publishes a frame that the network did not look at."""
        outgoing = OutgoingGlance(glanced, self._boot_id, self._generations.get(glanced.stream, 0))
        for sink in self.sinks:
            sink.put_glance(outgoing)
