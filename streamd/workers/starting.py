"""The process of a worker is started, and shows that it is alive until it reports: opening a model may take minutes,
but one that hangs has to be replaced.

From its first moment a worker writes a byte a second into a pipe. Its first report is the end of that: from then on,
reports are the signs of life.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import streamd
from streamd.flow.threads import NamedThread
from streamd.security.trust import is_working_directory

BEAT_S = 1.0
SILENT_S = 60.0
"""Longest time without a sign of life. Loading libraries and drivers from a cold disk may hold the interpreter's lock
for tens of seconds."""
OPENING_S = 3600.0
"""Longest time to the first report, whatever signs of life there are: far longer than any plan takes to build."""
_ABSENT_S = 5.0
"""A parent that has not looked for so long was itself stopped, most likely with its workers."""


class Pulse:
    """The parent's end of the pipe of one process. Its methods never wait.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self) -> None:
        self._read, self.child_end = os.pipe()
        """`child_end` is what the process is to inherit."""
        os.set_blocking(self._read, False)
        self._begun_at = self._felt_at = self._looked_at = time.monotonic()

    def handed_over(self) -> None:
        """The process has its end."""
        os.close(self.child_end)
        self.child_end = -1

    def problem(self) -> str | None:
        """Why the process is to be killed; None while it may go on."""
        now = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            if os.read(self._read, 1 << 16):
                self._felt_at = now
        if now - self._looked_at > _ABSENT_S:
            self._felt_at = now
        self._looked_at = now
        if now - self._felt_at > SILENT_S:
            return f"has not started and shown no sign of life for {SILENT_S:g} s"
        if now - self._begun_at > OPENING_S:
            return f"has not started within {OPENING_S:g} s"
        return None

    def close(self) -> None:
        """Closes what is open. Idempotent."""
        for descriptor in (self._read, self.child_end):
            if descriptor >= 0:
                os.close(descriptor)
        self._read = self.child_end = -1


def launch(number: int, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], Pulse]:
    """Starts the process of a worker; its standard input is a pipe whose end never waits.

    Args:
        number: of the worker.
        environment: variables in addition to our own.

    Raises:
        OSError: the system lacks resources for another process.
    """
    pulse = Pulse()
    command = [sys.executable, "-m", "streamd.workers.child", str(pulse.child_end), str(number)]
    if sys.version_info >= (3, 11) and not is_working_directory(Path(streamd.__file__).parent.parent):
        command.insert(1, "-P")  # as the `streamd` command: nothing is imported from the working directory
    try:
        # The arguments are our own interpreter and numbers.
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, start_new_session=True, env=os.environ | environment,
            pass_fds=(pulse.child_end,),
        )  # fmt: skip
    except BaseException:
        pulse.close()
        raise
    pulse.handed_over()
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process, pulse


def beat(descriptor: int) -> None:
    """Begins to give signs of life, in a thread, until the parent closes its end.

    Args:
        descriptor: of the pipe; closed at the end.
    """
    os.set_inheritable(descriptor, False)  # decoder processes are not to have it
    os.set_blocking(descriptor, False)

    def give() -> None:
        with contextlib.suppress(BrokenPipeError):
            while True:
                with contextlib.suppress(BlockingIOError):  # the parent is stopped
                    os.write(descriptor, b".")
                time.sleep(BEAT_S)
        os.close(descriptor)

    NamedThread(give, "pulse").start()
