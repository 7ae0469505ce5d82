"""What a fleet would do: who serves what, what is lost with a box, and how many boxes are enough."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from streamd.errors import ConfigError
from streamd.fleet import FleetSettings
from streamd.fleet.placement import Box, Demand, Placement, place
from streamd.flow.settings import StreamSettings

MOST_BOXES = 1000
"""No fleet is searched for beyond this size."""


@dataclass(frozen=True)
class BoxUse:
    """One box of a plan."""

    name: str
    streams: int
    load: float
    """Frames per second."""
    capacity: float


@dataclass(frozen=True)
class Plan:
    """A placement, and what would be without each box."""

    placement: Placement
    boxes: tuple[BoxUse, ...]
    """In the order of their names."""
    without: Mapping[str, tuple[str, ...]]
    """By box: streams without a box once this one is lost, those of highest priority first."""
    single: frozenset[str]
    """Streams that only one box reaches."""
    together: Mapping[str, list[str]]
    """By entry of `spread`: the streams that are not apart, see `together`."""

    @property
    def spare(self) -> bool:
        """Whether every stream is served, whichever single box is lost (N+1)."""
        return not self.placement.unplaced and not any(self.without.values())


def demands_of(fleet: FleetSettings, streams: Sequence[StreamSettings]) -> list[Demand]:
    """What each stream asks for."""
    found = []
    for stream in streams:
        fps = next((r.fps for r in fleet.rates if fnmatch.fnmatchcase(stream.id, r.streams)), fleet.stream_fps)
        reach = next((r.labels for r in fleet.reach if fnmatch.fnmatchcase(stream.id, r.streams)), ())
        limit = getattr(stream, "max_fps", None)  # most kinds have it
        load = min(fps, limit) if limit else fps
        found.append(Demand(stream.id, load, stream.priority, frozenset(reach), _group(fleet, stream.id)))
    return found


def _group(fleet: FleetSettings, stream: str) -> str:
    """The entry of `spread` that the stream belongs to, as people would name it."""
    fits = (s.streams for s in fleet.spread if any(fnmatch.fnmatchcase(stream, p) for p in s.streams))
    return ", ".join(next(fits, ()))


def single_sessions(fleet: FleetSettings, streams: Sequence[StreamSettings]) -> frozenset[str]:
    """The ids of streams whose cameras serve one session at a time."""
    return frozenset(s.id for s in streams if any(fnmatch.fnmatchcase(s.id, p) for p in fleet.single_session))


def idle_entries(fleet: FleetSettings, streams: Sequence[StreamSettings]) -> list[str]:
    """Says of each entry that names streams which of its patterns fit none: most often, one is misspelt."""
    patterns = [
        *((f"reach[{i}]", r.streams) for i, r in enumerate(fleet.reach)),
        *((f"rates[{i}]", r.streams) for i, r in enumerate(fleet.rates)),
        *((f"spread[{i}]", p) for i, s in enumerate(fleet.spread) for p in s.streams),
        *(("single_session", p) for p in fleet.single_session),
    ]
    ids = [s.id for s in streams]
    return [f"fleet.{where}: {p} fits no stream" for where, p in patterns if not fnmatch.filter(ids, p)]


def boxes_of(fleet: FleetSettings, count: int | None = None) -> list[Box]:
    """The boxes of a fleet, `count` of those that are alike (default: as configured).

    Raises:
        ConfigError: two have the same name, or `boxes` is more than `most`.
    """
    own = [
        Box(n.name, n.fps or fleet.box.fps, n.streams or fleet.box.streams, frozenset(n.labels)) for n in fleet.nodes
    ]
    alike = fleet.boxes if count is None else count
    boxes = own + [Box(f"box-{i + 1}", fleet.box.fps, fleet.box.streams) for i in range(alike)]
    names = {b.name for b in boxes}
    for box in boxes:
        if box.name not in names:
            raise ConfigError(f"fleet.nodes: two boxes are named {box.name}; box-1, box-2 … are those of fleet.boxes")
        names.discard(box.name)
    if count is None and fleet.boxes > fleet.most:
        raise ConfigError(f"fleet.most: {fleet.most} is less than fleet.boxes, which is {fleet.boxes}")
    return boxes


def reached_once(demands: Sequence[Demand], boxes: Sequence[Box]) -> frozenset[str]:
    """Streams whose `reach` leaves a single box: no box that is added can take them over."""
    return frozenset(d.name for d in demands if d.reach and sum(b.reaches(d) for b in boxes) == 1)


def together(demands: Collection[Demand], boxes: Collection[Box], box_of: Mapping[str, str]) -> dict[str, list[str]]:
    """By group: the streams on machines that have more of the group than an even division over all would give them.

    Args:
        demands: all streams.
        boxes: those that can be given streams.
        box_of: box by stream.
    """
    by_name = {b.name: b for b in boxes}
    members: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    able: dict[str, set[str]] = defaultdict(set)
    for demand in sorted((d for d in demands if d.group), key=lambda d: d.name):
        able[demand.group].update(b.machine for b in boxes if b.reaches(demand))
        if (box := by_name.get(box_of.get(demand.name, ""))) is not None:
            members[demand.group][box.machine].append(demand.name)
    found: dict[str, list[str]] = {}
    for group, machines in sorted(members.items()):
        even = -(-sum(map(len, machines.values())) // max(1, len(able[group])))
        if crowd := sorted(name for names in machines.values() if len(names) > even for name in names):
            found[group] = crowd
    return found


def make_plan(demands: Sequence[Demand], boxes: Sequence[Box]) -> Plan:
    """Places the streams, and tries the loss of each box."""
    placement = place(demands, boxes)
    without = dict(_losses(demands, boxes, placement))
    shared = together(demands, boxes, placement.box_of)
    return Plan(placement, used(demands, boxes, placement), without, reached_once(demands, boxes), shared)


def _losses(
    demands: Sequence[Demand], boxes: Sequence[Box], placement: Placement
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """By name of the box that is lost, the streams without a box then."""
    for lost in boxes:
        yield lost.name, place(demands, [b for b in boxes if b is not lost], placement.box_of, most=0).unplaced


def used(demands: Sequence[Demand], boxes: Sequence[Box], placement: Placement) -> tuple[BoxUse, ...]:
    """How full each box is, in the order of their names."""
    loads: dict[str, list[float]] = {b.name: [] for b in boxes}
    for demand in demands:
        if demand.name in placement.box_of:
            loads[placement.box_of[demand.name]].append(demand.load)
    return tuple(
        BoxUse(b.name, len(loads[b.name]), sum(loads[b.name]), b.capacity) for b in sorted(boxes, key=lambda b: b.name)
    )


def boxes_needed(fleet: FleetSettings, demands: Sequence[Demand]) -> int | None:
    """How many boxes that are alike it takes to serve every stream, whichever single box is lost.

    Streams that only one box reaches are left out of account: they are lost with it.

    Returns:
        The number beside `nodes`; None if no number is enough: a stream that no box reaches, or larger than a box.
    """

    def enough(count: int) -> bool:
        boxes = boxes_of(fleet, count)
        placement = place(demands, boxes)
        if placement.unplaced:
            return False
        single = reached_once(demands, boxes)
        return all(single.issuperset(unplaced) for _, unplaced in _losses(demands, boxes, placement))

    # The least that capacity allows; from there it is seldom more than a few.
    own = sum(n.fps or fleet.box.fps for n in fleet.nodes)
    count = max(0, int((sum(d.load for d in demands) - own) // fleet.box.fps))
    last = min(MOST_BOXES, 2 * count + len(demands) // fleet.box.streams + 4)
    return next((n for n in range(count, last + 1) if enough(n)), None)
