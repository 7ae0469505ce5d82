"""streamd's exceptions. Each package translates the errors of third-party libraries into one of these.

Every message names the thing, what was expected, and what to do; none contains a credential.
`exit_code` is the exit status of the command line when the error reaches it.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar, Literal, get_args

SourceReason = Literal[
    "dns",
    "refused",
    "unreachable",
    "auth",
    "not_found",
    "permission",
    "unsupported",
    "timeout_open",
    "timeout_read",
    "rtcp_only",
    "no_video",
    "no_keyframe",
    "corrupt",
    "clock_jump",
    "codec_changed",
    "size_changed",
    "decoder",
    "decoder_crashed",
    "decoder_memory",
    "disconnected",
    "stuck",
    "overload",
    "late",
    "behind",
    "worker_died",
    "eof",
    "internal",
]
"""Why a stream is not live, or what is wrong with it while it is. A closed set: it is a metric label and part of the
message schema."""

NO_ROOM = os.EX_TEMPFAIL
"""Exit code of a worker process that found no room: threads, descriptors or memory. Not its fault, and not for ever."""
_PASSING = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO, errno.ESTALE, errno.EBUSY))


def is_passing(error: BaseException) -> bool:
    """True for what the system lacks at the moment and may have again: nothing is to be given up for it."""
    if isinstance(error, OSError):
        return error.errno in _PASSING
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "start new thread" in str(error))


SOURCE_REASONS: frozenset[str] = frozenset(get_args(SourceReason))


class StreamdError(Exception):
    """Base of every error that streamd raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(StreamdError):
    """The configuration, a command-line argument, or a model's sidecar is invalid."""

    exit_code = 2


class ModelError(StreamdError):
    """A model file is missing, unreadable, corrupt, or does not match its declaration."""

    exit_code = 3


class SourceError(StreamdError):
    """A stream cannot be opened, or not read any further.

    Args:
        reason: one of `SOURCE_REASONS`.
        message: what happened, already free of credentials.
        permanent: True if retrying cannot help (an unsupported codec, a missing file).
    """

    exit_code = 4

    def __init__(self, reason: SourceReason, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.reason: SourceReason = reason
        self.permanent = permanent


class FrameError(StreamdError):
    """One frame cannot be processed; the stream goes on."""


class BackendError(StreamdError):
    """The inference backend failed. The process exits non-zero, as a device context may be unrecoverable."""

    exit_code = 5


class SinkError(StreamdError):
    """A sink cannot be opened (a port in use, a directory that is not writable) or has failed for good."""

    exit_code = 6


class GateError(StreamdError):
    """A quantised model or an engine lost more accuracy than was allowed; nothing was written."""

    exit_code = 7


class NoAnswerError(StreamdError):
    """The daemon or fleet that a command asks does not run, or does not answer."""

    exit_code = 8
