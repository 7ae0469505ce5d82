"""What a coordinator shows: a status for people, metrics, and the boxes as targets of Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from streamd.fleet.assigned import Placed
from streamd.fleet.members import Member
from streamd.fleet.plan import together
from streamd.fleet.records import FleetStatus

Samples = dict[str, list[tuple[dict[str, str], float]]]
BOX_STATES = ("JOINING", "UP", "LATE", "LOST", "DRAINING", "DRAINED")
STREAM_STATES = ("RUNNING", "STARTING", "DOWN", "MOVING", "WAITING", "ENDED", "FAILED")
METRICS: Mapping[str, tuple[str, str]] = {
    "streamd_fleet_boxes": ("gauge", "Boxes of the fleet, by state."),
    "streamd_fleet_streams": ("gauge", "Streams of the fleet, by state."),
    "streamd_fleet_streams_waiting": ("gauge", "Streams without a box, by reason."),
    "streamd_fleet_moves_total": ("counter", "Streams given to another box, by reason."),
    "streamd_fleet_boxes_lost_total": ("counter", "Boxes whose lease ended."),
    "streamd_fleet_box_load_fps": ("gauge", "Frames per second that the streams of a box ask for."),
    "streamd_fleet_box_capacity_fps": ("gauge", "Frames per second that a box analyses within the objective."),
    "streamd_fleet_capacity_left_fps": ("gauge", "Frames per second that the boxes have left."),
    "streamd_fleet_spare": ("gauge", "1 if every stream is served, whichever single box is lost (N+1)."),
    "streamd_fleet_unserved_without": ("gauge", "Streams that would have no box if this one were lost."),
    "streamd_fleet_streams_together": ("gauge", "Streams of `spread` that share a machine for want of room elsewhere."),
    "streamd_fleet_frames_total": ("counter", "Frames of all streams over all boxes, by what became of them."),
    "streamd_fleet_inexact_streams": ("gauge", "Streams that a lost box may have captured more of than it reported."),
    "streamd_fleet_rebuilding": ("gauge", "1 while a new coordinator waits for the first reports."),
}
"""By name: the type and the help text."""


def reason_of(member: Member, streams: Collection[Placed], stuck: Collection[str]) -> str:
    """Why a box is as it is; empty where there is nothing to say.

    Args:
        member: the box.
        streams: what it has.
        stuck: see `Planner`; others only wait for their turn.
    """
    if member.draining and any(s.demand.name in stuck for s in streams):
        return "no_room"
    if member.up and member.load > member.meter.fps * (1 + 1e-9):
        return "overload"
    return ""


def status_of(
    now: float,
    members: Mapping[str, Member],
    streams: Mapping[str, Placed],
    moves: Mapping[str, int],
    without: Mapping[str, list[str]],
    rebuilding: bool,
    stuck: Collection[str] = (),
) -> FleetStatus:
    """The whole fleet."""
    mine: dict[str, list[Placed]] = {name: [] for name in members}
    for stream in streams.values():
        if stream.hold is not None and stream.hold.box in mine:
            mine[stream.hold.box].append(stream)
    boxes = [m.shown(now, len(mine[n]), reason_of(m, mine[n], stuck)) for n, m in sorted(members.items())]
    left = sum(max(0.0, m.meter.fps - m.load) for m in members.values() if m.takes)
    shown = [streams[name].shown() for name in sorted(streams)]
    holds = {name: s.hold.box for name, s in streams.items() if s.hold is not None}
    able = [m.box() for m in members.values() if m.takes]
    shared = together([s.demand for s in streams.values()], able, holds)
    return FleetStatus(boxes, shown, dict(moves), left, dict(without), rebuilding, shared)


def metrics_of(status: FleetStatus, boxes_lost: int) -> Samples:
    """Samples by name of metric; see `METRICS`."""
    boxes = Counter(b.state for b in status.boxes)
    streams = Counter(s.state for s in status.streams)
    waiting = Counter(s.reason for s in status.streams if s.state == "WAITING")
    frames: Counter[str] = Counter()
    for stream in status.streams:
        account = stream.account
        for result in ("received", "published", "dropped", "lost", "superseded"):
            frames[result] += getattr(account, result)
    return {
        "streamd_fleet_boxes": [({"state": s}, boxes[s]) for s in BOX_STATES],
        "streamd_fleet_streams": [({"state": s}, streams[s]) for s in STREAM_STATES],
        "streamd_fleet_streams_waiting": [({"reason": r}, n) for r, n in sorted(waiting.items())],
        "streamd_fleet_moves_total": [({"reason": r}, n) for r, n in sorted(status.moves.items())],
        "streamd_fleet_boxes_lost_total": [({}, boxes_lost)],
        "streamd_fleet_box_load_fps": [({"box": b.box}, b.load) for b in status.boxes],
        "streamd_fleet_box_capacity_fps": [({"box": b.box}, b.capacity) for b in status.boxes],
        "streamd_fleet_capacity_left_fps": [({}, status.capacity_left)],
        "streamd_fleet_spare": [({}, float(status.spare))],
        "streamd_fleet_unserved_without": [({"box": b}, len(s)) for b, s in sorted(status.without.items())],
        "streamd_fleet_streams_together": [({}, sum(map(len, status.together.values())))],
        "streamd_fleet_frames_total": [({"result": r}, n) for r, n in frames.items()],
        "streamd_fleet_inexact_streams": [({}, sum(not s.account.exact for s in status.streams))],
        "streamd_fleet_rebuilding": [({}, float(status.rebuilding))],
    }


def targets_of(members: Mapping[str, Member]) -> list[dict[str, Any]]:
    """The boxes for Prometheus' HTTP service discovery. A lost box stays a target, so that `up` tells of it."""
    return [
        {"targets": [m.report.metrics], "labels": {"box": name, "node": m.report.node}}
        for name, m in sorted(members.items())
        if m.report.metrics
    ]
