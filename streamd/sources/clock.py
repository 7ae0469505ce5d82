"""The camera's clock: when a picture was taken, the clock's offset from ours, and its drift and jumps.

FFmpeg turns RTCP sender reports (RFC 3550, 6.4.1) into a producer reference time on every packet (`AV_PKT_DATA_PRFT`).
None of this is used to measure latency, which always starts at the monotonic arrival of the packet.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from streamd.types import Clock

if TYPE_CHECKING:
    from av.packet import Packet

_PRFT = struct.Struct("=q")
"""AVProducerReferenceTime starts with the Unix time in microseconds."""
JUMP_NS = 1_000_000_000
"""A clock that moves by more than this relative to the others has jumped; less is jitter."""
WINDOW_NS = 60_000_000_000
"""The minimum delay is taken over windows of this length, so that jitter is not mistaken for drift."""
DECODER_DELAY = 32
"""Most pictures between reading a packet and the output of its picture."""
_SMOOTH = 1 / 32
_NEVER = 1 << 62


class StreamClock:
    """The clocks of one connection: the camera's wall clock, its media clock (pts), and the packets' arrival.

    Args:
        max_offset_s: a camera's wall clock is ignored if it differs from arrival by more than this; 0 ignores all.
    """

    def __init__(self, max_offset_s: float = 0.0) -> None:
        self._bound_ns = int(max_offset_s * 1e9)
        self.offset_s: float | None = None
        """Camera minus arrival in seconds, smoothed; None until the camera has sent a sender report. It includes the
        picture's delay (encoder, network, buffers) as well as the error of both clocks."""
        self.drift: float | None = None
        """Seconds that the media clock gains per second; None before two windows have passed."""
        self.jumps = 0
        """Number of times a camera clock jumped forward, went back or stood still; counted at most once per second,
        since reordered pictures show one jump many times."""
        self._reported = False
        self._media_jumped = False
        self._same_jump = 0
        self._jumped_ns = -_NEVER
        self._mapping_ns: int | None = None
        self._last_pts: int | None = None
        self._since = 0
        self._current = self._least = _NEVER
        self._first: tuple[int, int] | None = None

    def stamp(self, packet: Packet[Any], arrival_ns: int, time_base_ns: float) -> tuple[int, Clock]:
        """When the packet's picture was taken, in Unix nanoseconds, and according to which clock.

        Args:
            packet: as read.
            arrival_ns: Unix nanoseconds at which it was read.
            time_base_ns: nanoseconds per unit of its time stamps.
        """
        side = packet.get_sidedata("prft")
        if not side:
            return arrival_ns, "arrival"
        wall_ns: int = _PRFT.unpack_from(side)[0] * 1000
        if not self._reported:
            # FFmpeg's parser gives the packet before the first report the reference time of the packet after it.
            self._reported = True
            return arrival_ns, "arrival"
        difference = wall_ns - arrival_ns
        offset_s = difference / 1e9
        moved = self.offset_s is None or abs(offset_s - self.offset_s) * 1e9 > JUMP_NS
        if packet.pts is not None:
            self._map(wall_ns - int(packet.pts * time_base_ns), moved)
        if self.offset_s is None or moved:
            self.offset_s = offset_s
        else:
            self.offset_s += (offset_s - self.offset_s) * _SMOOTH
        if abs(difference) <= self._bound_ns:
            return wall_ns, "camera"
        return arrival_ns, "arrival"

    def _map(self, mapping_ns: int, moved: bool) -> None:
        """Monitors wall clock minus media clock, which only a sender report can change.

        The report after a jump of the media clock corrects the difference, so it is not a second jump. FFmpeg unwraps
        32-bit time stamps forward for pts and in both directions for reports, so one step back can appear in both.
        """
        if self._mapping_ns is not None and abs(mapping_ns - self._mapping_ns) > JUMP_NS:
            if moved and not self._media_jumped:
                self.jumps += 1
                self._same_jump = DECODER_DELAY
            self._media_jumped = False
        self._mapping_ns = mapping_ns

    def tick(self, pts_ns: int, captured_ns: int) -> None:
        """One more picture, in presentation order.

        Args:
            pts_ns: its presentation time on the media clock.
            captured_ns: its monotonic arrival.
        """
        lag = captured_ns - pts_ns
        last, self._last_pts = self._last_pts, pts_ns
        # Nothing arrives before it was taken: a lag below the minimum means that the clock has jumped ahead.
        if last is not None and (pts_ns <= last or lag < self._least - JUMP_NS):
            if not self._same_jump and captured_ns - self._jumped_ns > JUMP_NS:
                self.jumps += 1
                self._jumped_ns = captured_ns
            self._same_jump = 0
            if abs(pts_ns - last) > JUMP_NS:  # a repeated time stamp does not move the clock
                self._media_jumped = True
                last = None
        elif self._same_jump:
            self._same_jump -= 1
        if last is None:
            self._restart(captured_ns)
        if captured_ns - self._since >= WINDOW_NS:
            self._turn(captured_ns)
        if lag < self._current:
            self._current = lag
            if lag < self._least:
                self._least = lag

    def _restart(self, now_ns: int) -> None:
        self._since = now_ns
        self._current = self._least = _NEVER
        self._first = None

    def _turn(self, now_ns: int) -> None:
        """Ends a window; later windows are compared with the first."""
        if self._first is None:
            self._first = (now_ns, self._current)
        elif now_ns > self._first[0]:
            self.drift = (self._first[1] - self._current) / (now_ns - self._first[0])
        self._least, self._current, self._since = self._current, _NEVER, now_ns
