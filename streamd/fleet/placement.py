"""Which box serves which stream: weighted rendezvous hashing with bounded loads, with as few moves as possible.

Every stream ranks the boxes by a hash of both names (rendezvous hashing: Thaler and Ravishankar, "Using name-based
mappings to increase hit rates", 1998), weighted by capacity (the logarithmic method of Schindelhauer and Schomaker,
2005). It is served by the first box in its ranking that has room, and a box has room up to its fair share of the whole
load and some slack (after "Consistent hashing with bounded loads", Mirrokni, Thorup and Zadimoghaddam, 2018), or, where
nothing else is left, up to its capacity. The result depends on nothing but the arguments: two coordinators that know
the same come to the same result.

A stream stays where it is while its box can serve it. When a box is lost, only its own streams move. A box that joins
takes at most its fair share, of streams that rank it above their present one.

Streams of one group are kept apart as far as there is room: on different machines, and where a machine has several,
on different boxes. That goes before an even load, but no stream waits for it.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

SLACK = 0.1
"""Share of the fair load that a box may have on top of it before streams go to boxes further down their ranking."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Box:
    """One box, as far as placement is concerned."""

    name: str
    capacity: float
    """Frames per second within the latency objective."""
    streams: int
    """Most streams."""
    labels: frozenset[str] = frozenset()
    node: str = ""
    """Its machine, with which it is lost; empty: it has one of its own."""

    @property
    def machine(self) -> str:
        """Tells boxes of one machine from those of others."""
        return self.node or "box " + self.name

    def reaches(self, demand: Demand) -> bool:
        """Whether it can serve the stream at all."""
        return not demand.reach or bool(demand.reach & self.labels)


@dataclass(frozen=True, slots=True)
class Demand:
    """One stream, as far as placement is concerned."""

    name: str
    load: float
    """Frames per second."""
    priority: int = 0
    """A stream of higher priority takes the place of lower ones where there is not enough for all."""
    reach: frozenset[str] = frozenset()
    """Labels of boxes that reach it, one of which a box must have; empty: any box does."""
    group: str = ""
    """Streams of the same group are kept apart; empty: it belongs to none."""


@dataclass(frozen=True)
class Placement:
    """Who serves what."""

    box_of: Mapping[str, str]
    """By stream."""
    unplaced: tuple[str, ...]
    """Streams that no box has room for, those of highest priority first."""
    moved: tuple[str, ...]
    """Streams that had a box and now have another one or none, in the order of their names."""
    parted: frozenset[str] = frozenset()
    """Those that could have stayed, and move away from others of their group."""


def place(
    demands: Collection[Demand],
    boxes: Collection[Box],
    current: Mapping[str, str] | None = None,
    *,
    joined: Collection[str] = (),
    most: int | None = None,
) -> Placement:
    """Places every stream that there is room for.

    Args:
        demands: the streams, with names of their own.
        boxes: those that are alive, with names of their own.
        current: box by stream, as it is now; boxes and streams that no longer exist are ignored.
        joined: boxes that take streams from others until they have their fair share.
        most: most streams that move although they could stay, to these boxes or away from others of their group; None
            for no limit. Streams without a box are always placed.

    Returns:
        The placement. No box is above its capacity or its number of streams.
    """
    table = _Table(sorted(demands, key=lambda d: d.name), sorted(boxes, key=lambda b: b.name))
    table.keep(current or {})
    table.fill()
    left = table.part(len(demands) if most is None else most)
    table.join(joined, left)
    table.refill()
    return table.placement(current or {})


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the input changes half of the output's."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


class _Table:
    """The state of one placement: streams and boxes by number, in the order of their names."""

    def __init__(self, demands: Sequence[Demand], boxes: Sequence[Box]) -> None:
        self._demands, self._boxes = demands, boxes
        self._box: list[int | None] = [None] * len(demands)
        self._load = [0.0] * len(boxes)
        self._members: list[set[int]] = [set() for _ in boxes]
        self._unplaced: set[int] = set()
        self._kept: list[int | None] = [None] * len(demands)
        """The box of each stream before, if it could stay there."""
        self._parted: set[int] = set()
        machines = {name: i for i, name in enumerate(sorted({b.machine for b in boxes}))}
        self._machine = [machines[b.machine] for b in boxes]
        self._on_machine: Counter[tuple[str, int]] = Counter()
        self._on_box: Counter[tuple[str, int]] = Counter()
        """Streams by group and machine, and by group and box."""
        self._rank = self._ranking()
        """Of each stream, the boxes that reach it, best first."""
        self._place_of = [{box: place for place, box in enumerate(row)} for row in self._rank]
        total, capacity = sum(d.load for d in demands), sum(b.capacity for b in boxes)
        share = total / capacity if capacity else 0.0
        self._fair = [min(b.capacity, share * b.capacity) for b in boxes]

    def _ranking(self) -> list[list[int]]:
        if not self._boxes or not self._demands:
            return [[] for _ in self._demands]
        streams = np.array([_hash(d.name) for d in self._demands], np.uint64)
        boxes = np.array([_hash("box " + b.name) for b in self._boxes], np.uint64)
        mixed = _mixed(streams[:, None] ^ boxes[None, :])
        # 0 < share < 1, from the upper 53 bits.
        share = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
        score = np.array([b.capacity for b in self._boxes]) / -np.log(share)
        order = np.argsort(-score, axis=1, kind="stable").tolist()
        return [
            [box for box in row if self._boxes[box].reaches(demand)]
            for demand, row in zip(self._demands, order, strict=True)
        ]

    def keep(self, current: Mapping[str, str]) -> None:
        """Leaves streams where they are, except what their box has no room for."""
        numbers = {b.name: i for i, b in enumerate(self._boxes)}
        for stream, demand in enumerate(self._demands):
            box = numbers.get(current.get(demand.name, ""))
            if box is not None and box in self._place_of[stream]:
                self._put(stream, box)
        for box in range(len(self._boxes)):
            leaving = sorted(self._members[box], key=lambda s: (self._demands[s].priority, -self._place_of[s][box], s))
            for stream in leaving:
                if self._fits(box, 0.0, 0):
                    break
                self._take(stream)
        self._kept = list(self._box)

    def fill(self) -> None:
        """Gives a box to each stream without one: high priorities first, then those with the smallest choice."""
        self._unplaced.clear()
        waiting = [(self._urgency(s), s) for s, box in enumerate(self._box) if box is None]
        heapq.heapify(waiting)
        while waiting:
            _, stream = heapq.heappop(waiting)
            if self._settle(stream) or self._make_way(stream):
                continue
            found = self._displaced(stream)
            if found is None:
                self._unplaced.add(stream)
                continue
            box, out = found
            for other in out:
                self._take(other)
                heapq.heappush(waiting, (self._urgency(other), other))
            self._put(stream, box)

    def _urgency(self, stream: int) -> tuple[float, ...]:
        """The lower, the earlier it is given a box."""
        demand = self._demands[stream]
        return -demand.priority, len(self._rank[stream]), -demand.load

    def _settle(self, stream: int) -> bool:
        load = self._demands[stream].load
        for tier in self._tiers(stream):
            for bound in (self._bound, self._capacity):
                for box in tier:
                    if self._fits(box, load, 1, bound(box)):
                        self._put(stream, box)
                        return True
        return False

    def _crowd(self, group: str, box: int) -> tuple[int, int]:
        """How many streams of the group the box's machine has, and the box itself."""
        return self._on_machine[group, self._machine[box]], self._on_box[group, box]

    def _tiers(self, stream: int) -> Iterator[list[int]]:
        """The boxes that reach it by its ranking, those with the fewest streams of its group first."""
        group = self._demands[stream].group
        if not group:
            yield self._rank[stream]
            return
        crowds = {box: self._crowd(group, box) for box in self._rank[stream]}
        for _, tier in groupby(sorted(crowds, key=crowds.__getitem__), crowds.__getitem__):
            yield list(tier)

    def _choices(self, stream: int) -> list[int]:
        return [box for tier in self._tiers(stream) for box in tier]

    def _make_way(self, stream: int) -> bool:
        """Moves one stream with another choice out of a box that `stream` needs."""
        load = self._demands[stream].load
        for box in self._choices(stream):
            for other in sorted(self._members[box], key=lambda s: (self._demands[s].priority, s)):
                freed = self._demands[other].load
                if not self._fits(box, load - freed, 0):
                    continue
                for target in self._choices(other):
                    if target != box and self._fits(target, freed, 1):
                        self._take(other)
                        self._put(other, target)
                        self._put(stream, box)
                        return True
        return False

    def _displaced(self, stream: int) -> tuple[int, list[int]] | None:
        """A box, and the streams of lower priority that leave it for `stream`: the least important there are."""
        demand = self._demands[stream]
        best: tuple[tuple[float, float], int, list[int]] | None = None
        for box in self._rank[stream]:
            out: list[int] = []
            freed = 0.0
            lower = [s for s in self._members[box] if self._demands[s].priority < demand.priority]
            for other in sorted(lower, key=lambda s: (self._demands[s].priority, -self._demands[s].load, s)):
                if self._fits(box, demand.load - freed, 1 - len(out)):
                    break
                out.append(other)
                freed += self._demands[other].load
            if out and self._fits(box, demand.load - freed, 1 - len(out)):
                key = (self._demands[out[-1]].priority, freed)
                if best is None or key < best[0]:
                    best = key, box, out
        return None if best is None else (best[1], best[2])

    def _gain(self, stream: int, own: int, box: int) -> tuple[int, int]:
        """How much farther apart its group is, on machines and on boxes, if it moves; above (0, 0): it is."""
        group = self._demands[stream].group
        if not group:
            return 0, 0
        (machine, here), (there, occupied) = self._crowd(group, own), self._crowd(group, box)
        # The sums of squares fall by twice as much, so moves that gain come to an end.
        return (machine - there - 1 if self._machine[own] != self._machine[box] else 0), here - occupied - 1

    def part(self, most: int) -> int:
        """Moves streams away from others of their group, to boxes with room; returns what is left of `most`."""
        groups: dict[str, list[int]] = defaultdict(list)
        for stream, demand in enumerate(self._demands):
            if demand.group:
                groups[demand.group].append(stream)
        for _, streams in sorted(groups.items()):
            # Those that move in any case go first: they cost nothing.
            order = sorted(streams, key=lambda s: (self._kept[s] is not None, s))
            again = True
            while again:
                again = False
                for stream in order:
                    own = self._box[stream]
                    stays = own is not None and own == self._kept[stream]
                    if own is None or (stays and most <= 0) or (box := self._apart(stream, own)) is None:
                        continue
                    self._take(stream)
                    self._put(stream, box)
                    most -= stays
                    self._parted.add(stream)
                    again = True
        return most

    def _apart(self, stream: int, own: int) -> int | None:
        """A box with room on which it is farther apart from its group."""
        load = self._demands[stream].load
        for tier in self._tiers(stream):
            better = [box for box in tier if self._gain(stream, own, box) > (0, 0)]
            for bound in (self._bound, self._capacity):
                for box in better:
                    if self._fits(box, load, 1, bound(box)):
                        return box
        return None

    def refill(self) -> None:
        """Tries again what waits: there may be room that others have left."""
        if self._unplaced:
            self.fill()

    def join(self, joined: Collection[str], most: int) -> None:
        """Moves streams that rank a joined box above their own to it, up to its fair share."""
        hungry = {i for i, b in enumerate(self._boxes) if b.name in joined and self._load[i] < self._fair[i]}
        wishes = [
            (place, stream, box)
            for stream, own in enumerate(self._box)
            if own is not None and own not in hungry
            for place, box in enumerate(self._rank[stream][: self._place_of[stream][own]])
            if box in hungry
        ]
        for _, stream, box in sorted(wishes):
            own, load = self._box[stream], self._demands[stream].load
            assert own is not None
            if most <= 0:
                return
            # A box that has little itself gives nothing away.
            left = (self._load[own] - load) / self._boxes[own].capacity
            if own in hungry or left < self._load[box] / self._boxes[box].capacity:
                continue
            if self._gain(stream, own, box) >= (0, 0) and self._fits(box, load, 1, self._fair[box]):
                self._take(stream)
                self._put(stream, box)
                most -= 1

    def placement(self, current: Mapping[str, str]) -> Placement:
        """What has come out."""
        box_of = {
            demand.name: self._boxes[box].name
            for demand, box in zip(self._demands, self._box, strict=True)
            if box is not None
        }
        unplaced = sorted(self._unplaced, key=lambda s: (-self._demands[s].priority, s))
        moved = (d.name for d in self._demands if d.name in current and current[d.name] != box_of.get(d.name))
        parted = frozenset(
            self._demands[s].name for s in self._parted if self._kept[s] is not None and self._box[s] is not None
        )
        return Placement(box_of, tuple(self._demands[s].name for s in unplaced), tuple(moved), parted)

    def _bound(self, box: int) -> float:
        return min(self._boxes[box].capacity, self._fair[box] * (1 + SLACK))

    def _capacity(self, box: int) -> float:
        return self._boxes[box].capacity

    def _fits(self, box: int, load: float, streams: int, bound: float | None = None) -> bool:
        """Whether the box can take so much more."""
        limit = self._boxes[box].capacity if bound is None else bound
        return (
            self._load[box] + load <= limit * (1 + _ROUNDING)
            and len(self._members[box]) + streams <= self._boxes[box].streams
        )

    def _put(self, stream: int, box: int) -> None:
        self._box[stream] = box
        self._members[box].add(stream)
        self._load[box] += self._demands[stream].load
        self._count(stream, box, 1)

    def _take(self, stream: int) -> None:
        box = self._box[stream]
        assert box is not None
        self._box[stream] = None
        self._members[box].discard(stream)
        self._load[box] = sum(self._demands[s].load for s in sorted(self._members[box]))
        self._count(stream, box, -1)

    def _count(self, stream: int, box: int, more: int) -> None:
        if group := self._demands[stream].group:
            self._on_machine[group, self._machine[box]] += more
            self._on_box[group, box] += more
