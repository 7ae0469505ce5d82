"""Tells a GPU without room for another decoder from a video that cannot be decoded.

FFmpeg creates an NVDEC decoder with the first picture. If the driver refuses, for want of memory or of sessions, every
packet is rejected, as if the video were damaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamd.errors import SourceError
from streamd.sources.no_picture import FILE_LIMIT

if TYPE_CHECKING:
    from streamd.sources.av import AvStreamSettings

NO_DECODER = (
    "the GPU's decoder gives no picture, but the video is valid: the GPU may have no memory or no room for another "
    "decoder; it is tried again (fewer streams per GPU, or `decode: software` for some, avoid this)"
)


def plays_in_software(settings: AvStreamSettings) -> bool:
    """Whether one of a file's first packets becomes a picture without the GPU."""
    import av

    from streamd.sources.av_open import open_container, video_stream

    try:
        with open_container(settings, live=False, device=None) as container:
            stream = video_stream(container, settings, live=False, waited_s=0.0)
            for number, packet in enumerate(container.demux(stream)):
                try:
                    if packet.decode():
                        return True
                except (av.FFmpegError, ValueError):
                    pass
                if number >= FILE_LIMIT:
                    break
    except (SourceError, av.FFmpegError, OSError, ValueError, RuntimeError):
        pass
    return False


def is_external(error: BaseException) -> bool:
    """Whether a library that FFmpeg uses has failed, here the driver, or memory is short."""
    import av

    return isinstance(error, (av.ExternalError, MemoryError))
