"""Keeps the daemon of one box running: `python -m streamd.workers.fleet.keeper FOLDER GRACE_S COMMAND…`.

The keeper is detached: it has a session of its own and init as its parent, since Ray kills what an actor has started,
and since the nodes of a cluster end when its head has been gone for a minute. It starts the daemon again with growing
waits, and adopts one that is left of a keeper that was killed. SIGTERM ends the daemon, then the keeper; a daemon that
exits with 0 was told to, and ends the keeper, too. There is one keeper a folder, by a lock.

On one machine, the fleet ends with `streamd fleet run`, however that ends: $STREAMD_FLEET_RUN names its process, whose
end the keeper takes for a SIGTERM. Else whatever dies last could start a daemon that nobody would ever stop.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamd.errors import BackendError
from streamd.workers.fleet.place import BoxFolder, write_whole
from streamd.workers.fleet.process import Process

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
HEALTHY_S = 60.0
"""A daemon that ran for so long starts again without a wait that its predecessors have earned."""
LOG_BYTES = 16 << 20
"""Size at which the log begins anew; one older file is kept."""
LAST_BYTES = 4096
MOST_SAID = 300
"""Characters of the log that are told to others."""
OWNER = "STREAMD_FLEET_RUN"
"""Environment variable: the `Process` that the daemon is not to outlive. Without it, it outlives all of them."""
_LOOK_S = 10.0
_START_S = 20.0


@dataclass(frozen=True, slots=True)
class Notes:
    """What the keeper has written down, for those that attach and for its successor."""

    keeper: Process | None = None
    daemon: Process | None = None
    restarts: int = 0
    """Starts beyond the first, of this keeper."""
    ended: str = ""
    """How the daemon ended last; empty if it did not."""

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(
            {
                "keeper": _numbers(self.keeper), "daemon": _numbers(self.daemon), "restarts": self.restarts,
                "ended": self.ended,
            }
        ).encode()  # fmt: skip


def _numbers(process: Process | None) -> list[int] | None:
    return None if process is None else [process.pid, process.started]


def _process(numbers: Any) -> Process | None:
    return Process(int(numbers[0]), int(numbers[1])) if numbers else None


def read_notes(folder: BoxFolder) -> Notes:
    """The notes of a folder; empty ones if there are none that can be read."""
    try:
        found = json.loads(folder.notes.read_bytes())
        return Notes(
            _process(found["keeper"]), _process(found["daemon"]), int(found["restarts"]), str(found["ended"])
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return Notes()


def kept(folder: BoxFolder) -> bool:
    """Whether a keeper lives in the folder."""
    try:
        descriptor = os.open(folder.lock, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def start(folder: BoxFolder, command: Sequence[str], environment: Mapping[str, str], *, grace_s: float) -> None:
    """Starts a keeper, which starts the daemon, unless there is one, or its owner has ended.

    Args:
        folder: the box's.
        command: the daemon.
        environment: of both.
        grace_s: longest time that the daemon takes to drain.

    Raises:
        BackendError: it cannot be started.
    """
    if kept(folder) or _is_over(folder, Process.from_text(environment.get(OWNER, ""))):
        return
    keep = [sys.executable, "-m", __name__, str(folder.path), f"{grace_s:g}", *command]
    try:
        with folder.log.open("ab") as log:
            # It leaves its parent by itself: this one only waits until it has.
            done = subprocess.run(  # noqa: S603 - our own command
                keep, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                timeout=_START_S, check=False, cwd="/",
            )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"box {folder.path.name}: its keeper cannot be started: {error}") from error
    if done.returncode:
        raise BackendError(f"box {folder.path.name}: its keeper ended with {done.returncode}; see {folder.log}")


def _is_over(folder: BoxFolder, owner: Process | None) -> bool:
    """Whether a keeper would find nothing to do: its owner has ended, and there is no daemon that it would end."""
    if owner is None or owner.alive:
        return False
    daemon = read_notes(folder).daemon
    return daemon is None or not daemon.alive


def stop(folder: BoxFolder, *, grace_s: float) -> None:
    """Ends daemon and keeper, also where one of them is missing; returns when both are gone."""
    notes = read_notes(folder)
    end = time.monotonic() + _START_S
    while kept(folder) and (notes.keeper is None or not notes.keeper.alive) and time.monotonic() < end:
        time.sleep(0.02)  # it has just begun
        notes = read_notes(folder)
    if notes.keeper is not None:
        notes.keeper.end(grace_s + 5.0)
        notes = read_notes(folder)  # it may have started a daemon meanwhile
    if notes.daemon is not None:
        notes.daemon.end(grace_s)


class Keeper:
    """The keeper's own process.

    Args:
        folder: the box's, locked.
        command: the daemon.
        grace_s: longest time that it takes to drain.
    """

    def __init__(self, folder: BoxFolder, command: Sequence[str], grace_s: float) -> None:
        self._folder, self._command, self._grace_s = folder, list(command), grace_s
        self._wait_s = FIRST_WAIT_S
        self._restarts, self._ended = 0, ""
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        owner = Process.from_text(os.environ.get(OWNER, ""))
        ends = owner.descriptor() if owner is not None else None
        self._ends = [ends] if ends is not None else []
        """Readable at the end of the owner, if there is one."""
        if owner is not None and ends is None:
            self._stopping = True

    def run(self) -> None:
        """Keeps the daemon until it is told to end, or the daemon was."""
        signal.set_wakeup_fd(self._wake)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        daemon = read_notes(self._folder).daemon
        daemon = daemon if daemon is not None and daemon.alive else None
        self._note(daemon)
        if self._stopping and daemon is not None:
            daemon.end(self._grace_s)
        while not self._stopping:
            began = time.monotonic()
            daemon = daemon or self._start()
            code = self._attend(daemon)
            if self._stopping or code == 0:
                break
            if daemon is None and self._child is None:
                self._ended = "cannot be started"
            else:
                self._ended = _said(code) + (f": {why}" if code and code > 0 and (why := self._last_words()) else "")
            self._wait_s = FIRST_WAIT_S if time.monotonic() - began > HEALTHY_S else self._wait_s
            self._say(f"{self._ended}; starting again in {self._wait_s:g} s")
            self._note(None)
            self._sleep(self._wait_s)
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            self._restarts += 1
            daemon = None
        self._note(daemon if daemon is not None and daemon.alive else None)

    def _stop(self, *_: Any) -> None:
        self._stopping = True

    def _start(self) -> Process | None:
        """Starts the daemon; None if that failed or it has ended already."""
        self._child = None
        with self._folder.log.open("ab") as log:
            try:
                self._child = subprocess.Popen(  # noqa: S603 - the command that we were given
                    self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )  # fmt: skip
            except OSError as error:
                self._say(f"{self._command[0]}: {error.strerror}")
                return None
        daemon = Process.of(self._child.pid)
        if daemon is not None:
            self._note(daemon)
        return daemon

    def _attend(self, daemon: Process | None) -> int | None:
        """Waits for its end; returns its exit code, negative for a signal, None where it is not known."""
        descriptor = daemon.descriptor() if daemon is not None else None
        while daemon is not None and descriptor is not None:
            if self._stopping:
                os.close(descriptor)
                daemon.end(self._grace_s)
                break
            if descriptor in self._wait(_LOOK_S, descriptor):
                os.close(descriptor)
                break
            self._shorten_log()
        return self._child.wait() if self._child is not None else None

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopping and (left := end - time.monotonic()) > 0:
            self._wait(left)

    def _wait(self, seconds: float, *descriptors: int) -> list[int]:
        """Waits for one of these, a signal or the end of the owner; returns what is readable."""
        ready = select.select([*descriptors, self._woken, *self._ends], [], [], seconds)[0]
        if any(each in ready for each in self._ends):
            self._stopping = True
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 64)
        return ready

    def _last_words(self) -> str:
        """The last line of the log, in which a daemon that ends by itself says why; empty if it is a log record."""
        with contextlib.suppress(OSError), self._folder.log.open("rb") as log:
            log.seek(-min(LAST_BYTES, log.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = log.read().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            from streamd.security.redact import redact  # not while there is nothing to say: a keeper is to be small

            return "" if last.startswith(("{", "keeper: ")) else redact(last)[:MOST_SAID]
        return ""

    def _note(self, daemon: Process | None) -> None:
        notes = Notes(Process.of(os.getpid()), daemon, self._restarts, self._ended)
        with contextlib.suppress(OSError):  # a full disk: the daemon goes on
            write_whole(self._folder.notes, notes.encode())

    def _shorten_log(self) -> None:
        """The daemon holds the file open, so it is copied and emptied."""
        log = self._folder.log
        with contextlib.suppress(OSError):
            if log.stat().st_size > LOG_BYTES:
                write_whole(log.with_suffix(".log.1"), log.read_bytes())
                os.truncate(log, 0)

    @staticmethod
    def _say(text: str) -> None:
        with contextlib.suppress(OSError):
            print(f"keeper: {text}", file=sys.stderr, flush=True)


def _said(code: int | None) -> str:
    if code is None:
        return "the daemon has ended"
    return f"the daemon was killed by signal {-code}" if code < 0 else f"the daemon exited with code {code}"


def main(arguments: Sequence[str]) -> int:
    """Detaches, takes the lock and keeps the daemon. Returns at once in the process that was started."""
    folder, grace_s, *command = arguments
    box = BoxFolder(Path(folder))
    lock = os.open(box.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # somebody else was faster
    if box.stopped.exists():  # since this process was started, and who did so has seen no keeper
        return 0
    if os.fork():
        os._exit(0)
    Keeper(box, command, float(grace_s)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
