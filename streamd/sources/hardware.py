"""Hardware decoders: whose thread frees their pictures, and how long they live.

PyAV frees a picture with the interpreter lock held (`VideoFrame.__dealloc__`, PyAV 17 and 18). FFmpeg then takes the
lock of the decoder's pool of pictures, and the decoder's own thread holds that lock while it asks the driver for the
memory of one more picture. The driver answers when it has created the decoders of all other processes. Whoever dropped
the last reference to a picture, the stage behind the network for instance, waited for that with the interpreter lock,
and with it the whole process: workers with hundreds of cameras were taken for hung and killed.

So the thread that decodes keeps a reference to every picture until nobody else has one. It frees them itself between
two packets, when the pool's lock is free.

Creating a decoder takes the driver 55 ms on an H200, destroying one 28 ms, one after another for the whole GPU. After a
lost connection the decoder is kept for the next one: two hundred cameras that come back at once create none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from sys import getrefcount
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

KEEP_S = 60.0
"""A camera that stays away for longer gets a new decoder: this one holds device memory."""
Video = tuple[str, bytes, int, int]
"""What a decoder was created for: codec, parameter sets, width, height."""


def in_use(pictures: list[Any], alone: int) -> list[Any]:
    """Those with more than `alone` references."""
    return [picture for picture in pictures if getrefcount(picture) > alone]


_ALONE = next(number for number in range(1, 16) if not in_use([object()], number))
"""References to a picture that only the list refers to, as `in_use` counts them."""


def video_of(context: VideoCodecContext) -> Video:
    """Identifies what `context` decodes."""
    return context.name, bytes(context.extradata or b""), context.width, context.height


class HardwareDecoder:
    """One decoder. For the thread of its source.

    Args:
        context: opened with a hardware device.
    """

    def __init__(self, context: VideoCodecContext) -> None:
        self.context = context
        self.video = video_of(context)
        self._issued: list[VideoFrame] = []

    def decode(self, packet: Packet[Any] | None) -> list[VideoFrame]:
        """The pictures that come out for `packet`, or all that are left for None. Frees those no longer used.

        Raises:
            FFmpegError: the decoder rejects it.
        """
        if self._issued:
            self._issued = in_use(self._issued, _ALONE)
        natives: list[VideoFrame] = self.context.decode(packet)
        self._issued += natives
        return natives

    def flush_buffers(self) -> None:
        """Forgets what was decoded, before packets that do not follow."""
        self.context.flush_buffers()

    @property
    def held(self) -> int:
        """Pictures that somebody used when the latest packet was decoded, and those that came out since."""
        return len(self._issued)

    def close(self) -> None:
        """Lets go of the decoder and its pictures, which destroys it unless somebody still uses one."""
        self._issued = []
        del self.context


class Shelf:
    """Decoders of streams without a connection. Any thread.

    Args:
        discard: is given those that nobody came for.
    """

    def __init__(self, discard: Callable[[HardwareDecoder], None]) -> None:
        self._discard = discard
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[HardwareDecoder, int, float]] = {}

    def put(self, stream: str, decoder: HardwareDecoder, device: int) -> None:
        """Keeps the decoder of `stream`, on `device`, for a while."""
        self._clear()
        with self._lock:
            old = self._kept.pop(stream, None)
            self._kept[stream] = decoder, device, time.monotonic() + KEEP_S
        if old is not None:
            self._discard(old[0])

    def take(self, stream: str, device: int) -> HardwareDecoder | None:
        """The decoder that was kept for `stream`, if it is on `device`."""
        self._clear()
        with self._lock:
            found = self._kept.pop(stream, None)
        if found is None or found[1] == device:
            return found[0] if found is not None else None
        self._discard(found[0])
        return None

    def _clear(self, *, everything: bool = False) -> None:
        now = time.monotonic()
        with self._lock:
            late = [stream for stream, (_, _, until) in self._kept.items() if everything or until < now]
            gone = [self._kept.pop(stream)[0] for stream in late]
        for decoder in gone:
            self._discard(decoder)

    def clear(self) -> None:
        """Discards all of them."""
        self._clear(everything=True)
