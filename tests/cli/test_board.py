"""The table of `watch` and `demo`: what it says of each stream, and that it fits."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from streamd.cli.board import SETTLE_S, Board, span, table
from streamd.sinks.attributes import Attribute
from streamd.sinks.message import Detection, DetectionsMessage, Latency, Model, StatusMessage

FRAME = DetectionsMessage(
    schema=1, boot_id="b", stream="cam", epoch=0, seq=0, pts_ns=None, captured_at=0.0, clock="arrival",
    published_at=0.0, width=1, height=1, model=Model("m", ""), latency_ms=Latency(0, 0, 0, 0, 0, 12.5), dropped=0,
    detections=[Detection(0, "person", 0.91, (0, 0, 1, 1))],
)  # fmt: skip
STATUS = StatusMessage(
    schema=1, boot_id="b", stream="cam", state="LIVE", reason="", detail="", epoch=0, since=100.0, published_at=100.0,
    retry_in_s=None, codec="h264", decoder="software", width=1, height=1, fps=25.0, received=0, published=0,
    dropped={}, reconnects=0,
)  # fmt: skip


def frames(board: Board, begin: float, end: float, fps: float, **changes: Any) -> None:
    """Frames of 10, 20, … ms latency at an even rate."""
    seq = board.rows["cam"].next_seq or 0 if "cam" in board.rows else 0
    for i in range(round((end - begin) * fps)):
        board.add(msgspec.structs.replace(FRAME, seq=seq + i, **changes), begin + i / fps)


def status(board: Board, now: float, **changes: Any) -> None:
    board.add(msgspec.structs.replace(STATUS, **changes), now)


def printed(board: Board, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(board, "tcp://127.0.0.1:5555", width=width))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


def test_what_classifiers_say_stands_beside_the_class() -> None:
    board = Board()
    red = [Attribute("colour", "red", 0.9, 3, 1)]
    boxes = [Detection(2, "car", 0.9, (0, 0, 9, 9), attributes=red), Detection(2, "car", 0.8, (0, 0, 9, 9))]
    board.add(msgspec.structs.replace(FRAME, detections=[boxes[0], *boxes]), 1.0)
    assert board.rows["cam"].last == "2 car red, 1 car (0.90)"


def test_the_burst_after_a_reconnect_is_no_frame_rate() -> None:
    board = Board()
    frames(board, 0.0, 10.0, 25)
    row = board.rows["cam"]
    assert row.fps(10.0) == 25
    frames(board, 20.0, 20.1, 500, epoch=1)  # two seconds of video, sent at once
    assert row.fps(20.1) == 0
    frames(board, 20.1, 23.0, 25, epoch=1)
    assert row.fps(23.0) == pytest.approx(25, abs=0.6)
    assert len(row.recent) == 50 + 72  # latencies count from the first frame on


def test_a_subscriber_that_comes_late_waits_for_nothing() -> None:
    board = Board()
    frames(board, 50.0, 51.0, 10, epoch=7)
    assert board.rows["cam"].fps(51.0) == 10
    frames(board, 51.0, 51.0 + SETTLE_S / 2, 10, epoch=7)
    assert board.rows["cam"].fps(51.5) == 10


def test_a_stream_that_stopped_has_no_rate() -> None:
    board = Board()
    frames(board, 0.0, 10.0, 25)
    assert board.rows["cam"].fps(12.5) == pytest.approx(12.5, abs=0.2)
    board.rows["cam"].trim(16.0)
    assert board.rows["cam"].fps(16.0) == 0


def test_what_is_down_comes_first_then_what_is_degraded_and_says_since_when() -> None:
    board = Board()
    for name, state, reason in (
        ("a", "LIVE", ""), ("b", "LIVE", "overload"), ("c", "BACKOFF", "refused"), ("d", "FAILED", "auth"),
        ("e", "LIVE", "clock_jump"), ("f", "ENDED", "eof"), ("g", "LIVE", "late"), ("h", "CONNECTING", ""),
    ):  # fmt: skip
        status(board, 0.0, stream=name, state=state, reason=reason, since=100.0, published_at=400.0)
    assert [row.stream for row in board.sorted()] == ["c", "d", "b", "g", "a", "e", "f", "h"]
    assert [board.rows[name].condition for name in "abcg"] == ["LIVE", "DEGRADED", "BACKOFF", "DEGRADED"]
    assert board.rows["c"].note(60.0) == "down for 6 min"
    assert board.rows["h"].note(60.0) == ""  # it has not been up yet
    status(board, 60.0, stream="c", state="CONNECTING", since=100.0, published_at=460.0)
    board.rows["c"].frames = 1
    assert (board.rows["c"].urgency, board.rows["c"].note(65.0)) == (0, "down for 6 min")


@pytest.mark.parametrize("width", [80, 100, 200])
def test_what_is_counted_is_shown_in_full(width: int) -> None:
    """Each stream's counts have the whole width, and as many lines as they need."""
    line = {"crossings": {"left_to_right": {"person": 12, "car": 3}, "right_to_left": {}}}
    zones: dict[str, Any] = {f"parking-level-{n}": {"occupancy": n, "stale": n == 2} for n in range(4)}
    zones["hall"] = {"occupancy": None, "stale": True}
    board = Board()
    frames(board, 0.0, 1.0, 10, stream="front-gate-of-the-building", counts={"zones": zones, "lines": {"gate": line}})
    frames(board, 0.0, 1.0, 10)
    shown = printed(board, width)
    assert max(map(len, shown)) <= width
    head = next(i for i, text in enumerate(shown) if "zones and lines" in text)
    column = shown[head].index("zones and lines")
    below = [text[column:].strip() for text in shown[head + 2 :]]
    assert " ".join(below).split(", ") == [
        "parking-level-0 0", "parking-level-1 1", "parking-level-2 2 (stale)", "parking-level-3 3", "hall ? (stale)",
        "gate left_to_right 15", "right_to_left 0",
    ]  # fmt: skip
    assert sum("1 person (0.91)" in text for text in shown) == 2, "the boxes keep their column"


@pytest.mark.parametrize("width", [80, 100, 132, 200])
def test_it_fits_and_its_columns_stay_where_they_are(width: int) -> None:
    board = Board()
    long = "camera-at-the-north-gate-of-the-second-yard"
    frames(board, 0.0, 1.0, 3)
    status(board, 0.0, stream=long, state="BACKOFF", reason="timeout_open")
    status(board, 0.0)
    before = printed(board, width)
    row = board.rows["cam"]
    row.state, row.reason = "LIVE", "decoder_crashed"
    row.dropped, row.missed, row.frames = 123_456, 98_765, 87_654_321
    row.recent.extend([(0.0, 123_456.7)] * 5000)
    row.last = "12 person, 4 bicycle, 3 motorcycle, 2 car (0.97)"
    after = printed(board, width)
    assert max(map(len, (*before, *after))) <= width
    assert len(before) == len(after) == 5  # no row is wrapped
    assert before[1] == after[1]  # the heads
    assert "123456" in after[4]
    assert "timeout_open" in after[3] or width == 80
    assert after[3].startswith(long[:12])


def test_large_numbers_keep_to_their_columns() -> None:
    board = Board()
    frames(board, 0.0, 1.0, 3)
    board.rows["cam"].dropped = 1_234_567_890
    assert " 1235M " in printed(board, 80)[3]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_camera_that_cannot_see_is_told_before_those_that_can() -> None:
    board = Board()
    status(board, 1.0, stream="a")
    status(board, 1.0, stream="b", camera_health=("covered", "frozen"))
    status(board, 1.0, stream="c", camera_health=())
    assert [row.stream for row in board.sorted()] == ["b", "a", "c"]
    assert any("BLIND covered, frozen" in line for line in printed(board, 120))
    assert board.rows["b"].view(1.0)["camera_health"] == ["covered", "frozen"]
    status(board, 2.0, stream="b", camera_health=("covered",), state="BACKOFF", reason="timeout")
    assert board.rows["b"].condition == "BACKOFF"
    status(board, 3.0, stream="b", camera_health=())
    assert board.rows["b"].condition == "LIVE"
