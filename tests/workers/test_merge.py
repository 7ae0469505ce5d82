"""The metrics of several processes as those of one."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streamd.telemetry.metrics import Metrics
from streamd.workers.merge import Merged, of_the_dead
from streamd.workers.report import Report, collect


def report(worker: int, *streams: str) -> Report:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.batch_size.observe(worker + 1)
    metrics.sink_messages.labels(sink="z").inc(99)
    metrics.build_info.labels(version="1", backend="B", model="m").set(1)
    for i, stream in enumerate(streams):
        metrics.stream(stream).received = 10 * (worker + 1) + i
        metrics.stream(stream).drop("ring_full", 2)
        metrics.stream(stream).state = "LIVE"
        metrics.capture_to_publish.tally(stream).observe(0.01)
    return Report(worker, worker + 1, 1, None, [], {}, collect(registry))


def shown(reports: list[Report], owners: dict[str, int]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    own, registry = CollectorRegistry(), CollectorRegistry()
    Metrics(own).sink_messages.labels(sink="z").inc(7)
    Merged(registry, own, lambda: reports, lambda: owners)
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert len({f.name for f in families}) == len(families), "each family once"
    samples = [s for f in families for s in f.samples]
    out = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}
    assert len(out) == len(samples), "each sample once"
    return out


def of(name: str, found: dict[Any, float]) -> dict[Any, float]:
    return {labels: value for (n, labels), value in found.items() if n == name}


def test_streams_are_shown_as_in_one_process_and_the_rest_by_worker() -> None:
    found = shown([report(0, "a", "b"), report(1, "c")], {"a": 0, "b": 0, "c": 1})
    received = {(("stream", "a"),): 10, (("stream", "b"),): 11, (("stream", "c"),): 20}
    assert of("streamd_frames_received_total", found) == received
    assert found["streamd_capture_to_publish_seconds_count", (("stream", "c"),)] == 1
    assert of("streamd_batch_size_sum", found) == {(("worker", "0"),): 1, (("worker", "1"),): 2}
    assert of("streamd_sink_messages_total", found) == {(("sink", "z"),): 7}, "counted where it is published"
    assert set(of("streamd_config_last_reload_success", found)) == {()}


def test_a_stream_that_has_moved_is_told_of_by_its_new_worker_only() -> None:
    found = shown([report(0, "a"), report(1, "a")], {"a": 1})
    assert of("streamd_frames_received_total", found) == {(("stream", "a"),): 20}


@pytest.mark.parametrize("lost", [("a",), ()])
def test_what_stays_of_a_worker_that_has_ended(lost: tuple[str, ...]) -> None:
    found = shown([of_the_dead(report(0, "a"), lost)], {"a": 0})
    assert of("streamd_frames_received_total", found) == {(("stream", "a"),): 10}
    assert found["streamd_stream_state", (("state", "BACKOFF"), ("stream", "a"))] == bool(lost)
    assert found["streamd_stream_state", (("state", "LIVE"), ("stream", "a"))] == (not lost)
    assert of("streamd_build_info", found) == {}
    assert of("streamd_last_frame_timestamp_seconds", found) == {}
