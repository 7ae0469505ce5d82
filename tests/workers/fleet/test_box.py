"""A box with a real daemon in a process of its own, and a coordinator in this one; nothing of Ray."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamd.fleet.records import (
    REPORT_S,
    Assignment,
    BoxReport,
    DaemonReport,
    FleetStream,
    Handover,
    Order,
    Parting,
    StreamReport,
)
from streamd.runtime.control.client import ControlClient
from streamd.workers.fleet import keeper
from streamd.workers.fleet.box import BoxHost, Configuration, Place, under_way
from streamd.workers.fleet.cluster import stop_here
from streamd.workers.fleet.host import CoordinatorHost
from streamd.workers.fleet.place import BoxFolder
from tests.events.journals import until
from tests.workers.fleet.test_host import Nodes

PATIENCE_S = 90.0
TEXT = """
model: {path: none}
engine: {kind: "null"}
fleet: {box: {fps: 100}, listen: null}
streams:
  - {id: gate, kind: synthetic, fps: 10}
"""
MORE = TEXT + "  - {id: yard, kind: synthetic, fps: 10}\n"


class Fleet:
    """One coordinator and one box, which may both be replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.box_folder = BoxFolder(folder / "n1")
        self.nodes = Nodes()
        self.reachable = True
        self.begin(Configuration(TEXT, str(folder)))
        self.attach()

    def begin(self, configuration: Configuration) -> None:
        """Another coordinator."""
        self.coordinator = CoordinatorHost(configuration, self.nodes)
        self.coordinator.start()

    def attach(self, *, again: bool = False) -> None:
        """Another process of the box's actor."""
        place = Place("n1", "n1", "127.0.0.1", 1, (), dict(os.environ))
        self.box = BoxHost(place, self._report, self._configuration, str(self.folder), again=again)
        self.box.start()

    def _report(self, report: BoxReport) -> Order | None:
        return self.coordinator.report(report) if self.reachable else None

    def _configuration(self) -> Configuration | None:
        return self.coordinator.configuration() if self.reachable else None

    def stream(self, name: str = "gate") -> FleetStream | None:
        """As the coordinator knows it."""
        return next((s for s in self.coordinator.status().streams if s.stream == name), None)

    def state(self) -> str:
        """Of the box."""
        return next((b.state for b in self.coordinator.status().boxes), "")

    def reason(self) -> str:
        """Why the box has no daemon."""
        return next((b.reason for b in self.coordinator.status().boxes), "")

    def boot_id(self) -> str:
        """Of the daemon."""
        return self.coordinator.status().boxes[0].boot_id

    def runs(self, name: str = "gate") -> bool:
        """Whether the stream publishes."""
        stream = self.stream(name)
        return stream is not None and stream.state == "RUNNING" and stream.account.published > 0

    def close(self) -> None:
        """Ends everything."""
        self.box.stop()
        self.coordinator.close()


def test_only_what_changes_is_reported_at_once() -> None:
    def order(number: int, **streams: Assignment) -> Order:
        return Order(number, "n1", number, streams)

    def told(*streams: str, **more: Any) -> DaemonReport:
        return DaemonReport(1, "boot", 1, streams={s: StreamReport(5, "LIVE") for s in streams}, **more)

    runs, past = Assignment(5), Handover(0, 9, 9, {}, 0)
    assert under_way(None, order(1), None)
    assert under_way(order(1), order(2, gate=runs), told())
    assert not under_way(order(1, gate=runs), order(2, gate=runs), told("gate")), "another number alone is no news"
    assert not under_way(order(1, gate=runs), order(2, gate=runs), None)
    assert under_way(order(1), order(2), told("gate")), "it is still leaving"
    assert under_way(order(1), order(2), told(partings={"gate": Parting(5, past)}))
    for arriving in (Assignment(7, standby=True), Assignment(7, handover=past)):
        assert under_way(order(1, gate=arriving), order(2, gate=arriving), told("gate"))


def test_a_box_without_a_folder_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told: list[str] = []

    def report(report: BoxReport) -> Order | None:
        told.append(report.problem)
        return None

    place = Place("n1", "n1", "127.0.0.1", 1, (), dict(os.environ))
    box = BoxHost(place, report, lambda: None, str(tmp_path / "file"))
    box.start()
    until(lambda: told, PATIENCE_S)
    box.stop()
    assert told[0].startswith("fleet.state_dir: ")
    assert "Not a directory" in told[0]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        made = Fleet(Path(folder))
        try:
            yield made
        finally:
            made.close()


@pytest.mark.slow  # three starts of a daemon
def test_a_daemon_outlives_its_box_and_its_coordinator(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, int]] = []
    exchange = ControlClient.exchange

    def record(client: ControlClient, order: Order | None) -> DaemonReport:
        told = exchange(client, order)
        given.extend((told.boot_id, a.generation) for a in (order.streams.values() if order is not None else ()))
        return told

    monkeypatch.setattr(ControlClient, "exchange", record)
    until(fleet.runs, PATIENCE_S)
    first, generation = fleet.boot_id(), fleet.stream().generation  # type: ignore[union-attr]
    # The actor dies, and another one attaches to the same daemon.
    fleet.box.leave()
    fleet.attach()
    until(fleet.runs, PATIENCE_S)
    assert fleet.boot_id() == first
    # The coordinator dies; the next one learns what the box has, and gives it nothing new.
    fleet.coordinator.close()
    fleet.begin(Configuration(TEXT, str(fleet.folder)))
    until(lambda: fleet.runs() and not fleet.coordinator.status().rebuilding, PATIENCE_S)
    stream = fleet.stream()
    assert stream is not None
    assert (fleet.boot_id(), stream.generation) == (first, generation)
    # Nobody answers for longer than a lease: it goes on.
    fleet.reachable = False
    published = stream.account.published
    until(lambda: fleet.state() == "LOST", PATIENCE_S)
    fleet.reachable = True
    until(lambda: fleet.runs() and fleet.state() == "UP", PATIENCE_S)
    assert fleet.boot_id() == first
    assert fleet.stream().account.published > published  # type: ignore[union-attr]
    # The daemon itself dies: the keeper starts it again.
    daemon = keeper.read_notes(fleet.box_folder).daemon
    assert daemon is not None
    daemon.send(signal.SIGKILL)
    until(lambda: fleet.boot_id() not in ("", first) and fleet.runs(), PATIENCE_S)
    assert fleet.stream().generation > generation  # type: ignore[union-attr]
    assert min(g for boot, g in given if boot != first) > generation, "not even for a moment"
    assert "killed by signal 9" in fleet.box_folder.log.read_text()


@pytest.mark.slow  # three starts of a daemon
def test_a_changed_file_and_a_drain_reach_the_daemon(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    until(fleet.runs, PATIENCE_S)
    first = fleet.boot_id()
    fleet.coordinator.apply(Configuration(MORE, str(fleet.folder)))
    until(lambda: fleet.runs("yard"), PATIENCE_S)
    assert fleet.boot_id() == first
    assert fleet.box_folder.config.read_text() == MORE
    assert fleet.box_folder.config.stat().st_mode & 0o077 == 0
    highest = max(s.generation for s in fleet.coordinator.status().streams)
    until(lambda: int(fleet.box_folder.highest.read_text()) >= highest, PATIENCE_S)
    daemon = keeper.read_notes(fleet.box_folder).daemon
    assert daemon is not None
    # It was stopped on its node: the box lives, and leaves it so until it is drained and undrained.
    assert stop_here(str(fleet.folder)) == ["n1"]
    until(lambda: "stopped on its node" in fleet.reason(), PATIENCE_S)
    time.sleep(3 * REPORT_S)
    assert not keeper.kept(fleet.box_folder)
    fleet.box.leave()
    fleet.attach(again=True)  # Ray has started its actor again
    until(lambda: "stopped on its node" in fleet.reason(), PATIENCE_S)
    assert not keeper.kept(fleet.box_folder)
    fleet.coordinator.drain("n1")
    until(lambda: fleet.state() == "DRAINED", PATIENCE_S)
    fleet.coordinator.drain("n1", undo=True)
    until(lambda: fleet.runs("yard"), PATIENCE_S)
    daemon = keeper.read_notes(fleet.box_folder).daemon
    assert daemon is not None
    # With nothing but a stream that it does not reach, a drain is over at once, and ends the daemon.
    away = 'listen: null, reach: [{streams: "*", labels: [elsewhere]}]'
    other = TEXT.replace("gate", "door").replace("listen: null", away)
    fleet.coordinator.apply(Configuration(other, str(fleet.folder)))
    fleet.coordinator.drain("n1")
    until(lambda: fleet.state() == "DRAINED" and not daemon.alive, PATIENCE_S)
    until(lambda: not keeper.kept(fleet.box_folder), PATIENCE_S)
    # The fleet is started again at a time before it began, and subscribers are not to drop what it sends.
    fleet.box.leave()
    fleet.coordinator.close()
    fleet.nodes, now = Nodes(), time.time()
    monkeypatch.setattr(
        "streamd.workers.fleet.host.time", SimpleNamespace(time=lambda: now - 86400, monotonic=time.monotonic)
    )
    fleet.begin(Configuration(TEXT, str(fleet.folder)))
    fleet.attach()
    until(fleet.runs, PATIENCE_S)
    assert fleet.stream().generation > highest  # type: ignore[union-attr]
