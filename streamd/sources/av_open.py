"""Opening an input through FFmpeg, and finding its video in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamd.errors import SourceError, SourceReason
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_errors import describe
from streamd.sources.wire import heard_since

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


def _options(settings: AvStreamSettings) -> dict[str, str]:
    options: dict[str, str] = {}
    if settings.url.startswith("rtsp"):
        # Nobody decodes audio, and its packets would hide from the timeout that the video has stopped.
        options["allowed_media_types"] = "video"
    if settings.url.startswith("rtsp") and settings.transport != "auto":
        options["rtsp_transport"] = settings.transport
        if settings.transport == "tcp":
            # Cameras drop whole pictures when TCP stalls. Without a reorder queue, FFmpeg does not detect the gap.
            options["reorder_queue_size"] = "2"
    return options | settings.options


def open_container(settings: AvStreamSettings, *, live: bool, device: int | None) -> InputContainer:
    """Connects and probes; whatever PyAV raises.

    Args:
        settings: the stream.
        live: it has time limits; a file has none.
        device: CUDA device that decodes, None for software.
    """
    import av

    hwaccel: Any = None
    if device is not None:
        from av.codec.hwaccel import HWAccel

        hwaccel = HWAccel("cuda", device=str(device), allow_software_fallback=False, is_hw_owned=True)
    return av.open(
        settings.url,
        mode="r",
        format="v4l2" if settings.url.startswith("/dev/video") else None,
        options=_options(settings),
        timeout=(settings.open_timeout_s, settings.read_timeout_s) if live else None,
        hwaccel=hwaccel,
    )


def video_stream(container: InputContainer, settings: AvStreamSettings, *, live: bool, waited_s: float) -> VideoStream:
    """The first video stream that can be decoded.

    Args:
        container: opened.
        settings: of the stream.
        live: False for a file.
        waited_s: how long opening took.

    Raises:
        SourceError: there is none.
    """
    # av.open can succeed after a probe timed out, returning a stream without size or codec.
    usable = [s for s in container.streams.video if s.codec_context is not None and s.width and s.height]
    if usable and container.format.name != "tty":
        return usable[0]
    late = live and waited_s >= settings.open_timeout_s * 0.98
    reason: SourceReason = "no_video" if live or not usable else "unsupported"
    if late:
        reason = "rtcp_only" if heard_since(settings.url, waited_s) else "timeout_open"
    raise SourceError(reason, describe(settings.url, reason), permanent=not live)
