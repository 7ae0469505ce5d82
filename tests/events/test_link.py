"""The channel between real processes, either of which is killed again and again."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from streamd.errors import SinkError
from streamd.events.link import EventReceiver, EventSender
from tests.events.journals import event, journal, rows, until

PARENT = """
import sys, time
from pathlib import Path
from streamd.events.journal import Journal
from streamd.events.link import EventReceiver
journal = Journal(Path(sys.argv[1]))
journal.start()
receiver = EventReceiver(sys.argv[2], journal)
receiver.start()
print("ready", flush=True)
time.sleep(120)
"""
WORKER = """
import sys, time
from streamd.events import Event
from streamd.events.link import EventSender
endpoint, life, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
sender = EventSender(endpoint, f"boot/{life}")
sender.start()
for n in range(count):
    while not sender.submit(Event(id=f"{life}-{n}", stream=f"s{life}", kind="instant", seq=n, at_ns=time.time_ns())):
        time.sleep(0.01)
    if n % 10 == 0:
        time.sleep(0.005)
print(sender.close(60), sender.outbox.lost, sender.outbox.resent, flush=True)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_kill_9_of_the_parent_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    endpoint, chance = f"ipc://{tmp_path}/events", random.Random(3)
    workers = [start(WORKER, endpoint, life, 2500) for life in (1, 2)]
    kills = 0
    while True:
        parent = start(PARENT, tmp_path, endpoint)
        assert line(parent) == "ready"
        if kills == 6:
            break
        time.sleep(chance.uniform(0.1, 0.5))
        parent.kill()
        parent.communicate()
        kills += 1
    told = [line(worker) for worker in workers]
    for process in (*workers, parent):
        process.kill()
        process.communicate()
    assert [text.split()[0] for text in told] == ["True", "True"], told
    lost = {f"s{life}": int(text.split()[1]) for life, text in zip((1, 2), told, strict=True)}
    for stream in ("s1", "s2"):
        found = rows(tmp_path, "SELECT event_seq, seq, lost FROM events WHERE stream = ? ORDER BY position", stream)
        assert lost[stream] == 0
        assert [seq for _, seq, _ in found] == list(range(2500))
        assert [event_seq for event_seq, *_ in found] == list(range(1, 2501))


def test_kill_9_of_a_worker_leaves_a_whole_beginning_and_its_successor_goes_on(tmp_path: Path) -> None:
    endpoint, chance = f"ipc://{tmp_path}/events", random.Random(4)
    with journal(tmp_path) as one:
        receiver = EventReceiver(endpoint, one)
        receiver.start()
        for life in range(1, 6):
            worker = start(WORKER, endpoint, life, 5000)
            until(lambda: one.taken(f"boot/{life}") > 0, 30)  # noqa: B023
            time.sleep(chance.uniform(0.05, 0.4))
            worker.kill()
            worker.communicate()
            receiver.finish(f"boot/{life}", "worker_died")
        until(lambda: not receiver._ending)
        assert one.flush()
        receiver.close()
    streams = Counter(stream for (stream,) in rows(tmp_path, "SELECT stream FROM events"))
    assert len(streams) == 5
    for stream, count in streams.items():
        found = rows(tmp_path, "SELECT seq FROM events WHERE stream = ? ORDER BY position", stream)
        assert [seq for (seq,) in found] == list(range(count))


def test_what_a_dead_worker_left_open_is_ended_after_the_last_that_it_sent(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    with journal(tmp_path) as one:
        receiver = EventReceiver(endpoint, one)
        receiver.start()
        sender, other = EventSender(endpoint, "boot/1"), EventSender(endpoint, "boot/2")
        sender.start()
        other.start()
        for number in range(500):
            sender.submit(event(f"x{number}", "begin"))
        other.submit(event("y", "begin"))
        until(lambda: len(sender.outbox) < 500)  # it is connected
        receiver.finish("boot/1", "worker_died")
        until(lambda: not receiver._ending)
        sender.submit(event("late", "begin"))
        assert not sender.close(0.5)
        assert other.close(5)
        assert one.flush()
        assert [r.id for r in one.open_events()] == ["y"]
        receiver.close()
    kinds = Counter(rows(tmp_path, "SELECT kind FROM events WHERE id != 'y'"))
    assert kinds[("begin",)] == kinds[("end",)] > 0


def test_a_sender_waits_for_a_parent_that_comes_later(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    sender = EventSender(endpoint, "boot/1", bound=3)
    sender.start()
    assert [sender.submit(event(f"x{n}")) for n in range(5)] == [True, True, True, False, False]
    with journal(tmp_path) as one:
        receiver = EventReceiver(endpoint, one)
        receiver.start()
        until(lambda: len(sender.outbox) == 0)
        assert sender.submit(event("y"))
        assert sender.close(5)
        receiver.close()
    found = rows(tmp_path, "SELECT id, lost FROM events ORDER BY position")
    assert found == [("x0", 0), ("x1", 0), ("x2", 0), ("y", 2)]


def test_an_event_arrives_without_waiting_for_a_poll(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    with journal(tmp_path) as one:
        receiver = EventReceiver(endpoint, one)
        receiver.start()
        sender = EventSender(endpoint, "boot/1")
        sender.start()
        times = []
        for number in range(15):
            began = time.perf_counter()
            sender.submit(event(f"x{number}"))
            until(lambda: len(sender.outbox) == 0)
            times.append(time.perf_counter() - began)
            time.sleep(0.03)
        assert sorted(times)[10] < 0.1, times
        assert sender.close(5)
        receiver.close()


def test_an_address_that_cannot_be_bound_is_told(tmp_path: Path) -> None:
    with journal(tmp_path) as one, pytest.raises(SinkError, match="cannot be bound: No such file"):
        EventReceiver(f"ipc://{tmp_path}/none/events", one).start()
