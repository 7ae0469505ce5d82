"""The folder with the sockets between the daemon and its workers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import structlog

from streamd.errors import ConfigError

log = structlog.get_logger(__name__)

_PREFIX = "streamd-"
_LOCK = "lock"
_LONGEST = 107 - len("/pictures.socket")
"""Longest path of the folder: Linux limits the path of a socket to 107 bytes."""


def _candidates() -> Iterator[Path]:
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]  # systemd's
    if runtime:
        yield Path(runtime)
    with contextlib.suppress(FileNotFoundError):
        yield Path(tempfile.gettempdir())
    yield Path(f"/run/user/{os.getuid()}")
    yield Path("/tmp")  # noqa: S108 - the folder made in it is private
    yield Path("/var/tmp")  # noqa: S108


class SocketFolder:
    """A private folder of its own, locked for as long as this object has it.

    Folders that other daemons of this user left behind when they were killed are removed.

    Raises:
        ConfigError: no folder can be used; names those that were tried.
    """

    def __init__(self) -> None:
        tried: list[str] = []
        for base in dict.fromkeys(_candidates()):
            try:
                self.path = self._make(base)
            except OSError as error:
                tried.append(f"{base} ({error.strerror})")
                continue
            if tried:
                log.warning("sockets of the workers are elsewhere", folder=str(self.path), not_usable=tried)
            remove_abandoned(base)
            return
        raise ConfigError(
            f"workers: no folder for their sockets; set TMPDIR to a writable folder with a path of at most "
            f"{_LONGEST - len(_PREFIX) - 9} bytes. Tried {', '.join(tried)}"
        )

    def _make(self, base: Path) -> Path:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        try:
            if len(os.fsencode(path)) > _LONGEST:
                raise OSError(0, "the path is too long for a socket")
            new = path / f".{_LOCK}"
            self._lock = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            new.rename(path / _LOCK)  # whoever sees it sees it locked
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return path

    def remove(self) -> None:
        """Removes the folder. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def remove_abandoned(base: Path) -> None:
    """Removes this user's socket folders in `base` whose daemon has ended."""
    for lock in base.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):
            if lock.parent.lstat().st_uid != os.getuid() or lock.parent.is_symlink():
                continue
            descriptor = os.open(lock, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(descriptor)
