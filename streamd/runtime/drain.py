"""How the time for a drain (`drain_s`) is divided among what must end in it."""

from __future__ import annotations

import contextlib
import os
import sys
import time

WORKER_SHARE = 0.7
"""Fraction of `drain_s` for a worker process; the parent uses the rest to forward what the worker has published."""
_STAGES_SHARE = 0.8
"""Fraction of the time left for frames in flight; the rest is for closing sources and outputs."""
_WORKERS_SHARE = 0.9
"""Fraction of `drain_s` after which workers that still run are killed; the rest is for closing outputs."""
_STAGES_LEAST_S = 0.1
_OUTPUTS_LEAST_S = 0.5


class Drain:
    """The deadlines of one drain, which starts now.

    Args:
        drain_s: the whole time, in seconds.
    """

    def __init__(self, drain_s: float) -> None:
        now = time.monotonic()
        self.deadline = now + drain_s
        """Monotonic seconds."""
        self.workers_by = now + _WORKERS_SHARE * drain_s
        """When workers must have ended, monotonic seconds."""

    def stages_by(self) -> float:
        """Monotonic seconds by which frames in flight must have been published, if that starts now."""
        now = time.monotonic()
        return now + max(_STAGES_LEAST_S, (self.deadline - now) * _STAGES_SHARE)

    def outputs_s(self) -> float:
        """Seconds left for closing outputs: never none, even past the deadline."""
        return max(_OUTPUTS_LEAST_S, self.deadline - time.monotonic())


def leave(code: int, *, left_running: bool) -> int:
    """What a process does at its very end.

    Args:
        code: its exit code.
        left_running: a thread is blocked in a call that cannot be interrupted: the process exits anyway.

    Returns:
        The exit code, where the interpreter may end by itself.
    """
    if left_running:
        for stream in sys.stdout, sys.stderr:
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    return code
