"""The parent's ends of what workers send: messages for the sinks, events, reports and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from streamd.config import Config, sink_names
from streamd.errors import SinkError
from streamd.events.link import EventReceiver
from streamd.flow.settings import StreamSettings
from streamd.runtime.eventlog import EventLog
from streamd.runtime.health import close_outputs
from streamd.settings.plugins import origin, told
from streamd.sinks import open_sink
from streamd.telemetry.http import HttpServer
from streamd.telemetry.metrics import Metrics
from streamd.web.tap import Tap
from streamd.workers.folder import SocketFolder
from streamd.workers.forward import Forwarder
from streamd.workers.pictures import PictureReceiver
from streamd.workers.report import Relay, Report, ReportReceiver


class Channels:
    """Sockets in a folder of their own, with what listens at them. For the main thread.

    Args:
        name: of the daemon, for its journal.
        boot_id: identity of the daemon in every message.

    Raises:
        ConfigError: there is no place for the folder.
    """

    def __init__(self, name: str, boot_id: str) -> None:
        self._folder = SocketFolder()
        self.path = self._folder.path
        """Of the folder."""
        self._boot_id = boot_id
        self.forwarders: list[Forwarder] = []
        """One for each sink."""
        self.events = EventLog(name, boot_id, lambda: self.forwarders)
        self._receiver: EventReceiver | None = None
        self._reports: ReportReceiver | None = None
        self._pictures: PictureReceiver | None = None

    def endpoint(self, what: str) -> str:
        """Where workers send `reports`, `pictures` or `events`."""
        return f"ipc://{self.path}/{what}"

    def relays(self) -> list[Relay]:
        """Where workers send the messages for each sink."""
        return [Relay(forwarder.name, forwarder.endpoint) for forwarder in self.forwarders]

    def open(self, config: Config, metrics: Metrics, tap: Tap | None) -> None:
        """Opens the sinks and everything else; the sinks' threads are not started yet.

        Args:
            config: checked.
            metrics: of the parent.
            tap: takes pictures for the page; None where nobody can look.

        Raises:
            StreamdError: a sink or the journal cannot be opened.
        """
        for i, (settings, name) in enumerate(zip(config.sinks, sink_names(config), strict=True)):
            forwarder = Forwarder(
                name, open_sink(settings), self.endpoint(f"sink{i}"),
                settings.payload_encoding, metrics, heartbeat_s=settings.heartbeat_s,
                boot_id=self._boot_id, wants=settings.wants, owed=settings.owed,
            )  # fmt: skip
            forwarder.set_streams(config.streams)
            self.forwarders.append(forwarder)
            with told(origin(settings), f"open the sink {name}", SinkError):
                forwarder.open()
        self.open_events(config)
        if tap is not None:
            self._pictures = PictureReceiver(tap, self.endpoint("pictures"))
        self._reports = ReportReceiver(self.endpoint("reports"))

    def open_events(self, config: Config) -> None:
        """Opens the journal, if there is none yet and the configuration has rules.

        Raises:
            StreamdError: it cannot be opened.
        """
        self.events.ensure(config)
        if self._receiver is None and self.events.journal is not None:
            self._receiver = EventReceiver(self.endpoint("events"), self.events.journal)
            self._receiver.start()

    def start(self) -> None:
        """Starts the sinks' threads."""
        for forwarder in self.forwarders:
            forwarder.start()

    def set_streams(self, streams: Sequence[StreamSettings]) -> None:
        """Tells the sinks which streams are configured."""
        for forwarder in self.forwarders:
            forwarder.set_streams(streams)

    def receive(self, timeout_ms: int) -> Iterator[Report]:
        """Reports of workers, in order; waits for the first one for at most `timeout_ms`."""
        assert self._reports is not None
        yield from self._reports.receive(timeout_ms)

    def lost(self, origin: str, streams: Iterable[str]) -> None:
        """A worker has died.

        Args:
            origin: of its events, see `origin_of`.
            streams: those that it ran last.
        """
        if self._receiver is not None:
            self._receiver.finish(origin, "process_died")
        if self.events.keeper is not None:
            self.events.keeper.lost(list(streams), "worker_died")

    def close(self, tap: Tap | None, http: HttpServer | None, deadline: float) -> bool:
        """Flushes the sinks and closes all but the folder; False if a thread could not be ended.

        Args:
            tap: see `close_outputs`.
            http: likewise.
            deadline: likewise.
        """
        if self._receiver is not None:
            self._receiver.close()
        good = close_outputs(self.events, self.forwarders, tap, http, deadline)
        if self._pictures is not None:
            self._pictures.close()
        if self._reports is not None:
            self._reports.close()
        return good

    def remove(self) -> None:
        """Removes the folder."""
        self._folder.remove()
