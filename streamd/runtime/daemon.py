"""The composition root: builds everything from a `Config`, runs it, drains it."""

from __future__ import annotations

import contextlib
import queue
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from streamd.config import Config
from streamd.config.problems import dotted
from streamd.errors import SinkError
from streamd.flow.status import StatusBoard
from streamd.runtime import heap, switching
from streamd.runtime.analytics import Analytics
from streamd.runtime.condition import Condition
from streamd.runtime.drain import Drain
from streamd.runtime.eventlog import EventLog
from streamd.runtime.evidence import EventGate
from streamd.runtime.health import close_outputs
from streamd.runtime.instance import ModelInstance
from streamd.runtime.otlp import OtlpExporter
from streamd.runtime.progress import OpeningProgress
from streamd.runtime.publisher import Publisher
from streamd.runtime.recorder.breaches import Watched
from streamd.runtime.recorder.place import config_name
from streamd.runtime.recorder.recorder import Recorder, open_recorder
from streamd.runtime.recorder.request import NOT_RECORDING
from streamd.runtime.reload import Reloads, Reread, difference
from streamd.runtime.scene import open_scene
from streamd.runtime.service import Service, outputs_of
from streamd.runtime.streams import Streams
from streamd.settings import FieldPath
from streamd.sinks import Sink
from streamd.sources.closing import deferred
from streamd.telemetry.evidence import MediaMetrics
from streamd.telemetry.http import HttpServer
from streamd.telemetry.metrics import Metrics
from streamd.telemetry.notify import Notifier
from streamd.types import StreamPast
from streamd.web.port import open_port, urls_of
from streamd.web.tap import Tap

log = structlog.get_logger(__name__)

_TICK_S = 0.25
_BUNDLE_S = 5.0
"""Longest time that writing a bundle may delay the exit, e.g. if the disk hangs."""
_QUICK_TICK_S = 0.02
"""While streams are being changed, or the daemon is about to end."""


class Daemon:
    """One running configuration.

    Args:
        config: checked.
        registry: every metric goes here; a fresh one by default.
        notifier: the service manager.
        relays: in a worker process: the replacements of the configured sinks, by name.
        past: in a worker process: see `Streams.remember`.
        tap: in a worker process: receives pictures for the page.
        record_as: name in the recorder's bundles; the configuration file's by default.
        boot_id: identity of this process in every message; random by default.
        events: in a worker process: receives the events of zones and lines; and the number of this process.
        reread: reads the configuration file again at SIGHUP; installed by the caller.

    Raises:
        StreamdError: whatever cannot be opened, named; everything opened before is closed again.
    """

    def __init__(
        self,
        config: Config,
        *,
        registry: CollectorRegistry | None = None,
        notifier: Notifier | None = None,
        relays: Mapping[str, Sink] | None = None,
        past: Mapping[str, StreamPast] | None = None,
        record_as: str | None = None,
        tap: Tap | None = None,
        boot_id: str | None = None,
        events: tuple[EventGate, int] | None = None,
        reread: Reread | None = None,
    ) -> None:
        self.config = config
        self.registry = registry or CollectorRegistry()
        self.boot_id = boot_id or uuid.uuid4().hex[:16]
        self._relays = relays or {}
        self._record_as = record_as or (reread.path if reread is not None else None)
        self.board = StatusBoard()
        self.metrics = Metrics(self.registry)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.generations: dict[str, int] = {}
        """In a fleet: the generation of each stream of this box. Empty otherwise, and then in no message."""
        self._publisher = Publisher(self.boot_id, self.board, self.metrics, self.generations)
        self.sinks = self._publisher.sinks
        self.instances: list[ModelInstance] = []
        self.http: HttpServer | None = None
        self.recorder: Recorder | None = None
        self._tap, self._notifier = tap, notifier or Notifier()
        self.companion: Callable[[], None] | None = None
        """Called by the main loop a few times a second, and after `wake`; must be quick."""
        self._otlp: OtlpExporter | None = None
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        """Wakes the main loop when there is something to do. Not an Event: a signal handler that sets one while the
        main loop is about to wait for it would wait for a lock that its own thread holds."""
        self._service = Service(
            self._notifier, lambda: self.problem, lambda: self._condition.line(self._reloads.refused), reread=reread,
            wake=self.wake,
        )  # fmt: skip
        self.applied = 0
        """Number of the running configuration, as passed to `reload`; 0 for the first."""
        self._reloads = Reloads(self, self.metrics, self._service, self.wake)
        name = config_name(self._record_as) if self._record_as is not None else "streamd"
        self._events = EventLog(name, self.boot_id, lambda: self.sinks)
        gate, life = events or (self._events, 0)
        self._own_events = events is None
        if self._own_events:
            MediaMetrics(self.registry, self._events.media_counts)
        self._scene = open_scene(
            config, name, registry=self.registry, metrics=self.metrics, publisher=self._publisher, gate=gate,
            past=self._events.rules if self._own_events else None, boot_id=self.boot_id, life=life,
            generations=self.generations, settings=self._settings,
            model=lambda: self.instances[0].model if self.instances else None,
        )  # fmt: skip
        self.streams = Streams(
            self.instances, self.metrics, self.board, self.wake, self._publisher.frame, tap=lambda: self._tap,
            scene=self._scene, publish_glance=self._publisher.glance,
        )  # fmt: skip
        self.streams.remember(past or {})
        # The parent reports the streams of its workers.
        self._progress = OpeningProgress(lambda: (s.state for s in self.board.all() if relays is None))
        self._condition = Condition(
            self.boot_id, lambda: self.config.stall_s, self.instances, self.streams, self.board, self.sinks,
            self._events, self._scene, self.metrics,
        )  # fmt: skip
        self._left_running = False
        try:
            self._open()
        except BaseException as error:
            self._record_crash(error)
            self._close_all(1.0)
            raise

    def _open(self) -> None:
        config = self.config
        heap.limit_arenas()
        self._open_recorder()
        # What fails most easily comes first, so that an address in use is reported before a model is compiled.
        self.http, tap = open_port(
            config.metrics, self.registry, self.health, self.ready, statuses=self.board.all, boot_id=self.boot_id,
            streams=lambda: self.config.streams, journal=lambda: self._events.journal,
            settings=self._settings, bundles=self._bundles,
        )  # fmt: skip
        self._tap = self._tap or tap
        self._open_otlp()
        self._publisher.open(config, self._relays)
        if self._own_events:
            self._events.ensure(config)
        live = len(config.streams) == 1 and (config.streams[0].live or config.streams[0].paced)
        engines = {ordinal: config.engine.for_device(ordinal) for ordinal in config.engine.devices}
        options: dict[str, Any] = {
            "several": len(engines) > 1, "live": live, "metrics": self.metrics, "tap": self._tap,
            "analytics": self._scene.analytics,
        }  # fmt: skip
        for ordinal, engine in engines.items():
            instance = ModelInstance(config, engine, ordinal, **options)
            self.instances.append(instance)
            self._scene.opened(instance)
        self._scene.check(config)
        self._scene.open_classifiers(
            config, self.instances, self.registry, self._publisher, self.boot_id, self.generations
        )
        for stream in config.streams:
            self.streams.add(stream)

    def _open_recorder(self) -> None:
        watched = Watched(self.board, self.metrics, self._condition.problem, self._condition.error, self._settings)
        self.recorder = open_recorder(
            self.config.recorder, path=self._record_as, boot_id=self.boot_id, watched=watched,
            watchdog_s=self._notifier.watchdog_s,
        )  # fmt: skip
        if self.recorder is not None:
            self._publisher.watchers += (self.recorder.frame,)

    def _open_otlp(self) -> None:
        if self.config.otlp is None:
            return
        # A worker's metrics are exported by its parent, with those of all others.
        registry = self.registry if self._own_events else None
        self._otlp = OtlpExporter(self.config.otlp, self.boot_id, registry, self.metrics.otlp_exports)
        if self._otlp.traces:
            self._publisher.watchers += (self._otlp.frame,)

    def _settings(self) -> Any:
        return self.config.model_dump(mode="json")

    def _bundles(self) -> list[Path]:
        if self.recorder is None:
            raise SinkError(NOT_RECORDING)
        return self.recorder.request("asked for on the page")

    def _record_crash(self, error: BaseException) -> None:
        if self.recorder is not None:
            self.recorder.crash(error)

    @property
    def started(self) -> bool:
        """True once every part runs."""
        return self._condition.started

    def health(self) -> tuple[bool, dict[str, Any]]:
        """See `Condition.health`."""
        return self._condition.health()

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """See `Condition.ready`."""
        return self._condition.ready()

    def seen(self) -> dict[str, int]:
        """See `Analytics.seen`."""
        return self._scene.seen()

    def stop(self) -> None:
        """Asks for a drain; `run` returns when it is done. Any thread, and signal handlers."""
        self._service.stop()

    def wake(self) -> None:
        """Makes the main loop look at once. Any thread."""
        self._wake.put(None)

    @property
    def problem(self) -> str | None:
        """Why the daemon is unhealthy; None if it is not."""
        return self._condition.problem()

    @property
    def events(self) -> EventLog:
        """The event journal, if there is one."""
        return self._events

    @property
    def analytics(self) -> Analytics | None:
        """Trackers and rules; None where nothing is tracked."""
        return self._scene.analytics

    @property
    def stopping(self) -> bool:
        """True once a drain was requested."""
        return self._service.stopping

    def reload(self, config: Config, *, where: Callable[[FieldPath], str] = dotted, number: int = 0) -> None:
        """See `Reloads.accept`; `applied` has `number` once the configuration is running."""
        self._reloads.accept(config, where=where, number=number)

    @property
    def changing(self) -> bool:
        """See `Reconfigured.changing`."""
        return self.streams.changing

    def admit(self, config: Config, where: Callable[[FieldPath], str]) -> None:
        """See `Reconfigured.admit`."""
        self._scene.check(config, where)
        if self._own_events:
            self._events.ensure(config)

    def take_on(self, config: Config, number: int) -> None:
        """See `Reconfigured.take_on`."""
        if self.streams.sealed:
            return
        found = difference(self.config, config)
        failed = self.streams.change(found, self.config.drain_s)
        # After `change`: once `applied` has the number, `changing` must be true until the change is complete.
        self.config, self.applied = config, number
        self._scene.change(config)
        switching.choose(len(config.streams))
        for sink in self.sinks:
            sink.set_streams(config.streams)
        self._reloads.applied(found, len(config.streams), failed=failed)

    def run(self, for_seconds: float | None = None, *, handle_signals: bool = True) -> int:
        """Runs until stopped, until every stream has ended, or for the given number of seconds; then drains.

        Returns:
            The exit code: 0, or that of the error that ended the run.
        """
        if handle_signals:
            self._service.listen()
            if self.recorder is not None:
                self.recorder.listen()
        interval = switching.choose(len(self.config.streams))
        try:
            self._start()
            self._wait(for_seconds)
            return self._finish()
        except BaseException as error:
            self._record_crash(error)
            self._close_recorder()
            raise
        finally:
            sys.setswitchinterval(interval)

    def _start(self) -> None:
        for sink in self.sinks:
            sink.start()
        for instance in self.instances:
            instance.pipeline.start()
        self._scene.start()
        self.streams.start()
        self._condition.started = True
        first = self.instances[0]
        log.info(
            "running", streams=len(self.streams), sinks=len(self.sinks), model=first.model.name, boot_id=self.boot_id,
            backend=first.backend.title, devices=len(self.instances),
            metrics_port=self.http.port if self.http else None, outputs=outputs_of(self.config),
            **urls_of(self.config.metrics, self.http),
        )  # fmt: skip
        self._service.begun(f"watching {len(self.streams)} streams")

    def _wait(self, for_seconds: float | None) -> None:
        deadline = None if for_seconds is None else time.monotonic() + for_seconds
        next_heap = time.monotonic()
        while not self._condition.over:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return
            self._service.beat(now)
            if now >= next_heap:
                heap.trim()
                next_heap = now + heap.TRIM_S
            if self.companion is not None:
                self.companion()
            self._reloads.step()
            self.streams.tick()
            self._scene.tick(now)
            self._events.alive(self.seen())
            self._progress.look(now)
            if self.recorder is not None:
                self.recorder.beat()
            tick = _QUICK_TICK_S if self.streams.changing or self.streams.sealed else _TICK_S
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=tick if deadline is None else min(tick, max(0.0, deadline - now)))
                while True:
                    self._wake.get_nowait()
            if self._service.stopping:
                return

    def _finish(self) -> int:
        """Stops the sources, finishes work in flight and flushes the sinks: all within `drain_s`."""
        self._service.ending()
        if self.recorder is not None:
            self.recorder.rest()
        drain = Drain(self.config.drain_s)
        deferred.hold()
        self.streams.stop()
        stages_by = drain.stages_by()
        drained = [instance.pipeline.join(max(0.0, stages_by - time.monotonic())) for instance in self.instances]
        if not all(drained):
            log.error("drain timed out; frames in flight are lost", limit_s=self.config.drain_s)
            self._left_running = True
        if not self.streams.join(drain.deadline):
            self._left_running = True
        self._close_all(drain.outputs_s())
        for s in self.metrics.streams():
            log.info(
                "stream summary", stream=s.stream, received=s.received, published=s.published, dropped=s.dropped or None
            )
        return self._condition.exit_code()

    @property
    def left_running(self) -> bool:
        """True if a thread could not be ended: the process must exit without waiting for it."""
        return self._left_running

    def _close_all(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._left_running |= not self._scene.close(timeout, left_running=self._left_running)
        if self._otlp is not None:
            self._otlp.close()
        if not close_outputs(self._events if self._own_events else None, self.sinks, self._tap, self.http, deadline):
            self._left_running = True
        self._left_running |= not deferred.finish(deadline)
        if not self._left_running:
            for instance in self.instances:
                instance.close()
        self._close_recorder()
        self._notifier.close()

    def _close_recorder(self) -> None:
        if self.recorder is not None:
            self.recorder.close(_BUNDLE_S)
