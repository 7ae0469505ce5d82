"""Packets of a camera that waits for its decoder.

Decoding begins with a key frame, and cameras send one every second or every ten. If a camera let its packets go while
it waits for a place on the GPU, a free place would be of use to it at its key frames only, or its first picture would
come up to a group of pictures after its turn. So it keeps what has come since its latest key frame, compressed. When it
is let in, it decodes that and is up to date; of the pictures decoded on the way, only the newest is served.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from av.packet import Packet

LONGEST_NS = 10_000_000_000
"""A longer group of pictures is not kept: decoding would take more time than waiting for the next one."""
LARGEST = 16 << 20
"""Bytes of one stream; the same for a larger group."""
LARGEST_OF_ALL = 256 << 20
"""Bytes of all streams of a process together."""
KEY_WAIT_NS = 5_000_000_000
"""A stream without a key frame for this long is decoded from any packet on: some cameras never mark one."""


class Arrived(NamedTuple):
    """A packet, and what is known of its arrival."""

    packet: Packet[Any]
    now_ns: int
    """Monotonic."""
    wall_ns: int
    """Unix time."""
    damaged: bool
    """Data is missing in it or before it."""


class Room:
    """Bytes that several backlogs share. Any thread.

    Args:
        size: bytes that they may keep together.
    """

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self.left = size

    def take(self, size: int) -> bool:
        """Whether `size` more bytes may be kept."""
        with self._lock:
            if size > self.left:
                return False
            self.left -= size
            return True

    def give(self, size: int) -> None:
        """They are not kept any longer."""
        with self._lock:
            self.left += size


room = Room(LARGEST_OF_ALL)
"""Of this process."""


class Backlog:
    """What one camera keeps while it waits. For the thread of its source.

    Args:
        keys_only: only key frames will be decoded.
        shared: limits all streams together.
    """

    def __init__(self, keys_only: bool = False, shared: Room = room) -> None:
        self._keys_only, self._room = keys_only, shared
        self._packets: deque[Arrived] = deque()
        self._bytes = 0
        """Taken of `room`."""
        self._whole = False
        """Everything since the latest key frame is there; if not, there is at most the latest packet."""
        self._key_ns = 0

    def __len__(self) -> int:
        return len(self._packets)

    @property
    def newest(self) -> Arrived | None:
        """The latest packet that is kept."""
        return self._packets[-1] if self._packets else None

    def opened(self, now_ns: int) -> None:
        """A connection begins, monotonic nanoseconds."""
        self.clear()
        self._key_ns = now_ns

    def put(self, arrived: Arrived) -> bool:
        """Adds the next packet, which is not empty, and lets go what is no longer needed.

        Returns:
            Whether decoding can begin with what is kept.
        """
        packet, now_ns = arrived.packet, arrived.now_ns
        key = packet.is_keyframe
        if key:
            self.clear()
            self._whole, self._key_ns = True, now_ns
        elif self._keys_only and self._packets:
            return True
        elif self._whole and now_ns - self._key_ns > LONGEST_NS:
            self.clear()
        if self._whole:
            size = packet.size
            if self._bytes + size <= LARGEST and self._room.take(size):
                self._bytes += size
                self._packets.append(arrived)
                return True
        self.clear()
        if key or now_ns - self._key_ns >= KEY_WAIT_NS:
            self._packets.append(arrived)
        return bool(self._packets)

    def take(self) -> deque[Arrived]:
        """Passes on what is kept, in the order of arrival."""
        found, self._packets = self._packets, deque()
        self.clear()
        return found

    def clear(self) -> None:
        """Lets everything go."""
        self._packets.clear()
        self._whole = False
        if self._bytes:
            self._room.give(self._bytes)
            self._bytes = 0
