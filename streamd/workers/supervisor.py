"""The parent: starts the workers, publishes their detections, reports their state, and restarts those that died."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from streamd.config import Config
from streamd.errors import NO_ROOM, BackendError, ConfigError, ModelError, SourceError
from streamd.runtime import heap
from streamd.runtime.drain import Drain
from streamd.runtime.health import health_of, ready_of
from streamd.runtime.otlp import OtlpExporter
from streamd.runtime.progress import OpeningProgress
from streamd.runtime.recorder.place import config_name
from streamd.runtime.recorder.request import of_workers
from streamd.runtime.reload import Reloads, Reread, difference
from streamd.runtime.service import Service, condition_of, outputs_of, status_line
from streamd.settings import FieldPath
from streamd.telemetry.evidence import MediaMetrics
from streamd.telemetry.http import HttpServer
from streamd.telemetry.logs import recent
from streamd.telemetry.metrics import Metrics
from streamd.telemetry.notify import Notifier
from streamd.types import StreamStatus
from streamd.web.port import open_port, urls_of
from streamd.web.tap import Tap
from streamd.workers.assignment import Assignment
from streamd.workers.channels import Channels
from streamd.workers.ledger import Ledger
from streamd.workers.merge import Merged
from streamd.workers.mps import Mps
from streamd.workers.process import WorkerProcess, ending, reap
from streamd.workers.report import origin_of
from streamd.workers.share import devices_of

log = structlog.get_logger(__name__)

GIVE_UP = 5
"""A worker that dies this many times in a row before it is up ends the daemon: something it needs is missing."""
LEAST_SILENCE_S = 5.0
"""Tolerance for a worker that reports once a second."""
_TICK_MS = 100


class WorkerSupervisor:
    """One running configuration with `workers` above 1. Used as `Daemon`.

    Args:
        config: checked.
        notifier: the service manager.
        reread: reads the configuration file again when SIGHUP asks for it; installed by the caller.

    Raises:
        StreamdError: a sink or the metrics port cannot be opened; everything opened before is closed again.
    """

    def __init__(
        self,
        config: Config,
        *,
        notifier: Notifier | None = None,
        reread: Reread | None = None,
    ) -> None:
        self.config = config
        self.boot_id = uuid.uuid4().hex[:16]
        self.registry = CollectorRegistry()
        """What the metrics port shows."""
        self.http: HttpServer | None = None
        self.left_running = False
        """True if a thread could not be ended: the process must exit without waiting for it."""
        own = CollectorRegistry()
        self.metrics = Metrics(own)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=own)
        self._notifier = notifier or Notifier()
        self._name = config_name(reread.path) if reread is not None else "streamd"
        self._service = Service(
            self._notifier, self._problem, self._status_line, reread=reread, at_once=self._leave_at_once
        )
        self._reloads = Reloads(self, self.metrics, self._service)
        self.workers = [WorkerProcess(number) for number in range(len(devices_of(config)))]
        for worker in self.workers:
            self.metrics.worker_restarts.labels(worker=str(worker.number))
            self.metrics.worker_up.labels(worker=str(worker.number)).set_function(partial(getattr, worker, "up"))
        self._channels = Channels(self._name, self.boot_id)
        self._events = self._channels.events
        self._ledger = Ledger(self._channels.forwarders)
        self._assigned = Assignment(config, self._name, self.boot_id, self._channels, self._ledger)
        Merged(
            self.registry, own, lambda: [w.report for w in self.workers if w.report is not None],
            lambda: self._assigned.homes,
        )  # fmt: skip
        MediaMetrics(own, self._events.media_counts)
        self._progress = OpeningProgress(lambda: (s.state for s in self._statuses()))
        self._tap: Tap | None = None
        self._started = False
        self._next: Config | None = None
        """The second half of a reload: streams that have left one worker and move to another."""
        self._failed_with: int | None = None
        """The exit code of the worker that ended the daemon."""
        self._otlp: OtlpExporter | None = None
        self._mps = Mps(self._channels.path, wanted=config.engine.shares_gpu)
        try:
            self._open()
        except BaseException:
            self._close(1.0)
            raise

    def _open(self) -> None:
        config = self.config
        heap.limit_arenas()
        self.http, self._tap = open_port(
            config.metrics, self.registry, self.health, self.ready, statuses=self._statuses, boot_id=self.boot_id,
            streams=lambda: self.config.streams, journal=lambda: self._events.journal,
            settings=lambda: self.config.model_dump(mode="json"),
            bundles=lambda: of_workers(self.config.recorder, self._name),
        )  # fmt: skip
        if config.otlp is not None:
            # Workers trace their own frames.
            exported = config.otlp.model_copy(update={"traces_every_s": 0})
            self._otlp = OtlpExporter(exported, self.boot_id, self.registry, self.metrics.otlp_exports)
        self._channels.open(config, self.metrics, self._tap)
        self._mps.open()

    # -------------------------------------------------------------------------------------------- health and readiness

    def _statuses(self) -> list[StreamStatus]:
        return self._ledger.statuses(s.id for s in self.config.streams)

    def _silent_s(self) -> float:
        return max(self.config.stall_s, LEAST_SILENCE_S)

    def _problem(self) -> str | None:
        problems = (worker.problem(self._silent_s()) for worker in self.workers)
        return next((problem for problem in problems if problem is not None), None)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """See `Daemon.health`. A worker that died is restarted, which is not a problem of the daemon."""
        problem = self._problem()
        told = (worker.media_problem for worker in self.workers)
        media = next((each for each in told if each is not None), None) or self._events.media_problem
        return problem is None, health_of(
            problem, self.boot_id, self._channels.forwarders, self._events.problem, self._statuses(), media
        )

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """See `Daemon.ready`; in addition, every worker that has streams must be up."""
        statuses = self._statuses()
        over = len(statuses) == len(self.config.streams) and all(self._ledger.over(s.stream) for s in statuses)
        up = all(worker.settled for worker in self.workers if self._assigned.of(worker))
        seen = any(s.id in self._ledger.live_seen for s in self.config.streams) or over
        workers = {str(worker.number): "up" if worker.up else "down" for worker in self.workers if worker.running}
        ok = self._started and up and seen and self._problem() is None
        body = ready_of(ok, statuses, self._channels.forwarders, workers=workers)
        return body["ready"], body

    def _at_work(self, stream: str) -> bool:
        worker = self.workers[self._assigned.shares[stream]]
        return worker.running and stream in worker.streams

    def _launch(self, worker: WorkerProcess) -> None:
        try:
            self._mps.revive()
            worker.start(self._assigned.first_order(worker, self.config), self._mps.environment)
        except OSError as error:
            if not self._started:
                raise BackendError(f"worker {worker.number}: cannot be started: {error.strerror}") from error
            delay = worker.died(self._assigned.of(worker), counted=False)
            log.error(
                "worker cannot be started now", worker=worker.number, error=error.strerror, retry_in_s=round(delay, 3)
            )
            return
        log.info("worker started", worker=worker.number, pid=worker.pid, streams=len(self._assigned.of(worker)))

    # ------------------------------------------------------------------------------------------------- reload

    @property
    def changing(self) -> bool:
        """See `Reconfigured.changing`."""
        return self._next is not None or any(worker.busy for worker in self.workers)

    def admit(self, config: Config, where: Callable[[FieldPath], str]) -> None:
        """See `Reconfigured.admit`."""
        self._channels.open_events(config)

    def take_on(self, config: Config, number: int) -> None:
        """See `Reconfigured.take_on`. Streams that move from one worker to another do so in a second step."""
        found = difference(self.config, config)
        begun = {settings.id for settings in (*found.added, *found.changed)}
        shares, moved = self._assigned.next(config)
        failed = [s.id for s in config.streams if self._ledger.failed(s.id) and s.id not in begun]
        self._ledger.remove(s for s in found.removed if not self._at_work(s))
        for worker in self.workers:
            worker.revive_streams(begun.union(failed, found.removed))
        self._next = config if moved else None
        self._order_all(config, {s: number for s, number in shares.items() if s not in moved})
        self._channels.set_streams(config.streams)
        self._reloads.applied(found, len(config.streams), failed=failed, moved=moved)

    def _order_all(self, config: Config, shares: dict[str, int]) -> None:
        streams = tuple(s for s in config.streams if s.id in shares)
        self.config, self._assigned.shares = config.model_copy(update={"streams": streams}), shares
        for worker in self.workers:
            if worker.running:
                worker.order(self._assigned.order(worker, self.config, worker.life))
            elif worker.can_start and self._assigned.of(worker):
                self._launch(worker)
        self._assigned.arrive()

    def _move_streams(self) -> None:
        """The second half of a reload, once the first one is complete."""
        if self._next is not None and not any(worker.busy for worker in self.workers):
            config, self._next = self._next, None
            self._order_all(config, self._assigned.move(config))

    # ------------------------------------------------------------------------------------------------------- run

    def stop(self) -> None:
        """Requests a drain; `run` returns when it is complete. Any thread, and signal handlers."""
        self._service.stop()

    def _leave_at_once(self) -> None:
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.kill("stopped at once")
        self._mps.kill()
        self._channels.remove()

    def run(self, for_seconds: float | None = None, *, handle_signals: bool = True) -> int:
        """See `Daemon.run`."""
        if handle_signals:
            self._service.listen()
        try:
            self._channels.start()
            for worker in self.workers:
                if self._assigned.of(worker):
                    self._launch(worker)
            self._wait(for_seconds)
        finally:
            code = self._finish()
        return code

    def _wait(self, for_seconds: float | None) -> None:
        deadline: float | None = None
        next_trim = time.monotonic() + heap.TRIM_S
        while not self._service.stopping and self._failed_with is None and not self._over():
            self._receive()
            now = time.monotonic()
            self._look_after(now)
            if now >= next_trim:
                next_trim = now + heap.TRIM_S
                heap.trim()  # what subscribers that have left had asked for, for example
            if not self._started:
                if all(worker.settled for worker in self.workers if self._assigned.of(worker)):
                    self._begun()
                    deadline = now + for_seconds if for_seconds is not None else None
                continue
            if deadline is not None and now >= deadline:
                return
            self._service.beat(now)
            self._progress.look(now)
            self._move_streams()
            self._reloads.step()

    def _begun(self) -> None:
        self._started = True
        log.info(
            "running", streams=len(self.config.streams), sinks=len(self._channels.forwarders), boot_id=self.boot_id,
            workers=sum(worker.running for worker in self.workers), metrics_port=self.http.port if self.http else None,
            outputs=outputs_of(self.config), **urls_of(self.config.metrics, self.http),
        )  # fmt: skip
        self._service.begun()

    def _status_line(self) -> str:
        published = self._ledger.published(s.id for s in self.config.streams)
        up, all_ = sum(worker.up for worker in self.workers), sum(bool(self._assigned.of(w)) for w in self.workers)
        states = map(condition_of, self._statuses())
        return status_line(states, published, self._reloads.refused, f"{up} of {all_} workers up")

    def _receive(self, timeout_ms: int = _TICK_MS) -> None:
        homes = self._assigned.homes
        for report in self._channels.receive(timeout_ms):
            if self.workers[report.worker].take(report):
                recent.pass_on(report.life, report.log)
                self._events.alive(report.seen)
                self._ledger.take(report, lambda s, number=report.worker: homes.get(s) == number)  # type: ignore[misc]

    def _look_after(self, now: float) -> None:
        for worker in self.workers:
            worker.flush()
            if self._tap is not None:
                worker.look(self._tap.wanted)
            if (code := worker.poll()) is not None:
                self._receive(50)  # its last report
                self._ended(worker, code)
            elif (problem := worker.hangs(self._silent_s(), self.config.drain_s)) is not None and not worker.killed:
                log.error("killing a hanging worker", worker=worker.number, pid=worker.pid, problem=problem)
                worker.kill(problem)
            elif worker.due(now):
                self.metrics.worker_restarts.labels(worker=str(worker.number)).inc()
                self._launch(worker)

    def _ended(self, worker: WorkerProcess, code: int) -> None:
        life, mine = worker.life, self._assigned.of(worker)
        if code in (0, SourceError.exit_code):
            # Its streams had ended. A reload may have given it new ones at the last moment.
            begun = [s for s in mine if (s in worker.streams if worker.applied else self._ledger.over(s))]
            self._ledger.finish(life, begun)
            worker.end_streams(begun)
            worker.finished(code)
            if self._assigned.of(worker):
                self._launch(worker)
            return
        self._channels.lost(origin_of(self.boot_id, life), self._assigned.last_of(worker))
        worker.end_streams(s for s in mine if self._ledger.over(s))
        lost = [s for s in mine if s not in worker.over]
        how = f"worker {worker.number} {ending(code)}"
        delay = worker.died(lost, counted=code != NO_ROOM)
        # An invalid model or configuration fails again; but while another worker runs with the same one, for example
        # because the model's file is being replaced, that worker must not end for it.
        alone = not any(other.up for other in self.workers if other is not worker)
        wrong = alone and code in (ConfigError.exit_code, ModelError.exit_code)
        # One that fails before all have started does so again, most likely; one that hung may not.
        fatal = wrong or not (self._started or worker.killed) or worker.deaths >= GIVE_UP
        log.error(
            "worker died", worker=worker.number, how=ending(code), killed_because=worker.killed or None,
            streams=len(lost), retry_in_s=None if fatal else round(delay, 3), deaths_in_a_row=worker.deaths or None,
        )  # fmt: skip
        self._ledger.finish(life, worker.over)
        self._ledger.lose(life, lost, f"{how}; it is being restarted", round(delay, 3))
        if fatal:
            worker.give_up()
            self._failed_with = code if code > 0 else BackendError.exit_code
        elif not lost:
            worker.finished(0)

    def _over(self) -> bool:
        """Every stream has ended."""
        return not any(self._assigned.of(worker) for worker in self.workers) and self._next is None

    # ------------------------------------------------------------------------------------------------------- end

    def _finish(self) -> int:
        """Drains the workers, passes on what they have published, and flushes the sinks: all within `drain_s`."""
        self._service.ending()
        drain = Drain(self.config.drain_s)
        for worker in self.workers:
            worker.drain()
        codes = reap(self.workers, drain.workers_by, lambda: self._receive(20))
        self._close(drain.outputs_s())
        if self._failed_with is not None:
            return self._failed_with
        bad = [code for code in codes if code not in (0, SourceError.exit_code)]
        if bad:
            return bad[0] if bad[0] > 0 else BackendError.exit_code
        codes += [worker.code for worker in self.workers if worker.code is not None]
        return SourceError.exit_code if codes and all(codes) else 0

    def _close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        if self._otlp is not None:
            self._otlp.close()
        if not self._channels.close(self._tap, self.http, deadline):
            self.left_running = True
        self._mps.close(max(0.5, deadline - time.monotonic()))
        self._channels.remove()
        self._notifier.close()
