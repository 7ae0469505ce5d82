"""The running streams, each with its runner, its ring and its model instance; streams can be added and removed at any
time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from streamd.analysis.glance.gate import Gate
from streamd.flow.camera import CameraWatch, HealthChange
from streamd.flow.contracts import Source
from streamd.flow.gated import GatedRing
from streamd.flow.glimpse import Glimpse
from streamd.flow.ring import Ring
from streamd.flow.runner import StreamRunner
from streamd.flow.settings import StreamSettings
from streamd.flow.standby import Standby
from streamd.flow.status import StatusBoard
from streamd.flow.stream import StreamOutput, Tap
from streamd.runtime.instance import ModelInstance
from streamd.runtime.load import LoadWatch
from streamd.runtime.reload import Difference
from streamd.runtime.scene import Scene
from streamd.sources import SourceSettings, open_source
from streamd.telemetry.metrics import Metrics
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Box, Detections, Frame, Glanced, StreamPast, StreamStatus

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Stream:
    settings: SourceSettings
    instance: ModelInstance
    output: StreamOutput
    ring: Ring[Frame]
    runner: StreamRunner
    counters: StreamMetrics
    health: CameraWatch | None = None

    def drained(self) -> bool:
        """Whether it has ended and all its frames have been published or dropped."""
        if not self.runner.ended():
            return False
        counts = self.counters.counts()
        return counts.received == counts.published + sum(counts.dropped.values())


def _hold_to(counters: StreamMetrics, settings: StreamSettings) -> None:
    objective = settings.objective
    counters.objective_s = objective.latency_ms / 1e3 if objective is not None else None
    counters.objective_share = objective.share if objective is not None else 0.0
    counters.max_fps = getattr(settings, "max_fps", None)


def gate_of(settings: SourceSettings) -> Gate | None:
    """The gate of a stream whose frames are not all looked at; None for any other stream."""
    if not settings.look.gated:
        return None
    crop = settings.crop
    return Gate(
        settings.look, Box(crop.x, crop.y, crop.width, crop.height) if crop is not None else None, live=settings.live
    )


def _first(standby: Standby | None, make_source: Callable[[], Source]) -> Callable[[], Source]:
    """`make_source`, except that a standby's connection comes before the first one."""
    if standby is None:
        return make_source
    waiting = [standby]
    return lambda: (waiting.pop().take() if waiting else None) or make_source()


@dataclass(slots=True)
class _Parting:
    """A stream that was stopped while others continue."""

    stream: _Stream
    then: SourceSettings | None
    """Settings to restart it with; None if it was removed."""
    cut_at: float
    """Monotonic seconds after which to stop waiting for it."""


class Streams:
    """Owns all streams. Its methods are for one thread; none of them waits, except `join`.

    Args:
        instances: the model instances that serve them.
        metrics: counters and times.
        board: receives every status.
        wake: called when a stream has ended. Any thread.
        publish: receives each frame's detections; must not block.
        tap: see `StreamOutput`.
        scene: looks at published frames; told of streams that come and go.
        publish_glance: receives each frame that was not looked at; must not block.
    """

    def __init__(
        self,
        instances: Sequence[ModelInstance],
        metrics: Metrics,
        board: StatusBoard,
        wake: Callable[[], None],
        publish: Callable[[Detections], None],
        tap: Callable[[], Tap | None] = lambda: None,
        scene: Scene | None = None,
        publish_glance: Callable[[Glanced], None] = lambda _: None,
    ) -> None:
        self._instances = instances
        self._metrics = metrics
        self._board = board
        self._wake = wake
        self._publish_glance = publish_glance
        self._publish, self._tap = publish, tap
        self._scene = scene or Scene()
        self._streams: dict[str, _Stream] = {}
        self._parting: list[_Parting] = []
        self._gone: dict[str, _Stream] = {}
        """The last state of removed streams: one that is added again continues from it."""
        self._past: dict[str, StreamPast] = {}
        self.live_seen: set[str] = set()
        """Streams that have been live."""
        self._load = LoadWatch()
        self._standbys: dict[str, tuple[Standby, ModelInstance]] = {}
        self.endless = False
        """Goes on without any stream: others may be added."""
        self.sealed = False
        """True once every stream has ended: the instances end, and no stream can be added any more."""

    def __len__(self) -> int:
        return len(self._streams)

    def remember(self, past: Mapping[str, StreamPast]) -> None:
        """Sets how far streams came in other processes: their counters are still reported, and they continue from there
        when added. Not for streams that run here. Any thread."""
        for name, each in past.items():
            self._gone.pop(name, None)
            self._past[name] = each
            self._scene.resume(name, each.rules)
            counters = self._metrics.stream(name)
            counters.resume(each.counts)
            counters.removed = True

    def past(self, name: str) -> StreamPast | None:
        """How far a removed stream came here; None if it runs, or never did."""
        gone = self._gone.get(name)
        return None if gone is None else StreamPast(gone.runner.epoch, gone.counters.counts())

    def __contains__(self, name: str) -> bool:
        return name in self._streams

    def warm(self, settings: SourceSettings) -> None:
        """Connects to a stream that is soon to be added, and counts nothing of it."""
        instance = self._instance_for(settings)
        self._scene.expect(settings)
        reconnect = settings.reconnect
        standby = Standby(
            settings.id, self._opener(settings, instance), initial_s=reconnect.initial_s, max_s=reconnect.max_s
        )
        self._standbys[settings.id] = standby, instance
        standby.start()

    def cool(self, name: str) -> None:
        """Ends the connection of a stream that is not going to be added after all."""
        if (found := self._standbys.pop(name, None)) is not None:
            found[0].close()
            if name not in self._streams:
                self._scene.forget(name)

    def warmed(self) -> dict[str, bool]:
        """The streams with a standby, and whether it has pictures."""
        return {name: standby.ready for name, (standby, _) in self._standbys.items()}

    def _instance_for(self, settings: SourceSettings) -> ModelInstance:
        if settings.device is not None:
            return next(each for each in self._instances if each.ordinal == settings.device)
        return min(self._instances, key=lambda each: each.streams)

    def add(
        self, settings: SourceSettings, *, instance: ModelInstance | None = None, before: _Stream | None = None
    ) -> StreamRunner:
        """Makes a stream known to its instance. The caller starts the runner.

        Args:
            settings: one member of `StreamConfig`.
            instance: serves it if `settings` has no device; by default the one with the fewest streams.
            before: the previous state of the stream, which has ended.
        """
        name = settings.id
        before = before or self._gone.pop(name, None)
        counters = self._metrics.stream(name)
        counters.removed = False
        _hold_to(counters, settings)
        standby, warm = self._standbys.pop(name, (None, None))
        if settings.device is not None or (instance := instance or warm) is None:
            instance = self._instance_for(settings)

        def dropped(_: Frame, reason: str) -> None:
            counters.drop(reason)

        gate = gate_of(settings)
        ring: Ring[Frame]
        if gate is not None:
            ring = GatedRing(settings.ring, settings.ring_policy, gate, on_drop=dropped, bell=instance.bell)
        else:
            ring = Ring(settings.ring, settings.ring_policy, on_drop=dropped, bell=instance.bell)
        counters.sensitivity = (lambda: gate.sensitivity) if gate is not None else None
        self._metrics.queue_depth.labels(queue=f"stream-{name}").set_function(ring.__len__)
        self._scene.expect(settings)
        health = self._watch(settings, instance)
        reconnect = settings.reconnect
        runner = StreamRunner(
            name,
            _first(standby, self._opener(settings, instance)),
            ring,
            counters,
            self._on_status,
            initial_s=reconnect.initial_s,
            max_s=reconnect.max_s,
            attempts=reconnect.attempts,
            before=before.runner if before is not None else None,
            past=self._past.pop(name, None),
            glimpse=Glimpse(name, gate, instance.surface_reader()) if gate is not None else None,
            health=health,
        )
        if before is not None:
            output = before.output
        else:
            taps = self._tap(), *self._scene.taps()
            output = StreamOutput(
                name, self._metrics, instance.model, self._publish, *taps, publish_glance=self._publish_glance
            )
        output.learner = gate
        self._scene.add(settings)
        instance.add(output, ring, settings.priority, settings.max_age_s)
        self._streams[name] = _Stream(settings, instance, output, ring, runner, counters, health)
        return runner

    def _watch(self, settings: SourceSettings, instance: ModelInstance) -> CameraWatch | None:
        cameras, name = self._scene.cameras, settings.id
        if cameras is None:
            return None
        cameras.watched(name, settings.camera_health.enabled)
        if not settings.camera_health.enabled:
            return None

        def changed(change: HealthChange) -> None:
            cameras.changed(change, self._streams[name].runner)

        return CameraWatch(name, settings.camera_health, changed, instance.surface_reader())

    def _opener(self, settings: SourceSettings, instance: ModelInstance) -> Callable[[], Source]:
        device = instance.decoder_device
        if settings.look.gated and device is not None and instance.surface_reader() is None:
            device = None  # where frames on the GPU cannot be glanced at, `decode: auto` means the host
        held = instance.pictures + self._scene.frames_held(settings, on_device=device is not None)
        return partial(open_source, settings, device=device, held=held, packets=self._scene.packets(settings.id))

    def _on_status(self, status: StreamStatus) -> None:
        if status.state == "LIVE":
            self.live_seen.add(status.stream)
        self._board.post(status)
        if status.state in ("ENDED", "FAILED"):
            self._wake()

    def start(self) -> None:
        """Starts every stream."""
        for stream in self._streams.values():
            stream.runner.start()

    def change(self, found: Difference, limit_s: float) -> list[str]:
        """Stops removed and changed streams and starts new ones; `tick` does the rest.

        A FAILED stream is restarted, too: a reload means that somebody has attended to it.

        Args:
            found: what to change.
            limit_s: longest time to wait for a stream to end, seconds.

        Returns:
            The ids of the FAILED ones.
        """
        cut_at = time.monotonic() + limit_s
        again = {settings.id: settings for settings in found.changed}
        failed = [
            name
            for name, stream in self._streams.items()
            if stream.runner.status.state == "FAILED" and name not in again and name not in found.removed
        ]
        again |= {name: self._streams[name].settings for name in failed}
        for name in (*found.removed, *again):
            stream = self._streams[name]
            stream.runner.stop()
            self._parting.append(_Parting(stream, again.get(name), cut_at))
        for settings in found.added:
            self.add(settings).start()
        for settings in found.adapted:
            if settings.id not in again:
                self._adapt(settings)
        return failed

    def _adapt(self, settings: SourceSettings) -> None:
        """Applies settings that need no new connection, between two frames of the stream."""
        stream = self._streams[settings.id]
        before, stream.settings = stream.settings, settings
        if stream.health is not None and (before.zones, before.lines) != (settings.zones, settings.lines):
            # Whoever draws them has seen the scene.
            stream.health.accept()
        stream.ring.change(settings.ring, settings.ring_policy)
        stream.instance.batcher.change(settings.id, settings.priority, settings.max_age_s)
        _hold_to(stream.counters, settings)
        self._scene.adapt(settings)
        stream.runner.adapt(settings, self._opener(settings, stream.instance))

    @property
    def changing(self) -> bool:
        """True while waiting for a stopped stream."""
        return bool(self._parting)

    def tick(self) -> None:
        """Handles hanging threads, continues with changes, and detects the end. To be called often."""
        for runner in self._runners():
            runner.watch()
        now = time.monotonic()
        if not self.sealed:
            self._load.look(now, ((s.runner, s.counters) for s in self._streams.values()))
        self._parting = [parting for parting in self._parting if not self._part(parting, now)]
        over = bool(self._streams) and not self.endless and all(s.runner.over for s in self._streams.values())
        if over and not self.sealed and not self._parting:
            self._seal()

    def _seal(self) -> None:
        self.sealed = True
        for instance in self._instances:
            instance.batcher.seal()

    def _part(self, parting: _Parting, now: float) -> bool:
        """True once the stream has been removed or restarted."""
        stream = parting.stream
        if not stream.drained():
            if now < parting.cut_at:
                return False
            log.warning("stream did not drain in time", stream=stream.runner.stream)
            stream.runner.abandon()
            stream.ring.close(discard=True)
        name = stream.runner.stream
        stream.instance.remove(name)
        if self._scene.cameras is not None and stream.health is not None:
            self._scene.cameras.stop(name)
        if parting.then is not None:
            self.add(parting.then, instance=stream.instance, before=stream).start()
            return True
        self._gone[name] = self._streams.pop(name)
        self._metrics.queue_depth.remove(f"stream-{name}")
        self._scene.remove(name)
        stream.counters.removed = True
        self._board.retire(name)
        self.live_seen.discard(name)
        return True

    def _runners(self) -> Iterator[StreamRunner]:
        for stream in self._streams.values():
            yield stream.runner
        yield from (stream.runner for stream in self._gone.values())

    @property
    def all_failed(self) -> bool:
        """True if every stream failed."""
        return bool(self._streams) and all(s.runner.status.state == "FAILED" for s in self._streams.values())

    def stop(self) -> None:
        """Asks every stream to end, and the instances with them."""
        for name in list(self._standbys):
            self.cool(name)
        for stream in self._streams.values():
            stream.runner.stop()
        self._seal()

    def join(self, deadline: float) -> bool:
        """Counts the frames that no stage will take any more, then waits for the threads until `deadline` (monotonic
        seconds).

        Returns:
            False if one hangs.
        """
        good = True
        for stream in self._streams.values():
            stream.ring.close(discard=True)
        for runner in self._runners():
            if not runner.join(max(0.0, deadline - time.monotonic())):
                good = False
                log.warning("source did not stop in time", stream=runner.stream, package=runner.package)
        return good
