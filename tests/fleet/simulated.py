"""Boxes that are simulated, with the truth about every frame, and a network that can be cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from streamd.fleet import BoxSettings, FleetSettings
from streamd.fleet.coordinator import REBUILD_S, Coordinator
from streamd.fleet.placement import Demand
from streamd.fleet.records import (
    BoxReport,
    DaemonReport,
    FleetStream,
    Handover,
    Order,
    Parting,
    StreamReport,
    decode,
    encode,
)

STEP_S = 0.25
FRAMES = 3
"""Frames that a stream has in a step."""


def fleet(fps: float = 1000.0, *, streams: int = 1024, moves: int = 1000) -> FleetSettings:
    return FleetSettings(boxes=0, box=BoxSettings(fps=fps, streams=streams), moves_per_minute=moves)


@dataclass
class Running:
    generation: int
    standby: bool
    received: int = 0
    published: int = 0
    dropped: int = 0
    past: Handover | None = None


@dataclass
class Subscriber:
    """Accepts the messages of the highest generation that it has seen of each stream."""

    accepted: dict[str, int] = field(default_factory=dict)
    seen: set[tuple[str, int, int]] = field(default_factory=set)

    def message(self, stream: str, generation: int, seq: int) -> None:
        if generation < self.accepted.get(stream, 0):
            return
        self.accepted[stream] = generation
        key = (stream, generation, seq)
        assert key not in self.seen, f"{key} twice"
        self.seen.add(key)


class SimBox:
    """A box actor and its daemon."""

    def __init__(self, world: World, name: str, labels: Iterable[str] = ()) -> None:
        self.world, self.name, self.labels = world, name, list(labels)
        self.alive = True
        self.cut = False
        """Its reports do not arrive, nor do the answers."""
        self.boots = self.highest = 0
        self.boot()

    def boot(self) -> None:
        """The daemon starts, or starts again."""
        self.boots += 1
        self.streams: dict[str, Running] = {}
        self.partings: dict[str, Parting] = {}
        self.order = Order(0, self.name, 0, {})
        self.published = self.late = 0

    def forget(self) -> None:
        """The daemon ends with its fleet, and another one starts, which is told of the highest generation."""
        self.highest = self.order.highest
        self.boot()

    def report(self) -> BoxReport:
        told = {
            name: StreamReport(
                r.generation, "LIVE", epoch=0, received=r.received, published=r.published,
                dropped={"ring_full": r.dropped, **self._past_drops(r)}, ready=r.standby, standby=r.standby,
            )
            for name, r in self.streams.items()
        }  # fmt: skip
        daemon = DaemonReport(
            1, f"{self.name}-{self.boots}", 1, self.order.number, self.order.highest, streams=told,
            partings=self.partings, published=self.published, late=self.late, metrics_port=1,
        )  # fmt: skip
        report = BoxReport(
            self.name, "n-" + self.name, self.labels, daemon, metrics="h:1", highest=self.highest,
            joining=self.order.joining,
        )  # fmt: skip
        return decode(encode(report), BoxReport)

    @staticmethod
    def _past_drops(running: Running) -> dict[str, int]:
        return {k: v for k, v in running.past.dropped.items() if k != "ring_full"} if running.past is not None else {}

    def obey(self, order: Order) -> None:
        order = decode(encode(order), Order)
        if order.number <= self.order.number:
            return
        self.order = order
        if order.drained:  # its daemon ends at once, and tells nothing any more
            assert not self.streams
            assert not self.partings
        for name in set(self.streams) - set(order.streams):
            self._part(name)
        for name, wanted in order.streams.items():
            mine = self.streams.get(name)
            if mine is not None and mine.generation != wanted.generation:
                self._part(name)
                mine = None
            if mine is None:
                mine = self.streams[name] = Running(wanted.generation, True)
            if mine.standby and not wanted.standby:
                mine.standby, mine.past = False, wanted.handover
                if (past := wanted.handover) is not None:
                    mine.received, mine.published = past.received, past.published
                    mine.dropped = past.dropped.get("ring_full", 0)
                self.world.starts.append((name, wanted.generation, self.name))
        self.partings = {n: p for n, p in self.partings.items() if order.settled.get(n) != p.generation}

    def _part(self, name: str) -> None:
        running = self.streams.pop(name)
        if running.standby:
            return
        lost = sum(self._past_drops(running).values())
        self._publish(name, running, running.received - running.published - running.dropped - lost)
        dropped = {"ring_full": running.dropped, **self._past_drops(running)}
        self.partings[name] = Parting(
            running.generation, Handover(0, running.received, running.published, dropped, 0)
        )  # fmt: skip

    def frames(self) -> None:
        """Every stream captures; what was captured before is published, except one frame in seven."""
        for name, running in self.streams.items():
            if running.standby:
                continue
            lost = sum(self._past_drops(running).values())
            waiting = running.received - running.published - running.dropped - lost
            self._publish(name, running, waiting)
            running.received += FRAMES
            self.world.captured[name] = self.world.captured.get(name, 0) + FRAMES

    def _publish(self, name: str, running: Running, count: int) -> None:
        for i in range(count):
            seq = running.received - count + i
            if seq % 7 == 6:
                running.dropped += 1
            else:
                running.published += 1
                self.published += 1
                self.world.subscriber.message(name, running.generation, seq)


class World:
    """A coordinator, its boxes, and time."""

    def __init__(self, settings: FleetSettings, demands: list[Demand]) -> None:
        self.now, self.started = 1000.0, 1_700_000_000_000
        self.settings, self.demands = settings, demands
        self.boxes: dict[str, SimBox] = {}
        self.subscriber = Subscriber()
        self.captured: dict[str, int] = {}
        self.starts: list[tuple[str, int, str]] = []
        """(stream, generation, box) of everything that ever began to run."""
        self.coordinator = self.new_coordinator()

    def new_coordinator(self) -> Coordinator:
        self.started += 60_000
        self.coordinator = Coordinator(
            self.settings, self.demands, now=self.now, start_generation=self.started
        )  # fmt: skip
        return self.coordinator

    def add(self, *names: str, labels: Iterable[str] = ()) -> None:
        for name in names:
            self.boxes[name] = SimBox(self, name, labels)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.now += STEP_S
            self.coordinator.tick(self.now)
            for box in self.boxes.values():
                if not box.alive:
                    continue
                box.frames()
                if not box.cut:
                    box.obey(self.coordinator.report(self.now, box.report()))
            self.check()

    def seconds(self, seconds: float) -> None:
        self.step(int(seconds / STEP_S))

    def begin(self) -> None:
        """Until everything is placed and runs."""
        self.seconds(REBUILD_S + 2)

    def check(self) -> None:
        """What holds at any time."""
        running: dict[tuple[str, int], str] = {}
        for box in self.boxes.values():
            for name, r in box.streams.items():
                if not r.standby and box.alive:
                    other = running.setdefault((name, r.generation), box.name)
                    assert other == box.name, f"{name} runs with generation {r.generation} on {other} and {box.name}"
        for stream in self.coordinator.status(self.now).streams:
            a = stream.account
            assert a.received == a.published + a.dropped + a.lost + a.superseded + a.in_flight
            assert min(a.published, a.dropped, a.lost, a.superseded, a.in_flight) >= 0

    def stream(self, name: str) -> FleetStream:
        return next(s for s in self.coordinator.status(self.now).streams if s.stream == name)

    def where(self) -> dict[str, list[str]]:
        """The boxes that really run each stream."""
        found: dict[str, list[str]] = {}
        for box in self.boxes.values():
            for name, r in box.streams.items():
                if box.alive and not r.standby:
                    found.setdefault(name, []).append(box.name)
        return found
