"""Checks whether a file can be trusted, and limits how much of it is read.

A configuration determines what is read, written and sent where, and a TensorRT plan is code: anyone who can change one
of them can act as the daemon. Only root, the daemon's own user and the users in `STREAMD_TRUSTED_UIDS` may be able to.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import select
import stat
import struct
import time
from pathlib import Path

from streamd.errors import ConfigError

PIPE_S = 5.0
"""Longest wait for the writer of a pipe, in seconds."""
VARIABLE = "STREAMD_TRUSTED_UIDS"
"""Comma-separated ids of further users whose files are trusted."""


def distrust(found: os.stat_result) -> str | None:
    """Why a file should not be trusted and what to do about it, or None.

    Args:
        found: from `os.stat` or, better, `os.fstat`.
    """
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return None  # a pipe comes from our parent; a device belongs to the administrator
    mode = f"mode {stat.S_IMODE(found.st_mode):04o}"
    if found.st_mode & stat.S_IWOTH:
        return f"every user may change it ({mode}); chmod o-w it"
    if not in_container() and found.st_uid not in {0, os.geteuid()} | _named():
        owner = _user(found.st_uid)
        return (
            f"belongs to {owner}, who could change it at any time; chown it to root"
            f"{f' or {_user(os.geteuid())}' if os.geteuid() else ''}, or set {VARIABLE}={found.st_uid}"
        )
    # Private user groups (umask 002) are common, and root's group has write access in containers with arbitrary uids.
    if found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.getegid()):
        return f"everybody in group {_group(found.st_gid)} may change it ({mode}); chmod g-w it"
    return None


_ACL = "system.posix_acl_access"
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP, _ACL_MASK = 0x02, 0x08, 0x10


def distrust_acl(file: int | Path) -> str | None:
    """Like `distrust`, for the access control list of a file, preferably an open one: which other users it allows to
    write.

    Its binary form is Linux's (`linux/posix_acl_xattr.h`): a version, then tag, permissions and id of each entry.
    """
    try:
        entries = list(_ACL_ENTRY.iter_unpack(os.getxattr(file, _ACL)[4:]))
    except (OSError, struct.error):
        return None  # there is none, or the file system does not support them
    mask = next((permissions for tag, permissions, _ in entries if tag == _ACL_MASK), 7)
    for tag, permissions, number in entries:
        if not permissions & mask & 2:
            continue
        if tag == _ACL_USER and number not in {0, os.geteuid()} | _named():
            return f"{_user(number)} may change it by an access control list; setfacl -x u:{number} it"
        if tag == _ACL_GROUP and number not in (0, os.getegid()):
            return (
                f"everybody in group {_group(number)} may change it by an access control list; setfacl -x g:{number} it"
            )
    return None


def in_container() -> bool:
    """Whether this is a container: whoever mounts files into it determines their owner, and it has no other users."""
    return (
        any(os.path.exists(mark) for mark in ("/.dockerenv", "/run/.containerenv", "/run/systemd/container"))
        or "KUBERNETES_SERVICE_HOST" in os.environ
    )


def _named() -> set[int]:
    return {int(number) for number in os.environ.get(VARIABLE, "").split(",") if number.strip().isdecimal()}


def _user(number: int) -> str:
    with contextlib.suppress(KeyError):
        return f"user {pwd.getpwuid(number).pw_name} ({number})"
    return f"user {number}"


def _group(number: int) -> str:
    with contextlib.suppress(KeyError):
        return f"{grp.getgrgid(number).gr_name} ({number})"
    return str(number)


def is_working_directory(path: Path) -> bool:
    """Whether `path` is the working directory; False if that was removed."""
    try:
        return path == Path.cwd()
    except OSError:
        return False


def read_bytes(path: Path, limit: int, *, what: str, expected: str) -> bytes:
    """The content of a trusted file.

    Args:
        path: the file.
        limit: maximum size in bytes; a device or pipe is not read any further either.
        what: start of the error message, naming the file.
        expected: what the file should be, for the error.

    Raises:
        ConfigError: it cannot be read, is larger, or others can change it.
    """
    try:
        # Opening a named pipe would wait for a writer, possibly forever.
        with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if (doubt := distrust(found) or distrust_acl(file.fileno())) is not None:
                raise ConfigError(f"{what}: {doubt}")
            if stat.S_ISREG(found.st_mode):
                os.set_blocking(file.fileno(), True)
            data = _at_most(file.fileno(), limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        reason = "is a folder" if path.is_dir() else f"cannot be read: {why}"
        raise ConfigError(f"{what}: {reason}; expected {expected}") from error
    if len(data) > limit:
        raise ConfigError(f"{what}: larger than {limit} bytes; expected {expected}")
    return data


def _at_most(file: int, size: int) -> bytes:
    """The content of `file` up to its end, at most `size` bytes.

    Raises:
        OSError: a pipe or terminal whose writer is too slow.
    """
    deadline = time.monotonic() + PIPE_S
    pieces: list[bytes] = []
    while size > 0:
        try:
            piece = os.read(file, min(size, 1 << 20))
        except BlockingIOError:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([file], [], [], left)[0]:
                raise TimeoutError(errno.ETIMEDOUT, f"nothing came out of the pipe for {PIPE_S:g} s") from None
            continue
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def check_file(path: Path, *, what: str, expected: str) -> None:
    """Checks a file that a library is to open by its name: it is trusted, can be read, and is no pipe, which would
    keep the library waiting.

    Raises:
        ConfigError: see `read_bytes`.
    """
    try:
        with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            doubt = distrust(found) or distrust_acl(file.fileno())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        reason = "is a folder" if path.is_dir() else f"cannot be read: {why}"
        raise ConfigError(f"{what} {reason}; expected {expected}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{what} is {'a folder' if stat.S_ISDIR(found.st_mode) else 'no file'}; expected {expected}")
    if doubt is not None:
        raise ConfigError(f"{what}: {doubt}")


def read_text(path: Path, limit: int, *, what: str, expected: str) -> str:
    """See `read_bytes`; the file is UTF-8 text, with or without a byte order mark.

    Raises:
        ConfigError: as for `read_bytes`, or it is not such text.
    """
    try:
        return read_bytes(path, limit, what=what, expected=expected).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what}: not UTF-8 text (byte {error.start}); expected {expected}") from error
