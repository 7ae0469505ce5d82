"""A real Prometheus with our configuration scrapes a real daemon: every query of the dashboard finds data there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.behaviour.daemon import daemon, until
from tests.configs.prometheus import Prometheus, prometheus, shown
from tests.configs.test_observability import ELSEWHERE, STREAMS, panels

DEAD = "  - {id: dead, url: 'rtsp://127.0.0.1:9/', reconnect: {initial_s: 0.2, max_s: 0.2}}\n"


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a daemon in trouble for some seconds."""
    folder = tmp_path_factory.mktemp("prometheus")
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(daemon(folder, STREAMS.replace("sinks:", f"{DEAD}sinks:")))
        job = {"job_name": "streamd", "static_configs": [{"targets": [f"127.0.0.1:{running.port}"]}]}
        server = stack.enter_context(prometheus(folder, [job]))
        until(lambda: server.values('count_over_time(up{job="streamd"}[1m])') >= [5.0], 60, "five scrapes")
        # An average of seconds in which everything has happened at least once.
        until(lambda: server.values("increase(streamd_stream_reconnects_total[1m]) > 0"), 30, "a reconnect was seen")
        yield server


@pytest.mark.parametrize(("title", "expression"), panels())
def test_every_panel_has_something_to_show(scraped: Prometheus, title: str, expression: str) -> None:
    values = scraped.values(shown(expression))
    if any(name in expression for name in ELSEWHERE):
        return  # it was accepted; there is nothing to measure here
    deadline = time.monotonic() + 30
    while not values and time.monotonic() < deadline:
        time.sleep(0.5)
        values = scraped.values(shown(expression))
    assert values, f"{title}: {shown(expression)}"


def test_the_numbers_are_the_daemon_s(scraped: Prometheus) -> None:
    assert scraped.values('sum(streamd_stream_state{state="LIVE"})')[0] >= 2
    assert 1 <= scraped.values('rate(streamd_frames_published_total{stream="slow"}[10s])')[0] <= 10  # max_fps 5
    # 20 ms a batch: no stage is faster than the engine, and the buckets are fine enough to tell.
    [median] = scraped.values(
        "histogram_quantile(0.5, sum by (le) (rate(streamd_stage_duration_seconds_bucket{stage='infer'}[10s])))"
    )
    assert 0.015 < median < 0.25


def test_the_variables_of_the_dashboard_are_filled(scraped: Prometheus) -> None:
    assert len(scraped.ask("label/instance/values", **{"match[]": "streamd_build_info"})) == 1
    streams = scraped.ask("label/stream/values", **{"match[]": 'streamd_stream_state{instance=~".*"}'})
    assert streams == ["breaks", "busy", "dead", "slow"]


def test_the_rules_are_evaluated_and_see_the_trouble(scraped: Prometheus) -> None:
    def pending() -> set[tuple[str, str]]:
        return {(labels["alertname"], labels.get("stream") or labels.get("sink", "")) for labels in scraped.alerts()}

    wanted = {
        ("StreamdCameraDown", "dead"), ("StreamdFramesDropped", "busy"), ("StreamdObjectiveBurning", "busy"),
        ("StreamdSinkFailing", "jsonl0"),
    }  # fmt: skip
    until(lambda: wanted <= pending(), 30, "the alerts are pending")
    rules = [rule for group in scraped.ask("rules")["groups"] for rule in group["rules"]]
    assert [(r["name"], r.get("lastError")) for r in rules if r["health"] != "ok"] == []
    assert ("StreamdCameraDown", "slow") not in pending()
