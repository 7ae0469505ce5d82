"""Streams that were lost together do not wait longer than the first of them needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from streamd.errors import SourceError
from streamd.flow import outages as module
from streamd.flow.outages import TOGETHER_S, Outages
from streamd.flow.ring import Ring
from streamd.flow.runner import StreamRunner
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Frame, StreamStatus
from tests.flow.test_runner import Scripted, broke
from tests.frames import frames


def started(outages: Outages, lost_at: float, tried_at: float, delay_s: float) -> tuple[threading.Thread, list[bool]]:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(outages.wait(threading.Event(), lost_at, tried_at, delay_s)))
    thread.start()
    while thread.is_alive() and not outages._waiting:
        time.sleep(0.001)
    return thread, found


def test_those_that_were_lost_together_are_woken_and_others_are_not() -> None:
    outages = Outages()
    now = time.monotonic()
    near, woken = started(outages, now - 10, now, 10)
    far, slept = started(outages, now - 10 - 2 * TOGETHER_S, now, 0.3)
    outages.back(now - 10 + TOGETHER_S / 2)
    near.join(1)
    assert woken == [True]
    assert not slept
    far.join(2)
    assert slept == [False]
    assert not outages._waiting


def test_an_attempt_that_began_before_the_others_were_back_is_repeated_and_a_later_one_waits() -> None:
    outages = Outages()
    began = time.monotonic()
    outages.back(began - 10)
    assert outages.wait(threading.Event(), began - 10, began - 1, 10)
    assert not outages.wait(threading.Event(), began - 10, time.monotonic(), 0.01)
    assert not outages.wait(threading.Event(), began - 20, began - 1, 0.01)


class Line(Scripted):
    """A source that is lost when it is told to be."""

    def __init__(self, cut: threading.Event, reason: Any) -> None:
        super().__init__(None, 0, None)
        self._cut, self._reason = cut, reason

    def frames(self) -> Iterator[Frame]:
        yield from frames("s", 1)
        while not self._cut.wait(0.01):
            if self.closed.is_set():
                return
        raise broke(self._reason)


class Camera:
    """A runner, and a network that can be cut."""

    def __init__(self, name: str, away: threading.Event, reason: Any = "refused", attempts: int | None = None) -> None:
        self.statuses: list[StreamStatus] = []
        self.tries = 0
        self._away, self._reason = away, reason
        self.runner = StreamRunner(
            name, self._make, Ring(8), StreamMetrics(name), self.statuses.append, initial_s=0.05, max_s=60,
            attempts=attempts,
        )  # fmt: skip
        self.runner.start()

    def _make(self) -> Scripted:
        self.tries += 1
        return Scripted(broke(self._reason), 0, None) if self._away.is_set() else Line(self._away, self._reason)

    def until(self, state: str) -> None:
        deadline = time.monotonic() + 5
        while self.runner.status.state != state and time.monotonic() < deadline:
            time.sleep(0.002)
        assert self.runner.status.state == state

    def stop(self) -> None:
        self.runner.stop()
        assert self.runner.join(1), "stop ends every wait"


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Outages:
    outages = Outages()
    monkeypatch.setattr("streamd.flow.runner.outages", outages)
    return outages


@pytest.mark.parametrize(("reason", "woken"), [("refused", True), ("timeout_open", True), ("auth", False)])
def test_a_stream_with_a_long_wait_comes_back_soon_after_the_first(reason: Any, woken: bool) -> None:
    away = threading.Event()
    first, last = Camera("first", away), Camera("last", away, reason)
    try:
        for camera in (first, last):
            camera.until("LIVE")
        last.runner._backoff.attempts = 20  # as if it had failed often before
        away.set()
        for camera in (first, last):
            camera.until("BACKOFF")
        time.sleep(0.1)
        assert last.runner.status.state == "BACKOFF"
        away.clear()
        first.until("LIVE")
        if woken:
            last.until("LIVE")
        else:
            time.sleep(0.3)
            assert last.runner.status.state == "BACKOFF"
    finally:
        first.stop()
        last.stop()


def test_an_attempt_that_the_others_have_caused_does_not_count(own: Outages) -> None:
    """A camera that starts more slowly than its neighbours must not be given up for their sake."""
    dead = threading.Event()
    dead.set()
    slow = Camera("slow", dead, attempts=3)
    try:
        slow.until("BACKOFF")
        before, deadline = slow.tries, time.monotonic() + 5
        while slow.tries < before + 5 and time.monotonic() < deadline and not slow.runner.over:
            own.back(slow.runner._lost_at)
            time.sleep(0.01)
        assert slow.tries >= before + 5
        assert slow.runner.status.state != "FAILED"
    finally:
        slow.stop()


def test_the_reasons_are_those_of_a_network() -> None:
    assert "auth" not in module.NETWORK
    assert all(SourceError(reason, "").reason == reason for reason in module.NETWORK)
