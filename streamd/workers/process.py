"""A worker as seen by its parent: a process that is started, given orders, and supervised."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal

import msgspec
import structlog

from streamd.flow.backoff import Backoff
from streamd.web.tap import Wish
from streamd.workers.merge import of_the_dead
from streamd.workers.report import Look, Order, Report
from streamd.workers.starting import Pulse, launch

log = structlog.get_logger(__name__)

RETRY_INITIAL_S, RETRY_MAX_S = 0.5, 30.0
STEADY_S = 10.0
"""A worker that was up for this long has recovered: its next restart starts with the shortest delay again."""
KILL_S = 2.0
"""Longest time from SIGKILL to the end of a process."""


WorkerState = Literal["IDLE", "STARTING", "UP", "EXITED", "BACKOFF", "FINISHED", "FAILED"]
Event = Literal["started", "reported", "exited", "finished", "died", "no_room", "drained", "gave_up"]

TRANSITIONS: dict[tuple[WorkerState, Event], WorkerState] = {
    ("IDLE", "started"): "STARTING",
    ("IDLE", "no_room"): "BACKOFF",
    ("STARTING", "reported"): "UP",
    ("STARTING", "exited"): "EXITED",
    ("UP", "exited"): "EXITED",
    ("EXITED", "finished"): "FINISHED",
    ("EXITED", "died"): "BACKOFF",
    ("EXITED", "no_room"): "BACKOFF",
    ("BACKOFF", "started"): "STARTING",
    ("BACKOFF", "no_room"): "BACKOFF",
    ("BACKOFF", "finished"): "FINISHED",
    ("BACKOFF", "drained"): "IDLE",
    ("BACKOFF", "gave_up"): "FAILED",
    ("FINISHED", "started"): "STARTING",
    ("FINISHED", "no_room"): "BACKOFF",
}
"""Every allowed transition between the states of a worker.

A process exists in STARTING (not all of its parts run yet) and UP. In EXITED it has ended, its last report is still
accepted, and the supervisor decides how to continue. BACKOFF waits for a restart, FINISHED has no stream left to run,
and FAILED ends the daemon. A drain or a kill is a request to the process: the state follows when it exits. """


class WorkerProcess:
    """One worker. Its methods never wait. One thread calls them; any thread may read the properties.

    Args:
        number: number of the worker, from 0.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._state: WorkerState = "IDLE"
        self._life = 0
        self._report: Report | None = None
        self._sent = self._done = self._refused = 0
        self._streams: frozenset[str] = frozenset()
        self._over: frozenset[str] = frozenset()
        self._code: int | None = None
        self._deaths = 0
        self._start_at = 0.0
        """When to start the next process in BACKOFF, monotonic seconds."""
        self._killed = ""
        self._backoff = Backoff(RETRY_INITIAL_S, RETRY_MAX_S)
        self._process: subprocess.Popen[bytes] | None = None
        self._pulse: Pulse | None = None
        """Until its first report."""
        self._pending = b""
        self._up_at: float | None = None
        """When this process was up first; None if it never was."""
        self._heard_at = 0.0
        self._bad_since: float | None = None
        self._wanted: Mapping[str, Wish] = {}

    def _after(self, event: Event) -> WorkerState:
        try:
            return TRANSITIONS[self._state, event]
        except KeyError:
            raise ValueError(f"worker {self.number}: {event!r} is not allowed in state {self._state}") from None

    @property
    def state(self) -> WorkerState:
        """See `TRANSITIONS`; a method that is called in a state where it is not allowed raises ValueError."""
        return self._state

    @property
    def life(self) -> int:
        """Serial number of the process among all workers' processes, until it is known how it ended; otherwise 0."""
        return self._life

    @property
    def report(self) -> Report | None:
        """The latest report, or what still holds of the last one."""
        return self._report

    @property
    def up(self) -> bool:
        """Whether it has reported that all its parts run."""
        return self._state == "UP"

    @property
    def can_start(self) -> bool:
        """Whether there is no process, and none will be started without an order."""
        return self._state in ("IDLE", "FINISHED")

    @property
    def settled(self) -> bool:
        """Whether it has started (or finished all of its streams): the daemon runs once every worker has."""
        return self._state in ("UP", "FINISHED")

    @property
    def sent(self) -> int:
        """Number of the latest order."""
        return self._sent

    @property
    def done(self) -> int:
        """Number of the latest order that was carried out or refused."""
        return self._done

    @property
    def busy(self) -> bool:
        """Whether it is still working on an order."""
        return self.running and self._done < self._sent

    @property
    def applied(self) -> bool:
        """Whether the latest order was carried out."""
        return self._done >= self._sent and self._refused != self._sent

    @property
    def streams(self) -> frozenset[str]:
        """Streams named in the latest order."""
        return self._streams

    @property
    def over(self) -> frozenset[str]:
        """Its streams that have ended: they are not restarted with the process."""
        return self._over

    @property
    def code(self) -> int | None:
        """How the last process ended, in FINISHED; else None."""
        return self._code

    @property
    def deaths(self) -> int:
        """Consecutive failures without being up."""
        return self._deaths

    @property
    def killed(self) -> str:
        """Why we killed the process; empty if we did not."""
        return self._killed

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._state in ("STARTING", "UP")

    @property
    def pid(self) -> int | None:
        """Pid of the process, if there is one."""
        return self._process.pid if self._process is not None else None

    def start(self, order: Order, environment: Mapping[str, str] | None = None) -> None:
        """Starts a process.

        Args:
            order: its first order.
            environment: variables in addition to our own.

        Raises:
            OSError: the system lacks resources for another process; the state does not change, see `died`.
        """
        started = self._after("started")
        self._process, self._pulse = launch(self.number, environment or {})
        self._life, self._done, self._refused, self._code, self._killed = order.life, 0, 0, None, ""
        self._pending, self._bad_since, self._wanted, self._up_at = b"", None, {}, None
        self._state = started
        self.order(order)

    def order(self, order: Order) -> None:
        """Sends an order; the part that the pipe does not accept now is sent by `flush`."""
        self._sent = order.number
        self._streams = frozenset(stream["id"] for stream in order.config["streams"])
        self._send(order)

    def look(self, wanted: Mapping[str, Wish]) -> None:
        """Sends which pictures are wanted, if that has changed; skipped for a worker that does not read."""
        if self.up and self._wanted is not wanted and not self._pending:
            self._wanted = wanted
            self._send(Look({stream: wish for stream, wish in wanted.items() if stream in self._streams}))

    def _send(self, line: Order | Look) -> None:
        self._pending += msgspec.json.encode(line) + b"\n"
        self.flush()

    def flush(self) -> None:
        """Continues to send the rest."""
        if not self._pending or self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._pending:
                self._pending = self._pending[os.write(self._process.stdin.fileno(), self._pending) :]

    def take(self, report: Report) -> bool:
        """Processes a report; False if it is from a process that has ended."""
        if not self._life or report.life != self._life:
            return False
        self._heard_at = time.monotonic()
        self._report, self._done = report, max(self._done, report.order)
        self._refused = max(self._refused, report.refused)
        if self._up_at is None:
            self._up_at, self._deaths = self._heard_at, 0
        if self._state == "STARTING":
            self._state = self._after("reported")
            self._feel_no_more()
        return True

    def _feel_no_more(self) -> None:
        if self._pulse is not None:
            self._pulse.close()
            self._pulse = None

    @property
    def result(self) -> int | None:
        """The exit code of a process that has published everything and is about to exit; otherwise None.

        If it has hundreds of decoders, the kernel takes seconds to free them.
        """
        report = self._report
        return report.code if report is not None and report.life == self._life else None

    def problem(self, silent_s: float) -> str | None:
        """Why the watchdog must not be fed: a stage hangs, or no report for `silent_s` seconds."""
        if not self.up or self.result is not None:
            return None
        said = self._report.problem if self._report is not None else None
        if said is None and time.monotonic() - self._heard_at > silent_s:
            said = f"has not reported for {silent_s:g} s"
        self._bad_since = None if said is None else self._bad_since or time.monotonic()
        return f"worker {self.number}: {said}" if said is not None else None

    @property
    def media_problem(self) -> str | None:
        """Why the worker cannot write clips or snapshots now; None if it can."""
        said = self._report.media if self.up and self._report is not None else None
        return f"worker {self.number}: {said}" if said is not None else None

    def hangs(self, silent_s: float, grace_s: float) -> str | None:
        """A problem that has lasted for `grace_s` seconds: a worker whose stage failed should end by itself, but this
        one has not. Of a worker that starts, see `Pulse.problem`."""
        if self._pulse is not None:
            said = self._pulse.problem()
            return f"worker {self.number}: {said}" if said is not None else None
        problem = self.problem(silent_s)
        lasting = self._bad_since is not None and time.monotonic() - self._bad_since > grace_s
        return problem if lasting else None

    def poll(self) -> int | None:
        """The exit code of a process that has ended, once; negative for a signal."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        self._close()
        self._state = self._after("exited")
        return code

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._feel_no_more()
        self._process = None

    def died(self, lost: Collection[str], *, counted: bool = True) -> float:
        """Schedules a restart; returns the delay in seconds.

        Args:
            lost: the streams that it ran.
            counted: False if the cause is not the worker: the system lacks resources for a process at the moment.
                `start` may have raised then, so that no process has exited.
        """
        self._state = self._after("died" if counted else "no_room")
        if self._up_at is None and counted:
            self._deaths += 1
        elif self._up_at is None or time.monotonic() - self._up_at >= STEADY_S:
            self._backoff.reset()
        delay = self._backoff.next()
        self._start_at = time.monotonic() + delay
        self._code = None
        self._retire(lost)
        return delay

    def finished(self, code: int) -> None:
        """It ended because its streams had ended."""
        self._state = self._after("finished")
        self._code = code
        self._retire(())

    def give_up(self) -> None:
        """It died too often, or of something that a restart cannot fix."""
        self._state = self._after("gave_up")

    def due(self, now: float) -> bool:
        """Whether a restart is due at `now`, monotonic seconds."""
        return self._state == "BACKOFF" and now >= self._start_at

    def end_streams(self, streams: Iterable[str]) -> None:
        """These streams have ended."""
        self._over = self._over.union(streams)

    def revive_streams(self, streams: Iterable[str]) -> None:
        """A new configuration starts these streams again, or has removed them."""
        self._over = self._over.difference(streams)

    def _retire(self, lost: Collection[str]) -> None:
        self._life = 0
        if self._report is not None:
            self._report = of_the_dead(self._report, lost)

    def drain(self) -> None:
        """Makes it publish what it has captured, and end."""
        if self._state == "BACKOFF":
            self._state = self._after("drained")
        if self._process is not None and self._process.stdin is not None:
            self.flush()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.stdin = None

    def kill(self, reason: str) -> None:
        """Kills it."""
        if self._process is not None and not self._killed:
            self._killed = reason
            self._process.send_signal(signal.SIGKILL)


def reap(workers: Iterable[WorkerProcess], deadline: float, look: Callable[[], None]) -> list[int]:
    """Waits until every worker has ended, and kills those still running at the deadline.

    Args:
        workers: workers that were told to drain.
        deadline: monotonic seconds.
        look: called repeatedly while waiting; each call should take a little time.

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
