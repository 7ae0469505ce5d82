"""What a bundle is written for by itself: a daemon that is stuck or has failed, a stream that misses its objective."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from streamd.flow.status import StatusBoard
from streamd.telemetry.metrics import Metrics

Reason = Literal["objective", "stuck", "watchdog", "stage_failed", "exception", "killed", "request"]
"""Why a bundle was written: a stream misses its latency objective; a stage makes no progress; the main loop makes none,
so that the watchdog is about to fire; a stage failed; an uncaught exception; the previous process ended without closing
(a fatal signal, SIGKILL, out of memory); on request."""
REASONS: tuple[Reason, ...] = get_args(Reason)

BURN_WINDOW_S = 10
BURN = 10
"""A stream breaches its objective if, over the window, its frames miss it this many times as often as allowed (or if
half of them do, whichever is less)."""
MIN_FRAMES = 10
LOOP_S = 5.0
"""The main loop ticks four times a second."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What the recorder needs from the daemon; every call is fast and allowed from any thread."""

    board: StatusBoard
    metrics: Metrics
    problem: Callable[[], str | None]
    """What prevents the watchdog from being fed."""
    error: Callable[[], BaseException | None]
    """The error that ended a stage."""
    settings: Callable[[], Any]
    """The configuration as JSON values; may contain secrets."""


class Breach(NamedTuple):
    """One that has begun."""

    reason: Reason
    detail: str
    error: BaseException | None


class Breaches:
    """Looks for them once a second. For the recorder's thread, except `beat`.

    Args:
        watched: the daemon.
        watchdog_s: the service manager's limit, or None.
    """

    def __init__(self, watched: Watched, watchdog_s: float | None) -> None:
        self._watched = watched
        self._loop_s = max(LOOP_S, watchdog_s / 2) if watchdog_s else LOOP_S
        self.beat: float | None = None
        """When the main loop was last seen, monotonic seconds; None while there is none. Any thread."""
        self._history: dict[str, deque[tuple[int, int]]] = {}
        """Of each stream with an objective: frames that it covers, and those that missed it."""
        self._standing: set[tuple[Reason, str]] = set()
        """Those that have not ended yet, with the stream."""

    def count(self) -> None:
        """Takes the counters of this second."""
        known: dict[str, deque[tuple[int, int]]] = {}
        for s in self._watched.metrics.streams():
            if s.objective_s is not None and not s.removed:
                known[s.stream] = self._history.get(s.stream) or deque(maxlen=BURN_WINDOW_S + 1)
                known[s.stream].append(s.objective())
        self._history = known

    def begun(self, now: float) -> Iterator[Breach]:
        """Each breach once, when it begins; those of one reason together. `now`: monotonic seconds."""
        found: dict[tuple[Reason, str], str] = {}
        problem = self._watched.problem()
        error = self._watched.error()
        beat = self.beat
        if problem is not None:
            found["stage_failed" if error is not None else "stuck", ""] = problem
        if beat is not None and now - beat > self._loop_s:
            found["watchdog", ""] = f"the main loop has made no progress for {now - beat:.1f} s"
        found.update({("objective", name): text for name, text in self._burning()})
        begun: dict[Reason, list[str]] = {}
        for key, text in found.items():
            if key not in self._standing:
                begun.setdefault(key[0], []).append(text)
        self._standing = set(found)
        for reason, texts in begun.items():
            yield Breach(reason, "; ".join(texts), error if reason == "stage_failed" else None)

    def _burning(self) -> list[tuple[str, str]]:
        found = []
        for s in self._watched.metrics.streams():
            history = self._history.get(s.stream)
            if s.objective_s is None or history is None or len(history) <= BURN_WINDOW_S:
                continue
            held, missed = (history[-1][i] - history[0][i] for i in range(2))
            allowed = min(0.5, BURN * (1 - s.objective_share))
            # A breach lasts until the objective is met again, so that fluctuations do not report it repeatedly.
            if ("objective", s.stream) in self._standing:
                allowed = 1 - s.objective_share
            if held >= MIN_FRAMES and missed > allowed * held:
                limit = f"later than {s.objective_s * 1e3:g} ms or dropped in {BURN_WINDOW_S} s"
                found.append((s.stream, f"stream {s.stream}: {missed} of {held} frames {limit}"))
        return found
