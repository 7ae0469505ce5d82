"""The newest compressed packets of a stream, kept so that a clip can begin before its event.

A source puts packets in as they come from the demuxer, before anything is skipped, decoded or withheld. The ring
belongs to the stream and survives its connections. Nothing is kept, and a source does nothing, until a rule asks for
clips.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Protocol

MAX_STEP_NS = 60_000_000_000
"""A longer step of a file's time stamps is a jump."""
REORDER_NS = 2_000_000_000
"""Pictures are shown out of order, or arrive late, by no more than this."""
FRAME_NS = 40_000_000
"""Assumed duration of a frame where time stamps give none."""


@dataclass(slots=True, frozen=True)
class SoundHead:
    """What a muxer has to know of the sound beside a stream's pictures."""

    codec: str
    """FFmpeg's name."""
    time_base: tuple[int, int]
    """Of its time stamps, which count on the same clock as the pictures'."""
    data: bytes
    """The codec parameters: a NUT file, which a demuxer reads."""


@dataclass(slots=True, frozen=True)
class PacketHead:
    """What a muxer has to know of the packets that follow."""

    codec: str
    """FFmpeg's name."""
    width: int
    """Coded, in pixels."""
    height: int
    time_base: tuple[int, int]
    """Numerator and denominator of the unit of time stamps, in seconds."""
    container: str
    """FFmpeg's name of the format of `data`."""
    data: bytes
    """The codec parameters: a small file with the first packet, which a demuxer reads."""
    live: bool
    """Packets arrive at the sender's pace; otherwise only their time stamps tell when they were taken."""
    changed: bool = False
    """The connection is that of the part before; its parameters have changed."""
    sound: SoundHead | None = None
    """None where nobody asked for sound, or the stream has none."""


@dataclass(slots=True, frozen=True)
class PacketPart:
    """A run of packets with the same parameters from one connection. Parts are never joined in one file."""

    number: int
    """Counts from 1 within the stream."""
    head: PacketHead


class Packet:
    """One compressed picture, or a piece of sound."""

    __slots__ = ("at_ns", "captured_ns", "data", "dts", "duration", "key", "part", "pts", "serial", "sound", "wall_ns")

    def __init__(
        self, serial: int, part: PacketPart, data: bytes, pts: int | None, dts: int | None, duration: int, key: bool,
        captured_ns: int, wall_ns: int, at_ns: int, sound: bool = False,
    ) -> None:  # fmt: skip
        self.serial = serial
        """Counts the packets of the stream, from 1 and without gaps."""
        self.part = part
        self.data = data
        self.pts, self.dts, self.duration = pts, dts, duration
        """In units of `part.head.time_base`, or of that of its sound; a duration of 0 is unknown."""
        self.key = key
        self.captured_ns = captured_ns
        """Equals `Frame.captured_ns` of the picture in it."""
        self.wall_ns = wall_ns
        """Unix time of arrival, nanoseconds."""
        self.at_ns = at_ns
        """When it was taken, on a monotonic clock of the stream: arrival for live streams, media time for files. That
        of the picture before it for sound."""
        self.sound = sound


class PacketSink(Protocol):
    """Where a source puts packets. One thread at a time."""

    @property
    def on(self) -> bool:
        """False while nobody wants packets."""
        ...

    def begin(self, head: PacketHead) -> None:
        """The following packets have these parameters; the first is a key frame."""
        ...

    def put(
        self, data: bytes, pts: int | None, dts: int | None, duration: int, key: bool, captured_ns: int, wall_ns: int
    ) -> None:
        """Takes one packet. Never waits for a consumer."""
        ...

    def put_sound(self, data: bytes, pts: int, duration: int, captured_ns: int, wall_ns: int) -> None:
        """Takes one packet of the sound that `begin` has told of."""
        ...

    def refuse(self, why: str) -> None:
        """The stream's packets cannot be recorded."""
        ...


class PacketRing:
    """Whole groups of pictures, bounded in seconds and bytes. One thread puts; any thread reads.

    Args:
        seconds: how far back the ring reaches at least, while bytes allow; 0 keeps nothing.
        max_bytes: bound of the packets' data. Exceeding it drops the oldest groups; a single group that exceeds it is
            dropped as a whole, and keeping resumes at the next key frame.
    """

    def __init__(self, seconds: float = 0.0, max_bytes: int = 64 << 20) -> None:
        self._lock = threading.Lock()
        self._groups: deque[list[Packet]] = deque()
        self._part: PacketPart | None = None
        self._parts = 0
        self._serial = 0
        self._stamp: int | None = None
        self._at_ns = 0
        self._step_ns = FRAME_NS
        self._waiting = True
        """For a key frame."""
        self.bytes = 0
        """Held now."""
        self.overflows = 0
        """Groups that were too large for the ring on their own."""
        self.problem = ""
        """Why packets cannot be recorded; empty while they can."""
        self.on = False
        self._seconds_ns = 0
        self.change(seconds, max_bytes)

    def change(self, seconds: float, max_bytes: int) -> None:
        """Takes on other bounds. Any thread."""
        with self._lock:
            self._seconds_ns, self._max_bytes = int(seconds * 1e9), max_bytes
            self.on = seconds > 0
            if not self.on:
                self._groups.clear()
                self.bytes, self._waiting, self._part = 0, True, None

    def begin(self, head: PacketHead) -> None:
        """See `PacketSink.begin`."""
        with self._lock:
            self._parts += 1
            self._part = PacketPart(self._parts, head)
            self._stamp, self._waiting, self.problem = None, True, ""

    def refuse(self, why: str) -> None:
        """See `PacketSink.refuse`."""
        self.problem = why

    def put(
        self, data: bytes, pts: int | None, dts: int | None, duration: int, key: bool, captured_ns: int, wall_ns: int
    ) -> None:
        """See `PacketSink.put`."""
        with self._lock:
            part = self._part
            if part is None or not self.on or (self._waiting and not key):
                return
            self._waiting = False
            at_ns = self._clock(part.head, dts if dts is not None else pts, captured_ns)
            self._serial += 1
            packet = Packet(self._serial, part, data, pts, dts, duration, key, captured_ns, wall_ns, at_ns)
            groups = self._groups
            if key:
                groups.append([packet])
                while len(groups) > 1 and groups[1][0].at_ns <= at_ns - self._seconds_ns:
                    self._drop_oldest()
            else:
                groups[-1].append(packet)
            self._bound(len(data))

    def put_sound(self, data: bytes, pts: int, duration: int, captured_ns: int, wall_ns: int) -> None:
        """See `PacketSink.put_sound`."""
        with self._lock:
            part = self._part
            if part is None or part.head.sound is None or not self.on or self._waiting:
                return
            self._serial += 1
            self._groups[-1].append(
                Packet(
                    self._serial, part, data, pts, None, duration, False, captured_ns, wall_ns, self._at_ns, sound=True
                )
            )
            self._bound(len(data))

    def _bound(self, added: int) -> None:
        groups = self._groups
        self.bytes += added
        while self.bytes > self._max_bytes and len(groups) > 1:
            self._drop_oldest()
        if self.bytes > self._max_bytes:
            self._drop_oldest()
            self._waiting = True
            self.overflows += 1

    def _drop_oldest(self) -> None:
        self.bytes -= sum(len(packet.data) for packet in self._groups.popleft())

    def _clock(self, head: PacketHead, stamp: int | None, captured_ns: int) -> int:
        if head.live:
            self._at_ns = max(captured_ns, self._at_ns + 1)
            return self._at_ns
        before, self._stamp = self._stamp, stamp
        step_ns = 0
        if stamp is not None and before is not None:
            step_ns = (stamp - before) * head.time_base[0] * 1_000_000_000 // head.time_base[1]
        if 0 < step_ns <= MAX_STEP_NS:
            self._step_ns = step_ns
        self._at_ns = captured_ns if self._at_ns == 0 else self._at_ns + self._step_ns
        return self._at_ns

    # ------------------------------------------------------------------------------------------------------ reading

    @property
    def newest_ns(self) -> int:
        """`at_ns` of the newest packet; 0 before the first."""
        return self._at_ns

    def at(self, captured_ns: int) -> int | None:
        """`at_ns` of the packet of the picture that was captured then; None if it is not here any more."""
        found = self._find(captured_ns)
        return found.at_ns if found is not None else None

    def _find(self, captured_ns: int) -> Packet | None:
        with self._lock:
            for group in reversed(self._groups):
                if group[0].captured_ns <= captured_ns:
                    return next((p for p in reversed(group) if p.captured_ns == captured_ns and not p.sound), None)
        return None

    def start_before(self, at_ns: int, captured_ns: int | None = None, back_ns: int = 0) -> Packet | None:
        """The key frame from which a clip shows everything from a moment on.

        Args:
            at_ns: the moment. Without a key frame at or before it, the oldest is found.
            captured_ns: the picture from which the moment was counted backwards. Pictures may be shown in another order
                than they come in: with it, the key frame is also shown no later than the moment.
            back_ns: how far it was counted.

        Returns:
            None if the ring is empty.
        """
        origin = self._find(captured_ns) if captured_ns is not None else None
        with self._lock:
            chosen: Packet | None = None
            for group in reversed(self._groups):
                chosen = group[0]
                if chosen.at_ns <= at_ns and not _shown_after(chosen, origin, back_ns):
                    break
            return chosen

    def since(self, serial: int) -> list[Packet]:
        """All packets from a serial number on, oldest first. What was dropped meanwhile is missing at the front."""
        with self._lock:
            chosen: list[list[Packet]] = []
            for group in reversed(self._groups):
                chosen.append(group[:])
                if group[0].serial <= serial:
                    break
        return [packet for group in reversed(chosen) for packet in group if packet.serial >= serial]


def _shown_after(key: Packet, origin: Packet | None, back_ns: int) -> bool:
    """Whether a key frame is shown later than `back_ns` before another picture of the same clock."""
    if origin is None or origin.part is not key.part or origin.pts is None or key.pts is None:
        return False
    num, den = key.part.head.time_base
    shown_ns = (origin.pts - key.pts) * num * 1_000_000_000 // den
    # A clock that has jumped between the two says nothing.
    return shown_ns < back_ns and abs(shown_ns - (origin.at_ns - key.at_ns)) < REORDER_NS
