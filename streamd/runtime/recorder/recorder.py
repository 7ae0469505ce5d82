"""The running recorder: samples once a second, looks for breaches, and writes bundles on its own thread."""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from streamd import __version__
from streamd.config import RecorderSettings
from streamd.errors import BackendError, StreamdError
from streamd.runtime.recorder import bundle, facts
from streamd.runtime.recorder.breaches import Breaches, Reason, Watched
from streamd.runtime.recorder.memory import LOG, PROCESS, STATUS, Memory, left_behind, read_left_behind
from streamd.runtime.recorder.place import config_name, default_folder, pid_file
from streamd.runtime.recorder.request import PATIENCE_S, written
from streamd.settings.places import unwritable_folder
from streamd.telemetry import logs
from streamd.telemetry.streams import STATES
from streamd.types import Detections, StreamStatus

log = structlog.get_logger(__name__)

GAP_S = 300.0
"""Minimum time between two bundles of the same reason, also across restarts. Requested bundles are not limited."""
PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class _Trigger:
    reason: Reason
    detail: str
    traceback: str = ""


def _traceback(error: BaseException | None) -> str:
    return "".join(traceback.format_exception(error)) if error is not None else ""


class Recorder:
    """Records, and writes a bundle when something fails. Nothing it does can make the daemon fail.

    Args:
        folder: where bundles are written.
        seconds: how much history is kept.
        keep: most bundles of this configuration in the folder; the oldest are removed.
        config: the configuration's name.
        boot_id: of the process.
        watched: the daemon.
        watchdog_s: the service manager's limit, or None.
        runtime: a folder in memory that outlives the process, or None.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seconds: float,
        keep: int,
        config: str,
        boot_id: str,
        watched: Watched,
        watchdog_s: float | None = None,
        runtime: Path | None = None,
    ) -> None:
        self._folder, self._seconds, self._keep, self._config = folder, seconds, keep, config
        self._watched = watched
        self._runtime = runtime
        self._left = left_behind(runtime) if runtime is not None else []
        header = {
            "config": config,
            "pid": os.getpid(),
            "boot_id": boot_id,
            "version": __version__,
            "started": time.time(),
        }
        self.memory = Memory(header, seconds, runtime)
        self.frame: Callable[[Detections], None] = self.memory.frame
        """Call this for every published frame. Any thread."""
        self._breaches = Breaches(watched, watchdog_s)
        self._triggers: queue.SimpleQueue[_Trigger] = queue.SimpleQueue()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._failed = False
        self._closing = False
        self._listening = False
        self._pid_file: int | None = None
        # A daemon thread: a hanging disk must not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Starts the thread, and listens to logs (which include uncaught exceptions) and to statuses."""
        logs.listen(self._on_log)
        self._watched.board.listen(self._on_status)
        if (problem := unwritable_folder(self._folder)) is not None:
            log.warning("bundles cannot be written", problem=problem)
        self._take_pid_file()
        self._thread.start()

    def _take_pid_file(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            bundle.remove_unfinished(self._folder, self._config)
            file = os.open(pid_file(self._folder, self._config), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.truncate(file, 0)
                os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
            except OSError:
                os.close(file)
                raise
            self._pid_file = file

    def listen(self) -> None:
        """Makes SIGUSR2 write a bundle, however busy the main thread is. Main thread only."""
        signal.signal(signal.SIGUSR2, lambda *_: None)
        # The C handler writes the signal number at once; a Python handler has to wait for the main thread.
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        self._listening = True

    def beat(self) -> None:
        """Reports that the main loop is alive. Call it at every tick from the start of the loop."""
        self._breaches.beat = time.monotonic()

    def rest(self) -> None:
        """Reports that the main loop ended normally."""
        self._breaches.beat = None

    def trigger(self, reason: Reason, detail: str, error: BaseException | None = None) -> None:
        """Requests a bundle; returns at once. Any thread."""
        self._put(_Trigger(reason, detail, _traceback(error)))

    def crash(self, error: BaseException) -> None:
        """Requests a bundle for an error that the operator cannot fix."""
        expected = isinstance(error, StreamdError) and not isinstance(error, BackendError)
        if isinstance(error, Exception) and not expected:
            self.trigger("exception", f"{type(error).__name__}: {error}", error)

    def request(self, detail: str, timeout_s: float = PATIENCE_S) -> list[Path]:
        """Writes a bundle, and waits for it. Any thread but the recorder's own.

        Raises:
            SinkError: it was not written in time.
        """
        pids = {self._config: os.getpid()}
        return list(written(self._folder, pids, lambda: self.trigger("request", detail), timeout_s))

    def _put(self, trigger: _Trigger) -> None:
        self._triggers.put(trigger)
        self._poke()

    def _poke(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_w, b"\0")

    def close(self, timeout: float) -> None:
        """Writes requested bundles, then stops. Waits at most `timeout` seconds for a hanging disk. Idempotent."""
        if self._closing:
            return
        self._closing = True
        logs.listen(None)
        self._watched.board.listen(None)
        if self._listening:
            signal.set_wakeup_fd(-1)
            ignore_request()
        self._poke()
        if self._thread.is_alive():
            self._thread.join(timeout)
        if not self._thread.is_alive():
            os.close(self._wake_r)
            os.close(self._wake_w)
        self.memory.close()
        if self._pid_file is not None:
            with contextlib.suppress(OSError):
                pid_file(self._folder, self._config).unlink(missing_ok=True)
            os.close(self._pid_file)
            self._pid_file = None

    def _on_log(self, event: MutableMapping[str, Any]) -> None:
        self.memory.note(LOG, event)
        if event.get("level") == "critical":
            text = str(event.get("exception", ""))
            last = text.strip().rpartition("\n")[2]
            self._put(_Trigger("exception", f"thread {event.get('thread')}: {last or event.get('event')}", text))

    def _on_status(self, status: StreamStatus) -> None:
        values = {"stream": status.stream, "state": status.state, "reason": status.reason, "detail": status.detail,
                  "epoch": status.epoch, "retry_in_s": status.retry_in_s}  # fmt: skip
        self.memory.note(STATUS, logs.Redactor().clean(values))

    def _run(self) -> None:
        self._report_left_behind()
        due = time.monotonic()
        while not self._closing:
            try:
                due = self._step(due)
            except Exception:  # whatever it is, recording must not harm the daemon
                log.exception("flight recorder: a step failed")
                due = time.monotonic() + PERIOD_S
        with contextlib.suppress(Exception):
            self._look(time.monotonic())  # a stage that failed a moment ago
        self._write_all()

    def _step(self, due: float) -> float:
        ready, _, _ = select.select([self._wake_r], [], [], max(0.0, due - time.monotonic()))
        if ready:
            with contextlib.suppress(BlockingIOError):
                if signal.SIGUSR2 in os.read(self._wake_r, 4096):
                    self._triggers.put(_Trigger("request", "SIGUSR2 was received"))
        if self._closing:
            return due
        now = time.monotonic()
        if now >= due:
            due = max(due + PERIOD_S, now + PERIOD_S / 2)
            self._sample()
            self._breaches.count()
            self._look(now)
        self._write_all()
        return due

    def _look(self, now: float) -> None:
        for breach in self._breaches.begun(now):
            self._triggers.put(_Trigger(breach.reason, breach.detail, _traceback(breach.error)))

    def _sample(self) -> None:
        memory, metrics = self.memory, self._watched.metrics
        memory.set_clock()
        queues = {s.labels["queue"]: s.value for family in metrics.queue_depth.collect() for s in family.samples}
        at_ns = time.monotonic_ns()
        for s in metrics.streams():
            if s.removed:
                memory.forget(s.stream)
                continue
            memory.keep(s.stream)
            counts = s.counts()
            held, missed = s.objective() if s.objective_s is not None else (0, 0)
            totals = (counts.received, counts.published, sum(counts.dropped.values()), held, missed)
            waiting = int(queues.pop(f"stream-{s.stream}", 0))
            memory.stream(s.stream, at_ns, totals, STATES.index(s.state), waiting, counts.reconnects)
        in_flight = sum(x.value for family in metrics.slots_in_flight.collect() for x in family.samples)
        memory.note(PROCESS, {**facts.process(), "queues": queues, "in_flight": in_flight})

    def _report_left_behind(self) -> None:
        for path in self._left:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                record = read_left_behind(path)
                if record.header.get("config") != self._config:
                    continue  # another worker's: its replacement reports it
                started = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.header["started"]))
                detail = (
                    f"process {record.header['pid']}, started {started} UTC, ended without closing: a fatal signal, "
                    "SIGKILL (out of memory, watchdog) or a second SIGTERM; the journal has the stacks, if any. "
                    "environment.json and config.json describe its successor"
                )
                self._write(_Trigger("killed", detail), record)
            path.unlink(missing_ok=True)

    def _write_all(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._write(self._triggers.get_nowait())

    def _recent(self, reason: Reason) -> bool:
        now_ns = time.time_ns()  # the newest may be of a wrong clock
        found = bundle.bundles(self._folder, self._config, reason)
        return any(abs(now_ns - bundle.modified_ns(path)) < GAP_S * 1e9 for path in found)

    def _write(self, trigger: _Trigger, record: Any = None) -> None:
        """Writes one bundle, unless it is too soon."""
        if trigger.reason != "request" and self._recent(trigger.reason):
            log.warning(
                "breach; no bundle: too soon after the previous one", reason=trigger.reason, detail=trigger.detail
            )
            return
        begin = time.monotonic()
        try:
            if record is None:
                self._sample()  # the state at this moment
            path = bundle.write(
                self._folder,
                record or self.memory.read(),
                config=self._config,
                reason=trigger.reason,
                detail=trigger.detail,
                settings=self._watched.settings(),
                seconds=self._seconds,
                traceback=trigger.traceback,
                live=record is None,
            )
        except Exception as error:  # noqa: BLE001 - a full disk, no memory: the daemon continues
            if not self._failed:
                folder = str(self._folder)
                log.error("bundle could not be written", reason=trigger.reason, folder=folder, error=str(error))
            self._failed = True
            return
        self._failed = False
        bundle.tidy(self._folder, self._config, self._keep, path)
        self._watched.metrics.bundles.labels(reason=trigger.reason).inc()
        told = log.info if trigger.reason == "request" else log.warning
        took = round(time.monotonic() - begin, 3)
        told("bundle written", reason=trigger.reason, detail=trigger.detail, path=str(path), seconds=took)


def open_recorder(
    settings: RecorderSettings,
    *,
    path: str | os.PathLike[str] | None,
    boot_id: str,
    watched: Watched,
    watchdog_s: float | None,
    environment: Mapping[str, str] = os.environ,
) -> Recorder | None:
    """Starts the recorder that a configuration requests; None if nothing is to be recorded.

    Args:
        settings: the configuration's.
        path: the configuration file, if there is one; bundles are named after it.
        boot_id: of the process.
        watched: the daemon.
        watchdog_s: the service manager's limit, or None.
        environment: environment variables, for the service manager's folders.
    """
    folder = Path(settings.folder) if settings.folder is not None else default_folder(environment)
    if folder is None or settings.keep == 0:
        return None
    runtime = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
    recorder = Recorder(
        folder,
        seconds=settings.seconds,
        keep=settings.keep,
        config=config_name(path or "streamd"),
        boot_id=boot_id,
        watched=watched,
        watchdog_s=watchdog_s,
        runtime=Path(runtime) if runtime else None,
    )
    recorder.start()
    return recorder


def ignore_request() -> None:
    """Keeps SIGUSR2 from ending the process before `listen`, or if nothing is recorded. Main thread only."""
    signal.signal(
        signal.SIGUSR2, lambda *_: sys.stderr.write("streamd: no bundle: the flight recorder is not running (yet)\n")
    )
