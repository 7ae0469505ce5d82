"""Maps FFmpeg's errors to streamd's reasons."""

from __future__ import annotations

import errno
import re
import socket

from streamd.errors import SourceError, SourceReason
from streamd.security.address import host_of, unencoded
from streamd.security.redact import redact

_BY_ERRNO: dict[int, SourceReason] = {
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.ETIMEDOUT: "timeout_open",
    errno.ECONNRESET: "disconnected",
    errno.EPIPE: "disconnected",
    errno.ECONNABORTED: "disconnected",
    errno.ENOTCONN: "disconnected",
    errno.ENOENT: "not_found",
    errno.ENODEV: "not_found",
    errno.ENXIO: "not_found",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EISDIR: "unsupported",
    errno.EINVAL: "unsupported",
}
_BY_NAME: dict[str, SourceReason] = {
    "HTTPUnauthorizedError": "auth",
    "HTTPForbiddenError": "auth",
    "HTTPNotFoundError": "not_found",
    "HTTPTooManyRequestsError": "refused",
    "HTTPServerError": "disconnected",
    "DemuxerNotFoundError": "unsupported",
    "ProtocolNotFoundError": "unsupported",
    "DecoderNotFoundError": "unsupported",
    "PatchWelcomeError": "unsupported",
    "OptionNotFoundError": "unsupported",
    "StreamNotFoundError": "no_video",
}
_ADVICE: dict[SourceReason, str] = {
    "dns": "the host name cannot be resolved; check the name and the DNS settings",
    "refused": "connection refused: nothing listens at that address; check host and port, and that the camera is on",
    "unreachable": "no route to the host; check the network",
    "auth": "user name or password rejected; check the credentials",
    "not_found": "not found; check the path",
    "permission": "permission denied; check the file's owner and mode",
    "unsupported": "FFmpeg cannot read it; check that it is a video in a supported format",
    "timeout_open": "no usable response in time",
    "timeout_read": "silence",
    "rtcp_only": "the connection is alive but carries no video (only reports, or data that FFmpeg cannot use)",
    "no_video": "it contains no video",
    "no_keyframe": "no key frame arrives, so nothing can be decoded; set a key frame interval in the camera",
    "corrupt": "the data is not valid video",
    "decoder_crashed": "the decoder process died",
    "decoder_memory": "the decoder process used too much memory and was terminated",
    "disconnected": "the peer closed the connection",
    "eof": "the stream ended",
}


def describe(url: str, reason: SourceReason, detail: str = "") -> str:
    """`URL: what happened (detail)`, free of credentials."""
    what = _ADVICE.get(reason, reason)
    says_it = detail.lower() in what.lower()
    return redact(f"{url}: {what}{'' if says_it else f' ({detail})'}")


def _resolves(url: str) -> bool:
    host, _ = host_of(url)
    if not host:
        return True
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        return False
    except (OSError, UnicodeError):
        return True
    return True


_LACKS: dict[int, tuple[SourceReason, str]] = {
    errno.EMFILE: ("internal", "the process has no file descriptor left; raise LimitNOFILE or ulimit -n"),
    errno.ENFILE: ("internal", "the system has no file descriptor left; raise fs.file-max"),
    errno.ENOMEM: ("internal", "there is not enough memory; look at MemoryMax and at what else runs here"),
    errno.EIO: ("disconnected", "the disk or the network file system reports an error; look at the kernel's log"),
    errno.ESTALE: ("disconnected", "the network file system has lost it; check its server and mount"),
    errno.EBUSY: ("refused", "it is in use by another program; end that, or wait"),
}


NO_FAULT_OF_INPUT: frozenset[SourceReason] = frozenset(
    ("decoder", "dns", "refused", "unreachable", "auth", "not_found", "timeout_open", "timeout_read")
)
"""Reasons why a part of a recording cannot be opened now, and may be later."""
MAX_TRACKS = 128
"""FFmpeg opens each variant of an HLS playlist, with connections of its own, and says ENOMEM beyond this number."""


def lack(number: int | None) -> tuple[SourceReason, str] | None:
    """Reason and advice for an error of the system that may pass: it is tried again. None for any other."""
    return _LACKS.get(number) if number is not None else None


def is_network(url: str) -> bool:
    """True for what is reached over a network, whatever is found there."""
    scheme, mark, _ = url.partition("://")
    return bool(mark) and scheme.lower() not in ("file", "pipe", "fd")


def _not_an_address(url: str) -> str:
    """What FFmpeg may have against an address that it does not even try."""
    if (character := unencoded(url)) is not None:
        return f"the address cannot be used: there is a raw {character} in the password; percent-encode it"
    return (
        "the address or its answer cannot be used; check scheme and port (1 to 65535), that / ? # and % in the "
        "password are percent-encoded, and that it is no list of files (ffconcat), which is read from a disk only"
    )


def translate(
    error: BaseException, url: str, *, opening: bool, live: bool, waited_s: float, limit_s: float
) -> SourceError:
    """The SourceError for an exception that PyAV raised.

    Args:
        error: as raised.
        url: what was being read; credentials in it are fine here.
        opening: True while connecting and probing.
        live: True for anything but a file.
        waited_s: how long the call took, in seconds.
        limit_s: its timeout: FFmpeg reports an interrupted probe as invalid data, so elapsed time decides.
    """
    name = type(error).__name__
    number = getattr(error, "errno", None)
    timed_out: SourceReason = "timeout_open" if opening else "timeout_read"
    reason: SourceReason
    if live and (name == "ExitError" or waited_s >= limit_s * 0.98):
        reason = timed_out
    elif name in _BY_NAME:
        reason = _BY_NAME[name]
    elif name == "InvalidDataError":
        reason = ("unsupported" if not live else "corrupt") if opening else "corrupt"
    elif isinstance(error, EOFError):
        reason = "disconnected" if live else ("unsupported" if opening else "eof")
    elif number == errno.EIO and opening and live and not _resolves(url):
        reason = "dns"
    elif number == errno.ETIMEDOUT:
        reason = timed_out
    elif number in _BY_ERRNO:
        reason = _BY_ERRNO[number]
    else:
        reason = "disconnected" if live else "corrupt"
    detail = getattr(error, "strerror", None) or name
    ours = not live or number not in (errno.EIO, errno.ESTALE)  # a network's I/O error is no disk's
    if reason == "corrupt" and opening and re.search(r"\.mpd(?:[?#]|$)", url):
        text = "PyAV's builds of FFmpeg do not read DASH; give an RTSP or HLS address"
        return SourceError("unsupported", redact(f"{url}: {text} ({detail})"))
    if number == errno.ENOMEM and opening:
        text = f"it has more than {MAX_TRACKS} tracks or variants, or there is not enough memory ({detail})"
        return SourceError("internal", redact(f"{url}: {text}"))
    if reason not in (timed_out, "dns") and ours and (lacking := lack(number)) is not None:
        return SourceError(lacking[0], redact(f"{url}: {lacking[1]} ({detail})"))
    if number == errno.EINVAL and opening and is_network(url):
        return SourceError("unsupported", redact(f"{url}: {_not_an_address(url)} ({detail})"))
    if number == errno.EPERM and opening and not live:
        text = "a list of files may name only those below its folder, with letters, digits, . _ and -; see also"
        return SourceError("permission", redact(f"{url}: {text} options: {{safe: 0}} ({detail})"), permanent=True)
    if reason == timed_out:
        detail = f"after {limit_s:g} s"
    if name == "ProtocolNotFoundError":
        scheme = url.partition("://")[0]
        text = f"{url}: this build of FFmpeg does not know the protocol {scheme}; check the spelling of the URL"
        return SourceError("unsupported", redact(text), permanent=True)
    permanent = not live and reason in ("not_found", "permission", "unsupported", "no_video", "corrupt")
    return SourceError(reason, describe(url, reason, detail), permanent=permanent)
