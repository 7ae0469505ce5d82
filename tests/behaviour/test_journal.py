"""What befalls the journal's machine: kill -9 in mid-commit, a disk that is full or fails, clock steps."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from streamd.events.place import JOURNAL
from tests.behaviour.daemon import until
from tests.behaviour.test_hardship import namespace
from tests.behaviour.wallclock import WallClock

CHILD = """
import json, sys, threading, time
from pathlib import Path
from streamd.events import Event, chores
from streamd.events.journal import Journal
from streamd.events.upkeep import Limits

folder, life, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
chores.RETAIN_S = 0.2
journal = Journal(folder, retention=Limits(60, 10**9))
committed = {}
def listen(records):
    for r in records:
        committed[r.stream] = r.event_seq
journal.listen(listen)
journal.start()
journal.end_open("process_died")
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
n, told = 0, 0.0
while not stop.is_set():
    for kind in ("begin", "update", "end") if n % 5 else ("begin",):
        details = {"n": n, "more": "x" * 100}
        journal.submit(Event(id=f"{life}-{n}", stream=f"s{n % 3}", kind=kind, at_ns=time.time_ns(), seq=n,
                             details=details, counts={kind: 1}))
    n += 1
    if time.monotonic() > told + 0.02:
        told = time.monotonic()
        s = journal.status()
        print(json.dumps({"problem": s.problem, "committed": committed, "waiting": s.waiting, "lost": s.lost,
                          "events": s.committed, "pid": __import__("os").getpid()}), flush=True)
    stop.wait(pause)
print(json.dumps({"closed": journal.close(20), "lost": journal.status().lost}), flush=True)
"""


class Child:
    """A process that submits events to a journal, and tells how it is."""

    def __init__(self, folder: Path, life: object, pause: float, within: Sequence[str] = ()) -> None:
        command = [*within, sys.executable, "-c", CHILD, str(folder), str(life), str(pause)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.told: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                if "closed" in told:
                    self.last = told
                else:
                    self.told = told

    def stop(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(40)
        self._thread.join(5)
        return self.last

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(5)


@contextlib.contextmanager
def child(folder: Path, pause: float = 0.005, within: Sequence[str] = ()) -> Iterator[Child]:
    running = Child(folder, "last", pause, within)
    try:
        until(lambda: running.told.get("committed"), 30)
        yield running
    finally:
        running.kill()


def checked(path: Path) -> dict[str, list[int]]:
    """Event numbers by stream, of a journal that holds together: gapless, every begin once and ended at most once."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    seqs: dict[str, list[int]] = defaultdict(list)
    kinds: dict[str, str] = defaultdict(str)
    ends = set()
    for stream, event_seq, id_, kind in connection.execute(
        "SELECT stream, event_seq, id, kind FROM events ORDER BY position"
    ):
        seqs[stream].append(event_seq)
        kinds[id_] += kind[0]
        if kind == "end":
            ends.add(id_)
    for numbers in seqs.values():
        assert numbers == list(range(1, len(numbers) + 1))
    assert set(kinds.values()) <= {"b", "bu", "bue", "be"}, set(kinds.values())
    open_ = {id_ for (id_,) in connection.execute("SELECT id FROM open")}
    assert open_ == set(kinds) - ends
    counted = connection.execute("SELECT SUM(value) FROM counters").fetchone()[0]
    own = connection.execute("SELECT COUNT(*) FROM events WHERE json_extract(details, '$.reason') IS NULL").fetchone()[
        0
    ]
    assert counted == own, "counters and events are of one transaction"
    connection.close()
    return seqs


@pytest.mark.slow
def test_kill_9_in_mid_commit(tmp_path: Path) -> None:
    """Eight times: what was told as committed is there, and every begin of a predecessor gets its end."""
    chance = random.Random(7)
    for life in range(8):
        running = Child(tmp_path, life, 0.0)
        until(lambda: running.told.get("committed"), 30)  # noqa: B023
        time.sleep(chance.uniform(0.0, 0.15))
        running.kill()
        seqs = checked(tmp_path / JOURNAL)
        for stream, event_seq in running.told["committed"].items():
            assert len(seqs[stream]) >= event_seq
    with child(tmp_path) as running:
        assert running.stop() == {"closed": True, "lost": 0}
    checked(tmp_path / JOURNAL)
    connection = sqlite3.connect(tmp_path / JOURNAL)
    left = connection.execute("SELECT id FROM open WHERE id NOT LIKE 'last-%'").fetchall()
    assert left == [], "only what the last one has begun is still open"
    died = connection.execute("SELECT COUNT(*) FROM events WHERE json_extract(details, '$.reason') = 'process_died'")
    assert died.fetchone()[0] > 8
    connection.close()


def on_a_small_disk(folder: Path, size: str) -> list[str]:
    folder.mkdir()
    return [*namespace("--mount"), "sh", "-c", f'mount -t tmpfs -o size={size} none "$0" && exec "$@"', str(folder)]


def test_a_full_disk_costs_no_event(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with child(disk / "state", within=on_a_small_disk(disk, "24m")) as running:
        inside = Path(f"/proc/{running.told['pid']}/root{disk}")
        with (inside / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        until(lambda: "full" in running.told["problem"], 30)
        until(lambda: running.told["waiting"] > 200, 30)
        (inside / "filler").unlink()
        until(lambda: running.told["problem"] == "" and running.told["waiting"] < 100, 30)
        events = running.told["events"]
        until(lambda: running.told["events"] > events + 50, 30)
        copies = [(name, (inside / "state" / name).read_bytes()) for name in (JOURNAL, f"{JOURNAL}-wal")]
        assert running.stop() == {"closed": True, "lost": 0}
    for name, data in copies:
        (tmp_path / name).write_bytes(data)
    assert sum(map(len, checked(tmp_path / JOURNAL).values())) > events - 200


def test_a_failing_disk_costs_no_event(tmp_path: Path) -> None:
    """Every write beyond the file's size fails (EFBIG): to SQLite an I/O error like any other."""
    with child(tmp_path) as running:
        pid = running.told["pid"]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        until(lambda: running.told["problem"], 30)
        assert "I/O error" in running.told["problem"] or "full" in running.told["problem"]
        until(lambda: running.told["waiting"] > 200, 30)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: running.told["problem"] == "" and running.told["waiting"] < 100, 30)
        assert running.stop() == {"closed": True, "lost": 0}
    checked(tmp_path / JOURNAL)


def test_a_clock_that_is_stepped_costs_no_event(tmp_path: Path) -> None:
    """By an hour, forward and back, with a retention of a minute: order is by number, and nothing expires."""
    clock = WallClock(tmp_path)
    with child(tmp_path / "state", within=clock.command) as running:
        for seconds in (3600, -3600, 0):
            clock.step(seconds)
            events = running.told["events"]
            until(lambda: running.told["events"] > events + 300, 30)  # noqa: B023
        assert running.stop() == {"closed": True, "lost": 0}
    seqs = checked(tmp_path / "state" / JOURNAL)
    assert sum(map(len, seqs.values())) >= 900
    connection = sqlite3.connect(tmp_path / "state" / JOURNAL)
    times = [t for (t,) in connection.execute("SELECT committed_ns FROM events ORDER BY position")]
    connection.close()
    steps = [b - a for a, b in itertools.pairwise(times) if abs(b - a) > 1800 * 10**9]
    assert [step > 0 for step in steps] == [True, False, True], "the clock was stepped indeed"
