"""A worker as its parent sees it; the pipe between them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from streamd.workers.child import lines
from streamd.workers.process import TRANSITIONS, Event, WorkerProcess, WorkerState, ending, reap
from streamd.workers.report import Order, Report
from tests.behaviour.daemon import until


def order(number: int, **config: object) -> Order:
    return Order(
        number, 7, 1, "boot", {"streams": []} | config, [], [], "ipc:///nowhere", "", "x", {}, "ipc:///nowhere"
    )


Script = Callable[[str], None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    """Makes workers run a shell script."""

    def make(text: str) -> None:
        path = tmp_path / "worker"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o700)
        monkeypatch.setattr("sys.executable", str(path))

    return make


def ended(process: WorkerProcess) -> None:
    """Waits for the end of its process."""
    until(lambda: process.poll() is not None, 5)


def died(process: WorkerProcess) -> float:
    """Starts a process that fails, and returns the wait before the next."""
    process.start(order(1))
    ended(process)
    return process.died(())


def test_lines_come_whole_however_they_are_cut() -> None:
    read, write = os.pipe()
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.extend(lines(read)))
    thread.start()
    for piece in (b"one\ntw", b"o\n", b"thr", b"ee", b"\nhalf"):
        os.write(write, piece)
    os.close(write)
    thread.join(5)
    os.close(read)
    assert found == [b"one", b"two", b"three"]


def test_a_process_that_does_not_read_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "sleeper"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(script))
    process = WorkerProcess(0)
    process.start(order(1, padding="x" * 3_000_000))
    try:
        assert process.running
        process.order(order(2))
        process.flush()
        assert process.poll() is None
        assert process.sent == 2
        process.kill("enough")
        codes: list[int | None] = []

        def ended() -> bool:
            codes.append(process.poll())
            return codes[-1] is not None

        until(ended, 5)
        assert codes[-1] == -9
        assert not process.running
        process.flush()
    finally:
        process.kill("the test is over")


def test_who_does_not_end_in_time_is_killed_and_has_no_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "worker"
    script.write_text("#!/bin/sh\nfor number; do :; done\n[ $number = 0 ] && exec sleep 60\nread order\nexit 3\n")
    script.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(script))
    workers = [WorkerProcess(number) for number in range(3)]
    for worker in workers[:2]:
        worker.start(order(1))
    assert reap(workers, time.monotonic() + 2, lambda: time.sleep(0.01)) == [3]
    assert [worker.killed for worker in workers] == ["did not drain in time", "", ""]
    assert not any(worker.running for worker in workers)


def test_reports_of_processes_that_are_gone_are_not_heard(script: Script) -> None:
    script("exec sleep 60")
    process = WorkerProcess(0)
    process.start(order(1))
    process.kill("the test needs no more than its state")
    assert not process.take(Report(0, 6, 1, None, [], {}, []))
    assert not process.up
    assert process.take(Report(0, 7, 3, None, [], {}, []))
    assert process.take(Report(0, 7, 2, None, [], {}, []))
    assert (process.up, process.done, process.media_problem) == (True, 3, None)
    assert process.take(Report(0, 7, 3, None, [], {}, [], media="disk_full: no room"))
    assert process.media_problem == "worker 0: disk_full: no room"
    ended(process)
    assert process.media_problem is None
    assert process.take(Report(0, 7, 4, None, [], {}, []))  # its last one
    assert (process.up, process.done) == (False, 4)
    process.died(())
    assert not process.take(Report(0, 7, 5, None, [], {}, []))


def test_deaths_are_counted_until_it_is_up_and_waits_grow(script: Script) -> None:
    script("exit 5")
    process = WorkerProcess(0)
    waits = [died(process) for _ in range(5)]
    assert process.deaths == 5
    assert waits[0] <= 0.5
    assert waits[4] > 2
    process.start(order(1))
    process.take(Report(0, 7, 1, None, [], {}, []))
    assert process.deaths == 0
    ended(process)


@pytest.mark.parametrize(
    ("code", "words"), [(5, "ended with code 5"), (-9, "was killed by SIGKILL"), (-200, "was killed by signal 200")]
)
def test_endings_in_words(code: int, words: str) -> None:
    assert ending(code) == words


def test_a_process_is_given_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "worker"
    script.write_text('#!/bin/sh\necho "$OURS $THEIRS" > "$OUT"\n')
    script.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(script))
    monkeypatch.setenv("OURS", "inherited")
    process = WorkerProcess(0)
    process.start(order(1), {"THEIRS": "given", "OUT": str(tmp_path / "out")})
    until(lambda: process.poll() == 0, 5)
    assert (tmp_path / "out").read_text() == "inherited given\n"


def test_a_worker_that_has_published_everything_is_not_waited_for_beyond_the_deadline_nor_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "sleeper"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(script))
    process = WorkerProcess(0)
    process.start(order(1))
    try:
        assert process.take(Report(0, 7, 1, None, [], {}, []))
        assert process.result is None
        assert process.take(Report(0, 7, 1, None, [], {}, [], 4))
        assert process.result == 4
        assert process.problem(0.0) is None  # it says nothing any more while the kernel frees its memory
        assert reap([process], time.monotonic(), lambda: time.sleep(0.01)) == [4]
        assert process.running
        assert not process.killed
    finally:
        process.kill("the test is over")
        until(lambda: process.poll() is not None, 5)


def test_a_worker_for_which_there_is_no_room_has_not_died(script: Script) -> None:
    """No reload and no limit on processes may end the daemon by it."""
    process = WorkerProcess(0)
    for _ in range(20):
        process.died((), counted=False)
    assert process.deaths == 0
    script("exit 5")
    died(process)
    assert process.deaths == 1


def test_a_working_folder_that_was_removed_stops_no_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "sleeper"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(script))
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    process = WorkerProcess(0)
    process.start(order(1))
    try:
        assert process.running
    finally:
        process.kill("the test is over")
        until(lambda: process.poll() is not None, 5)
        os.chdir(tmp_path)


STATES: tuple[WorkerState, ...] = get_args(WorkerState)
EVENTS: tuple[Event, ...] = get_args(Event)
PATHS: dict[WorkerState, tuple[Event, ...]] = {
    "IDLE": (),
    "STARTING": ("started",),
    "UP": ("started", "reported"),
    "EXITED": ("started", "exited"),
    "BACKOFF": ("no_room",),
    "FINISHED": ("started", "exited", "finished"),
    "FAILED": ("started", "exited", "died", "gave_up"),
}
"""How each state is reached."""


def do(process: WorkerProcess, event: Event) -> None:
    """Makes the event happen by the real methods, with a real process."""
    if event == "started":
        process.start(order(1))
    elif event == "reported":
        process.take(Report(0, process.life, 1, None, [], {}, []))
    elif event == "exited":
        process.kill("the test is over")
        ended(process)
    elif event == "finished":
        process.finished(0)
    elif event in ("died", "no_room"):
        process.died((), counted=event == "died")
    elif event == "drained":
        process.drain()
    else:
        process.give_up()


@pytest.mark.parametrize("state", STATES)
def test_every_event_in_every_state_is_as_the_table_says(script: Script, state: WorkerState) -> None:
    script("exec sleep 60")
    # These two do nothing where they have no meaning; a process starts or exits only where there is none or one.
    harmless: set[Event] = {"reported", "drained"}
    for event in EVENTS:
        process = WorkerProcess(0)
        for step in PATHS[state]:
            do(process, step)
        assert process.state == state
        wanted = TRANSITIONS.get((state, event))
        try:
            if wanted is not None:
                do(process, event)
                assert process.state == wanted, event
            elif event in harmless:
                do(process, event)
                assert process.state == state, event
            elif event == "exited":
                assert process.poll() is None
                assert process.state == state
            else:
                with pytest.raises(ValueError, match=f"worker 0: '{event}' is not allowed in state {state}"):
                    do(process, event)
                assert process.state == state, event
        finally:
            if process.running:
                do(process, "exited")


def test_a_refused_order_is_done_but_not_applied(script: Script) -> None:
    script("exec sleep 60")
    process = WorkerProcess(0)
    process.start(order(1))
    try:
        for sent, done, refused, busy, applied in [
            (1, 0, 0, True, False), (1, 1, 0, False, True), (4, 3, 0, True, False), (4, 4, 4, False, False),
            (6, 5, 4, True, False), (6, 6, 4, False, True),
        ]:  # fmt: skip
            if sent != process.sent:
                process.order(order(sent))
            process.take(Report(0, 7, done, None, [], {}, [], refused=refused))
            assert (process.busy, process.applied) == (busy, applied), sent
    finally:
        do(process, "exited")


def test_streams_that_have_ended_are_known_until_they_are_revived() -> None:
    process = WorkerProcess(0)
    process.end_streams(["a", "b"])
    process.end_streams(["c"])
    process.revive_streams(["b", "d"])
    assert process.over == {"a", "c"}
