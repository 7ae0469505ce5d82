"""The rules of one stream: which there are, by the anchor that they use, and what they have counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamd.analysis.rules.group import Group
from streamd.analysis.rules.rule import LineRule, ZoneRule
from streamd.analysis.rules.settings import LineSettings, ZoneSettings


class RuleSet:
    """For one thread. `regroup` is to be called before the groups are used.

    Args:
        zones: checked by `checks.check_rules`.
        lines: likewise.
        labels: the model's classes in order.
        wall_ns: Unix time at which counters start.
    """

    def __init__(
        self, zones: Sequence[ZoneSettings], lines: Sequence[LineSettings], labels: tuple[str, ...], wall_ns: int
    ) -> None:
        self._labels = labels
        self.zones = [ZoneRule(zone, labels, wall_ns) for zone in zones]
        self.lines = [LineRule(line, labels, wall_ns) for line in lines]
        self.groups: list[Group] = []
        self.scheduled: list[tuple[Group, int, ZoneRule | LineRule]] = []
        """Rules with hours, with their group and their column in it."""
        self.unreliable: tuple[str, ...] = ()
        """Why the camera cannot see; empty while it can."""
        self._report: dict[str, Any] | None = None

    def exchange(self, zones: Sequence[ZoneSettings], lines: Sequence[LineSettings], wall_ns: int) -> list[ZoneRule]:
        """Replaces the rules. Unchanged ones go on; the groups are still those of before.

        Args:
            zones: all zones from now on.
            lines: all lines from now on.
            wall_ns: Unix time at which new counters start.

        Returns:
            The zones that are gone.
        """
        old = {rule.settings: rule for rule in (*self.zones, *self.lines)}
        kept_zones = [old.get(zone) or ZoneRule(zone, self._labels, wall_ns) for zone in zones]
        kept_lines = [old.get(line) or LineRule(line, self._labels, wall_ns) for line in lines]
        self.zones = [rule for rule in kept_zones if isinstance(rule, ZoneRule)]
        self.lines = [rule for rule in kept_lines if isinstance(rule, LineRule)]
        return [rule for rule in old.values() if isinstance(rule, ZoneRule) and rule not in self.zones]

    def regroup(self, size: tuple[int, int], slots: int) -> None:
        """Groups the rules by the anchor that they use; what the groups know of tracks stays.

        Args:
            size: of the picture in pixels.
            slots: rows of tracks.
        """
        before = {group.anchor: group for group in self.groups}
        self.groups = []
        for anchor in dict.fromkeys(rule.settings.anchor for rule in (*self.zones, *self.lines)):
            zones = [rule for rule in self.zones if rule.settings.anchor == anchor]
            lines = [rule for rule in self.lines if rule.settings.anchor == anchor]
            group = Group(anchor, zones, lines, size, slots)
            for column, rule in group.rules():
                group.switch(column, rule)
            self.groups.append(group)
        self.scheduled = [
            (group, column, rule)
            for group in self.groups
            for column, rule in group.rules()
            if rule.schedule is not None
        ]
        for group in self.groups:
            if group.anchor in before:
                group.take_over(before[group.anchor])
        self.changed()

    def scale(self, size: tuple[int, int]) -> None:
        """The picture has another size, in pixels."""
        for group in self.groups:
            group.scale(*size)

    def grow(self, slots: int) -> None:
        """There are so many rows of tracks now."""
        for group in self.groups:
            group.grow(slots)

    def unobserved(self, missed_s: float) -> None:
        """For so many seconds, what crossed a line was not seen."""
        for line in self.lines:
            line.unobserved_s += missed_s
            line.unsaved = True
        self.changed()

    def changed(self) -> None:
        """What `report` says is not true any more."""
        self._report = None

    def report(self) -> dict[str, Any]:
        """See `RuleEngine.counters`."""
        if self._report is None:
            self._report = {
                "lines": {line.name: line.report() for line in self.lines},
                "zones": {zone.name: zone.report() for zone in self.zones},
            }
            if self.unreliable:
                self._report["unreliable"] = list(self.unreliable)
        return self._report

    def state(self, at_ns: int) -> dict[str, Any]:
        """What a successor's rules continue from, as plain values, at a Unix time in nanoseconds."""
        return {"lines": [line.state() for line in self.lines], "zones": [zone.state(at_ns) for zone in self.zones]}

    def unsaved(self, at_ns: int) -> list[dict[str, Any]]:
        """See `RuleEngine.unsaved`."""
        changed = [rule for rule in (*self.lines, *self.zones) if rule.unsaved]
        for rule in changed:
            rule.unsaved = False
        return [rule.state(at_ns) for rule in changed]

    def restore(self, state: Mapping[str, Any], wall_ns: int, away_s: float) -> set[str]:
        """Continues from a predecessor's `state`, as far as the rules are the same.

        Args:
            state: its state.
            wall_ns: Unix time now.
            away_s: seconds since then, in which nothing was observed.

        Returns:
            The names of the zones that go on.
        """
        kept = {each["fingerprint"]: each for each in (*state["lines"], *state["zones"])}
        for rule in (*self.zones, *self.lines):
            if each := kept.get(rule.fingerprint):
                rule.restore(each, wall_ns)
                if isinstance(rule, LineRule):
                    rule.unobserved_s += away_s
        return {rule.name for rule in self.zones if rule.fingerprint in kept}
