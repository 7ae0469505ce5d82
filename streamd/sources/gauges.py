"""How far behind live inputs are read whose media clock does not tell it.

HLS: what a playlist lists has been waiting at the server anyway, several segments by design, and nothing says when it
was taken: EXT-X-PROGRAM-DATE-TIME (RFC 8216, 4.3.2.6) is optional and FFmpeg keeps it to itself. Players compare their
position with the end of the playlist instead (`latency` of hls.js). Known here is the pace: how late a packet was asked
for, that is, how far this machine has fallen behind its own schedule. What the server or the way has held up does not
count: nobody could have read it earlier.

Motion JPEG over HTTP, and other elementary streams: no time stamps that the sender made. A reader that has to wait for
the next picture is in time, and a picture cannot have waited since before that: the time since then is the most that it
can be. The least is what waits in the kernel, divided by how fast it arrives (Little's law). How much waits at the
sender nobody tells. So the least is what is said, and the most decides when to catch up.

A recording that is sent as fast as it is read looks like that, too, but there is nothing to catch up with: the sender
waits for the reader. So the stream is first read without decoding, and nothing is lost by it. A camera's pictures soon
have to be waited for, and come no faster than cameras make them. A sender that always has more is left in peace, and so
is one that does not have to be waited for within `EXAM_NS`. A recording is still taken for a camera where its way is
slower than that: less than `FASTEST` pictures a second.
"""

from __future__ import annotations

from collections.abc import Callable

from streamd.sources.behind import FORGET_NS, Gauge
from streamd.sources.pacing import Pacer

RATE_NS = 2_000_000_000
"""The rate of arrival is that of the last one to two of these."""
LEAST_NS = 500_000_000
"""Nothing is said before so much of it is known."""
WAITED_NS = 5_000_000
"""Reading a picture that is there takes less."""
FASTEST = 120
"""Pictures that a camera sends in a second, at most."""
PACE_NS = 200_000_000
"""The rate of a sender that has to be waited for is looked at for so long. Its process may pause for less."""
EXAM_NS = 2_000_000_000
"""Reading without decoding takes no longer: a packet that has to be waited for longer decides it."""
EXAM_BYTES = 128 << 20
"""And takes no more memory: more than two seconds of 60 large pictures a second."""
UNBOUNDED_LIMIT = 3
"""After so many times in a row (see `FORGET_NS`), a sender that always has more is not caught up with any more."""


class PaceGauge(Gauge):
    """Goes by how late each packet was asked for.

    Args:
        alarm_ns: see `Gauge`.
        pacer: of the input; every packet is given to it first.
    """

    __slots__ = ("_pacer",)
    stalled_ns = 5_000_000_000
    """The next segment may take some time."""

    def __init__(self, alarm_ns: int, pacer: Pacer) -> None:
        super().__init__(alarm_ns)
        self._pacer = pacer

    def add(self, measure: int | None, now_ns: int) -> int:
        """See `Gauge.add`."""
        self._take(self._pacer.late_ns, now_ns)
        return self._arrived(self.wait_ns, now_ns)

    def settle(self) -> None:
        """See `Gauge.settle`."""
        self._pacer.settle()
        super().settle()


class QueueGauge(Gauge):
    """Goes by the sizes of packets in bytes, and by whether and what more waits behind them. `wait_ns` is the most that
    the latest packet can have waited, `behind_ns` the least that packets have lately.

    Args:
        alarm_ns: see `Gauge`.
        unread: bytes that have arrived and were not read yet; None where that is unknown.
        began_s: when the latest read began, monotonic seconds.
    """

    __slots__ = (
        "_began_s", "_exam_bytes", "_exam_ns", "_from", "_in_time_ns", "_least_known", "_mark", "_paced", "_pictures",
        "_read", "_shown", "_shown_ns", "_since_ns", "_unbounded", "_unbounded_ns", "_unread", "_waited", "verdict",
    )  # fmt: skip
    judges = True
    stalled_ns = 2_000_000_000
    """A sender that always has more is as fast as its reader: it has no pace that one could be behind."""

    def __init__(self, alarm_ns: int, unread: Callable[[], int | None], began_s: Callable[[], float]) -> None:
        super().__init__(alarm_ns)
        self._unread, self._began_s = unread, began_s
        self._read = 0
        """Bytes so far."""
        self._from: tuple[int, int] | None = None
        self._mark = (0, 0)
        """When, in monotonic nanoseconds, how many bytes had arrived; the mark that comes next to begin with."""
        self._in_time_ns = 0
        """When reading was last in time."""
        self._waited = False
        """Reading had to wait since then."""
        self._least_known = False
        self._paced = False
        """The sender was found to have a pace of its own."""
        self.verdict: bool | None = None
        self._exam_ns = self._exam_bytes = 0
        """When this examination began, 0 if there is none, and what was read since."""
        self._pictures, self._since_ns = 0, 0
        """Since reading was last in time before it, and when that was."""
        self._shown, self._shown_ns = 0, 0
        """Pictures since one had to be waited for in this examination, and when that wait began; 0: none yet."""
        self._unbounded, self._unbounded_ns = 0, -FORGET_NS
        """How often in a row the sender had always more, and when it had last."""

    @property
    def behind_s(self) -> float | None:
        """See `Gauge.behind_s`."""
        return super().behind_s if self._least_known else None

    def add(self, measure: int | None, now_ns: int) -> int:
        """See `Gauge.add`."""
        size, waiting = measure or 0, self._unread()
        began_ns = round(self._began_s() * 1e9)
        self._waited = self._waited or now_ns - began_ns >= WAITED_NS
        # A busy machine takes long, too; and a bunch has to be read to its end.
        in_time = (self._waited and (waiting is None or waiting < size)) or not self._in_time_ns
        self._pictures += 1
        if self.suspect:
            self._examine(size, began_ns if in_time else 0, now_ns)
        if in_time:
            self._in_time_ns, self._waited = now_ns, False
            if not self.suspect:
                self._pictures, self._since_ns = 0, now_ns
        self._read += size
        self._least_known = waiting is not None
        least_ns = 0 if waiting is None else self._least(waiting, now_ns)
        self._take(least_ns, now_ns)
        self.wait_ns = now_ns - self._in_time_ns
        self.late = self.fit and self.wait_ns >= self.limit_ns
        if self.late and not self.suspect and not self._paced:
            self.suspect, self.verdict = True, None
            self._exam_ns, self._exam_bytes, self._shown_ns = now_ns, 0, 0
        return self._arrived(least_ns, now_ns)

    def _examine(self, size: int, began_ns: int, now_ns: int) -> None:
        """Takes a packet that is not decoded.

        Args:
            size: bytes.
            began_ns: when its read began, if it was waited for and nothing more is there; otherwise 0.
            now_ns: its arrival.
        """
        self._exam_bytes += size
        self._shown += 1
        if began_ns and not self._shown_ns:
            self._shown, self._shown_ns = 1, began_ns
        watched_ns = now_ns - self._shown_ns
        if self._shown_ns and watched_ns >= PACE_NS:
            if self._shown * 1e9 <= FASTEST * watched_ns:
                self.verdict = True
                return
            self._shown_ns = 0
        lasted_ns = now_ns - self._exam_ns
        too_many = self._pictures * 1e9 > FASTEST * (now_ns - self._since_ns)
        if too_many or lasted_ns >= EXAM_NS or self._exam_bytes > EXAM_BYTES:
            self.verdict = False

    def _least(self, waiting: int, now_ns: int) -> int:
        """How long `waiting` bytes take to arrive, nanoseconds."""
        arrived = self._read + waiting
        if self._from is None:
            self._from = self._mark = now_ns, arrived
        elif now_ns - self._mark[0] >= RATE_NS:
            self._from, self._mark = self._mark, (now_ns, arrived)
        took_ns, came = now_ns - self._from[0], arrived - self._from[1]
        return waiting * took_ns // came if took_ns >= LEAST_NS and came > 0 else 0

    def confirm(self) -> None:
        """See `Gauge.confirm`."""
        self._paced = True
        super().confirm()

    def settle(self) -> None:
        """See `Gauge.settle`."""
        self._paced = False
        self._unbounded = self._unbounded + 1 if self.now_ns - self._unbounded_ns < FORGET_NS else 1
        self._unbounded_ns = self.now_ns
        self.fit = self._unbounded < UNBOUNDED_LIMIT
        super().settle()

    def restart(self) -> None:
        """See `Gauge.restart`."""
        self._in_time_ns = self._since_ns = self.now_ns
        self.wait_ns = self._pictures = 0
        super().restart()
