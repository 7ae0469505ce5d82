"""The protocol between `process` and `decoder`: pictures in shared memory, and the accompanying messages.

A SOCK_SEQPACKET pair connects the two: messages arrive whole or not at all, and its end tells each side that the other
has gone. The daemon creates the memory and passes it on: a memfd sealed against growing and shrinking, so that a
corrupted child cannot turn a read into a SIGBUS. It has no name, so nothing remains in /dev/shm, whoever is killed.
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

# From the child. Every message starts with the counters, so that they are correct up to its last message.
OPENED, SHAPE, CODEC, FRAME, BEAT, ERROR, END = b"O", b"S", b"C", b"F", b"B", b"E", b"Z"
# From the daemon.
MEMORY, FREE, RATE = b"M", b"R", b"F"

COUNTERS = struct.Struct("=cQQQQQIddd")
"""Kind; packets rejected, frames skipped, RTP packets lost, frames left out as the stream is behind, frames discarded
at the end; jumps, offset and drift of the clock; seconds that it is behind (NaN: unknown)."""
PLACE = struct.Struct("=BHIqqqq")
"""A frame: flags; buffer and its pool; captured, wall, decoded, pts in nanoseconds."""
FREED = struct.Struct("=cHI")
"""Kind; buffer; its pool."""
NEW_RATE = struct.Struct("=cdd")
"""From the daemon: max_fps and max_behind_ms from now on; 0 for no limit."""
NEW_MEMORY = struct.Struct("=cIQH")
"""Kind; pool; bytes per buffer; number of buffers. The file descriptor is attached."""
HAS_PTS, CAMERA_CLOCK, QUARANTINED, BEGINS = 1, 2, 4, 8

LARGEST_MESSAGE = 1 << 17
LARGEST_PICTURE = 1 << 30
"""Bytes of a picture: more than 8k with 16 bits a sample."""
BEAT_S = 0.5
"""Time between two heartbeats of a child."""
GRACE_S = 1.0
"""Time for a child to disconnect from its camera (TEARDOWN) and exit before it is killed."""
_ALIGN = 64


class Shape(NamedTuple):
    """How pictures are laid out in their buffers; everything but the times is the same for each picture."""

    format: str
    width: int
    height: int
    matrix: ColorMatrix
    full_range: bool
    rotation: Rotation
    mirrored: bool
    pixel_aspect: float
    planes: tuple[tuple[int, int], ...]
    """(pitch, size) of each plane in bytes."""

    @property
    def offsets(self) -> list[int]:
        """The offset of each plane, followed by the size of a whole buffer, in bytes."""
        out = [0]
        for _, size in self.planes:
            out.append(out[-1] + -(-size // _ALIGN) * _ALIGN)
        out[-1] = -(-out[-1] // mmap.PAGESIZE) * mmap.PAGESIZE
        return out

    def sound(self) -> bool:
        """Whether every plane has all its rows, and every row all its samples: readers by address rely on it."""
        import av

        if not 0.2 <= self.pixel_aspect <= 5:
            return False
        try:
            layout = av.VideoFormat(self.format, self.width, self.height)
            components = layout.components
            row_bits = Counter[int]()
            for part in components:
                # Samples may be packed: eight of one bit in a byte; in a single-plane format, across byte boundaries.
                packed = layout.is_bit_stream or (part.plane == 0 and sum(p.plane == 0 for p in components) > 1)
                row_bits[part.plane] += part.width * (part.bits if packed else -(-part.bits // 8) * 8)
            return len(row_bits) <= len(self.planes) and all(
                8 * self.planes[part.plane][0] >= row_bits[part.plane]
                and self.planes[part.plane][0] * part.height <= self.planes[part.plane][1]
                for part in components
            )
        except (IndexError, OverflowError, ValueError):
            return False


class Failure(NamedTuple):
    """A SourceError in transit."""

    reason: SourceReason
    message: str
    permanent: bool


class Channel:
    """The daemon's end of the socket. It is closed with its last user, never while another thread uses it."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def __del__(self) -> None:
        self.socket.close()

    def free(self, buffer: int, memory: int) -> None:
        """Returns a buffer to the child. Any thread; never waits."""
        with contextlib.suppress(OSError):  # the child has gone or hangs, so nobody needs the buffer
            self.socket.send(FREED.pack(FREE, buffer, memory), socket.MSG_DONTWAIT)


class _Plane(np.ndarray[Any, np.dtype[np.uint8]]):
    """One plane's bytes with the attributes of PyAV's planes."""

    buffer_ptr: int
    line_size: int


class Memory:
    """The daemon's view of one pool of buffers. Pages cost nothing until the child has written to them.

    Args:
        channel: of the child that fills it.
        number: distinguishes it from earlier pools.
        size: bytes per buffer, whole pages.
        count: number of buffers.

    Raises:
        OSError: not enough memory.
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
        """The picture in a buffer. Releasing it returns the buffer."""
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
            mirrored=shape.mirrored,
            pixel_aspect=shape.pixel_aspect,
        )

    def _plane(self, buffer: int, shape: Shape) -> list[_Plane]:
        out = []
        for (pitch, size), offset in zip(shape.planes, shape.offsets, strict=False):
            plane = _Plane((size,), np.uint8, self._map, buffer * self.size + offset)
            plane.buffer_ptr, plane.line_size = plane.ctypes.data, pitch
            out.append(plane)
        return out


class SharedPicture(ForeignPicture):
    """See `ForeignPicture`. The planes are read-only and lie in a buffer that is returned with this object."""

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
