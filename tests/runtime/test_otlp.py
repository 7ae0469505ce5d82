"""Export to an OpenTelemetry collector: what arrives, as OpenTelemetry's own definitions read it."""

from __future__ import annotations

import gzip
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from structlog.testing import capture_logs

from streamd.config import OtlpSettings
from streamd.runtime.otlp import OtlpExporter
from streamd.types import Boxes, Detections, ModelInfo, StageTimes
from tests.behaviour.daemon import daemon, until


class Collector:
    """Takes what is sent to it and keeps it."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.status = 200
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def metrics(self) -> dict[str, Any]:
        """The last export, by name."""
        body = next(body for path, _, body in reversed(self.requests) if path == "/v1/metrics")
        request = ExportMetricsServiceRequest.FromString(body)
        return {m.name: m for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics}

    def spans(self) -> list[Any]:
        requests = [ExportTraceServiceRequest.FromString(b) for path, _, b in self.requests if path == "/v1/traces"]
        return [x for q in requests for r in q.resource_spans for s in r.scope_spans for x in s.spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def counter() -> Counter:
    return Counter("exports", "", ["signal", "result"], registry=CollectorRegistry())


def value(count: Counter, signal: str, result: str) -> float:
    return float(count.labels(signal=signal, result=result)._value.get())


def settings(url: str, **values: Any) -> OtlpSettings:
    return OtlpSettings.model_validate({"endpoint": url, "metrics_every_s": 0, "traces_every_s": 0} | values)


def attributes(point: Any) -> dict[str, str]:
    return {a.key: a.value.string_value for a in point.attributes}


def test_metrics_arrive_as_they_are(collector: Collector) -> None:
    registry = CollectorRegistry()
    frames = Counter("frames", "Frames.", ["stream"], registry=registry)
    frames.labels(stream="a").inc(3)
    frames.labels(stream="b").inc(4)
    Gauge("temperature", "In degrees.", registry=registry).set_function(lambda: -2)  # no float
    latency = Histogram("latency_seconds", "", ["stream"], buckets=(0.1, 1), registry=registry)
    for seconds in (0.05, 0.06, 0.5, 7):
        latency.labels(stream="a").observe(seconds)
    headers = [{"name": "Authorization", "value": "Bearer some-token"}]
    count = counter()
    OtlpExporter(settings(collector.url, metrics_every_s=3600, headers=headers), "me", registry, count).close()

    assert [(path, h["authorization"]) for path, h, _ in collector.requests] == [("/v1/metrics", "Bearer some-token")]
    assert value(count, "metrics", "ok") == 1
    found = collector.metrics()
    total = found["frames"].sum
    assert total.is_monotonic
    assert total.aggregation_temporality == 2  # cumulative
    assert {attributes(p)["stream"]: p.as_double for p in total.data_points} == {"a": 3, "b": 4}
    assert [p.as_double for p in found["temperature"].gauge.data_points] == [-2]
    (point,) = found["latency_seconds"].histogram.data_points
    assert (list(point.explicit_bounds), list(point.bucket_counts)) == ([0.1, 1], [2, 1, 1])
    assert (point.count, point.sum, attributes(point)) == (4, pytest.approx(7.61), {"stream": "a"})
    body = ExportMetricsServiceRequest.FromString(collector.requests[0][2])
    resource = attributes(body.resource_metrics[0].resource)
    assert (resource["service.name"], resource["service.instance.id"]) == ("streamd", "me")


def frame(stream: str, seq: int, captured_ns: int) -> Detections:
    times = StageTimes(*(captured_ns + ms * 1_000_000 for ms in (0, 5, 7, 8, 18, 20)))
    none = np.empty(0, np.float32)
    return Detections(
        stream, 0, seq, None, time.time_ns(), 10, 10, times, ModelInfo("m", "0", ("x",)),
        Boxes(np.empty((0, 4), np.float32), none, np.empty(0, np.int32)),
    )  # fmt: skip


def test_one_frame_of_each_stream_is_traced_once_an_interval(collector: Collector) -> None:
    count = counter()
    exporter = OtlpExporter(settings(collector.url, traces_every_s=1), "me", None, count)
    begun = time.monotonic_ns()
    for seq in range(100):  # ten seconds at ten frames a second
        for stream in ("a", "b"):
            exporter.frame(frame(stream, seq, begun + seq * 100_000_000))
    exporter.close()
    assert value(count, "traces", "ok") >= 1
    spans = collector.spans()
    whole = [s for s in spans if s.name == "frame"]
    by_stream = {name: [s for s in whole if attributes(s)["streamd.stream"] == name] for name in ("a", "b")}
    assert all(9 <= len(found) <= 10 for found in by_stream.values())
    first = whole[0]
    stages = sorted((s for s in spans if s.parent_span_id == first.span_id), key=lambda s: s.start_time_unix_nano)
    assert [s.name for s in stages] == ["decode", "queue", "preprocess", "infer", "postprocess"]
    assert [(s.end_time_unix_nano - s.start_time_unix_nano) / 1e6 for s in stages] == [5, 2, 1, 10, 2]
    assert {s.trace_id for s in stages} == {first.trace_id}
    assert len({s.trace_id for s in whole}) == len(whole)
    assert first.end_time_unix_nano - first.start_time_unix_nano == 20_000_000
    assert abs(first.start_time_unix_nano - time.time_ns()) < 60e9


def test_a_collector_that_refuses_costs_a_warning_and_is_counted(collector: Collector) -> None:
    collector.status = 403
    count = counter()
    with capture_logs() as logged:
        OtlpExporter(settings(collector.url, metrics_every_s=3600), "me", CollectorRegistry(), count).close()
    assert value(count, "metrics", "failed") == 1
    assert [(e["event"], e["signal"], e["endpoint"]) for e in logged] == [
        ("OTLP export failed", "metrics", collector.url)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_daemon_exports_both(tmp_path: Path, collector: Collector, workers: int) -> None:
    text = f"""
model: {{path: none}}
engine: {{kind: "null"}}
workers: {workers}
otlp: {{endpoint: "{collector.url}", metrics_every_s: 1, traces_every_s: 0.5}}
streams:
  - {{id: a, kind: synthetic, fps: 20}}
  - {{id: b, kind: synthetic, fps: 20}}
"""
    with daemon(tmp_path, text):
        until(
            lambda: {attributes(s)["streamd.stream"] for s in collector.spans() if s.name == "frame"} == {"a", "b"}, 60
        )
        until(
            lambda: (
                {
                    attributes(p)["stream"]
                    for p in collector.metrics()["streamd_frames_published"].sum.data_points
                    if p.as_double > 0
                }
                == {"a", "b"}
            ),
            60,
        )
