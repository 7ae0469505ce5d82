"""A worker as its parent sees it; the pipe between them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from streamd.workers.child import lines
from streamd.workers.process import WorkerProcess, ending, reap
from streamd.workers.report import Order, Report
from tests.behaviour.daemon import until


def order(number: int, **config: object) -> Order:
    return Order(
        number, 7, 1, "boot", {"streams": []} | config, [], [], "ipc:///nowhere", "", "x", {}, "ipc:///nowhere"
    )


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


def test_reports_of_processes_that_are_gone_are_not_heard() -> None:
    process = WorkerProcess(0)
    process.life = 7
    assert not process.take(Report(0, 6, 1, None, [], {}, []))
    assert not process.up
    assert process.take(Report(0, 7, 3, None, [], {}, []))
    assert process.take(Report(0, 7, 2, None, [], {}, []))
    assert (process.up, process.done) == (True, 3)


def test_deaths_are_counted_until_it_is_up_and_waits_grow() -> None:
    process = WorkerProcess(0)
    waits = [process.died(()) for _ in range(5)]
    assert process.deaths == 5
    assert waits[0] <= 0.5
    assert waits[4] > 2
    process.life = 1
    process.take(Report(0, 1, 1, None, [], {}, []))
    assert process.deaths == 0


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


def test_a_worker_for_which_there_is_no_room_has_not_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reload and no limit on processes may end the daemon by it."""
    process = WorkerProcess(0)
    for _ in range(20):
        process.died((), counted=False)
    assert process.deaths == 0
    process.died(())
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
