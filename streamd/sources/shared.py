"""Pictures in memory that two processes share, and the messages beside them: what `process` and `decoder` agree on.

One SOCK_SEQPACKET pair joins the two: a message is whole or absent, and its end tells each side that the other is gone.
The daemon makes the memory (a memfd that can neither grow nor shrink: a child that has lost its mind cannot make a
read of it a SIGBUS) and hands it over; it has no name, so that nothing stays in /dev/shm whoever is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from streamd.errors import SourceReason
from streamd.types import ColorMatrix, ForeignPicture, Picture, Rotation

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# From the child. Every message begins with the counters, so that the last one before its death is true, too.
OPENED, SHAPE, FRAME, BEAT, ERROR, END = b"O", b"S", b"F", b"B", b"E", b"Z"
# From the daemon.
MEMORY, FREE = b"M", b"R"

COUNTERS = struct.Struct("=cQQQIdd")
"""Kind; packets refused, frames skipped, RTP packets lost; jumps, offset and drift of the clock (NaN: unknown)."""
PLACE = struct.Struct("=BHIqqqq")
"""A frame: marks; buffer and the memory it lies in; captured, wall, decoded, pts in nanoseconds."""
FREED = struct.Struct("=cHI")
"""Kind; buffer; the memory it lies in."""
NEW_MEMORY = struct.Struct("=cIQH")
"""Kind; which memory; bytes of a buffer; buffers. Its descriptor comes with it."""
HAS_PTS, CAMERA_CLOCK, QUARANTINED = 1, 2, 4

LARGEST_MESSAGE = 1 << 17
LARGEST_PICTURE = 1 << 30
"""Bytes of a picture: more than 8k with 16 bits a sample."""
BEAT_S = 0.5
"""Time between two beats of a child."""
GRACE_S = 1.0
"""Time for a child to leave its camera (TEARDOWN) and end before it is killed."""
_ALIGN = 64


class Shape(NamedTuple):
    """How pictures lie in their buffers. All but the times is the same from picture to picture."""

    format: str
    width: int
    height: int
    matrix: ColorMatrix
    full_range: bool
    rotation: Rotation
    planes: tuple[tuple[int, int], ...]
    """(pitch, bytes) of each plane."""

    @property
    def offsets(self) -> list[int]:
        """Where each plane begins, and after them the bytes of a whole buffer."""
        out = [0]
        for _, size in self.planes:
            out.append(out[-1] + -(-size // _ALIGN) * _ALIGN)
        out[-1] = -(-out[-1] // mmap.PAGESIZE) * mmap.PAGESIZE
        return out

    def sound(self) -> bool:
        """Whether every plane has all its rows, and every row all its samples: what reads by address relies on it."""
        import av

        try:
            components = av.VideoFormat(self.format, self.width, self.height).components
            row_bits = Counter[int]()
            for part in components:
                # Where one plane holds everything, samples may be packed without regard to bytes.
                packed = part.plane == 0 and sum(other.plane == 0 for other in components) > 1
                row_bits[part.plane] += part.width * (part.bits if packed else -(-part.bits // 8) * 8)
            return len(row_bits) <= len(self.planes) and all(
                8 * self.planes[part.plane][0] >= row_bits[part.plane]
                and self.planes[part.plane][0] * part.height <= self.planes[part.plane][1]
                for part in components
            )
        except (IndexError, OverflowError, ValueError):
            return False


class Failure(NamedTuple):
    """A SourceError on its way."""

    reason: SourceReason
    message: str
    permanent: bool


class Channel:
    """The daemon's end of the socket. It is closed with its last user, never under the feet of another thread."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def __del__(self) -> None:
        self.socket.close()

    def free(self, buffer: int, memory: int) -> None:
        """Tells the child that a buffer can be used again. Any thread; never waits."""
        with contextlib.suppress(OSError):  # it is gone, or hangs: nobody needs the buffer then
            self.socket.send(FREED.pack(FREE, buffer, memory), socket.MSG_DONTWAIT)


class _Plane(np.ndarray[Any, np.dtype[np.uint8]]):
    """One plane's bytes with the attributes of PyAV's planes."""

    buffer_ptr: int
    line_size: int


class Memory:
    """The daemon's view of one pool of buffers. Pages cost nothing until the child has written to them.

    Args:
        channel: of the child that fills it.
        number: tells it from the pools before it.
        size: bytes of a buffer, whole pages.
        count: buffers.

    Raises:
        OSError: no memory.
    """

    def __init__(self, channel: Channel, number: int, size: int, count: int) -> None:
        self._channel = channel
        self.number, self.size, self.count = number, size, count
        self._planes: dict[int, tuple[_Plane, ...]] = {}
        self._shape: Shape | None = None
        descriptor = os.memfd_create("streamd-pictures", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size * count)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            self._map = mmap.mmap(descriptor, size * count, mmap.MAP_SHARED, mmap.PROT_READ)
            socket.send_fds(channel.socket, [NEW_MEMORY.pack(MEMORY, number, size, count)], [descriptor])
        finally:
            os.close(descriptor)

    def picture(self, buffer: int, shape: Shape) -> Picture:
        """The picture in a buffer. Letting it go gives the buffer back."""
        if shape is not self._shape:
            self._shape, self._planes = shape, {}
        planes = self._planes.get(buffer)
        if planes is None:
            planes = self._planes[buffer] = tuple(self._plane(buffer, shape))
        return Picture(
            SharedPicture(planes, shape, self._channel, buffer, self.number),
            shape.format,
            shape.width,
            shape.height,
            shape.matrix,
            shape.full_range,
            shape.rotation,
        )

    def _plane(self, buffer: int, shape: Shape) -> list[_Plane]:
        out = []
        for (pitch, size), offset in zip(shape.planes, shape.offsets, strict=False):
            plane = _Plane((size,), np.uint8, self._map, buffer * self.size + offset)
            plane.buffer_ptr, plane.line_size = plane.ctypes.data, pitch
            out.append(plane)
        return out


class SharedPicture(ForeignPicture):
    """See `ForeignPicture`. The planes are read-only and lie in a buffer that is taken back with this object."""

    __slots__ = ("_channel", "_place", "_shape", "planes")

    def __init__(self, planes: Sequence[_Plane], shape: Shape, channel: Channel, buffer: int, memory: int) -> None:
        self.planes = planes
        self._shape = shape
        self._channel = channel
        self._place = (buffer, memory)

    def __del__(self) -> None:
        self._channel.free(*self._place)

    def video_frame(self) -> VideoFrame:
        """See `ForeignPicture.video_frame`."""
        import av

        frame = av.VideoFrame(self._shape.width, self._shape.height, self._shape.format)
        for plane, target in zip(self.planes, frame.planes, strict=True):
            into = np.frombuffer(memoryview(target), np.uint8)
            if plane.line_size == target.line_size and plane.size == into.size:
                into[:] = plane
                continue
            columns = min(plane.line_size, target.line_size)
            rows = into.reshape(-1, target.line_size)
            rows[:, :columns] = plane.reshape(-1, plane.line_size)[: len(rows), :columns]
        return frame
