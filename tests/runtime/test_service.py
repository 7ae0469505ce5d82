"""What signals ask of a main loop, and what the service manager is told of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamd.config import Config
from streamd.runtime.reload import Reread
from streamd.runtime.service import TWICE_S, Service, outputs_of, status_line
from streamd.telemetry.notify import Notifier


class Told(Notifier):
    """A service manager that keeps what it is told."""

    def __init__(self, watchdog_s: float | None = None) -> None:
        super().__init__({})
        self.watchdog_s = watchdog_s
        self.lines: list[str] = []

    def send(self, *lines: str) -> None:
        self.lines += lines

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def serve(notifier: Notifier, **options: object) -> Service:
    return Service(notifier, lambda: None, lambda: "fine", **options)  # type: ignore[arg-type]


def test_the_manager_is_told_the_beginning_and_the_end() -> None:
    told = Told()
    service = serve(told)
    service.begun()
    service.begun("watching 2 streams")
    service.ending()
    assert told.take() == ["READY=1", "STATUS=fine", "READY=1", "STATUS=watching 2 streams", "STOPPING=1"]


def test_the_watchdog_is_fed_three_times_as_often_as_it_asks_and_the_status_is_renewed_once_a_second() -> None:
    told = Told(watchdog_s=6)
    service = serve(told)
    beats = {}
    for tenth in range(1000, 1031):
        service.beat(tenth / 10)
        beats[tenth] = told.take()
    assert {at: lines for at, lines in beats.items() if lines} == {
        1000: ["WATCHDOG=1", "STATUS=fine"],
        1010: ["STATUS=fine"],
        1020: ["WATCHDOG=1", "STATUS=fine"],
        1030: ["STATUS=fine"],
    }


def test_a_problem_starves_the_watchdog_until_it_is_over() -> None:
    told = Told(watchdog_s=3)
    problems: list[str | None] = [None, "a stage is stuck", "a stage is stuck", None]
    service = Service(told, lambda: problems.pop(0), lambda: "")
    for now in (10.0, 11.0, 11.1, 11.2, 11.3):
        service.beat(now)
    assert told.lines.count("WATCHDOG=1") == 2
    assert not problems


def test_without_a_watchdog_nobody_looks_for_a_problem() -> None:
    told = Told()
    service = Service(told, lambda: pytest.fail("looked"), lambda: "fine")
    service.beat(1.0)
    assert told.take() == ["STATUS=fine"]


def test_the_first_signal_asks_for_a_drain() -> None:
    woken: list[None] = []
    service = serve(Told(), wake=lambda: woken.append(None))
    service.listen()
    assert not service.stopping
    signal.raise_signal(signal.SIGTERM)
    assert service.stopping
    assert len(woken) == 1


def test_a_signal_that_comes_twice_at_once_is_one() -> None:
    service = serve(Told(), at_once=lambda: pytest.fail("left"))
    service.listen()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert service.stopping


def test_a_stop_is_no_signal() -> None:
    service = serve(Told(), at_once=lambda: pytest.fail("left"))
    service.listen()
    service.stop()
    service.stop()
    signal.raise_signal(signal.SIGINT)
    assert service.stopping


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_the_process_whatever_it_does(second: signal.Signals) -> None:
    code = (
        "import signal, time\n"
        "from streamd.runtime.service import Service\n"
        "from streamd.telemetry.notify import Notifier\n"
        "tell = lambda: print('left at once', flush=True)\n"
        "service = Service(Notifier({}), lambda: None, str, at_once=tell)\n"
        "service.listen()\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        f"    time.sleep({2 * TWICE_S if second == signal.SIGTERM else 0})\n"
        f"    signal.raise_signal({int(second)})\n"
        "finally:\n"
        "    print('hangs here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + second
    assert done.stdout == "left at once\n"


def test_a_reload_is_asked_for_once_and_told_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    told = Told()
    woken: list[None] = []
    reread = Reread(tmp_path / "c.yaml")
    reread.install()
    service = serve(told, reread=reread, wake=lambda: woken.append(None))
    service.reload_done()
    assert service.reload_asked() is None
    assert told.take() == []
    os.kill(os.getpid(), signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    assert woken
    assert service.reload_asked() is reread
    assert service.reload_asked() is None
    began, at = told.take()
    assert began == "RELOADING=1"
    assert at.removeprefix("MONOTONIC_USEC=").isdigit()
    service.reload_done()
    service.reload_done()
    assert told.take() == ["READY=1", "STATUS=fine"]


def test_without_a_file_nothing_is_read_again() -> None:
    assert serve(Told()).reload_asked() is None


@pytest.mark.parametrize(
    ("states", "refused", "more", "line"),
    [
        ([], "", [], "no streams; 7 frames published"),
        (["LIVE", "BACKOFF", "LIVE"], "", [], "1 backoff, 2 live; 7 frames published"),
        (["LIVE"], "x", ["1 of 2 workers up"],
         "1 live; 7 frames published; 1 of 2 workers up; new configuration rejected: x"),
    ],
)  # fmt: skip
def test_the_line_of_status(states: list[str], refused: str, more: list[str], line: str) -> None:
    assert status_line(states, 7, refused, *more) == line


def test_the_start_line_names_every_output() -> None:
    values = {
        "model": {"path": "none"}, "engine": {"kind": "null"}, "streams": [{"id": "a", "kind": "synthetic"}],
        "sinks": [
            {"kind": "zmq", "bind": "tcp://127.0.0.1:5555"}, {"kind": "jsonl", "path": "/tmp/x.jsonl", "name": "file"},
            {"kind": "jsonl"}, {"kind": "zmq", "connect": "tcp://collector:7000"},
        ],
    }  # fmt: skip
    assert outputs_of(Config.model_validate(values)) == (
        "zmq0 tcp://127.0.0.1:5555, file /tmp/x.jsonl, jsonl2 standard output, zmq3 tcp://collector:7000"
    )
    assert outputs_of(Config.model_validate(values | {"sinks": []})) is None
