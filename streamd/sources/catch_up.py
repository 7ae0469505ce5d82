"""What a live stream does that is read too slowly: it goes on with the newest picture.

A stream that seems to be behind by its media clock is first read without decoding for a moment, and nothing is lost by
it. Either packets come faster than the sender makes them, or whenever one has been read more has arrived already, which
the kernel tells of a TCP connection. If not, the sender has set its clock, or it or the way has become slower, and
there is nothing to catch up with (see `behind`). Pictures may come in bunches: what is true within one says nothing.
Other gauges (see `gauges`) find that out by themselves, or need no examination.

To catch up, packets are read and left out up to the newest key frame. Decoding goes on with what has come since, if
that takes less time than waiting for the next key frame; otherwise with the next key frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

from streamd.sources.backlog import KEY_WAIT_NS, Arrived, Backlog
from streamd.sources.behind import NEVER, BehindGauge, Gauge
from streamd.sources.pacing import RateLimit

ALARM_NS = 2_000_000_000
"""A stream that is behind by this much is examined, whatever its limit is."""
PROBE_NS = 500_000_000
"""It is read without decoding for this long to find out whether packets wait, if they do not show it sooner."""
SURE = 3
"""They do if after each packet of the probe, and so many at least, more had arrived, which the kernel tells. They do
not if after as many nothing had."""
LONGEST_PROBE_NS = 2_000_000_000
"""After this long once is enough: bunches, or pictures, come rarely."""
ROOM = 16 << 10
"""So many bytes are enough for that: the kernel's buffer may be smaller than a picture."""
FALLEN_NS = 300_000_000
"""They also do if the wait falls by this much, or by half, below the shortest one before (it falls within any
bunch), and not from one picture to the next."""
NEAR_NS = 200_000_000
"""A stream that is behind by less has caught up. And so has one whose wait does not fall any more, if all that had come
was read."""
PROGRESS_NS = 20_000_000
"""A wait that falls by less has not fallen."""
FAR_TOO_SLOW = 1 / 3
"""A stream is decoded so much more slowly than it comes that key frames alone are worth decoding."""
FAR_LIMIT = 2
"""After so many times in a row, they are for a while."""
HOLD_NS = 10_000_000_000
LONGEST_HOLD_NS = 160_000_000_000
"""How long: it doubles if decoding everything fails again within `RELAPSE_NS`."""
RELAPSE_NS = 60_000_000_000
SHOW_NS = 5_000_000_000
"""A key frame is decoded this often while packets cannot even be read as fast as they come."""
BURST_NS = 500_000_000
"""Decoding what has come since the newest key frame may take this long at once."""


class CatchUp:
    """The catching up of one connection. For the thread of its source.

    Args:
        limit_ns: see `change`.
        keys_only: only key frames are decoded anyway.
        unread: bytes that have arrived and were not read yet; None where that is unknown.
        gauge: tells how late packets are read; by the sender's media clock by default.
    """

    def __init__(
        self, limit_ns: int | None, keys_only: bool = False, unread: Callable[[], int | None] = lambda: None,
        gauge: Gauge | None = None,
    ) -> None:  # fmt: skip
        self.gauge = gauge or BehindGauge(ALARM_NS)
        """Every packet has to be added to it; and given to `take` if it is late or suspect then, or this is active."""
        self.change(limit_ns)
        self._keys_frames, self._unread = keys_only, unread
        self._packets = self._more = self._done = 0
        """Packets of this examination: all, those after which more had arrived, and those after which nothing had."""
        self.overtaken = 0
        """Pictures left out so far, those that max_fps leaves out not included."""
        self.skipped = 0
        """Those."""
        self.active = False
        """Every packet has to be given to `take`, whatever the gauge says."""
        self.keys_only = False
        """Only key frames are decoded, as the machine cannot decode more."""
        self.cut = False
        """What is decoded next does not follow what was decoded last: set by `take`, reset by its caller."""
        self.served_ns = 0
        """Pictures of packets that arrived earlier are decoded for the sake of later ones only, see `FrameMaker`."""
        self.busy_ns = 0
        """What a packet takes from one read to the next while the stream is behind, smoothed."""
        self.limit: RateLimit | None = None
        """Of max_fps, if pictures are limited after decoding."""
        self._state: Literal["reading", "probing", "skipping"] = "reading"
        self._held: deque[Arrived] = deque()
        self._kept = Backlog(keys_only)
        self._due = 0
        """Of what is kept: pictures that max_fps does not leave out."""
        self._began_ns = self._began_wait_ns = 0
        self._floor_ns = 0
        """How far it was behind when the examination began."""
        self._lowest_ns = self._lowest_at_ns = 0
        """The shortest wait while skipping, and when it was reached, or was last looked at in vain."""
        self._drained = False
        """Since then there was a moment at which everything that had arrived was read."""
        self._present_ns = 0
        """Since when there is nothing more to catch up with; 0 while there is."""
        self._resumed_ns = self._keys_until_ns = self._keys_left_ns = 0
        self._shown_ns = 0
        """When skipping began, or a key frame was last decoded meanwhile."""
        self._far = 0
        self._hold_ns = HOLD_NS // 2

    @property
    def alone(self) -> bool:
        """What is decoded now is not followed by what it is needed for: it should come out of the decoder at once."""
        return self.keys_only or self._state == "skipping"

    def change(self, limit_ns: int | None) -> None:
        """Packets are left out from this wait on; None: never. Any thread."""
        self.gauge.late = False  # until the end of its window
        self.gauge.limit_ns = NEVER if limit_ns is None else limit_ns
        self.gauge.alarm_ns = ALARM_NS if limit_ns is None else min(limit_ns, ALARM_NS)

    def worked(self, busy_ns: int) -> None:
        """A packet took `busy_ns` from one read to the next."""
        self.busy_ns = busy_ns if not self.busy_ns else self.busy_ns + ((busy_ns - self.busy_ns) >> 3)

    def take(self, arrived: Arrived) -> Iterable[Arrived]:
        """Takes the next packet.

        Returns:
            What is to be decoded now.
        """
        packet = arrived.packet
        if not packet.size:
            return [*self.last(), arrived]
        if self._keys_frames and not packet.is_keyframe:
            # The decoder leaves it out, but it tells whether packets wait, long before the next key frame comes.
            return self._probe(arrived) if self._state == "probing" else (arrived,)
        if self._state == "reading":
            if self.keys_only and not self.gauge.late:
                return self._key(arrived)
            return self._begin(arrived)
        if self._state == "probing":
            return self._probe(arrived)
        return self._skip(arrived)

    def _key(self, arrived: Arrived) -> Iterable[Arrived]:
        key, now_ns = arrived.packet.is_keyframe, self.gauge.now_ns
        if not key and now_ns < self._keys_until_ns + KEY_WAIT_NS:
            self._leave_out(1, self._admits(arrived))
            return ()
        self.cut = self.cut or not key  # some cameras never send another one
        if now_ns >= self._keys_until_ns:
            self.keys_only = self.active = False
            self._keys_left_ns = self._resumed_ns = self.gauge.now_ns
        return (arrived,)

    def _begin(self, arrived: Arrived) -> Iterable[Arrived]:
        gauge = self.gauge
        self.active = True
        self._began_ns, self._began_wait_ns = gauge.now_ns, gauge.wait_ns
        if gauge.suspect:
            self._state, self._packets, self._more, self._done = "probing", 0, 0, 0
            self._floor_ns = min(gauge.behind_ns, gauge.wait_ns)
            return self._probe(arrived)
        return self._start_skipping((arrived,))

    def _probe(self, arrived: Arrived) -> Iterable[Arrived]:
        gauge, held = self.gauge, self._held
        if arrived.packet.is_keyframe or not self._keys_frames:
            held.append(arrived)
        if gauge.judges:
            return self._decide(gauge.verdict)
        unread = self._unread()
        if unread is not None:
            more = unread >= min(arrived.packet.size, ROOM)
            self._more, self._done = self._more + more, self._done + (not more)
        fallen = self._floor_ns - gauge.wait_ns >= min(FALLEN_NS, self._floor_ns // 2)
        lasted_ns = gauge.now_ns - self._began_ns
        self._packets += 1
        if (fallen and self._packets > SURE) or (lasted_ns >= PROBE_NS and self._more >= SURE and not self._done):
            # Or it will be when what was held back has been decoded.
            late = gauge.late or gauge.wait_ns + len(held) * self.busy_ns >= gauge.limit_ns
            gauge.confirm()
            if not late:
                return self._give_up()
            packets, self._held = held, deque()
            return self._start_skipping(packets)
        enough = SURE if lasted_ns < LONGEST_PROBE_NS else 1
        if lasted_ns >= PROBE_NS and (unread is None or self._done >= enough):
            gauge.refute()
            return self._give_up()
        return ()

    def _decide(self, waiting: bool | None) -> Iterable[Arrived]:
        """Goes by what the gauge has found: see `Gauge.verdict`."""
        if waiting is None:
            return ()
        if not waiting:
            self.gauge.refute()
            return self._give_up()
        self.gauge.confirm()
        if self.gauge.limit_ns == NEVER:
            return self._give_up()  # changed meanwhile
        packets, self._held = self._held, deque()
        return self._start_skipping(packets)

    def _give_up(self) -> Iterable[Arrived]:
        """Goes on with everything that has been read."""
        packets = self._held or self._kept.take()
        self._held, self._state, self.active = deque(), "reading", self.keys_only
        self._due = 0
        return packets

    def _start_skipping(self, packets: Iterable[Arrived]) -> Iterable[Arrived]:
        gauge = self.gauge
        self._state, self.cut = "skipping", True
        self._lowest_ns, self._lowest_at_ns = gauge.wait_ns, gauge.now_ns
        self._shown_ns, self._drained = gauge.now_ns, False
        self._present_ns, self._due = 0, 0
        passed_ns = self._began_ns - self._resumed_ns
        far = self._resumed_ns and passed_ns - self._began_wait_ns < FAR_TOO_SLOW * passed_ns
        self._far = self._far + 1 if far else 0
        self._kept.opened(gauge.now_ns)
        *earlier, latest = packets
        for each in earlier:
            self._keep(each)
        return self._skip(latest)

    def _skip(self, arrived: Arrived) -> Iterable[Arrived]:
        gauge, kept = self.gauge, self._kept
        complete = self._keep(arrived)
        now_ns, wait_ns = gauge.now_ns, gauge.wait_ns
        if not self._present_ns:
            if wait_ns <= NEAR_NS:
                self._present_ns = now_ns
            elif wait_ns < self._lowest_ns - PROGRESS_NS:
                self._lowest_ns, self._lowest_at_ns, self._drained = wait_ns, now_ns, False
            elif now_ns - self._lowest_at_ns >= gauge.stalled_ns:
                if self._drained:
                    gauge.settle()
                    self._present_ns = now_ns
                self._lowest_at_ns, self._drained = now_ns, False
            self._drained = self._drained or not self._unread()
        if not self._present_ns or not complete:
            if arrived.packet.is_keyframe and complete and now_ns - self._shown_ns >= SHOW_NS:
                self._shown_ns, self._due, self.served_ns = now_ns, 0, arrived.now_ns
                return kept.take()
            return ()
        if len(kept) * self.busy_ns > BURST_NS + now_ns - self._present_ns and len(kept) > 1:
            return ()
        return self._resume()

    def _resume(self) -> Iterable[Arrived]:
        gauge, found = self.gauge, self._kept.take()
        # Of all that is decoded now, only the newest picture is served.
        self._leave_out(len(found) - 1, max(0, self._due - 1))
        self.served_ns = found[-1].now_ns
        if self.limit is not None:
            self.limit.restart()
        gauge.restart()
        self._state, self._resumed_ns, self._due = "reading", gauge.now_ns, 0
        if self._far >= FAR_LIMIT and not self.keys_only and found[0].packet.is_keyframe:
            relapsed = self._keys_left_ns and gauge.now_ns - self._keys_left_ns < RELAPSE_NS
            self._hold_ns = min(2 * self._hold_ns, LONGEST_HOLD_NS) if relapsed else HOLD_NS
            self.keys_only, self._keys_until_ns, self._far = True, gauge.now_ns + self._hold_ns, 0
        self.active = self.keys_only
        return found

    def _keep(self, arrived: Arrived) -> bool:
        """Keeps what may be decoded, and counts what is not. Returns whether decoding can begin with it."""
        kept = self._kept
        before, due = len(kept), self._admits(arrived)
        complete = kept.put(arrived)
        mine = kept.newest is arrived
        if len(kept) - mine < before:
            self._leave_out(before, self._due)
            self._due = 0
        if mine:
            self._due += due
        else:
            self._leave_out(1, due)
        return complete

    def _admits(self, arrived: Arrived) -> int:
        return int(self.limit is None or self.limit.admit(arrived.now_ns))

    def _leave_out(self, count: int, due: int) -> None:
        self.overtaken += due
        self.skipped += count - due

    def last(self) -> Iterable[Arrived]:
        """Nothing more comes. Returns what is to be decoded of what was read."""
        if self._state == "skipping" and len(self._kept):
            return self._resume()
        return self._give_up()

    def held(self) -> Iterable[Arrived]:
        """What an examination has kept; it is forgotten."""
        packets, self._held = self._held, deque()
        return packets

    def clear(self) -> None:
        """The connection is over: what is kept is left out."""
        if self._state == "skipping":
            self._leave_out(len(self._kept), self._due)
        self._kept.clear()
        self._held.clear()
