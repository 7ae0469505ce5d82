"""The rule engine of one stream: takes frames with tracks, returns events and counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from streamd.analysis.rules import Change, RuleEvent, TrackedFrame
from streamd.analysis.rules.crossing import Crossing
from streamd.analysis.rules.geometry import Border, Boxes, Mask
from streamd.analysis.rules.group import Group
from streamd.analysis.rules.links import Links
from streamd.analysis.rules.presence import Memory, Presences
from streamd.analysis.rules.rule import ZoneRule, label_of
from streamd.analysis.rules.ruleset import RuleSet
from streamd.analysis.rules.settings import LineSettings, ZoneSettings
from streamd.analysis.rules.tracks import CLASS, CONFIRMED, CUT, FIRST, LAST, LINK_S, Moment, Tracks
from streamd.analysis.rules.watch import WAKE_S, Watch

REMEMBER_S = 60.0
"""For this long after frames started to arrive, ended presences may be resumed."""
STATE_VERSION = 1


class RuleEngine:
    """Applies the zones and lines of one stream. For one thread.

    Methods return crossings and presences as `RuleEvent`s, in order. Methods that take the time
    expect it on the clock of `TrackedFrame.t_ns`.

    Args:
        zones: checked by `checks.check_rules`.
        lines: likewise.
        labels: the model's classes in order.
        new_id: creates the id of each event.
        wall_ns: Unix time at which new counters start.
        state: the predecessor's `state`. Rules that have changed since then start from zero. Its `wall_ns` may be None:
            it is not known how long the stream was unobserved.
    """

    def __init__(
        self,
        zones: Sequence[ZoneSettings],
        lines: Sequence[LineSettings],
        labels: Sequence[str],
        new_id: Callable[[], str],
        wall_ns: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._labels = tuple(labels)
        self._rules = RuleSet(zones, lines, self._labels, wall_ns)
        self._tracks = Tracks(self._rules.grow)
        self._presences = Presences(self._tracks, self._labels, new_id)
        self._new_id = new_id
        self._size = (1, 1)
        self._border = Border((0.0, 0.0, 1.0, 1.0))
        self._base_ns: int | None = None
        self._moment = Moment(0.0, wall_ns, 0)
        self._number = 0
        self._looked: float | None = 0.0
        """Time of the last frame that the network looked at; None if the stream was not observed for a while since."""
        self._watch = Watch(self._rules.zones)
        self._links = Links(self._tracks)
        self._ended_slots: list[int] = []
        """Ended tracks that a new one may still continue."""
        if state is not None and state.get("version") == STATE_VERSION:
            self._restore(state)
        self._rules.regroup(self._size, len(self._tracks.ids))

    # ------------------------------------------------------------------------------------------------------- frames

    def frame(self, frame: TrackedFrame) -> list[RuleEvent]:
        """Processes the next frame, in capture order.

        Returns:
            What happened.
        """
        if self._base_ns is None:
            self._base_ns = frame.t_ns
        before = self._moment.now
        now = max((frame.t_ns - self._base_ns) / 1e9, before)
        if (frame.width, frame.height) != self._size:
            self._resize(frame)
        if missed := self._watch.frame(now, before, self._moment.wall_ns):
            self._unobserved(missed)
        moment = self._moment = Moment(now, frame.wall_ns, frame.t_ns - round(now * 1e9))
        self._number += 1
        if self._rules.scheduled:
            self._apply_schedules(moment)
        for track, reason in frame.ended:
            self._ended(track, reason, moment)
        if len(frame.track):
            self._observe(frame, moment, self._looked)
        self._looked = now
        if self._ended_slots:
            self._expire(moment)
        if self._presences.waiting:
            self._presences.expire(moment)
        if self._presences.memory and now - self._watch.seen_since > REMEMBER_S:
            self._presences.memory.clear()
        return self._take()

    def pass_over(self, t_ns: int, wall_ns: int) -> list[RuleEvent]:
        """The next frame, at which the network did not look because nothing moved: it was observed all the same.

        Tracks keep their last place, and no event is made of them. The time until the next look counts as observed for
        those that are still there then.

        Args:
            t_ns: see `TrackedFrame.t_ns`.
            wall_ns: see `TrackedFrame.wall_ns`.
        """
        if self._base_ns is None:
            return []
        before = self._moment.now
        now = max((t_ns - self._base_ns) / 1e9, before)
        if missed := self._watch.frame(now, before, self._moment.wall_ns):
            self._unobserved(missed)
        moment = self._moment = Moment(now, wall_ns, t_ns - round(now * 1e9))
        if self._rules.scheduled:
            self._apply_schedules(moment)
        if self._ended_slots:
            self._expire(moment)
        if self._presences.waiting:
            self._presences.expire(moment)
        return self._take()

    def _unobserved(self, missed: float) -> None:
        self._rules.unobserved(missed)
        if self._watch.blind or not self._watch.usual:
            self._looked = None

    def _observe(self, frame: TrackedFrame, moment: Moment, before: float | None) -> None:
        now = moment.now
        view = frame.view or (0.0, 0.0, frame.width, frame.height)
        if self._border.view != view:
            self._border = Border(view)
        boxes = Boxes(frame.xyxy)
        hits = self._border.touched(boxes)
        cut: Mask | None = None if hits is None else np.logical_or.reduce(hits, axis=1)
        slots, index, rows, born = self._tracks.step(frame, boxes, cut, now, self._number, before)
        if self._links.elder:
            self._links.check(self._rules.groups, self._number)
        if born:
            self._links.find([slots[i] for i in born], self._rules.groups, now, self._number)
        for group in self._rules.groups:
            group.lines.woke = self._watch.woke
            crossings, came, left = group.observe(frame, now, slots, index, boxes, hits)
            for crossing in crossings:
                self._crossed(group, crossing, moment)
            for i, column in left:
                self._presences.left(slots[i], group.zone_rules[column], moment)
                group.zones.remind(slots[i], column, np.inf)
            for i, column in came:
                rule = group.zone_rules[column]
                how = self._how(rule, rows[i], now)
                group.zones.remind(slots[i], column, self._presences.came(slots[i], rule, how, moment))
            if group.zone_rules:
                for i, column in group.zones.pending(index, now):
                    slot, rule = slots[i], group.zone_rules[column]
                    elder = self._links.elder.get(slot)
                    group.zones.remind(slot, column, self._presences.due(slot, rule, elder, moment))
                    if elder is not None and (elder, rule) not in self._presences.open:
                        group.zones.leave(elder, column)

    def _how(self, rule: ZoneRule, row: Any, now: float) -> Change:
        """How a track got into a zone."""
        if row[FIRST] < now:
            return "resumed" if rule.started == now else "entered"
        if now - max(self._watch.seen_since, rule.started) <= WAKE_S:
            return "resumed"
        return "entered" if row[CUT] else "appeared"

    # ------------------------------------------------------------------------------------------------------- tracks

    def _ended(self, track: int, reason: str, moment: Moment) -> None:
        slot = self._tracks.slot_of.get(track)
        if slot is None:
            return
        if reason == "lost" and self._watch.blind:
            reason = "blind"
        if reason == "lost" and moment.now - self._tracks.rows[slot, LAST] <= LINK_S:
            if slot not in self._ended_slots:
                self._ended_slots.append(slot)
            return
        self._finish(slot, reason, moment)

    def _expire(self, moment: Moment) -> None:
        for slot in [s for s in self._ended_slots if moment.now - self._tracks.rows[s, LAST] > LINK_S]:
            self._finish(slot, "lost", moment)

    def _finish(self, slot: int, reason: str, moment: Moment) -> None:
        """A track has ended for good."""
        row = self._tracks.rows[slot]
        last = float(row[LAST])
        # Until the first gap after its last box, it would have been seen if it had come back.
        until = self._watch.until(last, moment.now)
        for group in self._rules.groups:
            for crossing in group.lines.finish(slot, confirmed=bool(row[CONFIRMED]), watched_until=until):
                self._crossed(group, crossing, moment)
            for column in np.nonzero(group.zones.inside[slot])[0].tolist():
                self._presences.gone(slot, group.zone_rules[column], reason, moment)
            group.forget(slot)
        self._links.forget(slot)
        if slot in self._ended_slots:
            self._ended_slots.remove(slot)
        self._tracks.free(slot)

    def _crossed(self, group: Group, crossing: Crossing, moment: Moment) -> None:
        rule = group.line_rules[crossing.line]
        slot = crossing.slot
        if (elder := self._links.elder.get(slot)) is not None:
            group.lines.settle(elder, crossing.line)
        class_id = int(self._tracks.rows[slot, CLASS])
        if not crossing.active or not rule.wants(class_id):
            return
        direction = rule.settings.directions[0 if crossing.rightward else 1]
        label = label_of(self._labels, class_id)
        counted = rule.crossings if crossing.certain else rule.uncertain
        counted[direction][label] += 1
        self._rules.changed()
        counts = {f"line/{rule.name}/{direction}/{'' if crossing.certain else 'uncertain/'}{label}": 1}
        if not rule.may_tell(moment.now, moment.wall_ns):
            rule.kept_back.update(counts)
            self._presences.silent = True
            return
        rule.unsaved = False
        counts = rule.settle(counts)
        (width, height), (x, y), sight = self._size, crossing.at, crossing.sight
        wall_ns = sight.wall_ns - round((sight.t - crossing.t) * 1e9)
        self._presences.events.append(
            RuleEvent(
                id=self._new_id(),
                phase="instant",
                kind="line",
                rule=rule.name,
                change="crossed",
                label=label,
                class_id=class_id,
                track=self._tracks.ids[slot],
                box=sight.box,
                score=sight.score,
                epoch=sight.epoch,
                seq=sight.seq,
                t_ns=moment.ns(crossing.t),
                wall_ns=wall_ns,
                begin_wall_ns=wall_ns,
                direction=direction,
                certain=crossing.certain,
                point=(round(x / width, 4), round(y / height, 4)),
                counts=counts,
                state=rule.state(),
            )
        )

    # --------------------------------------------------------------------------------------------- outages and resets

    @property
    def pace_s(self) -> float:
        """How far apart frames usually are, in seconds; 0 before there were two. Any thread."""
        return self._watch.pace_s

    def down(self) -> list[RuleEvent]:
        """The camera is down: occupancy is stale from its last frame until frames have arrived for a second.

        Tracks are not ended here; the tracker reports in the next frame which ones it has given up.
        """
        self._watch.sleep(self._moment.wall_ns)
        return self._take()

    def unreliable(self, why: Sequence[str]) -> None:
        """Frames arrive, but what is seen in them says nothing of the scene: the camera is covered, say.

        Meanwhile occupancy is unknown, lines count the time as unobserved, and what becomes of objects is unknown.

        Args:
            why: names; none of them once the camera can see again.
        """
        self._rules.unreliable = tuple(why)
        self._watch.see(not self._rules.unreliable, self._moment.now, self._moment.wall_ns)
        self._rules.changed()

    def reset(self, reason: str) -> list[RuleEvent]:
        """All tracks are invalid, because a file starts again, the size of the picture changes, or the tracker failed.

        Args:
            reason: anything but "lost".
        """
        self._reset(reason)
        return self._take()

    def _reset(self, reason: str) -> None:
        self._watch.sleep(self._moment.wall_ns)
        for slot in self._tracks.alive():
            self._finish(slot, reason, self._moment)
        self._presences.end_all("unknown", self._moment)

    def close(self) -> list[RuleEvent]:
        """The stream ends or the daemon stops: decides pending crossings and ends open presences."""
        self._watch.sleep(self._moment.wall_ns)
        self._presences.end_all("stopped", self._moment)
        for slot in self._tracks.alive():
            self._finish(slot, "stopped", self._moment)
        return self._take()

    def _apply_schedules(self, moment: Moment) -> None:
        for group, column, rule in self._rules.scheduled:
            assert rule.schedule is not None
            on = rule.schedule.active(moment.wall_ns)
            if on == rule.on:
                continue
            rule.on = on
            self._rules.changed()
            group.switch(column, rule)
            if isinstance(rule, ZoneRule):
                self._watch.switch(rule, moment.now, moment.wall_ns)
                if not on:
                    self._presences.end_all("schedule", moment, [rule])

    def _resize(self, frame: TrackedFrame) -> None:
        if self._size != (1, 1):
            self._reset("size")
        self._size = self._presences.size = (frame.width, frame.height)
        self._rules.scale(self._size)

    # ---------------------------------------------------------------------------------------------- rules and counts

    def reload(self, zones: Sequence[ZoneSettings], lines: Sequence[LineSettings], wall_ns: int) -> list[RuleEvent]:
        """Replaces the rules. Unchanged ones continue; only the events of the others end.

        Args:
            zones: all zones from now on.
            lines: all lines from now on.
            wall_ns: Unix time at which new counters start.
        """
        gone = self._rules.exchange(zones, lines, wall_ns)
        self._presences.end_all("rule_changed", self._moment, gone)
        self._watch.reload(self._rules.zones)
        self._rules.regroup(self._size, len(self._tracks.ids))
        return self._take()

    def counters(self) -> dict[str, Any]:
        """All counts as plain values, for messages. Shared until something changes: the caller must not modify them.

        Counts of crossings and presences only increase; `since` is the Unix time at which they started from zero. An
        occupancy with `stale` is that of `at`; any other is that of the last frame. `unreliable` says why the camera
        cannot see; it is absent while it can.
        """
        return self._rules.report()

    def state(self) -> dict[str, Any]:
        """The state from which a successor continues, as plain values."""
        at_ns = self._moment.wall_ns
        return {
            "version": STATE_VERSION,
            "wall_ns": at_ns,
            **self._rules.state(at_ns),
            "memory": [list(memory) for memory in self._presences.remember(self._moment)],
        }

    @property
    def silent(self) -> bool:
        """Whether something was counted without an event since the last call of `unsaved`."""
        return self._presences.silent

    def unsaved(self) -> list[dict[str, Any]]:
        """States of the rules whose counts have changed since the last call without an event that tells them."""
        self._presences.silent = False
        return self._rules.unsaved(self._moment.wall_ns)

    def _restore(self, state: Mapping[str, Any]) -> None:
        seen_ns = state["wall_ns"]
        away_s = max(self._moment.wall_ns - int(seen_ns), 0) / 1e9 if seen_ns is not None else 0.0
        names = self._rules.restore(state, self._moment.wall_ns, away_s)
        memories = (Memory(*each) for each in state["memory"])
        # After a while, only what stood there can still be the same.
        recent_ns = self._moment.wall_ns - REMEMBER_S * 1e9
        self._presences.memory = [m for m in memories if m.zone in names and (m.stationary or m.wall_ns >= recent_ns)]

    def _take(self) -> list[RuleEvent]:
        events = self._presences.events
        if self._presences.changed or self._watch.changed:
            self._presences.changed = self._watch.changed = False
            self._rules.changed()
        if events:
            self._presences.events = []
        return events
