"""A worker as its parent sees it: a process that is started, ordered, and looked after."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import msgspec
import structlog

import streamd
from streamd.flow.backoff import Backoff
from streamd.web.tap import Wish
from streamd.workers.merge import of_the_dead
from streamd.workers.report import Look, Order, Report

log = structlog.get_logger(__name__)

RETRY_INITIAL_S, RETRY_MAX_S = 0.5, 30.0
STEADY_S = 10.0
"""A worker that was up for this long has recovered: it is started again soon the next time."""
KILL_S = 2.0
"""From SIGKILL to the end of a process at most."""


class WorkerProcess:
    """One worker. Its methods never wait.

    Args:
        number: of the worker, from 0.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.life = 0
        """Number of the running process among all of the fleet; 0 while there is none."""
        self.report: Report | None = None
        """The newest, or what is still true of the last one."""
        self.up = False
        """It has told that all its parts run."""
        self.sent = self.done = 0
        """Numbers of the newest order, and of the newest that was carried out."""
        self.streams: frozenset[str] = frozenset()
        """What the newest order names."""
        self.over: set[str] = set()
        """Its streams that have come to their end: they are not begun again with the process."""
        self.code: int | None = None
        """How the last process ended, where it came to its end by itself."""
        self.deaths = 0
        """In a row without being up once."""
        self.start_at: float | None = None
        """Monotonic seconds; None where nothing is to be started."""
        self.killed = ""
        """Why it was killed by us."""
        self._backoff = Backoff(RETRY_INITIAL_S, RETRY_MAX_S)
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self._up_at = self._heard_at = 0.0
        self._bad_since: float | None = None
        self._wanted: Mapping[str, Wish] = {}

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Of the process, where there is one."""
        return self._process.pid if self._process is not None else None

    def start(self, order: Order, environment: Mapping[str, str] | None = None) -> None:
        """Starts a process.

        Args:
            order: its first.
            environment: variables besides our own.

        Raises:
            OSError: the system has no room for another.
        """
        command = [sys.executable, "-m", "streamd.workers.child", str(self.number)]
        if sys.version_info >= (3, 11) and Path(streamd.__file__).parent.parent != Path.cwd():
            command.insert(1, "-P")  # as the `streamd` command: nothing is imported from the working directory
        # Our own interpreter and a number.
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, start_new_session=True, env=os.environ | (environment or {})
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self.life, self.up, self.done, self.code, self.start_at, self.killed = order.life, False, 0, None, None, ""
        self._pending, self._bad_since, self._wanted = b"", None, {}
        self.order(order)

    def order(self, order: Order) -> None:
        """Sends an order; what the pipe does not take now goes out in `flush`."""
        self.sent = order.number
        self.streams = frozenset(stream["id"] for stream in order.config["streams"])
        self._send(order)

    def look(self, wanted: Mapping[str, Wish]) -> None:
        """Tells which pictures are wanted, where that is new to it; a worker that does not read is not told."""
        if self.up and self._wanted is not wanted and not self._pending:
            self._wanted = wanted
            self._send(Look({stream: wish for stream, wish in wanted.items() if stream in self.streams}))

    def _send(self, line: Order | Look) -> None:
        self._pending += msgspec.json.encode(line) + b"\n"
        self.flush()

    def flush(self) -> None:
        """Goes on sending."""
        if not self._pending or self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._pending:
                self._pending = self._pending[os.write(self._process.stdin.fileno(), self._pending) :]

    def take(self, report: Report) -> bool:
        """Takes note of a report; False where it is of a process that is gone."""
        if report.life != self.life:
            return False
        self._heard_at = time.monotonic()
        self.report, self.done = report, max(self.done, report.order)
        if not self.up:
            self.up, self.deaths, self._up_at = True, 0, self._heard_at
        return True

    @property
    def result(self) -> int | None:
        """The exit code of a process that has published everything and is about to leave; else None.

        Where it has hundreds of decoders the kernel takes seconds to free them.
        """
        report = self.report
        return report.code if report is not None and report.life == self.life else None

    def problem(self, silent_s: float) -> str | None:
        """What the watchdog holds against it: a stage that hangs, or nothing heard for `silent_s` seconds."""
        if not self.running or not self.up or self.result is not None:
            return None
        said = self.report.problem if self.report is not None else None
        if said is None and time.monotonic() - self._heard_at > silent_s:
            said = f"has told nothing for {silent_s:g} s"
        self._bad_since = None if said is None else self._bad_since or time.monotonic()
        return f"worker {self.number}: {said}" if said is not None else None

    def hangs(self, silent_s: float, grace_s: float) -> str | None:
        """A problem that has lasted for `grace_s`: a worker whose stage failed ends by itself, and this one has not."""
        problem = self.problem(silent_s)
        lasting = self._bad_since is not None and time.monotonic() - self._bad_since > grace_s
        return problem if lasting else None

    def poll(self) -> int | None:
        """The exit code of a process that has ended, once; negative for a signal."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        self._close()
        self.life = 0
        return code

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process = None

    def died(self, lost: Collection[str]) -> float:
        """It is to be started again; returns in how many seconds."""
        if not self.up:
            self.deaths += 1
        elif time.monotonic() - self._up_at >= STEADY_S:
            self._backoff.reset()
        delay = self._backoff.next()
        self.start_at = time.monotonic() + delay
        self._retire(lost)
        return delay

    def finished(self, code: int) -> None:
        """It came to its end because its streams had."""
        self.code = code
        self._retire(())

    def _retire(self, lost: Collection[str]) -> None:
        self.up = False
        if self.report is not None:
            self.report = of_the_dead(self.report, lost)

    def drain(self) -> None:
        """Asks it to publish what it has captured and to end."""
        self.start_at = None
        if self._process is not None and self._process.stdin is not None:
            self.flush()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.stdin = None

    def kill(self, reason: str) -> None:
        """Ends it at once."""
        if self._process is not None and not self.killed:
            self.killed = reason
            self._process.send_signal(signal.SIGKILL)


def reap(workers: Iterable[WorkerProcess], deadline: float, look: Callable[[], None]) -> list[int]:
    """Waits until every worker has ended, and kills those that run at the deadline.

    Args:
        workers: asked to drain before.
        deadline: monotonic seconds.
        look: called over and over meanwhile; it is to wait a little.

    Returns:
        The exit codes of those that ended by themselves.
    """
    codes: list[int] = []
    left = [worker for worker in workers if worker.running]
    while left and time.monotonic() < deadline + KILL_S:
        look()
        if time.monotonic() >= deadline:
            for worker in list(left):
                if worker.result is not None:
                    left.remove(worker)
                    codes.append(worker.result)
                    continue
                if not worker.killed:
                    log.error("worker could not be drained in time", worker=worker.number, pid=worker.pid)
                worker.kill("not drained in time")
        for worker in list(left):
            if (code := worker.poll()) is not None:
                left.remove(worker)
                if not worker.killed:
                    codes.append(code)
    return codes


def ending(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
