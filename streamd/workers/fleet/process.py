"""A process that may be somebody else's child: who it is, whether it still runs, and signals that reach no other."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told apart from a later one with the same number by the time of its start."""

    pid: int
    started: int
    """Clock ticks since boot."""

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this number now; None if there is none, or only what its parent has not collected."""
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else cls(pid, int(fields[19]))

    @classmethod
    def from_text(cls, text: str) -> Process | None:
        """The inverse of `str`; None if it is nothing of the kind."""
        pid, _, started = text.partition(":")
        return cls(int(pid), int(started)) if pid.isdecimal() and started.isdecimal() else None

    def __str__(self) -> str:
        return f"{self.pid}:{self.started}"

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.of(self.pid) == self

    def descriptor(self) -> int | None:
        """A descriptor that becomes readable at its end, to be closed by the caller; None if it has ended."""
        try:
            found = os.pidfd_open(self.pid)
        except OSError:
            return None
        if self.alive:  # asked once the number can no longer pass to another process unnoticed
            return found
        os.close(found)
        return None

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal; False if it has ended."""
        found = self.descriptor()
        if found is None:
            return False
        try:
            signal.pidfd_send_signal(found, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(found)
        return True

    def wait(self, timeout_s: float) -> bool:
        """Waits for its end; False if it has not come in time."""
        found = self.descriptor()
        if found is None:
            return True
        try:
            return bool(select.select([found], [], [], timeout_s)[0])
        finally:
            os.close(found)

    def end(self, grace_s: float) -> None:
        """Asks it to end, and kills it after `grace_s`."""
        if self.send(signal.SIGTERM) and not self.wait(grace_s):
            self.send(signal.SIGKILL)
            with contextlib.suppress(OSError):
                self.wait(10.0)


def as_nice_as(pid: int) -> bool:
    """Gives every thread of this process, and so what it starts, the niceness of another one, if that is lower.

    Returns:
        False if that is not allowed.
    """
    wanted = os.getpriority(os.PRIO_PROCESS, pid)
    for thread in map(int, os.listdir("/proc/self/task")):
        try:
            if os.getpriority(os.PRIO_PROCESS, thread) > wanted:
                os.setpriority(os.PRIO_PROCESS, thread, wanted)
        except ProcessLookupError:  # the thread has ended
            continue
        except PermissionError:
            return False
    return True
