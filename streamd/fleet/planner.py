"""Where every stream of a running fleet should be, and the moves that lead there."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from streamd.fleet import FleetSettings
from streamd.fleet.assigned import Hold, Move, Placed
from streamd.fleet.members import Member, own_label
from streamd.fleet.placement import Demand, place
from streamd.fleet.records import Happening

VOLUNTARY = frozenset({"joined", "drain", "overload", "spread"})
"""Reasons of the moves that `fleet.moves_per_minute` limits: the stream could stay."""


class Planner:
    """The boxes and streams of a fleet, and what is to change. All times are monotonic seconds.

    Args:
        fleet: the section `fleet`.
        demands: its streams.
        generation: see `Coordinator`.
        single: streams whose cameras serve one session at a time.
        now: the time.
    """

    def __init__(
        self, fleet: FleetSettings, demands: Sequence[Demand], generation: int, single: Collection[str], now: float
    ) -> None:
        self.fleet, self.generation, self.single = fleet, generation, frozenset(single)
        self.members: dict[str, Member] = {}
        self.streams = {d.name: Placed(d, reason="rebuilding") for d in demands}
        self.moves: Counter[str] = Counter()
        """Streams given to another box, by reason."""
        self.stuck: frozenset[str] = frozenset()
        """Streams that are to leave their box, and that no other one has room for."""
        self.happenings: list[Happening] = []
        self.dirty, self.planned = True, now
        """Whether something has happened since `plan`, and when that was."""
        self._voluntary: deque[float] = deque()

    def boxes(self) -> list[Member]:
        """Those that can be given streams."""
        return [m for m in self.members.values() if m.takes]

    def where(self) -> dict[str, str]:
        """The box of each stream once all moves are done."""
        return {name: box for name, s in self.streams.items() if (box := s.goes_to) is not None}

    def measure(self) -> None:
        """Sums up the load of each box."""
        for member in self.members.values():
            member.load = 0.0
        for name, box in self.where().items():
            if box in self.members:
                self.members[box].load += self.streams[name].demand.load
        for stream in self.streams.values():  # what leaves a box is still there
            if stream.move is not None and stream.hold is not None and stream.hold.box != stream.move.to:
                self.members[stream.hold.box].load += stream.demand.load

    def _demand(self, now: float, stream: Placed, boxes: Sequence[Member]) -> Demand:
        """Without the boxes that have refused the stream."""
        stream.refused = {box: until for box, until in stream.refused.items() if until > now}
        if not stream.refused:
            return stream.demand
        left = frozenset(
            own_label(m.name) for m in boxes if m.name not in stream.refused and m.box().reaches(stream.demand)
        )
        return replace(stream.demand, reach=left or frozenset({own_label("")}))

    def _budget(self, now: float) -> int:
        while self._voluntary and now - self._voluntary[0] >= 60.0:
            self._voluntary.popleft()
        return max(0, self.fleet.moves_per_minute - len(self._voluntary))

    def plan(self, now: float) -> None:
        """Gives a box to each stream that has none, and begins moves."""
        self.dirty, self.planned = False, now
        self.measure()
        boxes, where = self.boxes(), self.where()
        takes = {m.name for m in boxes}
        demands = {name: self._demand(now, s, boxes) for name, s in self.streams.items()}
        leaving = {n for n, b in where.items() if b not in takes}
        known = {n: b for n, b in where.items() if n not in leaving}
        budget = self._budget(now)
        hungry = {m.name for m in boxes if m.hungry}
        # Even a box that is above its measured capacity keeps what it has ...
        as_they_are = [m.box() for m in boxes]
        placed = place(demands.values(), as_they_are, known, joined=hungry, most=max(0, budget - len(leaving)))
        wanted, parted = placed.box_of, placed.parted
        self.stuck = frozenset(leaving - wanted.keys())
        able = sorted((n for n in leaving if n in wanted), key=lambda n: (-demands[n].priority, n))
        if len(able) > budget:
            # No box has to make room yet for those that wait for their turn.
            leaving -= set(able[:budget])
            rest = [d for n, d in demands.items() if n not in leaving]
            wanted, parted = place(rest, as_they_are, known, most=0).box_of, frozenset()
            able = able[:budget]
        self._carry_out(now, wanted, where, leaving - set(able), hungry, parted)
        if self._budget(now):
            moving = {s.move.to for s in self.streams.values() if s.move is not None and s.move.reason == "joined"}
            for member in boxes:
                member.hungry = member.hungry and member.name in moving
            # ... until another one has room.
            self._relieve(now, boxes, list(demands.values()))
        self.measure()

    def _relieve(self, now: float, boxes: Sequence[Member], demands: Sequence[Demand]) -> None:
        self.measure()
        full = {m.name for m in boxes if m.load > m.meter.fps * (1 + 1e-9)}
        if not full:
            return
        where = self.where()
        wanted = place(demands, [m.box(strict=True) for m in boxes], where, most=0).box_of
        for name, box in wanted.items():
            own = where.get(name)
            stream = self.streams[name]
            if own in full and box not in full and box != own and stream.move is None and self._budget(now):
                self._begin(now, stream, box, "overload")

    def _carry_out(
        self,
        now: float,
        wanted: Mapping[str, str],
        where: Mapping[str, str],
        staying: Collection[str],
        hungry: Collection[str],
        parted: Collection[str],
    ) -> None:
        takes = {m.name for m in self.boxes()}
        for name, stream in self.streams.items():
            if name in staying:
                continue
            box, own = wanted.get(name), where.get(name)
            if stream.hold is None:
                if box is not None:
                    if stream.last:
                        self.moves[stream.reason or "started"] += 1
                    self.assign(stream, box)
                else:
                    stream.reason = self._why_waiting(stream)
            elif box == own or (stream.move is not None and stream.move.parting):
                continue
            elif box is None:
                self._begin(now, stream, None, "no_room")
            elif own not in takes:
                self._begin(now, stream, box, "drain")
            else:
                why = "spread" if name in parted else "joined" if box in hungry else "make_way"
                self._begin(now, stream, box, why)

    def _why_waiting(self, stream: Placed) -> str:
        able = [m for m in self.members.values() if m.up and m.box().reaches(stream.demand)]
        if not able:
            return "no_reach" if any(m.up for m in self.members.values()) else "no_box"
        return "refused" if all(m.name in stream.refused for m in able) else "no_room"

    def _begin(self, now: float, stream: Placed, box: str | None, reason: str) -> None:
        self.generation += 1
        # A stream without pictures gains nothing from a second connection.
        parting = box is None or stream.demand.name in self.single or stream.state != "LIVE"
        stream.move = Move(box, self.generation, reason, now, parting)
        if reason in VOLUNTARY:
            self._voluntary.append(now)
        self.happen("move", box or "", stream.demand.name, reason)

    def assign(self, stream: Placed, box: str, generation: int | None = None) -> None:
        """Gives a stream that nobody has to a box."""
        if generation is None:
            self.generation += 1
            generation = self.generation
        stream.hold = Hold(box, generation, stream.book.handover)
        stream.last, stream.reason, stream.state = generation, "", ""

    def happen(self, kind: str, box: str = "", stream: str = "", reason: str = "", detail: str = "") -> None:
        """Notes something for the log."""
        self.happenings.append(Happening(kind, box, stream, reason, detail))
