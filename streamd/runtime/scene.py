"""What is made of all streams besides messages: tracks, events of zones and lines with their evidence, what classifiers
say of objects, and the health of cameras."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from streamd.config import Config
from streamd.config.problems import dotted
from streamd.events.evidence.clips import Moment
from streamd.events.record import Event
from streamd.flow.packets import PacketRing
from streamd.flow.settings import StreamSettings
from streamd.flow.stream import Tap
from streamd.runtime.analytics import Analytics
from streamd.runtime.camera import CameraHealth
from streamd.runtime.classify.classification import Classification
from streamd.runtime.eventlog import media_dir
from streamd.runtime.evidence import SNAPSHOTS_HELD, EventGate, Evidence
from streamd.runtime.instance import ModelInstance
from streamd.runtime.publisher import Publisher
from streamd.settings import FieldPath
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.evidence import EvidenceMetrics
from streamd.telemetry.metrics import Metrics
from streamd.types import ModelInfo

log = structlog.get_logger(__name__)


class Scene:
    """The parts that look at published frames. Each may be missing; what is said to the others then stays the same.

    Its methods are for the main loop, unless they say otherwise.

    Args:
        analytics: trackers and rules; None where nothing is tracked.
        evidence: clips and snapshots of events; None where no rule can ask for them.
        cameras: told of the cameras' health; None where nobody wants to know.
    """

    def __init__(
        self,
        analytics: Analytics | None = None,
        evidence: Evidence | None = None,
        cameras: CameraHealth | None = None,
    ) -> None:
        self.analytics, self.evidence, self.cameras = analytics, evidence, cameras
        self.classification: Classification | None = None
        """Opened once the detector's labels are known."""

    # ------------------------------------------------------------------------------------------- of one stream

    def expect(self, settings: StreamSettings) -> None:
        """A stream is about to be connected to, or has changed."""
        if self.evidence is not None:
            self.evidence.change(settings)

    def packets(self, stream: str) -> PacketRing | None:
        """Takes the stream's packets; None where no clip of it is wanted."""
        return self.evidence.ring(stream) if self.evidence is not None else None

    def frames_held(self, settings: StreamSettings, *, on_device: bool) -> int:
        """How many of a stream's frames are held at most, besides those in the pipeline.

        Args:
            settings: the stream.
            on_device: its frames are in device memory.
        """
        held = SNAPSHOTS_HELD if settings.has_snapshots else 0
        if self.classification is not None and on_device:
            held += self.classification.frames_held
        return held

    def taps(self) -> tuple[Tap | None, ...]:
        """What looks at the pictures of published frames."""
        return self.evidence.snapshots if self.evidence is not None else None, self.classification

    def add(self, settings: StreamSettings) -> None:
        """A stream begins."""
        if self.analytics is not None:
            self.analytics.add(settings)
        if self.classification is not None:
            self.classification.add(settings.id)

    def adapt(self, settings: StreamSettings) -> None:
        """A stream goes on with other settings."""
        if self.analytics is not None:
            self.analytics.adapt(settings)
        self.expect(settings)

    def forget(self, stream: str) -> None:
        """A stream that was expected is not going to begin."""
        if self.evidence is not None:
            self.evidence.remove(stream)

    def remove(self, stream: str) -> None:
        """A stream has ended for good."""
        if self.analytics is not None:
            self.analytics.remove(stream)
        self.forget(stream)
        if self.classification is not None:
            self.classification.remove(stream)

    def resume(self, stream: str, rules: Mapping[str, Any] | None) -> None:
        """The stream's rules continue from those of another process. Any thread."""
        if self.analytics is not None and rules is not None:
            self.analytics.resume(stream, rules)

    # -------------------------------------------------------------------------------------------------- of all

    def opened(self, instance: ModelInstance) -> None:
        """A device is there."""
        if self.evidence is not None and instance.decoder_device is not None:
            self.evidence.downloads[instance.decoder_device] = instance.thumbnail

    def open_classifiers(
        self, config: Config, instances: Sequence[ModelInstance], registry: CollectorRegistry, publisher: Publisher,
        boot_id: str, generations: Mapping[str, int],
    ) -> None:  # fmt: skip
        """Opens the classifiers of the configuration, on the first device.

        Raises:
            StreamdError: see `Classification`.
        """
        if not config.classifiers:
            return
        first = instances[0]
        downloads = {each.decoder_device: each.thumbnail for each in instances if each.decoder_device is not None}
        self.classification = Classification(
            config.classifiers, config.engine.for_device(first.ordinal), first.model.labels, registry,
            publisher.classes, boot_id, downloads, generations,
        )  # fmt: skip
        if self.analytics is not None:
            self.analytics.said = self.classification

    def check(self, config: Config, where: Callable[[FieldPath], str] = dotted) -> None:
        """Checks what a configuration asks of models and rules. Any thread.

        Raises:
            ConfigError: something in it cannot be.
        """
        if self.analytics is not None:
            self.analytics.check(config.streams, where)
        if self.classification is not None:
            self.classification.check(config.classifiers)

    def change(self, config: Config) -> None:
        """Takes on a configuration that was checked."""
        if self.classification is not None:
            self.classification.adapt(config.classifiers)

    def start(self) -> None:
        """Starts the threads."""
        if self.classification is not None:
            self.classification.start()

    def tick(self, now: float) -> None:
        """To be called a few times a second, with the time in monotonic seconds."""
        if self.analytics is not None:
            self.analytics.tick(now)
        if self.classification is not None:
            self.classification.tick(now)

    def seen(self) -> dict[str, int]:
        """See `Analytics.seen`. Any thread."""
        return self.analytics.seen() if self.analytics is not None else {}

    @property
    def problem(self) -> str | None:
        """Why no evidence can be written; None if it can. Any thread."""
        return self.evidence.problem if self.evidence is not None else None

    def close(self, timeout: float, *, left_running: bool) -> bool:
        """Ends all of it.

        Args:
            timeout: seconds.
            left_running: a thread of the pipeline may still use the trackers.

        Returns:
            False if a thread could not be ended.
        """
        deadline = time.monotonic() + timeout
        ended = self.classification is None or self.classification.close(timeout / 4)
        if not ended:
            log.error("a classifier could not be ended in time")
        if self.cameras is not None:
            self.cameras.close()
        if self.analytics is not None and ended and not left_running:
            self.analytics.close()
        if self.evidence is not None and not self.evidence.close(max(0.1, (deadline - time.monotonic()) / 2)):
            log.error("clips could not be ended in time")
        return ended


def open_scene(
    config: Config,
    name: str,
    *,
    registry: CollectorRegistry,
    metrics: Metrics,
    publisher: Publisher,
    gate: EventGate,
    past: Callable[[str], Mapping[str, Any] | None] | None,
    boot_id: str,
    life: int,
    generations: Mapping[str, int],
    model: Callable[[], ModelInfo | None],
    settings: Callable[[], Any],
) -> Scene:
    """What the configuration asks for, without classifiers.

    Args:
        config: checked.
        name: of the daemon, for the folder of media.
        registry: for metrics of their own.
        metrics: of the streams.
        publisher: its frames are looked at.
        gate: takes the events.
        past: what the journal knows of a stream's rules; None where the journal is another process's.
        boot_id: identity of this process.
        life: number of this process among the daemon's workers.
        generations: by stream, in a fleet; may change.
        model: of the detector, once it is there.
        settings: the running configuration, as plain values.
    """
    if config.tracker is None:
        return Scene(cameras=CameraHealth(metrics, gate.submit, boot_id=boot_id, life=life))
    evidence = Evidence(media_dir(config, name), config.media, gate, model, settings)

    def submit(event: Event, moment: Moment) -> None:
        if generations:
            event = msgspec.structs.replace(event, generation=generations.get(event.stream, 0))
        gate.submit(event)
        evidence.event(event, moment)

    analytics = Analytics(
        config.tracker, config.model.detect, AnalyticsMetrics(registry), submit, boot_id=boot_id, life=life
    )
    analytics.keep = gate.keep
    if past is not None:
        analytics.past = past
    EvidenceMetrics(registry, evidence.counts)
    publisher.watchers += (evidence.frame,)
    cameras = CameraHealth(metrics, gate.submit, boot_id=boot_id, life=life, analytics=analytics, evidence=evidence)
    return Scene(analytics, evidence, cameras)
