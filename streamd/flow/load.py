"""Whether a live stream is degraded by load: frames are dropped or not looked at because the engine is too slow, or
miss the latency objective."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Literal

from streamd.telemetry.streams import StreamMetrics

WINDOW_S = 10
DROPPED = 0.05
"""A stream is overloaded if more than this fraction of its frames is dropped, or not looked at, because the engine is
too slow."""
FEW = 5
"""Fewer dropped or late frames in the window are not significant."""
BURN = 10
"""A stream misses its objective if, over the window, its frames miss it this many times as often as allowed (or if half
of them do, whichever is less)."""
_SLOW = ("ring_full", "too_old")
"""Drop reasons which mean that the engine is too slow."""

LoadReason = Literal["overload", "late"]


class LoadGauge:
    """The load of one stream. Call `look` once a second, from one thread.

    A burst is not an overload: frames must be dropped in at least half of the seconds. Once degraded, a stream recovers
    when it drops less than half of what made it degraded, or meets its objective.
    """

    __slots__ = ("_samples", "detail", "reason")

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int, int, int]] = deque(maxlen=WINDOW_S + 1)
        """(frames processed, those dropped because the engine is too slow, frames with an objective, those that missed
        it)"""
        self.reason: LoadReason | Literal[""] = ""
        self.detail = ""
        """One sentence with numbers; empty while all is well."""

    def reset(self) -> None:
        """Resets: the stream is not live, so its load is unknown."""
        self._samples.clear()
        self.reason, self.detail = "", ""

    def look(self, counters: StreamMetrics) -> None:
        """Takes the counters of this second and judges the last `WINDOW_S` seconds."""
        counts = counters.counts()
        dropped = sum(counts.dropped.get(reason, 0) for reason in _SLOW)
        slow = dropped + counters.passed.get("overload", 0)
        held, missed = counters.objective() if counters.objective_s is not None else (0, 0)
        if self._samples and held < self._samples[-1][2]:
            self._samples.clear()  # the objective was removed
        self._samples.append((counts.published + dropped, slow, held, missed))
        if len(self._samples) <= WINDOW_S:
            return
        done, slow, held, missed = (b - a for a, b in zip(self._samples[0], self._samples[-1], strict=True))
        if self._overloaded(done, slow):
            self.reason = "overload"
            what = "dropped or not looked at" if counters.passed.get("overload") else "dropped"
            self.detail = (
                f"{_percent(slow, done)} of its frames were {what} in the last {WINDOW_S} s: streamd cannot keep up; "
                "lower max_fps, or see the tuning guide"
            )
        elif self._late(held, missed, counters):
            self.reason = "late"
            limit = f"later than {(counters.objective_s or 0) * 1e3:g} ms or dropped in the last {WINDOW_S} s"
            self.detail = f"{_percent(missed, held)} of its frames were {limit}: its objective is missed"
        else:
            self.reason, self.detail = "", ""

    def _overloaded(self, done: int, slow: int) -> bool:
        if self.reason == "overload":
            return slow > DROPPED / 2 * done
        seconds = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self._samples)]
        busy, dropping = sum(frames > 0 for frames, _ in seconds), sum(drops > 0 for _, drops in seconds)
        return slow >= FEW and slow > DROPPED * done and 2 * dropping >= busy

    def _late(self, held: int, missed: int, counters: StreamMetrics) -> bool:
        allowed = 1 - counters.objective_share
        if self.reason == "late":
            return missed > allowed * held
        return missed >= FEW and missed > min(0.5, BURN * allowed) * held


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"
