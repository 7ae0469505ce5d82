"""Whether a live stream is degraded by load: it is read too slowly, frames are dropped or not looked at because the
engine is too slow, or they miss the latency objective."""

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

BEHIND_WINDOW_S = 60
BEHIND_S = 2.0
"""A stream that has been read later than this for `BEHIND_FOR_S` is behind."""
BEHIND_FOR_S = 3
NOTABLE_S = 0.5
APART_S = 3
"""And so is one that had to catch up twice within `BEHIND_WINDOW_S`, so far apart at least. Once may be the network."""

LoadReason = Literal["behind", "overload", "late"]


class BehindWatch:
    """Whether one stream is read too slowly. Call `look` once a second, from one thread."""

    __slots__ = ("_caught_up", "_late", "_samples", "detail", "told", "worst_s")

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int, float]] = deque(maxlen=BEHIND_WINDOW_S + 1)
        """(frames received, those of them left out to catch up, seconds behind)"""
        self._caught_up: deque[int] = deque()
        """How many seconds ago frames were left out."""
        self._late = 0
        """Seconds in a row in which it was behind."""
        self.told = False
        self.worst_s = 0.0
        """The most that it was behind in the window."""
        self.detail = ""

    def look(self, counters: StreamMetrics) -> None:
        """Takes the figures of this second."""
        counts = counters.counts()
        behind_s = counters.behind_s or 0.0
        left_out = counts.dropped.get("behind", 0)
        self._caught_up = deque(ago + 1 for ago in self._caught_up if ago < BEHIND_WINDOW_S)
        if self._samples and left_out > self._samples[-1][1]:
            self._caught_up.append(0)
        self._samples.append((counts.received, left_out, behind_s))
        self._late = self._late + 1 if behind_s >= BEHIND_S else 0
        self.worst_s = max(sample[2] for sample in self._samples)
        again = len(self._caught_up) > 1 and self._caught_up[0] - self._caught_up[-1] >= APART_S
        if self.told:
            self.told = bool(self._caught_up) or behind_s >= BEHIND_S / 2
        else:
            self.told = again or self._late >= BEHIND_FOR_S
        self.detail = self._sentence() if self.told else ""

    def _sentence(self) -> str:
        first, last = self._samples[0], self._samples[-1]
        received, left_out = last[0] - first[0], last[1] - first[1]
        much = f"up to {self.worst_s:.1f} s " if self.worst_s >= NOTABLE_S else ""
        share = f"; {_percent(left_out, received)} of its frames were left out in the last minute" if left_out else ""
        return (
            f"read {much}later than it is sent{share}: this machine (decoder, CPU) is too slow "
            "for so many cameras; use hardware decoding, smaller or slower streams of the cameras, or frames: key"
        )


class LoadGauge:
    """The load of one stream. Call `look` once a second, from one thread.

    A burst is not an overload: frames must be dropped in at least half of the seconds. Once degraded, a stream recovers
    when it drops less than half of what made it degraded, or meets its objective.
    """

    __slots__ = ("_behind", "_samples", "detail", "reason")

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int, int, int]] = deque(maxlen=WINDOW_S + 1)
        """(frames processed, those dropped because the engine is too slow, frames with an objective, those that missed
        it)"""
        self._behind = BehindWatch()
        self.reason: LoadReason | Literal[""] = ""
        self.detail = ""
        """One sentence with numbers; empty while all is well."""

    def reset(self) -> None:
        """Resets: the stream is not live, so its load is unknown."""
        self._samples.clear()
        self._behind = BehindWatch()
        self.reason, self.detail = "", ""

    @property
    def behind_s(self) -> float | None:
        """How much later the stream was read than it could be lately, in seconds, if that is the reason."""
        return round(self._behind.worst_s, 1) if self.reason == "behind" else None

    def look(self, counters: StreamMetrics) -> None:
        """Takes the counters of this second and judges the last `WINDOW_S` seconds, or more where it is behind."""
        self._behind.look(counters)
        if self.reason == "behind":
            self.reason, self.detail = "", ""
        self._judge(counters)
        if self._behind.told:
            self.reason, self.detail = "behind", self._behind.detail

    def _judge(self, counters: StreamMetrics) -> None:
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
