"""A worker's signs of life until it reports, of real worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest

from streamd.workers.starting import Pulse, launch
from tests.behaviour.daemon import until

Launched = tuple[subprocess.Popen[bytes], Pulse]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launched]:
    """A worker that waits for its first order, and may be silent for 6 s."""
    monkeypatch.setattr("streamd.workers.starting.SILENT_S", 6.0)
    process, pulse = launch(0, {})
    yield process, pulse
    pulse.close()
    process.kill()
    process.communicate()


def fine_for(pulse: Pulse, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and pulse.problem() is None:
        time.sleep(0.05)
    return pulse.problem() is None


def begun(process: subprocess.Popen[bytes]) -> bool:
    return any(thread.name() == "pulse" for thread in _threads(process.pid))


def _threads(pid: int) -> list[psutil.Process]:
    return [psutil.Process(thread.id) for thread in psutil.Process(pid).threads()]


def test_a_worker_may_take_as_long_as_it_shows_that_it_lives(launched: Launched) -> None:
    process, pulse = launched
    until(lambda: begun(process) or pulse.problem(), 6)
    assert fine_for(pulse, 8)
    os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    until(pulse.problem, 20)
    assert 4.5 < time.monotonic() - began < 8
    assert pulse.problem() == "has not started and shown no sign of life for 6 s"


def test_a_worker_that_is_stopped_before_its_first_instruction_is_found_out(launched: Launched) -> None:
    process, pulse = launched
    os.kill(process.pid, signal.SIGSTOP)
    until(pulse.problem, 20)


def test_a_parent_that_was_stopped_itself_lets_its_worker_show_that_it_lives(launched: Launched) -> None:
    process, pulse = launched
    until(lambda: begun(process), 20)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(7)  # as long as nobody looks
    assert pulse.problem() is None
    until(pulse.problem, 20)


def test_a_worker_that_lives_but_never_reports_has_an_hour(launched: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    process, pulse = launched
    until(lambda: begun(process), 20)
    monkeypatch.setattr("streamd.workers.starting.OPENING_S", 0.1)
    assert pulse.problem() == "has not started within 0.1 s"


def test_a_worker_that_has_reported_stops_showing_that_it_lives(launched: Launched) -> None:
    process, pulse = launched
    until(lambda: begun(process), 20)
    before = process.pid
    pulse.close()
    until(lambda: not begun(process), 10)
    assert psutil.Process(before).status() != psutil.STATUS_ZOMBIE


def test_nothing_stays_open_of_a_worker_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="No such file"):
        launch(0, {})
    assert len(os.listdir("/proc/self/fd")) == len(before)
