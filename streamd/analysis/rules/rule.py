"""One zone or line in operation: its classes, its schedule, its counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from streamd.analysis.rules.schedule import Schedule
from streamd.analysis.rules.settings import LineSettings, RuleSettings, ZoneSettings

Counts = dict[str, int]


def label_of(labels: Sequence[str], class_id: int) -> str:
    """Name of a class, or its number if it has no name."""
    return labels[class_id] if 0 <= class_id < len(labels) else str(class_id)


class Rule:
    """What zones and lines have in common.

    Args:
        settings: settings of the rule.
        labels: the model's classes in order.
        wall_ns: Unix time at which counting starts.
    """

    def __init__(self, settings: RuleSettings, labels: Sequence[str], wall_ns: int) -> None:
        self.name = settings.name
        self.since_ns = wall_ns
        self.schedule = Schedule(settings.schedule) if settings.schedule is not None else None
        self.on = True
        """Whether the schedule was active at the last frame."""
        self.kept_back: Counter[str] = Counter()
        """Counts without an event since the last one."""
        self.suppressed = 0
        """Number of events that cooldown_s suppressed."""
        self.settings = settings
        self._wanted: frozenset[int] | None = None
        if settings.classes is not None:
            names = {label: i for i, label in enumerate(labels)}
            self._wanted = frozenset(names.get(c, -1) if isinstance(c, str) else c for c in settings.classes)
        self._quiet_until = float("-inf")
        self._quiet_until_ns = 0
        """The same as Unix time."""
        self.fingerprint = settings.model_dump_json()
        """Equal for identical rules."""
        self.unsaved = True
        """Whether counts have changed since the last event with a state; see `RuleEngine.unsaved`."""

    def wants(self, class_id: int) -> bool:
        """True for objects of the rule's classes."""
        return self._wanted is None or class_id in self._wanted

    def may_tell(self, now: float, wall_ns: int) -> bool:
        """True if an event may begin; the next one then has to wait for cooldown_s.

        Args:
            now: seconds.
            wall_ns: the same as Unix time.
        """
        if now < self._quiet_until:
            self.suppressed += 1
            self.unsaved = True
            return False
        if self.settings.cooldown_s:
            self._quiet_until = now + self.settings.cooldown_s
            self._quiet_until_ns = wall_ns + round(self.settings.cooldown_s * 1e9)
        return True

    def settle(self, counts: Counts) -> Counts:
        """`counts` of an event, plus those held back before it."""
        if not self.kept_back:
            return counts
        total = dict(self.kept_back + Counter(counts))
        self.kept_back.clear()
        return total

    def state(self, at_ns: int = 0) -> dict[str, Any]:
        """The counters from which a successor continues; `at_ns` is the Unix time of the last frame."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "since_ns": self.since_ns,
            "kept_back": dict(self.kept_back),
            "suppressed": self.suppressed,
            "quiet_until_ns": self._quiet_until_ns,
        }

    def restore(self, state: Mapping[str, Any], wall_ns: int) -> None:
        """Restores what `state` returned, at second 0 of the new engine, which is this Unix time."""
        left_s = (int(state.get("quiet_until_ns", 0)) - wall_ns) / 1e9
        # A clock that was stepped back must not silence the rule for longer.
        self._quiet_until = min(left_s, self.settings.cooldown_s)
        self._quiet_until_ns = wall_ns + round(self._quiet_until * 1e9)
        self.since_ns = int(state["since_ns"])
        self.kept_back = Counter({str(k): int(v) for k, v in state["kept_back"].items()})
        self.suppressed = int(state["suppressed"])


def _counts(raw: Mapping[str, Any]) -> Counter[str]:
    return Counter({str(label): int(n) for label, n in raw.items()})


class LineRule(Rule):
    """A line and its crossings."""

    settings: LineSettings

    def __init__(self, settings: LineSettings, labels: Sequence[str], wall_ns: int) -> None:
        super().__init__(settings, labels, wall_ns)
        self.crossings: dict[str, Counter[str]] = {way: Counter() for way in settings.directions}
        """By direction and label."""
        self.uncertain: dict[str, Counter[str]] = {way: Counter() for way in settings.directions}
        """Crossings that were not fully observed; not in `crossings`."""
        self.unobserved_s = 0.0
        """Seconds in gaps of more than a second between frames: crossings in them are in no counter."""

    def report(self) -> dict[str, Any]:
        """For messages."""
        return {
            "since": self.since_ns / 1e9,
            "crossings": {way: dict(n) for way, n in self.crossings.items()},
            "uncertain": {way: dict(n) for way, n in self.uncertain.items()},
            "unobserved_s": round(self.unobserved_s, 3),
            "suppressed": self.suppressed,
        }

    def state(self, at_ns: int = 0) -> dict[str, Any]:
        """See `Rule`."""
        return super().state(at_ns) | {
            "crossings": {way: dict(n) for way, n in self.crossings.items()},
            "uncertain": {way: dict(n) for way, n in self.uncertain.items()},
            "unobserved_s": self.unobserved_s,
        }

    def restore(self, state: Mapping[str, Any], wall_ns: int) -> None:
        """See `Rule`."""
        super().restore(state, wall_ns)
        self.crossings = {way: _counts(state["crossings"][way]) for way in self.settings.directions}
        self.uncertain = {way: _counts(state["uncertain"][way]) for way in self.settings.directions}
        self.unobserved_s = float(state["unobserved_s"])


class ZoneRule(Rule):
    """A zone and its occupancy."""

    settings: ZoneSettings

    def __init__(self, settings: ZoneSettings, labels: Sequence[str], wall_ns: int) -> None:
        super().__init__(settings, labels, wall_ns)
        self.begun: Counter[str] = Counter()
        """Presences so far, by label."""
        self.ended: Counter[str] = Counter()
        self.dwell: dict[str, float] = {}
        """Seconds of all ended presences, by label."""
        self.inside: Counter[str] = Counter()
        """Number of objects inside now, by label."""
        self.known: Counts | None = None
        """The last known `inside`; None if it never was known."""
        self.known_ns = 0
        """Unix time of that."""
        self.stale = True
        """The occupancy is unknown: the camera is down or has not been observed for long enough, or the schedule is
        inactive."""
        self.started = float("-inf")
        """Time since which it has been active, in seconds: start, reload, schedule."""
        self.wake_at = float("inf")
        """Time at which the occupancy will be known, in seconds."""

    def lose(self, wall_ns: int) -> None:
        """The occupancy becomes unknown; what was known at this Unix time is kept."""
        if not self.stale:
            self.stale, self.known, self.known_ns = True, self.occupancy(), wall_ns

    def occupancy(self) -> Counts | None:
        """The occupancy by label, or the last known one; None if it never was known."""
        return self.known if self.stale else {label: n for label, n in self.inside.items() if n}

    def report(self) -> dict[str, Any]:
        """For messages. If the occupancy is stale, `at` is the Unix time at which it was known."""
        known = self.occupancy()
        out = {
            "since": self.since_ns / 1e9,
            "occupancy": None if known is None else sum(known.values()),
            "labels": known or {},
            "stale": self.stale,
            "begun": dict(self.begun),
            "ended": dict(self.ended),
            "dwell_s": {label: round(s, 3) for label, s in self.dwell.items()},
            "suppressed": self.suppressed,
        }
        if self.stale and self.known is not None:
            out["at"] = self.known_ns / 1e9
        return out

    def state(self, at_ns: int = 0) -> dict[str, Any]:
        """See `Rule`."""
        return super().state(at_ns) | {
            "begun": dict(self.begun),
            "ended": dict(self.ended),
            "dwell": dict(self.dwell),
            "known": self.occupancy(),
            "known_ns": self.known_ns if self.stale else at_ns,
        }

    def restore(self, state: Mapping[str, Any], wall_ns: int) -> None:
        """See `Rule`."""
        super().restore(state, wall_ns)
        # Whatever the predecessor left open has ended with it.
        self.begun, self.ended = _counts(state["begun"]), _counts(state["begun"])
        self.dwell = {str(label): float(s) for label, s in state["dwell"].items()}
        self.known = None if state["known"] is None else dict(_counts(state["known"]))
        self.known_ns = int(state["known_ns"])
