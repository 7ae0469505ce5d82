"""Opens an input through FFmpeg, and finds its video stream."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from streamd.errors import SourceError, SourceReason
from streamd.security.redact import redact
from streamd.sources.av_errors import MAX_TRACKS, describe
from streamd.sources.exif import ANIMATED_WEBP
from streamd.sources.files import is_list
from streamd.sources.wire import heard_since

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from streamd.sources.av import AvStreamSettings


class Part(NamedTuple):
    """What is opened of a file: from one byte to another, 0 for its end, as FFmpeg's format of that name."""

    begin: int = 0
    end: int = 0
    format: str | None = None


WHOLE = Part()
_HTTP = "http,https,httpproxy,tcp,tls,crypto"
"""Protocols of FFmpeg that a recording over HTTP needs."""


def _options(settings: AvStreamSettings) -> dict[str, str]:
    options = {"max_streams": str(MAX_TRACKS)}
    if settings.url.startswith("rtsp"):
        # Nobody decodes audio: it is read where clips are to have it.
        options["allowed_media_types"] = "video+audio" if settings.clip_audio else "video"
        # FFmpeg reads twenty pictures to find the rate, 0.8 s at 25 frames/s. It serves information only.
        options["fpsprobesize"] = str(RATE_PICTURES)
        if settings.transport != "auto":
            options["rtsp_transport"] = settings.transport
        if settings.transport == "tcp":
            # Cameras drop whole pictures when TCP stalls. Without a reorder queue, FFmpeg does not detect the gap.
            options["reorder_queue_size"] = "2"
    elif not settings.url.startswith("/dev/"):
        if not settings.url.startswith("rtmp"):
            # A recorder that starts a new transport stream in mid-file gives its video another PID: one track goes on.
            options["merge_pmt_versions"] = "1"
        if settings.live or not is_list(settings.url.removeprefix("file:")):
            options["format_whitelist"] = _no_lists()
    return options | settings.options


@cache
def _no_lists() -> str:
    """Every format but ffconcat: FFmpeg opens a list that names itself in itself, until no descriptor is left."""
    import av

    return ",".join(sorted(av.formats_available - {"concat"}))


def open_container(
    settings: AvStreamSettings, *, live: bool, device: int | None, part: Part = WHOLE, lasting: bool = False
) -> InputContainer:
    """Connects and probes. Raises PyAV's errors.

    Args:
        settings: the stream.
        live: it has time limits; a file has none.
        device: CUDA device that decodes, None for software.
        part: what of a file is read.
        lasting: an HTTP server is asked not to close the connection behind an answer.
    """
    import av

    hwaccel: Any = None
    if device is not None:
        from av.codec.hwaccel import HWAccel

        hwaccel = HWAccel("cuda", device=str(device), allow_software_fallback=False, is_hw_owned=True)

    options = _options(settings)
    if lasting:
        options["multiple_requests"] = "1"
    if part != WHOLE and (allowed := options.get("protocol_whitelist", _HTTP if live else None)) is not None:
        options["protocol_whitelist"] = f"subfile,{allowed}"

    def opened(silence_s: float) -> InputContainer:
        return av.open(
            settings.url if part == WHOLE else f"subfile,,start,{part.begin},end,{part.end},,:{settings.url}",
            mode="r",
            format="v4l2" if settings.url.startswith("/dev/video") else part.format,
            options=options,
            timeout=(settings.open_timeout_s, silence_s) if live else None,
            hwaccel=hwaccel,
        )

    # PyAV takes the limit before anything is known of the input: a guess, and once more where it was wrong.
    path = re.split("[?#]", settings.url, maxsplit=1)[0]
    guess = hls_silence_s(settings) if path.lower().endswith((".m3u8", ".m3u", ".mpd")) else settings.read_timeout_s
    container = opened(guess)
    needed = kind_of(container, settings).silence_s or settings.read_timeout_s
    if not live or needed == guess:
        return container
    container.close()
    return opened(needed)


def read_bytes(settings: AvStreamSettings, at: int, size: int) -> bytes:
    """Bytes of what is behind an HTTP address, from one on; fewer if they cannot be had."""
    import av

    found = bytearray()
    options = settings.options | {"offset": str(at), "end_offset": str(at + size)}
    limits = settings.open_timeout_s, settings.read_timeout_s
    # FFmpeg's error at the end is that the file would go on.
    with (
        contextlib.suppress(OSError, ValueError),
        av.open(settings.url, format="data", options=options, timeout=limits) as container,
    ):
        for packet in container.demux():
            found += packet
            if len(found) >= size:
                break
    return bytes(found[:size])


@dataclass(frozen=True, slots=True)
class InputKind:
    """What was opened, whatever its URL looks like."""

    live: bool
    """The sender sets the pace, and the end of input is a fault. False for files, also over HTTP."""
    paced: bool
    """Packets come earlier than they are due: files, and HLS, which brings a segment at a time."""
    still: bool
    """One picture: a file, or a camera's snapshot URL."""
    animation: bool
    """A format of pictures that may have several: GIF, animated PNG."""
    invented_clock: bool
    """FFmpeg counts time stamps up where the format has none."""
    segments: bool
    """HLS, DASH: a segment comes at once, and its first pictures have waited for its last ones at the sender."""
    silence_s: float | None
    """Longest silence, if it is not `read_timeout_s`."""


RATE_PICTURES = 3
"""Distances between pictures from which FFmpeg finds a camera's rate where its parameters do not tell."""
HLS_TARGETS = 4
"""A playlist that brings nothing new for so many target durations is dead (RFC 8216, 6.3.4: clients ask after one)."""
_TARGET_S = 10.0
"""A common target duration; FFmpeg does not tell a playlist's own."""
_DEFAULT, _ATTACHED_PIC = 0x0001, 0x0400
"""AV_DISPOSITION_DEFAULT and _ATTACHED_PIC of libavformat/avformat.h."""
_OVERLAP_S = Fraction(1, 2)
"""Seconds by which tracks may overlap that are shown one after the other."""
_ENDLESS = 1 << 40
"""A length of this many bytes or more is that of a live stream whose server has to give one."""
_FILES = ("http", "https", "ftp", "sftp", "smb")


def kind_of(container: InputContainer, settings: AvStreamSettings) -> InputKind:
    """Decides by what FFmpeg has found, not by the text of the URL."""
    formats = set(container.format.name.split(","))
    still = bool(formats & {"image2", "image2pipe"}) or any(name.endswith("_pipe") for name in formats)
    hls = bool(formats & {"hls", "dash"})  # a segment at a time, whatever the playlist is called
    scheme = settings.url.partition("://")[0].lower()
    # Transport streams and raw video have no duration over HTTP, but their length is known. Cameras that send parts of
    # a multipart answer sometimes make a length up.
    bounded = (container.duration or 0) > 0 or (0 < container.size < _ENDLESS and not hls and "mpjpeg" not in formats)
    finite = settings.live and scheme in _FILES and not still and bounded
    live = settings.live and not finite and not still
    return InputKind(
        live=live,
        paced=settings.paced or (settings.pace != "asap" and settings.live and (hls or finite)),
        still=still,
        animation=bool(formats & {"gif", "apng"}),
        invented_clock=still or bool(formats & {"mpjpeg"}) or (live and bool(formats & {"mjpeg", "h264", "hevc"})),
        segments=hls,
        silence_s=hls_silence_s(settings) if hls else None,
    )


def hls_silence_s(settings: AvStreamSettings) -> float:
    """How long an HLS playlist may bring nothing."""
    return max(settings.read_timeout_s, HLS_TARGETS * _TARGET_S)


def video_stream(container: InputContainer, settings: AvStreamSettings, *, live: bool, waited_s: float) -> VideoStream:
    """The video track that FFmpeg's own players take: the default one, the largest of several; or that of `track`.

    Cover pictures and thumbnails are no video.

    Args:
        container: opened.
        settings: of the stream.
        live: False for a file.
        waited_s: how long opening took.

    Raises:
        SourceError: there is none.
    """
    # av.open can succeed after a probe timed out, returning a stream without size or codec.
    found = list(container.streams.video)
    usable = [s for s in found if s.codec_context is not None and s.width and s.height and not _is_cover(s)]
    if settings.track is not None:
        if settings.track >= len(found) or found[settings.track] not in usable:
            listed = ", ".join(f"{i}: {_described(s)}" for i, s in enumerate(found)) or "none"
            text = f"{settings.url}: track {settings.track} is no video track; video tracks: {listed}"
            raise SourceError("no_video", redact(text), permanent=not live)
        return found[settings.track]
    if usable and container.format.name != "tty":
        return max(usable, key=lambda s: (not _is_thumbnail(s, usable), _is_default(s), s.width * s.height))
    if not usable and any(s.codec_context is not None and s.codec_context.name == "webp" for s in found):
        # FFmpeg finds the size of every other one.
        text = redact(f"{settings.url}: {ANIMATED_WEBP} (or the file is damaged)")
        raise SourceError("unsupported", text, permanent=not settings.live)
    late = live and waited_s >= settings.open_timeout_s * 0.98
    reason: SourceReason = "no_video" if live or not usable else "unsupported"
    if late:
        reason = "rtcp_only" if heard_since(settings.url, waited_s) else "timeout_open"
    raise SourceError(reason, describe(settings.url, reason), permanent=not live)


def tracks_apart(container: InputContainer, video: VideoStream) -> list[int]:
    """Numbers of the video tracks of a file, as for the setting `track`, that are shown before or after `video`. They
    are not read."""
    ours = _span(video)
    return [
        number
        for number, other in enumerate(container.streams.video)
        if other is not video and not _is_cover(other) and ours is not None and (theirs := _span(other)) is not None
        and (theirs[0] > ours[1] - _OVERLAP_S or theirs[1] < ours[0] + _OVERLAP_S)
    ]  # fmt: skip


def _span(video: VideoStream) -> tuple[Fraction, Fraction] | None:
    """When it begins and ends, in seconds."""
    if video.duration is None or video.time_base is None:
        return None
    begin = (video.start_time or 0) * video.time_base
    return begin, begin + video.duration * video.time_base


def sound_beside(container: InputContainer, video: VideoStream) -> AudioStream | None:
    """The audio track that belongs to the video, as FFmpeg's own players choose it; None if there is none."""
    found = container.streams.best("audio", related=video)
    return cast("AudioStream", found) if found is not None else None


def _is_cover(stream: VideoStream) -> bool:
    return bool(int(stream.disposition) & _ATTACHED_PIC)


def _is_default(stream: VideoStream) -> bool:
    return bool(int(stream.disposition) & _DEFAULT)


def _is_thumbnail(stream: VideoStream, others: Sequence[VideoStream]) -> bool:
    """A track of JPEGs beside real video: recorders put one there for their time line."""
    return stream.codec_context.name in ("mjpeg", "png", "bmp", "gif") and any(
        other.codec_context.name not in ("mjpeg", "png", "bmp", "gif") for other in others
    )


def _described(stream: VideoStream) -> str:
    size = f"{stream.width}x{stream.height}" if stream.width else "no size"
    name = stream.codec_context.name if stream.codec_context is not None else "unknown"
    return f"{name} {size}{' (cover picture)' if _is_cover(stream) else ''}"
