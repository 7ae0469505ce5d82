"""Presences: an object in a zone from entering to leaving, across lost tracks, changed ids and outages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from streamd.analysis.rules import Change, Phase, RuleEvent
from streamd.analysis.rules.crossing import Sight
from streamd.analysis.rules.geometry import iou
from streamd.analysis.rules.rule import ZoneRule, label_of
from streamd.analysis.rules.tracks import CLASS, CONFIRMED, CUT, REF_T, SEEN, X1, Y2, Moment, Tracks
from streamd.analysis.rules.zones import NEVER

SAME_PLACE = 0.4
"""Least overlap (IoU) at which a box is assumed to be the object that was there before."""
RETRY_S = 0.2
"""How soon to check a track again that is of another class, or stationary."""
MOVED = 0.5
"""A stationary object moves once its centre is this many sizes (root of its box's area) from where it stood."""

REMEMBERED = 256
"""Largest number of presences that may be resumed: with frequent outages, most never are."""

Box = tuple[float, float, float, float]


@dataclass(slots=True)
class Presence:
    """One object in one zone."""

    rule: ZoneRule
    how: Change
    came: Sight
    """When it was first inside."""
    track: int
    seen_base: float
    """Observed seconds of its track when it entered, minus those of earlier tracks."""
    sight: Sight
    """The last values of its track; updated only once the track has ended."""
    class_id: int = -1
    label: str = ""
    begun: bool = False
    """Whether it is counted."""
    id: str | None = None
    """Id of its event; None if cooldown_s suppressed it."""
    before_s: float = 0.0
    """Dwell time from the event that it resumes."""
    before_observed_s: float = 0.0
    previous: str | None = None
    loitering: bool = False
    still_at: tuple[float, float] | None = None
    """Centre of its box if it is stationary."""

    def observed(self, seen: float) -> float:
        """Observed seconds, once its track has been observed for `seen`."""
        return seen - self.seen_base + self.before_observed_s


class Lost(NamedTuple):
    """A presence that has ended, or whose track has, and that may be continued."""

    presence: Presence
    observed_s: float
    box: Box
    t: float
    """When it was last seen, in seconds."""


class Memory(NamedTuple):
    """A presence that ended because of an outage, for the one that resumes it."""

    zone: str
    class_id: int
    box: Box
    """In 0..1 of the picture."""
    id: str | None
    wall_ns: int
    """When the object was last seen, as Unix time."""
    dwell_s: float
    observed_s: float
    loitering: bool
    stationary: bool


def _center(box: Sequence[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


class Presences:
    """All presences of a stream, and their events.

    Args:
        tracks: of the stream.
        labels: the model's classes.
        new_id: creates ids of events.
    """

    def __init__(self, tracks: Tracks, labels: Sequence[str], new_id: Callable[[], str]) -> None:
        self.labels = labels
        self.open: dict[tuple[int, ZoneRule], Presence] = {}
        """By slot and zone."""
        self.waiting: list[Lost] = []
        """Stationary objects whose track was lost; another may start in the same place."""
        self.memory: list[Memory] = []
        self.events: list[RuleEvent] = []
        self.changed = False
        """Whether counts have changed."""
        self.silent = False
        """Whether something was counted without an event; see `RuleEngine.silent`."""
        self.size = (1, 1)
        """Size of the picture, in pixels."""
        self._tracks, self._new_id = tracks, new_id

    def came(self, slot: int, rule: ZoneRule, how: Change, moment: Moment) -> float:
        """A track has entered.

        Returns:
            When to call `due`, in seconds.
        """
        sight = self._tracks.last_sight(slot, moment)
        seen = float(self._tracks.rows[slot, SEEN])
        self.open[slot, rule] = Presence(rule, how, sight, self._tracks.ids[slot], seen, sight)
        return moment.now + rule.settings.min_s

    def left(self, slot: int, rule: ZoneRule, moment: Moment) -> None:
        """A track was seen outside."""
        if presence := self.open.pop((slot, rule), None):
            sight = self._tracks.last_sight(slot, moment)
            self._end(presence, "exited", sight, self._observed(presence, slot), moment)

    def due(self, slot: int, rule: ZoneRule, elder: int | None, moment: Moment) -> float:
        """Creates the events that are due for a track that is inside and visible.

        Args:
            slot: of the track.
            rule: the zone.
            elder: slot of the unseen track that this one continues, if any.
            moment: now.

        Returns:
            When to check again, in seconds.
        """
        presence = self.open.get((slot, rule))
        if presence is None:
            return NEVER
        row = self._tracks.rows[slot]
        if not presence.begun:
            class_id = int(row[CLASS])
            if not row[CONFIRMED]:
                return moment.now
            if not rule.wants(class_id):
                return moment.now + RETRY_S
            presence = self._begin(presence, slot, class_id, elder, moment)
        observed, settings = self._observed(presence, slot), rule.settings
        again = NEVER
        if settings.loiter_s is not None and not presence.loitering:
            if observed >= settings.loiter_s:
                presence.loitering = True
                self._tell("update", presence, "loitering", slot, moment)
            else:
                again = moment.now + settings.loiter_s - observed
        box = row[X1 : Y2 + 1].tolist()
        center = _center(box)
        if presence.still_at is None:
            still_s = moment.now - float(row[REF_T])
            if still_s >= settings.stationary_s:
                presence.still_at = center
                self._tell("update", presence, "stationary", slot, moment)
            else:
                return min(again, moment.now + settings.stationary_s - still_s)
        (x, y), (x0, y0) = center, presence.still_at
        if (x - x0) ** 2 + (y - y0) ** 2 > MOVED**2 * (box[2] - box[0]) * (box[3] - box[1]):
            presence.still_at = None
            self._tell("update", presence, "moving", slot, moment)
            return min(again, moment.now + settings.stationary_s)
        return min(again, moment.now + RETRY_S)

    def _observed(self, presence: Presence, slot: int) -> float:
        return presence.observed(float(self._tracks.rows[slot, SEEN]))

    def _begin(self, fresh: Presence, slot: int, class_id: int, elder: int | None, moment: Moment) -> Presence:
        """Continues a presence that fits, or starts a new one."""
        rule = fresh.rule
        row = self._tracks.rows[slot]
        box = row[X1 : Y2 + 1].tolist()
        old: Lost | None = None
        if elder is not None and (presence := self.open.get((elder, rule))) and presence.begun:
            del self.open[elder, rule]
            sight = self._tracks.last_sight(elder, moment)
            old = Lost(presence, self._observed(presence, elder), sight.box, sight.t)
        else:
            fits = [w for w in self.waiting if w.presence.rule is rule and w.presence.class_id == class_id]
            if fits:
                overlap = iou(box, [w.box for w in fits])
                if overlap.max() >= SAME_PLACE:
                    old = fits[int(overlap.argmax())]
                    self.waiting.remove(old)
        if old is not None:
            presence = old.presence
            # The new track's observed time since it entered counts; the time between the tracks does not.
            presence.before_observed_s, presence.seen_base = old.observed_s, fresh.seen_base
            presence.track = fresh.track
            self.open[slot, rule] = presence
            self._tell("update", presence, "track", slot, moment)
            return presence
        fresh.begun, fresh.class_id, fresh.label = True, class_id, label_of(self.labels, class_id)
        if fresh.how == "resumed":
            self._resume(fresh, box, moment)
        self.changed = True
        rule.begun[fresh.label] += 1
        rule.inside[fresh.label] += 1
        counts = {f"zone/{rule.name}/begin/{fresh.label}": 1}
        if rule.may_tell(moment.now, moment.wall_ns):
            fresh.id = self._new_id()
            self._tell("begin", fresh, fresh.how, slot, moment, fresh.came, rule.settle(counts))
        else:
            rule.kept_back.update(counts)
            self.silent = True
        return fresh

    def _resume(self, presence: Presence, box: Sequence[float], moment: Moment) -> None:
        """Looks for the ended presence that this one resumes."""
        width, height = self.size
        scaled = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        fits = [m for m in self.memory if m.zone == presence.rule.name and m.class_id == presence.class_id]
        if not fits:
            return
        overlap = iou(scaled, [m.box for m in fits])
        if overlap.max() < SAME_PLACE:
            return
        found = fits[int(overlap.argmax())]
        self.memory.remove(found)
        presence.previous = found.id
        presence.before_s = found.dwell_s + max((presence.came.wall_ns - found.wall_ns) / 1e9, 0.0)
        presence.before_observed_s = found.observed_s
        presence.loitering = found.loitering
        if found.stationary:
            presence.still_at = _center(box)

    def gone(self, slot: int, rule: ZoneRule, reason: str, moment: Moment) -> None:
        """A track that was inside has ended."""
        presence = self.open.pop((slot, rule), None)
        if presence is None:
            return
        sight, observed = self._tracks.last_sight(slot, moment), self._observed(presence, slot)
        if reason != "lost":
            self._end(presence, "unknown", sight, observed, moment)
        elif self._tracks.rows[slot, CUT]:
            # Last seen at the edge of the picture, so it has left the picture.
            self._end(presence, "exited", sight, observed, moment)
        elif presence.begun and presence.still_at is not None:
            presence.sight = sight
            self.waiting.append(Lost(presence, observed, sight.box, sight.t))
        else:
            self._end(presence, "vanished", sight, observed, moment)

    def expire(self, moment: Moment) -> None:
        """Ends presences that waited in vain for another track."""
        for lost in [w for w in self.waiting if moment.now - w.t > w.presence.rule.settings.stationary_s]:
            self.waiting.remove(lost)
            self._end(lost.presence, "vanished", lost.presence.sight, lost.observed_s, moment)

    def end_all(
        self, change: Change, moment: Moment, rules: Sequence[ZoneRule] | None = None
    ) -> list[tuple[int, ZoneRule]]:
        """Ends all presences, or those of some zones.

        Returns:
            The slots and zones of those that had a track.
        """
        keys = [key for key in self.open if rules is None or key[1] in rules]
        for key in keys:
            presence = self.open.pop(key)
            sight = self._tracks.last_sight(key[0], moment)
            self._end(presence, change, sight, self._observed(presence, key[0]), moment)
        for lost in [w for w in self.waiting if rules is None or w.presence.rule in rules]:
            self.waiting.remove(lost)
            self._end(lost.presence, change, lost.presence.sight, lost.observed_s, moment)
        return keys

    def remember(self, moment: Moment) -> list[Memory]:
        """The open presences, for a successor."""
        out = list(self.memory)
        for (slot, _), presence in self.open.items():
            if presence.begun:
                sight = self._tracks.last_sight(slot, moment)
                out.append(self._memory(presence, sight, self._observed(presence, slot)))
        return out + [self._memory(w.presence, w.presence.sight, w.observed_s) for w in self.waiting]

    def _end(self, presence: Presence, change: Change, sight: Sight, observed_s: float, moment: Moment) -> None:
        if not presence.begun:
            return
        rule, label = presence.rule, presence.label
        dwell_s = sight.t - presence.came.t + presence.before_s
        self.changed = True
        rule.inside[label] -= 1
        rule.ended[label] += 1
        rule.dwell[label] = rule.dwell.get(label, 0.0) + dwell_s
        if change in ("unknown", "stopped"):
            self.memory = [*self.memory[1 - REMEMBERED :], self._memory(presence, sight, observed_s)]
        if presence.id is not None:
            self._event("end", presence, change, sight, observed_s, moment)
        else:
            rule.unsaved = self.silent = True

    def _memory(self, presence: Presence, sight: Sight, observed_s: float) -> Memory:
        (width, height), (x1, y1, x2, y2) = self.size, sight.box
        return Memory(
            zone=presence.rule.name,
            class_id=presence.class_id,
            box=(x1 / width, y1 / height, x2 / width, y2 / height),
            id=presence.id,
            wall_ns=sight.wall_ns,
            dwell_s=sight.t - presence.came.t + presence.before_s,
            observed_s=observed_s,
            loitering=presence.loitering,
            stationary=presence.still_at is not None,
        )

    def _tell(
        self,
        phase: Phase,
        presence: Presence,
        change: Change,
        slot: int,
        moment: Moment,
        sight: Sight | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        if presence.id is not None:
            sight = sight or self._tracks.last_sight(slot, moment)
            self._event(phase, presence, change, sight, self._observed(presence, slot), moment, counts)

    def _event(
        self,
        phase: Phase,
        presence: Presence,
        change: Change,
        sight: Sight,
        observed_s: float,
        moment: Moment,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        assert presence.id is not None
        dwell_s = sight.t - presence.came.t + presence.before_s
        # A begin reports the time at which the object entered, which is before the current frame.
        observed_s = min(observed_s, dwell_s)
        state: Mapping[str, Any] = {}
        if phase != "update":
            presence.rule.unsaved = False
            state = presence.rule.state(moment.wall_ns)
        self.events.append(
            RuleEvent(
                id=presence.id,
                phase=phase,
                kind="zone",
                rule=presence.rule.name,
                change=change,
                label=presence.label,
                class_id=presence.class_id,
                track=presence.track,
                box=sight.box,
                score=sight.score,
                epoch=sight.epoch,
                seq=sight.seq,
                t_ns=moment.ns(sight.t),
                wall_ns=sight.wall_ns,
                begin_wall_ns=presence.came.wall_ns,
                dwell_s=round(dwell_s, 3),
                observed_s=round(observed_s, 3),
                unseen_s=round(dwell_s - observed_s, 3),
                previous=presence.previous,
                counts=counts or {},
                state=state,
            )
        )
