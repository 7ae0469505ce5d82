"""How far behind its sender a live stream is read.

What is not read in time waits in the buffers of TCP, ours and the sender's, and nothing else shows it. Arrival minus
media time ("lag") says how old a packet is, up to a constant that nobody knows. Its minimum is when the connection was
best; what lies above it is the time that the packet has waited. Congestion control (LEDBAT, RFC 6817, 3.4.2) and
jitter buffers (the skew estimation of GStreamer's rtpjitterbuffer) measure delays like this.

Inputs without a media clock, and those that have a pace of their own, are measured in another way: see `gauges`.

Both clocks may differ: the minimum therefore rises slowly, by more than a sender's clock can be off. It does not rise
while the stream is behind, or a wait of hours would be forgotten.
"""

from __future__ import annotations

JUMP_NS = 1_000_000_000
"""A lag that falls below its minimum by more than this, or rises by more than this while media time goes back: the
media clock was set. It says nothing about the wait, which is taken to be what it was."""
JITTER_NS = 250_000_000
"""A wait of less than this is the network's jitter, reordered pictures, or the transmission of a key frame."""
DRIFT_SHIFT = 11
"""The minimum rises by 2**-11 (488 ppm): crystals of cameras are within 300 ppm."""
WINDOW_NS = 500_000_000
"""The shortest wait within one to two of these counts. Packets that an outage of the network has held up arrive
together, the last one in time."""
PATIENCE_NS = 60_000_000_000
"""A stream that is a little behind for this long is suspected, too."""
LONGEST_PATIENCE_NS = 16 * PATIENCE_NS
REFUTED_LIMIT = 3
"""After so many wrong suspicions in a row, the media clock is considered unfit: some cameras stamp pictures as if they
came at the nominal rate. It is given another chance after `FORGET_NS`."""
FORGET_NS = 600_000_000_000
"""Wrong suspicions that are further apart are not in a row."""
NEVER = 1 << 62


class Gauge:
    """The wait of one connection's packets. For one thread, except `behind_s`.

    Args:
        alarm_ns: from this on, it is worth to look more closely.
    """

    __slots__ = (
        "_captured_ns", "_least_ns", "_previous_ns", "_turn_ns", "alarm_ns", "behind_ns", "fit", "late", "limit_ns",
        "now_ns", "suspect", "wait_ns",
    )  # fmt: skip
    verdict: bool | None = None
    """What reading without decoding has shown: packets were waiting, or nothing that is to be caught up with; None: not
    yet, or whoever reads has to find out."""
    judges = False
    """Whether it finds out by itself."""
    stalled_ns = 500_000_000
    """A wait that has not fallen for this long while nothing was decoded does not fall any further."""

    def __init__(self, alarm_ns: int) -> None:
        self.alarm_ns = alarm_ns
        self.limit_ns = NEVER
        """From this on, something has to be done."""
        self.late = False
        """It is behind by that much."""
        self.fit = True
        """Whether it can be told."""
        self.wait_ns = 0
        """Of the latest packet."""
        self.behind_ns = 0
        """The shortest wait lately: how far the stream is behind."""
        self.suspect = False
        """It is behind, or seems to be: reading without decoding will show which. Call `confirm` or `refute` then."""
        self.now_ns = 0
        """Arrival of the latest packet, monotonic; 0 before the first."""
        self._captured_ns = 0
        """What `add` has returned for the latest packet."""
        self._least_ns = self._previous_ns = NEVER
        self._turn_ns = 0

    @property
    def behind_s(self) -> float | None:
        """Seconds; None if unknown. Any thread."""
        return self.behind_ns / 1e9 if self.fit and self.now_ns else None

    def add(self, measure: int | None, now_ns: int) -> int:
        """Takes the next packet.

        Args:
            measure: what the gauge goes by; None if the packet has none.
            now_ns: its arrival, monotonic.

        Returns:
            When it would have arrived if it had not waited. Later than that of every packet before.
        """
        raise NotImplementedError

    def _take(self, wait_ns: int, now_ns: int) -> None:
        """The latest packet has waited that long."""
        self.now_ns, self.wait_ns = now_ns, wait_ns
        if now_ns >= self._turn_ns:
            self._turn(now_ns)
        if wait_ns < self._least_ns:
            self._least_ns = wait_ns

    def _arrived(self, wait_ns: int, now_ns: int) -> int:
        """When a packet that was read now and has waited would have arrived."""
        if wait_ns > JITTER_NS:
            # A shorter wait is left in; in between, both meet.
            now_ns -= min(wait_ns, 2 * (wait_ns - JITTER_NS))
        if now_ns <= self._captured_ns:
            now_ns = self._captured_ns + 1
        self._captured_ns = now_ns
        return now_ns

    def _turn(self, now_ns: int) -> None:
        """A window is over."""
        if self._least_ns != NEVER:
            self.behind_ns = min(self._least_ns, self._previous_ns)
        self._previous_ns, self._least_ns = self._least_ns, NEVER
        self._turn_ns = now_ns + WINDOW_NS
        self.late = self.behind_ns >= self.limit_ns

    def confirm(self) -> None:
        """Packets were waiting."""
        self.suspect = False

    def refute(self) -> None:
        """Nothing was waiting."""
        self.settle()

    def settle(self) -> None:
        """The latest packet has not waited, whatever it looks like."""
        self.wait_ns = 0
        self.restart()

    def restart(self) -> None:
        """Earlier waits no longer count."""
        self.behind_ns = self._previous_ns = self._least_ns = self.wait_ns
        self._turn_ns = self.now_ns + WINDOW_NS
        self.suspect = self.late = False


class BehindGauge(Gauge):
    """Goes by the sender's media clock, nanoseconds.

    It is suspect if the stream is behind or the media clock was set.
    """

    __slots__ = ("_base_ns", "_media_ns", "_patience_ns", "_quiet_ns", "_refuted", "_refuted_ns", "_since_ns")

    def __init__(self, alarm_ns: int) -> None:
        super().__init__(alarm_ns)
        self._base_ns = NEVER
        """The lag of a packet that has not waited."""
        self._media_ns = -NEVER
        self._since_ns = 0
        """Since when it has been behind at all."""
        self._patience_ns, self._quiet_ns = PATIENCE_NS, 0
        self._refuted, self._refuted_ns = 0, -NEVER

    def add(self, measure: int | None, now_ns: int) -> int:
        """See `Gauge.add`."""
        if measure is not None and self.fit:
            lag_ns = now_ns - measure
            wait_ns = lag_ns - self._base_ns
            if wait_ns < -JUMP_NS or (measure < self._media_ns and wait_ns - self.wait_ns > JUMP_NS):
                wait_ns = self.wait_ns
                self._base_ns = lag_ns - wait_ns
            elif wait_ns <= 0:
                self._base_ns, wait_ns = lag_ns, 0
            elif wait_ns < JITTER_NS:
                self._base_ns += (now_ns - self.now_ns) >> DRIFT_SHIFT
            self._media_ns = measure
            self._take(wait_ns, now_ns)
        elif not self.fit and now_ns - self._refuted_ns > FORGET_NS:
            self.fit, self._refuted, self._base_ns = True, 0, NEVER
        return self._arrived(self.wait_ns, now_ns)

    def _turn(self, now_ns: int) -> None:
        super()._turn(now_ns)
        if self.behind_ns < JITTER_NS:
            self._since_ns, self._patience_ns = now_ns, PATIENCE_NS
        # Nothing is left out without an examination: what was true a moment ago may not be.
        alarm = self.behind_ns >= self.alarm_ns and (self.late or now_ns >= self._quiet_ns)
        self.suspect = self.fit and (alarm or now_ns - self._since_ns >= self._patience_ns)

    def confirm(self) -> None:
        """Packets were waiting. The stream is not suspected again for a while."""
        super().confirm()
        self._since_ns = self.now_ns
        self._quiet_ns = self.now_ns + self._patience_ns
        self._patience_ns = min(2 * self._patience_ns, LONGEST_PATIENCE_NS)
        self._refuted = 0

    def refute(self) -> None:
        """Nothing was waiting: the sender itself, its clock or the way is later now than it was."""
        now_ns = self.now_ns
        self._refuted = self._refuted + 1 if now_ns - self._refuted_ns < FORGET_NS else 1
        self._refuted_ns = now_ns
        self.fit = self._refuted < REFUTED_LIMIT
        self.settle()

    def settle(self) -> None:
        """See `Gauge.settle`."""
        self._base_ns += self.wait_ns
        super().settle()

    def restart(self) -> None:
        """See `Gauge.restart`."""
        super().restart()
        self._since_ns, self._quiet_ns = self.now_ns, 0
