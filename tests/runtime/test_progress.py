"""What the log says while many streams open."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from streamd.runtime.progress import OpeningProgress
from streamd.types import StreamState


class Streams:
    """So many streams, some of which are up, seen at times of the test's own."""

    def __init__(self, total: int) -> None:
        self.total, self.up, self.now = total, 0, 0.0
        self.down: StreamState = "CONNECTING"
        self.progress = OpeningProgress(self.states)

    def states(self) -> list[StreamState]:
        up: StreamState = "LIVE"
        return [up] * self.up + [self.down] * (self.total - self.up)

    def run(self, seconds: float, up: int | None = None) -> list[dict[str, Any]]:
        """Lets time pass, with so many streams up from its beginning on."""
        self.up = self.up if up is None else up
        with capture_logs() as logs:
            end = self.now + seconds
            while self.now < end:
                self.progress.look(self.now)
                self.now += 0.25
        return [{k: v for k, v in line.items() if k != "log_level"} for line in logs]


def test_a_start_is_told_every_five_seconds_and_at_its_end() -> None:
    streams = Streams(208)
    assert streams.run(3) == []
    assert streams.run(3, 60) == [{"event": "opening streams", "opened": 60, "of": 208, "seconds": 5.0}]
    assert streams.run(5, 150) == [{"event": "opening streams", "opened": 150, "of": 208, "seconds": 10.0}]
    assert streams.run(10, 208) == [{"event": "all streams opened", "streams": 208, "seconds": 11.0}]


def test_one_of_many_that_breaks_is_no_news_but_a_tenth_is() -> None:
    streams = Streams(100)
    streams.run(1, 100)
    streams.down = "BACKOFF"
    assert streams.run(60, 99) == []
    streams.run(1, 10)
    assert [line["event"] for line in streams.run(2, 100)] == ["all streams opened"]


def test_what_does_not_open_is_told_once() -> None:
    streams = Streams(20)
    streams.run(6, 15)
    lines = streams.run(300)
    assert [line["event"] for line in lines] == ["some streams do not open"]
    assert (lines[0]["opened"], lines[0]["of"]) == (15, 20)
    streams.run(1, 20)
    streams.run(1, 0)
    assert [line["event"] for line in streams.run(1, 20)] == ["all streams opened"]


def test_a_few_streams_have_lines_of_their_own() -> None:
    streams = Streams(15)
    assert streams.run(60) == []
