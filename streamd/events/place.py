"""The state folder: where it is, whether it is suitable for a database, and which daemon owns it."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Mapping
from pathlib import Path

from streamd.errors import ConfigError

JOURNAL = "events.db"
LOCK = "lock"
UNIT_FOLDER = Path("/var/lib/streamd")
"""$STATE_DIRECTORY as set by the unit in systemd/."""
NETWORK_FILE_SYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "9p", "virtiofs",
     "ocfs2", "gfs2", "orangefs", "pvfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone",
     "fuse.davfs2", "davfs", "fuse.juicefs", "fuse.gcsfuse")
)  # fmt: skip
"""File systems where several machines may write, or where shared memory maps of a file are not coherent: SQLite's WAL
needs both."""


def default_state_dir(instance: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of `instance` in the service manager's state folder; None if there is none.

    Args:
        instance: name of the daemon, e.g. of its configuration file without the suffix.
        environment: variables; `STATE_DIRECTORY` is systemd's.
    """
    state = environment.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(state) / instance if state else None


def user_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder below which a daemon without a service manager has its state folder, by instance.

    Args:
        environment: variables; `XDG_STATE_HOME` is the base directory specification's.
    """
    return Path(environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")) / "streamd"


def file_system(path: Path, mounts: str | None = None) -> str:
    """The kernel's name for the type of the file system that `path` is on; empty if unknown.

    Args:
        path: an existing path.
        mounts: text of /proc/self/mountinfo, for tests.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return ""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # Of two mounts at one point, the later one is on top.
        if inside and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind


class StateDir:
    """The folder, locked by this process until `close`.

    Args:
        folder: created if it does not exist, accessible to this user only.

    Raises:
        ConfigError: it cannot be created or written, is on a network file system, or is locked by another process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        what = f"state_dir {folder}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            advice = "make it a folder that streamd's user may write, or name another one"
            raise ConfigError(f"{what}: cannot be created: {error.strerror}; {advice}") from error
        kind = file_system(folder)
        if kind in NETWORK_FILE_SYSTEMS:
            advice = "the event journal needs a local disk; name a folder on one"
            raise ConfigError(f"{what}: is on a network file system ({kind}); {advice}")
        try:
            self._fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            advice = "make it writable for streamd's user"
            raise ConfigError(f"{what}: {LOCK} cannot be opened: {error.strerror}; {advice}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            advice = "stop it, or give each daemon a state_dir of its own"
            raise ConfigError(f"{what}: is in use by process {owner}; {advice}") from None
        except OSError as error:
            os.close(self._fd)
            raise ConfigError(f"{what}: cannot be locked: {error.strerror}; name a folder on a local disk") from error
        # A full disk must not prevent the daemon from starting: the number only names the owner.
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass

    def close(self) -> None:
        """Releases the folder for another process."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def owner(folder: Path) -> int | None:
    """The process that has locked `folder`, or None."""
    try:
        with (folder / LOCK).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(32) or b"0")
    except (OSError, ValueError):
        return None
    return None
