"""A whole fleet on this machine: real raylets, a real NATS server, real daemons with the null engine.

usage: pytest -n 0 tests/workers/fleet/deaths.py

By hand, on an idle machine: they start four raylets and hold the fleet to 15 s. They share one cluster and run in their
order; each leaves the fleet whole, but for the last one. `python -m tests.workers.fleet.kills` does the same with more
streams and many deaths.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator

import psutil
import pytest

from streamd.workers.fleet import keeper
from tests.events.journals import until
from tests.workers.fleet.rays import PATIENCE_S, Running, accepted, fleet

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
STREAMS = 9
AGAIN_S = 15.0
"""Within this time after a node's death, all of its streams are published again."""


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with fleet(3, STREAMS) as found:
        yield found


def mine(running: Running, box: str) -> set[str]:
    return {stream for stream, home in running.homes().items() if home == box}


def generations(running: Running) -> dict[str, int]:
    return {s.stream: s.generation for s in running.status().streams}


def check_untouched(running: Running, streams: set[str], since: float) -> None:
    """Same daemon, same connection, no gap."""
    for stream in streams:
        frames = running.listener.since(stream, since)
        assert len({(h.boot_id, h.epoch, h.generation) for h in frames}) == 1, stream
        assert [h.seq for h in frames] == list(range(frames[0].seq, frames[0].seq + len(frames))), stream


def check_once(running: Running) -> None:
    """No frame is accepted twice, and generations only grow."""
    for stream, heard in running.listener.streams().items():
        frames = [(h.generation, h.epoch, h.seq, h.boot_id) for h in accepted(heard)]
        odd = [(a, b) for a, b in itertools.pairwise(frames) if (b[0], b[2]) <= (a[0], a[2])]
        assert not odd, f"{stream}: {odd[:5]}"


def test_prometheus_and_people_see_it(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    status = running.status()
    assert {b.box: b.state for b in status.boxes} == {"n1": "UP", "n2": "UP", "n3": "UP"}
    assert all(s.box is not None and s.generation > 0 for s in status.streams)
    daemon = keeper.read_notes(running.rays.box("n1")).daemon
    assert daemon is not None
    [raylet] = [p for p in running.rays.processes("n1") if p.name() == "raylet"]
    assert psutil.Process(daemon.pid).nice() == raylet.nice(), "Ray's workers have less"
    environment = psutil.Process(daemon.pid).environ()
    assert not [n for n in environment if n.startswith("RAY_") or (n, os.environ.get(n)) == ("LD_PRELOAD", None)]
    with urllib.request.urlopen(f"http://{running.http}/sd", timeout=10) as answer:
        targets = json.load(answer)
    assert {t["labels"]["box"] for t in targets} == {"n1", "n2", "n3"}
    for target in targets:
        with urllib.request.urlopen(f"http://{target['targets'][0]}/metrics", timeout=10) as answer:
            assert b"streamd_frames_published_total{" in answer.read()
    with urllib.request.urlopen(f"http://{running.http}/metrics", timeout=10) as answer:
        assert b'streamd_fleet_streams{state="RUNNING"} 9.0' in answer.read()
    capsys.readouterr()
    assert running.command("status") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "9 streams: 9 running" in shown


def test_a_node_that_is_killed(running: Running) -> None:
    lost, before = mine(running, "n2"), generations(running)
    others = set(before) - lost
    assert lost
    assert others
    died = time.monotonic()
    running.rays.signal("n2", signal.SIGKILL)
    away = running.wait_published(lost, died, generation=before) - died
    print(f"killed: {len(lost)} streams back after {away:.1f} s")
    assert away < AGAIN_S
    check_untouched(running, others, died - 2)
    assert "box_lost" not in {s.reason for s in running.status().streams if s.box is None}
    running.rays.add("n2")
    running.wait_steady()
    check_once(running)


def test_a_node_that_is_stopped_and_comes_back(running: Running) -> None:
    until(lambda: mine(running, "n3"), PATIENCE_S)
    lost, before = mine(running, "n3"), generations(running)
    others = set(before) - lost
    stopped = time.monotonic()
    running.rays.signal("n3", signal.SIGSTOP)
    away = running.wait_published(lost, stopped, generation=before) - stopped
    print(f"stopped: {len(lost)} streams back after {away:.1f} s")
    assert away < AGAIN_S
    check_untouched(running, others, stopped - 2)
    running.rays.signal("n3", signal.SIGCONT)
    running.wait_steady()
    check_once(running)
    for stream in running.status().streams:
        account = stream.account
        assert account.received == (
            account.published + account.dropped + account.lost + account.superseded + account.in_flight
        )


def test_a_coordinator_that_dies_stops_no_stream(running: Running) -> None:
    before, homes, died = generations(running), running.homes(), time.monotonic()
    running.rays.kill_coordinator()
    running.wait_published(set(before), died + 3)
    running.wait_steady()
    assert (generations(running), running.homes()) == (before, homes)
    check_untouched(running, set(before), died - 2)


def test_a_node_that_is_drained_leaves_nothing(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    until(lambda: mine(running, "n1"), PATIENCE_S)
    moved, before, began = mine(running, "n1"), generations(running), time.monotonic()
    lost = {s.stream: s.account.lost for s in running.status().streams}
    daemon = keeper.read_notes(running.rays.box("n1")).daemon
    assert daemon is not None
    assert running.command("drain", "n1") == 0
    assert "n1: drained" in capsys.readouterr().out
    running.wait_published(moved, began, generation=before)
    check_untouched(running, set(before) - moved, began - 2)
    until(lambda: not daemon.alive and not keeper.kept(running.rays.box("n1")), PATIENCE_S)
    check_once(running)
    assert {s.stream: s.account.lost for s in running.status().streams} == lost, "it has told how far they came"
    assert running.command("drain", "n1", "--undo") == 0
    running.wait_steady()


def test_a_head_that_dies_stops_no_stream(running: Running) -> None:
    """Ray's nodes end a minute after their head without fault tolerance; the daemons do not."""
    streams, died = set(running.homes()), time.monotonic()
    running.rays.kill_head()
    running.wait_published(streams, died + 5)
    check_untouched(running, streams, died - 2)
    notes = [keeper.read_notes(running.rays.box(f"n{i}")) for i in (1, 2, 3)]
    assert running.command_here("stop") == 0
    assert not [p for n in notes for p in (n.keeper, n.daemon) if p is not None and p.alive]
    # The boxes' actors still live for a minute, and do not start them again.
    time.sleep(5)
    assert not [i for i in (1, 2, 3) if keeper.kept(running.rays.box(f"n{i}"))]
