"""A bounded number of inputs is opened at the same time, in all processes together."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from streamd.errors import SourceError
from streamd.sources import admission
from streamd.sources.admission import Admission, Gate

OPEN = threading.Event()
"""Never set: the stream is not closed."""


def test_no_more_are_in_than_there_are_places_and_all_come_in() -> None:
    gate, lock = Gate(3), threading.Lock()
    inside = most = served = 0

    def work() -> None:
        nonlocal inside, most, served
        ticket = gate.enter(OPEN, "s", 10)
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.005)
        with lock:
            inside -= 1
            served += 1
        ticket.leave()

    threads = [threading.Thread(target=work) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (most, served) == (3, 40)


def test_a_ticket_that_is_too_old_no_longer_counts_and_frees_nobody_elses_place() -> None:
    gate = Gate(1)
    slow = gate.enter(OPEN, "slow", 0.02)
    assert gate.try_enter(10) is None
    time.sleep(0.03)
    other = gate.try_enter(10)
    assert other is not None
    slow.leave()
    assert gate.try_enter(10) is None
    other.leave()
    other.leave()
    assert gate.try_enter(10) is not None


def test_a_stream_that_is_closed_waits_no_longer() -> None:
    gate, closed = Gate(1), threading.Event()
    gate.enter(OPEN, "first", 10)
    errors: list[SourceError] = []

    def wait() -> None:
        with pytest.raises(SourceError, match="closed while opening") as caught:
            gate.enter(closed, "second", 10)
        errors.append(caught.value)

    threads = [threading.Thread(target=wait) for _ in range(2)]  # one looks for a place, the other waits in line
    for thread in threads:
        thread.start()
    closed.set()
    for thread in threads:
        thread.join(1)
    assert [error.reason for error in errors] == ["disconnected"] * 2


HOLD = """
import sys, threading
from pathlib import Path
from streamd.sources.admission import Gate
ticket = Gate(1, Path(sys.argv[1])).enter(threading.Event(), "s", 60)
print("in", flush=True)
sys.stdin.read()
"""


def test_processes_share_the_places_and_one_that_is_killed_gives_its_place_back(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        gate = Gate(1, tmp_path)
        assert gate.try_enter(10) is None
        process.kill()
        process.wait()
        ticket = gate.try_enter(10)
        assert ticket is not None
        ticket.leave()
        assert Gate(1, tmp_path).try_enter(10) is not None
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    made = admission._folder("cuda0")
    assert made.parent.stat().st_mode & 0o777 == 0o700
    os.chmod(made.parent, 0o777)
    with pytest.raises(PermissionError):
        admission._folder("cuda0")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate(1)
    monkeypatch.setattr(admission, "device_gate", lambda ordinal: gate)
    return gate


def test_a_file_keeps_its_place_on_the_gpu_until_its_decoder_exists(device: Gate) -> None:
    file = Admission("f", False, OPEN)
    file.enter(0)
    file.connected()
    assert not file.waiting
    assert device.try_enter(1) is None
    file.leave()
    assert device.try_enter(1) is not None


def test_a_camera_needs_no_place_on_the_gpu_before_it_could_decode(device: Gate) -> None:
    camera = Admission("c", True, OPEN)
    camera.enter(0)
    camera.connected()
    assert camera.waiting
    other = device.try_enter(10)
    assert other is not None
    assert not camera.may_decode()
    other.leave()
    assert camera.may_decode()
    assert not camera.waiting
    assert device.try_enter(1) is None
    camera.created()
    assert device.try_enter(1) is not None


def test_a_camera_that_finds_no_place_for_long_or_has_nothing_more_to_read_waits_for_one(
    device: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "TURN_S", 0.05)
    for wait in (False, True):
        camera = Admission("c", True, OPEN)
        camera.enter(0)
        camera.connected()
        other = device.try_enter(10)
        assert other is not None
        if not wait:
            assert not camera.may_decode()
            time.sleep(0.06)
        threading.Timer(0.05, other.leave).start()
        assert camera.may_decode(wait=wait)
        camera.leave()


def test_software_decoding_waits_for_no_gpu() -> None:
    camera = Admission("c", True, OPEN)
    camera.enter(None)
    camera.connected()
    assert not camera.waiting


def test_without_a_driver_a_gpu_is_known_by_its_number() -> None:
    assert admission._identity(4096) == "4096"
