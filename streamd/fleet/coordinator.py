"""The coordinator of a fleet: who runs what, when a box is lost, and how a stream moves.

It decides from reports and explicit times alone, without threads, clocks or a network, and holds nothing that it could
not learn again from the boxes: after a restart it listens for a lease before it places anything.

A stream belongs to one box at a time. Every assignment has a generation above all earlier ones, by which subscribers
tell the messages of a box that has lost the stream without knowing it (a fencing token: Kleppmann, "How to do
distributed locking", 2016). A box is lost when it has not reported for `LEASE_S` (Gray and Cheriton, "Leases", 1989);
what it runs, it goes on running, but nobody accepts it any more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from streamd.errors import ConfigError
from streamd.fleet import FleetSettings
from streamd.fleet.assigned import Hold, Move, Placed
from streamd.fleet.margin import Margin
from streamd.fleet.members import DRAINED, Member
from streamd.fleet.placement import Demand
from streamd.fleet.planner import Planner
from streamd.fleet.records import (
    LEASE_S,
    Assignment,
    BoxReport,
    DaemonReport,
    FleetStatus,
    Handover,
    Happening,
    Order,
)
from streamd.fleet.view import Samples, metrics_of, status_of, targets_of

REBUILD_S = LEASE_S + 2.0
"""A new coordinator places nothing for this long: boxes that are alive have reported by then."""
PAUSE_S = 1.0
"""A longer time between two ticks is a pause of the coordinator, during which it could hear nobody."""
WARM_S = 15.0
"""A standby that has no pictures by then is not waited for: the stream is connected only after it has been released."""
PART_S = 30.0
"""A box that reports, but does not release a stream for this long, has lost it."""
REFUSED_S = 60.0
"""A box is not given a stream again for this long after it has refused it."""
REPLAN_S = 5.0
"""Placement is looked at this often even if nothing has happened."""
_TRANSIENT = frozenset({"unknown_stream"})
"""Refusals that end by themselves, once the box has the new configuration."""


class Coordinator:
    """See the module. All times are monotonic seconds of one process.

    Args:
        fleet: the section `fleet`.
        demands: its streams.
        now: the time.
        start_generation: Unix milliseconds, so that no earlier coordinator can have issued a higher generation.
        revision: of the configuration.
        single_session: streams whose cameras serve one session at a time.
    """

    def __init__(
        self,
        fleet: FleetSettings,
        demands: Sequence[Demand],
        *,
        now: float,
        start_generation: int,
        revision: str = "",
        single_session: Collection[str] = (),
    ) -> None:
        self._planner = Planner(fleet, demands, start_generation, single_session, now)
        self._revision, self._number = revision, start_generation
        self._rebuilt_at = now + REBUILD_S
        self._ticked = now
        self._lost_boxes = 0
        self._margin = Margin()

    @property
    def _members(self) -> dict[str, Member]:
        return self._planner.members

    @property
    def _streams(self) -> dict[str, Placed]:
        return self._planner.streams

    @property
    def _generation(self) -> int:
        return self._planner.generation

    # ---------------------------------------------------------------------------------------------------- reports

    def report(self, now: float, report: BoxReport) -> Order:
        """Takes a box's report, which renews its lease.

        Returns:
            Everything that the box is to run.
        """
        member = self._members.get(report.box)
        if member is None:
            member = self._members[report.box] = Member(report, now, self._planner.fleet)
            self._planner.happen("box_joined", member.name, detail=report.node)
        daemon, before = report.daemon, member.daemon
        # The last report of a daemon that does not answer is kept: whether it is the same one is seen from it later.
        member.report = report if daemon is not None else msgspec.structs.replace(report, daemon=before)
        if report.problem not in ("", member.told, "starting", DRAINED):
            self._planner.happen("box_problem", member.name, detail=report.problem)
            member.told = report.problem
        member.heard = now
        # A fleet that starts again has only this if its clock was set back meanwhile.
        self._planner.generation = max(self._generation, report.highest)
        member.state_capacity(self._planner.fleet)
        if daemon is not None:
            member.alive_at = now
            if before is not None and before.boot_id != daemon.boot_id:
                self._lose_streams(now, member, "daemon_died", stays=True)
                member.meter.restart()
                member.owes.clear()  # nobody knows any more
            self._alive(now, member, daemon)
        elif member.draining and report.problem == DRAINED:
            member.up = False
        return self._order(member)

    def _alive(self, now: float, member: Member, daemon: DaemonReport) -> None:
        if not member.up:
            # One that a new coordinator finds with streams has not just come, unless it is still to have its share.
            has = any(not told.standby for told in daemon.streams.values())
            settled = has and self.rebuilding(now) and not member.report.joining
            member.up, member.hungry, member.told = True, not settled, ""
            self._planner.dirty = True
            self._planner.happen("box_up", member.name, detail=daemon.boot_id)
        self._planner.generation = max(self._generation, daemon.highest)
        self._number = max(self._number, daemon.order)
        member.meter.take(now, daemon.published, daemon.late)
        for name, told in daemon.streams.items():
            stream = self._streams.get(name)
            self._planner.generation = max(self._generation, told.generation)
            if stream is None:
                continue
            if told.standby:
                move = stream.move
                if told.ready and move is not None and move.to == member.name and move.generation == told.generation:
                    move.parting = True
                continue
            hold = stream.hold
            if stream.claimed(told.generation):
                stream.book.returned(told.generation)
                stream.hold = hold = Hold(member.name, told.generation)
                stream.last = told.generation
                stream.move, stream.reason, self._planner.dirty = None, "", True
            if hold is not None and (hold.box, hold.generation) == (member.name, told.generation):
                hold.handover = None  # it has arrived
                stream.state, stream.why = told.state, told.reason
                stream.book.take(told)
        for name, parting in daemon.partings.items():
            if (stream := self._streams.get(name)) is not None:
                self._parted(now, stream, member, parting.generation, parting.handover)
        for name, generation in list(member.owes):
            known = daemon.streams.get(name), daemon.partings.get(name)
            if all(each is None or each.generation != generation for each in known):
                # It has told, or its order never arrived and it never ran the stream.
                member.owes.discard((name, generation))
                if (stream := self._streams.get(name)) is not None:
                    stream.book.outdated(generation, 0)
        for name, code in daemon.refused.items():
            stream = self._streams.get(name)
            if stream is not None and code not in _TRANSIENT:
                self._refused(now, stream, member, code)

    def _parted(self, now: float, stream: Placed, member: Member, generation: int, handover: Handover) -> None:
        hold = stream.hold
        if hold is None or (hold.box, hold.generation) != (member.name, generation):
            if hold is None and generation > stream.last:  # released before this coordinator began
                stream.last, stream.book.handover, self._planner.dirty = generation, handover, True
            stream.book.outdated(generation, handover.received)
            return
        stream.book.handover = handover
        self._released(now, stream)

    def _released(self, now: float, stream: Placed) -> None:
        """Nobody has the stream any more: it goes where it was to go."""
        move, stream.hold, stream.move = stream.move, None, None
        self._planner.dirty = True
        target = self._members.get(move.to) if move is not None and move.to is not None else None
        if move is not None and target is not None and target.takes:
            self._planner.moves[move.reason] += 1
            self._planner.assign(stream, target.name, move.generation)
        else:
            stream.reason = move.reason if move is not None else "released"

    def _refused(self, now: float, stream: Placed, member: Member, code: str) -> None:
        stream.refused[member.name] = now + REFUSED_S
        if stream.move is not None and stream.move.to == member.name:
            stream.move, self._planner.dirty = None, True
        elif stream.hold is not None and stream.hold.box == member.name:
            stream.hold, stream.move, stream.reason, self._planner.dirty = None, None, "refused", True
        else:
            return
        self._planner.happen("stream_refused", member.name, stream.demand.name, code)

    def _order(self, member: Member) -> Order:
        streams: dict[str, Assignment] = {}
        told = member.daemon.streams if member.daemon is not None else {}
        partings = member.daemon.partings if member.daemon is not None else {}
        held = False
        for name, stream in self._streams.items():
            hold, move = stream.hold, stream.move
            mine = hold is not None and hold.box == member.name
            held = held or mine
            if hold is not None and mine and not (move is not None and move.parting):
                streams[name] = Assignment(hold.generation, handover=hold.handover)
                continue
            if mine and move is not None and not move.left_out:
                move.left_out = self._number + 1
            if move is not None and move.to == member.name and (not move.parting or name in told):
                streams[name] = Assignment(move.generation, standby=True)
        settled = {name: p.generation for name, p in partings.items()}
        self._number += 1
        # Not before it has told how far every stream came, outdated ones as well: its daemon ends at once.
        busy = held or streams or (member.up and (told or partings))
        drained = member.draining and not busy
        return Order(
            self._number, member.name, self._generation, streams, settled, self._revision, drained, member.hungry
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------- time

    def tick(self, now: float) -> list[Happening]:
        """Ends leases and moves streams. To be called a few times a second.

        Returns:
            What has happened since the last call, for the log.
        """
        pause = now - self._ticked
        self._ticked = now
        if (unheard := pause - PAUSE_S) > 0:
            # The reports of this time may still be waiting to be read.
            for member in self._members.values():
                member.alive_at = min(member.alive_at + unheard, now)
            if now - pause < self._rebuilt_at:
                self._rebuilt_at += unheard
        for member in self._members.values():
            if member.up and now - member.alive_at > LEASE_S:
                member.up = member.hungry = False
                self._lost_boxes += 1
                self._lose_streams(now, member, "box_lost")
        for stream in self._streams.values():
            self._look_at(now, stream)
        if not self.rebuilding(now) and (self._planner.dirty or now - self._planner.planned >= REPLAN_S):
            self._planner.plan(now)
        if not self.rebuilding(now):
            boxes = [m.box() for m in self._planner.boxes()]
            self._margin.step(boxes, [s.demand for s in self._streams.values()], self._planner.where())
        happenings, self._planner.happenings = self._planner.happenings, []
        return happenings

    def rebuilding(self, now: float) -> bool:
        """Whether it still waits for the first reports."""
        return now < self._rebuilt_at

    def _lose_streams(self, now: float, member: Member, reason: str, *, stays: bool = False) -> None:
        """The box or its daemon is lost, with everything that it ran.

        Args:
            stays: it is back, and the streams stay with it.
        """
        mine = [s for s in self._streams.values() if s.hold is not None and s.hold.box == member.name]
        for stream in mine:
            assert stream.hold is not None
            stream.book.lose(stream.hold.generation, orphans=not stays)
            if not stays:
                member.owes.add((stream.demand.name, stream.hold.generation))
            move, stream.hold, stream.move, stream.reason = stream.move, None, None, reason
            if stays and not member.draining:
                self._planner.assign(stream, member.name)
            elif move is not None and move.to is not None and self._members[move.to].takes:
                # The successor is connected already.
                self._planner.moves[reason] += 1
                self._planner.assign(stream, move.to, move.generation)
        for stream in self._streams.values():
            if stream.move is not None and stream.move.to == member.name:
                self._abandon(now, stream)
        self._planner.happen(reason, member.name, detail=f"{len(mine)} streams")
        self._planner.dirty = True

    def _abandon(self, now: float, stream: Placed) -> None:
        """The box that a stream was to go to is gone: it stays where it is, unless it has been told to leave."""
        assert stream.move is not None
        if stream.move.parting:
            stream.move.to, stream.move.reason = None, "box_lost"
        else:
            stream.move = None
        self._planner.dirty = True

    def _look_at(self, now: float, stream: Placed) -> None:
        move = stream.move
        if move is None:
            return
        if not move.parting and now - move.since > WARM_S:
            move.parting, move.since = True, now
            self._planner.happen("standby_failed", move.to or "", stream.demand.name, move.reason)
        elif move.parting and self._never_ran(now, stream, move):
            assert stream.hold is not None
            stream.book.lose(stream.hold.generation)
            # If it did run it after all, it tells so.
            self._members[stream.hold.box].owes.add((stream.demand.name, stream.hold.generation))
            self._released(now, stream)
        elif move.parting and now - move.since > WARM_S + PART_S:
            assert stream.hold is not None
            self._planner.happen("parting_failed", stream.hold.box, stream.demand.name, move.reason)
            stream.book.lose(stream.hold.generation)
            self._released(now, stream)

    def _never_ran(self, now: float, stream: Placed, move: Move) -> bool:
        """Whether the old box has nothing to release: the order that gave it the stream did not reach it in time."""
        member = self._members.get(stream.hold.box) if stream.hold is not None else None
        daemon = member.daemon if member is not None and member.up else None
        if daemon is None or not 0 < move.left_out <= daemon.order or now - move.since <= LEASE_S:
            return False
        return stream.demand.name not in daemon.streams and stream.demand.name not in daemon.partings

    # ------------------------------------------------------------------------------------------------- operators

    def apply(
        self,
        now: float,
        fleet: FleetSettings,
        demands: Sequence[Demand],
        revision: str,
        single_session: Collection[str] = (),
    ) -> None:
        """The configuration has changed. Streams that are not in it any more end."""
        self._planner.fleet, self._planner.single, self._revision = fleet, frozenset(single_session), revision
        known = self._streams
        self._planner.streams = {d.name: known.get(d.name) or Placed(d) for d in demands}
        for demand in demands:
            self._streams[demand.name].demand = demand
        for member in self._members.values():
            member.state_capacity(fleet)
        self._planner.dirty = True

    def drain(self, now: float, box: str) -> None:
        """Moves everything away from a box, which is given nothing any more.

        Raises:
            ConfigError: there is no such box.
        """
        self._member(box).draining, self._planner.dirty = True, True
        for stream in self._streams.values():
            if stream.move is not None and stream.move.to == box:
                self._abandon(now, stream)

    def undrain(self, now: float, box: str) -> None:
        """The box takes streams again.

        Raises:
            ConfigError: there is no such box.
        """
        member = self._member(box)
        member.draining, member.hungry, self._planner.dirty = False, True, True

    def forget(self, now: float, box: str) -> None:
        """A lost box will not come back.

        Raises:
            ConfigError: there is no such box, or it is not lost.
        """
        member = self._member(box)
        if member.up:
            raise ConfigError(f"fleet: box {box} is {member.state(now)}; stop it before it is forgotten")
        del self._members[box]

    def _member(self, box: str) -> Member:
        member = self._members.get(box)
        if member is None:
            known = ", ".join(sorted(self._members)) or "none"
            raise ConfigError(f"fleet: there is no box {box}; there are: {known}")
        return member

    # ------------------------------------------------------------------------------------------------------- views

    def status(self, now: float) -> FleetStatus:
        """The whole fleet, for display."""
        self._planner.measure()
        return status_of(
            now, self._members, self._streams, self._planner.moves, self._margin.without, self.rebuilding(now),
            self._planner.stuck,
        )  # fmt: skip

    def metrics(self, now: float) -> Samples:
        """Samples by name of metric; `view.METRICS` has their types and help texts."""
        return metrics_of(self.status(now), self._lost_boxes)

    def targets(self) -> list[dict[str, Any]]:
        """The body of Prometheus' HTTP service discovery."""
        return targets_of(self._members)
