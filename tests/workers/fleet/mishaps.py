"""What else may happen to a fleet: two things at once, a pause, too little room, a clock that jumps, no server.

usage: pytest -n 0 tests/workers/fleet/mishaps.py

By hand, on an idle machine, like `deaths`. Nodes have a wall clock that the tests set: a shared object that is loaded
before the C library adds what a file says.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from streamd.workers.fleet import keeper
from tests.events.journals import until
from tests.workers.fleet.deaths import AGAIN_S, check_once, check_untouched, generations, mine
from tests.workers.fleet.rays import PATIENCE_S, Running, fleet

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
STREAMS = 9
ALONE = "s08"
"""Only n3 reaches it."""
BOX_FPS = 25
"""Five streams of a box."""
CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long *ahead(void) {
    static long none, *found;
    if (!found) {
        const char *path = getenv("CLOCK_FILE");
        int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        if (file >= 0) close(file);
        found = at == MAP_FAILED ? &none : at;
    }
    return found;
}
int clock_gettime(clockid_t clock, struct timespec *at) {
    int code = syscall(SYS_clock_gettime, clock, at);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) at->tv_sec += *ahead();
    return code;
}
int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec, at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """The wall clock of a node."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = folder / name
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Sets how far it is ahead of the machine's."""
        with open(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Clock]:
    folder = tmp_path_factory.mktemp("clocks")
    return {name: Clock(folder, name) for name in ("head", "n1", "n2", "n3", "n4")}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, clocks: dict[str, Clock]) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(CLOCK)
    library = folder / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, folder / "clock.c"], check=True)
    environments = {n: {"LD_PRELOAD": str(library), "CLOCK_FILE": str(c.file)} for n, c in clocks.items()}
    more = f"  moves_per_minute: 1000\n  reach: [{{streams: {ALONE}, labels: [yard]}}]\n"
    labels = {"n3": {"site": "yard"}}
    with fleet(3, STREAMS, box_fps=BOX_FPS, more=more, labels=labels, environments=environments) as found:
        yield found


def kill(running: Running, *nodes: str) -> None:
    for node in nodes:
        running.rays.signal(node, signal.SIGKILL)


def check_accounts(running: Running) -> None:
    for stream in running.status().streams:
        a = stream.account
        assert a.received == a.published + a.dropped + a.lost + a.superseded + a.in_flight, stream


def restore(running: Running, *nodes: str) -> None:
    """Starts nodes again, and waits until nothing moves any more."""
    for node in nodes:
        running.rays.add(node)
    running.wait_steady(4 * PATIENCE_S)
    check_once(running)
    check_accounts(running)


def test_an_actor_and_a_node_at_once(running: Running) -> None:
    before, lost = generations(running), mine(running, "n2")
    kept = mine(running, "n1")
    began = time.monotonic()
    running.rays.actor("n1").kill()
    kill(running, "n2")
    away = running.wait_published(lost, began, generation=before) - began
    print(f"{len(lost)} streams back after {away:.1f} s")
    assert away < AGAIN_S
    check_untouched(running, set(before) - lost - kept, began - 2)
    # Whether the actor is back within the lease is Ray's affair: its streams stay, or go to others; they do not stop.
    for stream in kept:
        times = [h.at for h in running.listener.since(stream, began - 1)]
        assert max(b - a for a, b in itertools.pairwise(times)) < AGAIN_S, stream
    restore(running, "n2")


def test_everything_of_a_box_but_its_node(running: Running) -> None:
    before, lost = generations(running), mine(running, "n1")
    notes = keeper.read_notes(running.rays.box("n1"))
    assert notes.daemon is not None
    assert notes.keeper is not None
    began = time.monotonic()
    for process in (running.rays.actor("n1"), psutil.Process(notes.keeper.pid), psutil.Process(notes.daemon.pid)):
        process.kill()
    away = running.wait_published(lost, began, generation=before) - began
    print(f"{len(lost)} streams back after {away:.1f} s")
    assert away < AGAIN_S
    check_untouched(running, set(before) - lost, began - 2)
    restore(running)


def test_the_coordinator_and_a_node_at_once(running: Running) -> None:
    before, lost = generations(running), mine(running, "n2")
    began = time.monotonic()
    running.rays.kill_coordinator()
    kill(running, "n2")
    away = running.wait_published(lost, began, generation=before) - began
    print(f"{len(lost)} streams back after {away:.1f} s")
    assert away < AGAIN_S
    check_untouched(running, set(before) - lost, began - 2)
    restore(running, "n2")


def test_a_coordinator_that_is_stopped_for_ten_seconds_moves_nothing(running: Running) -> None:
    before, began = generations(running), time.monotonic()
    stopped = running.rays.coordinator()
    stopped.send_signal(signal.SIGSTOP)
    time.sleep(10)
    stopped.send_signal(signal.SIGCONT)
    restore(running)
    assert generations(running) == before
    check_untouched(running, set(before), began - 2)


def test_a_node_that_dies_while_the_coordinator_is_stopped(running: Running) -> None:
    before, lost = generations(running), mine(running, "n2")
    stopped, began = running.rays.coordinator(), time.monotonic()
    stopped.send_signal(signal.SIGSTOP)
    time.sleep(2)
    kill(running, "n2")
    time.sleep(8)
    went_on = time.monotonic()
    stopped.send_signal(signal.SIGCONT)
    away = running.wait_published(lost, went_on, generation=before) - went_on
    print(f"{len(lost)} streams back {away:.1f} s after the coordinator")
    assert away < AGAIN_S
    check_untouched(running, set(before) - lost, began - 2)
    restore(running, "n2")


def test_a_camera_that_only_a_lost_node_reaches_waits_for_it(running: Running) -> None:
    before, lost = generations(running), mine(running, "n3")
    assert ALONE in lost
    began = time.monotonic()
    kill(running, "n3")
    running.wait_published(lost - {ALONE}, began, generation=before)
    until(lambda: running.stream(ALONE).state == "WAITING", PATIENCE_S)
    assert running.stream(ALONE).reason == "no_reach"
    assert running.status().without
    back = time.monotonic()
    running.rays.add("n3")
    running.wait_published({ALONE}, back, generation=before)
    check_untouched(running, set(before) - lost, began - 2)
    restore(running)
    assert running.homes()[ALONE] == "n3"


def test_a_file_that_is_applied_while_streams_move(running: Running) -> None:
    text = running.file.read_text()
    before, moving = generations(running), sorted(mine(running, "n1"))
    gone = moving[0]
    file = running.file.with_name("changed.yaml")
    lines = [line for line in text.splitlines() if f"id: {gone}," not in line]
    file.write_text("\n".join([*lines, "  - {id: fresh, kind: synthetic, fps: 5}"]) + "\n")
    began = time.monotonic()
    assert running.command("drain", "n1", "--no-wait") == 0
    assert running.command("apply", str(file)) == 0
    running.wait_published({*moving[1:], "fresh"}, began, generation=before)
    running.wait_steady(drained={"n1"})
    ended = time.monotonic()
    time.sleep(2)
    assert not running.listener.since(gone, ended), "it is in the file no more"
    others = set(before) - set(moving)
    check_untouched(running, others, began - 2)
    assert running.command("drain", "n1", "--undo") == 0
    assert running.command("apply", str(running.file)) == 0
    restore(running)


def test_nats_ends_and_comes_back(running: Running) -> None:
    before, began = generations(running), time.monotonic()
    assert running.nats is not None
    running.nats.kill()
    time.sleep(5)
    running.nats.start()
    again = time.monotonic()
    print(f"published {running.wait_published(set(before), again) - again:.1f} s after the server")
    restore(running)
    assert generations(running) == before, "no stream moves for a sink's server"
    for stream in before:
        heard = running.listener.since(stream, began - 2)
        assert len({(h.boot_id, h.epoch) for h in heard}) == 1, stream


@pytest.mark.parametrize("seconds", [3600, -7200, 0])
def test_a_clock_that_jumps_moves_nothing(running: Running, clocks: dict[str, Clock], seconds: int) -> None:
    before, began = generations(running), time.monotonic()
    for name in ("n2", "head"):
        clocks[name].jump(seconds)
    running.wait_published(set(before), time.monotonic() + 5)
    running.wait_steady()
    assert generations(running) == before
    check_untouched(running, set(before), began - 2)
    check_once(running)


def test_a_coordinator_whose_clock_is_a_day_behind_issues_higher_generations(
    running: Running, clocks: dict[str, Clock]
) -> None:
    before, lost, began = generations(running), mine(running, "n2"), time.monotonic()
    clocks["head"].jump(-86400)
    running.rays.kill_coordinator()
    running.wait_steady()
    assert generations(running) == before
    kill(running, "n2")
    running.wait_published(lost, began, generation=before)
    check_untouched(running, set(before) - lost, began - 2)
    restore(running, "n2")


def test_a_full_cluster_serves_what_waits_as_soon_as_a_node_joins(running: Running) -> None:
    text, before, began = running.file.read_text(), generations(running), time.monotonic()
    added = {f"t{i:02}" for i in range(10)}
    file = running.file.with_name("more.yaml")
    file.write_text(text + "".join(f"  - {{id: {name}, kind: synthetic, fps: 5}}\n" for name in sorted(added)))
    assert running.command("apply", str(file)) == 0
    waiting: set[str] = set()

    def full() -> bool:
        nonlocal waiting
        streams = running.status().streams
        waiting = {s.stream for s in streams if (s.state, s.reason) == ("WAITING", "no_room")}
        return len(streams) == STREAMS + len(added) and len(waiting) == 4

    until(full, PATIENCE_S)
    assert waiting <= added, "those that run stay"
    joined = time.monotonic()
    running.rays.add("n4")
    print(f"they run {running.wait_published(waiting, joined) - joined:.1f} s after the node was started")
    running.wait_steady(4 * PATIENCE_S)
    check_once(running)
    # Back to what it was: what is not in the file any more ends, and the node is left.
    assert running.command("apply", str(running.file)) == 0
    assert running.command("drain", "n4") == 0
    running.wait_steady(drained={"n4"})
    ended = time.monotonic()
    time.sleep(2)
    assert not any(running.listener.since(name, ended) for name in added)
    assert set(generations(running)) == set(before)
    for stream in before:  # they may have moved, but lost nothing by it
        assert running.listener.since(stream, began)
    kill(running, "n4")
    check_once(running)
    check_accounts(running)


def test_a_fleet_that_starts_again_with_a_clock_that_was_set_back_is_accepted(
    running: Running, clocks: dict[str, Clock], capsys: pytest.CaptureFixture[str]
) -> None:
    before = generations(running)
    assert running.command("stop") == 8
    told = capsys.readouterr()
    assert "n2 stopped" in told.out
    assert told.err.count("did not answer") == 1, "n2 is back and has answered"
    assert "n4 did not answer" in told.err
    clocks["head"].jump(-2 * 86400)
    began = time.monotonic()
    assert running.command("run", str(running.file)) == 0
    running.wait_published(set(before), began, generation=before)
    running.wait_steady(4 * PATIENCE_S)
