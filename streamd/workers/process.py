"""A worker as seen by its parent: a process that is started, given orders, and supervised."""

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
from streamd.security.trust import is_working_directory
from streamd.web.tap import Wish
from streamd.workers.merge import of_the_dead
from streamd.workers.report import Look, Order, Report

log = structlog.get_logger(__name__)

RETRY_INITIAL_S, RETRY_MAX_S = 0.5, 30.0
STEADY_S = 10.0
"""A worker that was up for this long has recovered: its next restart starts with the shortest delay again."""
KILL_S = 2.0
"""Longest time from SIGKILL to the end of a process."""


class WorkerProcess:
    """One worker. Its methods never wait.

    Args:
        number: number of the worker, from 0.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.life = 0
        """Serial number of the running process among all workers' processes; 0 while there is none."""
        self.report: Report | None = None
        """The latest report, or what still holds of the last one."""
        self.up = False
        """Whether it has reported that all its parts run."""
        self.sent = self.done = 0
        """Numbers of the latest order, and of the latest one that was carried out."""
        self.streams: frozenset[str] = frozenset()
        """Streams named in the latest order."""
        self.over: set[str] = set()
        """Its streams that have ended: they are not restarted with the process."""
        self.code: int | None = None
        """How the last process ended, if it ended by itself."""
        self.deaths = 0
        """Consecutive failures without being up."""
        self.start_at: float | None = None
        """When to start the next process, in monotonic seconds; None if none is to be started."""
        self.killed = ""
        """Why we killed it."""
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
        if sys.version_info >= (3, 11) and not is_working_directory(Path(streamd.__file__).parent.parent):
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
        """Sends an order; the part that the pipe does not accept now is sent by `flush`."""
        self.sent = order.number
        self.streams = frozenset(stream["id"] for stream in order.config["streams"])
        self._send(order)

    def look(self, wanted: Mapping[str, Wish]) -> None:
        """Sends which pictures are wanted, if that has changed; skipped for a worker that does not read."""
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
        """Processes a report; False if it is from a process that has ended."""
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
        """Why the watchdog must not be fed: a stage hangs, or no report for `silent_s` seconds."""
        if not self.running or not self.up or self.result is not None:
            return None
        said = self.report.problem if self.report is not None else None
        if said is None and time.monotonic() - self._heard_at > silent_s:
            said = f"has not reported for {silent_s:g} s"
        self._bad_since = None if said is None else self._bad_since or time.monotonic()
        return f"worker {self.number}: {said}" if said is not None else None

    def hangs(self, silent_s: float, grace_s: float) -> str | None:
        """A problem that has lasted for `grace_s`: a worker whose stage failed ends by itself, but this one has not."""
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

    def died(self, lost: Collection[str], *, counted: bool = True) -> float:
        """Schedules a restart; returns the delay in seconds.

        Args:
            lost: streams that were with it.
            counted: False if it is no fault of its own: the system has no room for a process at the moment.
        """
        if not self.up and counted:
            self.deaths += 1
        elif time.monotonic() - self._up_at >= STEADY_S:
            self._backoff.reset()
        delay = self._backoff.next()
        self.start_at = time.monotonic() + delay
        self._retire(lost)
        return delay

    def finished(self, code: int) -> None:
        """It ended because its streams had ended."""
        self.code = code
        self._retire(())

    def _retire(self, lost: Collection[str]) -> None:
        self.up = False
        if self.report is not None:
            self.report = of_the_dead(self.report, lost)

    def drain(self) -> None:
        """Makes it publish what it has captured, and end."""
        self.start_at = None
        if self._process is not None and self._process.stdin is not None:
            self.flush()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.stdin = None

    def kill(self, reason: str) -> None:
        """Kills it."""
        if self._process is not None and not self.killed:
            self.killed = reason
            self._process.send_signal(signal.SIGKILL)


def reap(workers: Iterable[WorkerProcess], deadline: float, look: Callable[[], None]) -> list[int]:
    """Waits until every worker has ended, and kills those still running at the deadline.

    Args:
        workers: workers that were told to drain.
        deadline: monotonic seconds.
        look: called repeatedly meanwhile; it should wait a little each time.

    Returns:
        The exit codes of the workers that ended by themselves.
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
                    log.error("worker did not drain in time", worker=worker.number, pid=worker.pid)
                worker.kill("did not drain in time")
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
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
