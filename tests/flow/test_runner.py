"""The life of a stream: every road through the transition table, with real threads and scripted sources."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from streamd.errors import SourceError
from streamd.flow.contracts import SourceInfo
from streamd.flow.reporter import TRANSITIONS
from streamd.flow.ring import Ring
from streamd.flow.runner import StreamRunner
from streamd.flow.settings import StreamSettings
from streamd.sources.clock import StreamClock
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Frame, StreamStatus
from tests.frames import frames


class Scripted:
    """A source that plays one line of a script: an error on open, or some frames and then an end or an error."""

    def __init__(self, on_open: Exception | None, count: int, then: Exception | None) -> None:
        self._on_open, self._count, self._then = on_open, count, then
        self.corrupt = self.skipped = self.lost = self.overtaken = self.discarded = 0
        self.behind_s: float | None = None
        self.codec = ""
        self.deadline = math.inf
        self.clock = StreamClock()
        self.closed = threading.Event()

    def open(self) -> SourceInfo:
        if self._on_open is not None:
            raise self._on_open
        return SourceInfo("h264", "software", 64, 48, 25.0, True)

    def frames(self) -> Iterator[Frame]:
        yield from frames("s", self._count)
        if self._then is None:
            return
        raise self._then

    def adapt(self, settings: StreamSettings) -> None: ...

    def close(self) -> None:
        self.closed.set()


def broke(reason: Any = "disconnected", permanent: bool = False) -> SourceError:
    return SourceError(reason, f"rtsp://user:pw@cam/x: {reason}", permanent=permanent)


def play(
    *script: tuple[Exception | None, int, Exception | None], attempts: int | None = None, timeout: float = 5
) -> tuple[list[StreamStatus], StreamMetrics, Ring[Frame], list[Scripted]]:
    """Runs a stream over `script`, one line an attempt, until it is over."""
    lines = iter(script)
    made: list[Scripted] = []
    statuses: list[StreamStatus] = []

    def make() -> Scripted:
        made.append(Scripted(*next(lines)))
        return made[-1]

    metrics = StreamMetrics("s")
    ring: Ring[Frame] = Ring(256)
    runner = StreamRunner("s", make, ring, metrics, statuses.append, initial_s=0.01, max_s=0.02, attempts=attempts)
    runner.start()
    assert runner.join(timeout), "the stream did not end"
    assert ring.closed
    assert all(s.closed.is_set() for s in made)
    return statuses, metrics, ring, made


def states(statuses: list[StreamStatus]) -> list[tuple[str, str]]:
    return [(s.state, s.reason) for s in statuses]


def test_a_file_that_ends() -> None:
    statuses, metrics, ring, _ = play((None, 3, None))
    assert states(statuses) == [("CONNECTING", ""), ("LIVE", ""), ("ENDED", "eof")]
    assert [ring.get().seq for _ in range(3)] == [0, 1, 2]
    assert metrics.received == 3


def test_a_break_is_followed_by_a_new_epoch_and_seq_goes_on() -> None:
    statuses, metrics, ring, _ = play((None, 2, broke()), (None, 2, None))
    assert states(statuses) == [
        ("CONNECTING", ""), ("LIVE", ""), ("BACKOFF", "disconnected"), ("CONNECTING", ""),
        ("LIVE", ""), ("ENDED", "eof"),
    ]  # fmt: skip
    assert [(f.epoch, f.seq) for f in (ring.get() for _ in range(4))] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert metrics.reconnects == 1
    assert statuses[2].retry_in_s is not None
    assert (statuses[1].codec, statuses[1].width) == ("h264", 64)


def test_a_camera_that_is_off_is_tried_again() -> None:
    statuses, metrics, _, _ = play((broke("refused"), 0, None), (broke("refused"), 0, None), (None, 1, None))
    assert [s for s, _ in states(statuses)] == [
        "CONNECTING", "BACKOFF", "CONNECTING", "BACKOFF", "CONNECTING", "LIVE", "ENDED",
    ]  # fmt: skip
    assert metrics.reconnects == 0  # it was never connected before


def test_what_cannot_get_better_is_not_tried_again() -> None:
    statuses, _, _, made = play((broke("not_found", permanent=True), 0, None))
    assert states(statuses)[-1] == ("FAILED", "not_found")
    assert len(made) == 1


def test_attempts_are_bounded_where_asked() -> None:
    statuses, _, _, made = play(*[(broke("refused"), 0, None)] * 4, attempts=3)
    assert states(statuses)[-1] == ("FAILED", "refused")
    assert len(made) == 4


def test_a_defect_in_a_source_is_a_reason_and_no_crash() -> None:
    statuses, _, _, _ = play((None, 1, ValueError("boom")), (None, 1, None))
    assert ("BACKOFF", "internal") in states(statuses)


@pytest.mark.parametrize("fail", [broke, partial(ValueError, "boom")], ids=["an error of ours", "a defect"])
def test_a_source_is_gone_while_the_next_attempt_is_waited_for(fail: Callable[[], Exception]) -> None:
    """With its decoder and pictures: not only once the garbage collector comes by."""

    class Failing(Scripted):
        def frames(self) -> Iterator[Frame]:
            yield from frames("s", 1)
            raise fail()  # kept nowhere, as a real one

    made: list[weakref.ref[Scripted]] = []
    waits = threading.Event()

    def make() -> Scripted:
        source = Failing(None, 1, None)
        made.append(weakref.ref(source))
        return source

    def told(status: StreamStatus) -> None:
        if status.state == "BACKOFF":
            waits.set()

    runner = StreamRunner("s", make, Ring(8), StreamMetrics("s"), told, initial_s=30, max_s=30)
    gc.disable()
    try:
        with capture_logs():  # the console's traceback with local variables would keep them
            runner.start()
            assert waits.wait(5)
        assert made[0]() is None
    finally:
        gc.enable()
        runner.stop()
    assert runner.join(5)


def test_no_status_carries_credentials() -> None:
    statuses, _, _, _ = play((broke("auth"), 0, None), (None, 0, None))
    assert not any("user:pw" in str(s) for s in statuses)
    assert any("***@cam" in s.detail for s in statuses)


@pytest.mark.parametrize("when", ["backoff", "ring"])
def test_stop_cuts_whatever_it_waits_for(when: str) -> None:
    ring: Ring[Frame] = Ring(1, "block")
    script: Callable[[], Scripted] = (
        (lambda: Scripted(broke(), 0, None)) if when == "backoff" else (lambda: Scripted(None, 9, None))
    )
    metrics = StreamMetrics("s")
    statuses: list[StreamStatus] = []
    runner = StreamRunner("s", script, ring, metrics, statuses.append, initial_s=60, max_s=60)
    runner.start()
    time.sleep(0.1)
    started = time.monotonic()
    runner.stop()
    assert runner.join(2)
    assert time.monotonic() - started < 1
    assert statuses[-1].state == "ENDED"
    if when == "ring":
        # One frame went in, the second was cut short and counted.
        assert (metrics.received, metrics.dropped) == (2, {"shutdown": 1})


def test_the_table_leaves_no_state_without_a_way_out_but_the_last_two() -> None:
    sources = {state for state, _ in TRANSITIONS}
    targets = set(TRANSITIONS.values())
    assert targets - sources == {"ENDED", "FAILED"}


def test_a_stream_all_of_whose_frames_fail_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is LIVE, and nothing of it is ever published: the status must not look as if all were well."""
    monkeypatch.setattr("streamd.flow.pump.CHECK_NS", 50_000_000)
    metrics, statuses = StreamMetrics("s"), list[StreamStatus]()
    ring: Ring[Frame] = Ring(4, "block")

    class Endless(Scripted):
        def frames(self) -> Iterator[Frame]:
            while not self.closed.wait(0.01):
                yield from frames("s", 1)

    runner = StreamRunner("s", lambda: Endless(None, 0, None), ring, metrics, statuses.append)
    runner.start()
    fails, deadline = True, time.monotonic() + 10
    while time.monotonic() < deadline and not (not fails and metrics.published > 20):
        assert ring.get(5) is not None
        if fails:
            metrics.frame_error = "stream s: a yuyv422 picture cannot be scaled"
            metrics.drop("frame_error")
            fails = not any(s.reason == "unsupported" for s in statuses)
        else:
            metrics.published += 1
    runner.stop()
    assert runner.join(5)
    told = [s for s in statuses if s.reason == "unsupported"]
    assert len(told) == 1
    assert told[0].state == "LIVE"
    assert told[0].detail == "no picture can be processed: stream s: a yuyv422 picture cannot be scaled"
    assert metrics.failures["unsupported"] == 1


def test_a_thread_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on threads at a reload: the daemon goes on, and so does the stream as soon as there is room."""
    real, room = threading.Thread.start, [False]

    def start(thread: threading.Thread) -> None:
        if not room[0]:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    statuses, ring = list[StreamStatus](), Ring[Frame](256)
    runner = StreamRunner(
        "s", lambda: Scripted(None, 3, None), ring, StreamMetrics("s"), statuses.append, initial_s=0.02, max_s=0.05
    )
    runner.start()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and len(statuses) < 6:
        runner.watch()
        assert not runner.ended()
        time.sleep(0.01)
    assert states(statuses)[:4] == [
        ("CONNECTING", ""), ("BACKOFF", "internal"), ("CONNECTING", ""), ("BACKOFF", "internal"),
    ]  # fmt: skip
    assert "no thread can be started now (can't start new thread)" in statuses[1].detail
    room[0] = True
    while time.monotonic() < deadline and not runner.over:
        runner.watch()
        time.sleep(0.01)
    assert runner.join(5)
    assert states(statuses)[-2:] == [("LIVE", ""), ("ENDED", "eof")]


def test_a_stream_without_a_thread_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    statuses, ring = list[StreamStatus](), Ring[Frame](256)
    runner = StreamRunner("s", lambda: Scripted(None, 3, None), ring, StreamMetrics("s"), statuses.append)
    runner.start()
    runner.stop()
    assert runner.ended()
    assert runner.join(1)
    assert ring.closed
    assert states(statuses)[-1] == ("ENDED", "")


def test_since_tells_how_long_a_stream_is_down_and_attempts_count() -> None:
    statuses, *_ = play(
        (None, 1, broke()), (broke("refused"), 0, None), (broke("timeout_open"), 0, None), (None, 1, None)
    )
    told = [(s.state, s.reason, s.attempts) for s in statuses]
    assert told == [
        ("CONNECTING", "", 0), ("LIVE", "", 0), ("BACKOFF", "disconnected", 1), ("CONNECTING", "", 1),
        ("BACKOFF", "refused", 2), ("CONNECTING", "", 2), ("BACKOFF", "timeout_open", 3), ("CONNECTING", "", 3),
        ("LIVE", "", 0), ("ENDED", "eof", 0),
    ]  # fmt: skip
    down = {s.since_wall_ns for s in statuses[2:8]}
    assert len(down) == 1
    assert statuses[1].since_wall_ns < statuses[2].since_wall_ns < statuses[8].since_wall_ns
    at = [s.at_wall_ns for s in statuses[1:]]
    assert at == sorted(at)
    assert at[0] < at[5]


def test_a_dead_camera_logs_one_line_and_one_for_each_new_reason() -> None:
    with capture_logs() as lines:
        play(*[(broke("refused"), 0, None)] * 4, (broke("dns"), 0, None), (broke("refused"), 0, None), (None, 1, None))
    told = [(x["event"], x["reason"]) for x in lines if x["log_level"] in ("info", "warning")]
    assert told == [
        ("stream backoff", "refused"), ("stream backoff", "dns"), ("stream live", None), ("stream ended", "eof")
    ]  # fmt: skip
    assert [x.get("attempts") for x in lines if x["log_level"] == "warning"] == [None, 5]


def test_a_status_counts_down_to_the_next_attempt() -> None:
    status = StreamStatus("s", "BACKOFF", "refused", "", 0, 0, retry_in_s=3.0, at_wall_ns=10_000_000_000)
    assert [status.retry_left_s(ns * 1_000_000_000) for ns in (10, 12, 14, 5)] == [3.0, 1.0, 0.0, 3.0]
