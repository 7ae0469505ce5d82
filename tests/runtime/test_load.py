"""Load in statuses, metrics and the log."""

from __future__ import annotations

from typing import cast

from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from streamd.flow.ring import Ring
from streamd.flow.runner import StreamRunner
from streamd.runtime.health import health_of
from streamd.runtime.load import LoadWatch
from streamd.runtime.service import condition_of, status_line
from streamd.telemetry.metrics import Metrics
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Frame, StreamStatus


class Stream:
    """A live stream without a source: what `LoadWatch` sees of one."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self.statuses: list[StreamStatus] = []
        self.counters: StreamMetrics = metrics.stream(name)
        ring: Ring[Frame] = Ring(1)
        self.runner = StreamRunner(name, lambda: cast("object", None), ring, self.counters, self.statuses.append)  # type: ignore[arg-type,return-value]
        self.runner._reporter.status = StreamStatus(name, "LIVE", "", "", 0, 1)

    def second(self, published: int, dropped: int) -> None:
        self.counters.received += published + dropped
        self.counters.published += published
        self.counters.drop("ring_full", dropped)


def test_overload_is_told_by_status_metric_health_and_one_log_line_a_minute() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    streams = [Stream(f"cam{i}", metrics) for i in range(10)]
    watch = LoadWatch()

    def play(first: int, last: int, dropped: int) -> None:
        for second in range(first, last):
            for stream in streams:
                stream.second(4, dropped)
            for part in (0.0, 0.3, 0.6):  # the main loop is faster than once a second
                watch.look(second + part, ((s.runner, s.counters) for s in streams))

    with capture_logs() as lines:
        play(0, 135, 21)
        told = [line for line in lines if line["event"] == "streams degraded"]
        assert [(line["degraded"], line["of"], line["reason"]) for line in told] == [(10, 10, "overload")] * 3
        assert told[0]["streams"] == "cam0, cam1, cam2, cam3, cam4, cam5, cam6, cam7, 2 more"
        assert "84 % of its frames" in told[0]["detail"]
        status = streams[0].runner.status
        assert (status.state, status.reason, status.degraded) == ("LIVE", "overload", True)
        assert [len(s.statuses) for s in streams] == [1] * 10
        value = registry.get_sample_value
        assert value("streamd_stream_degraded", {"stream": "cam0", "reason": "overload"}) == 1
        assert value("streamd_stream_degraded", {"stream": "cam0", "reason": "late"}) == 0
        assert value("streamd_stream_failures_total", {"stream": "cam0", "reason": "overload"}) == 1
        ok = health_of(None, "boot", (), None, [s.runner.status for s in streams[:2]])
        assert ok["ok"]
        assert ok["degraded"] == {"cam0": "overload", "cam1": "overload"}
        line = status_line(
            map(condition_of, [streams[0].runner.status, StreamStatus("x", "LIVE", "", "", 0, 1)]), 5, ""
        )
        assert line == "1 degraded, 1 live; 5 frames published"
        del lines[:]
        play(135, 150, 0)
        assert [line["event"] for line in lines if line["log_level"] != "debug"] == ["streams are no longer degraded"]
    assert [s.reason for s in streams[0].statuses] == ["overload", ""]
    assert value("streamd_stream_degraded", {"stream": "cam0", "reason": "overload"}) == 0


def test_streams_that_are_read_too_slowly_are_told_first_with_how_much() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    behind, overloaded = Stream("behind", metrics), Stream("overloaded", metrics)
    watch = LoadWatch()
    with capture_logs() as lines:
        for second in range(15):
            overloaded.second(4, 21)
            behind.second(25, 0)
            behind.counters.behind_s = 3.25
            watch.look(second, ((s.runner, s.counters) for s in (overloaded, behind)))
        status = behind.runner.status
        assert (status.state, status.reason, status.behind_s, status.degraded) == ("LIVE", "behind", 3.2, True)
        assert overloaded.runner.status.behind_s is None
        value = registry.get_sample_value
        assert value("streamd_stream_behind_seconds", {"stream": "behind"}) == 3.25
        assert value("streamd_stream_behind_seconds", {"stream": "overloaded"}) is None
        assert value("streamd_stream_degraded", {"stream": "behind", "reason": "behind"}) == 1
        assert value("streamd_stream_failures_total", {"stream": "behind", "reason": "behind"}) == 1
        behind.counters.behind_s = 0.0
        for second in range(15, 30):
            overloaded.second(25, 0)
            watch.look(second, ((s.runner, s.counters) for s in (overloaded, behind)))
    told = [(line["event"], line.get("reason")) for line in lines if line["log_level"] != "debug"]
    assert told == [("streams degraded", "behind"), ("streams are no longer degraded", None)]
    assert all(
        "too slow for so many cameras" in line["detail"] for line in lines if line["event"] == "streams degraded"
    )
    assert (behind.runner.status.reason, behind.runner.status.behind_s) == ("", None)
