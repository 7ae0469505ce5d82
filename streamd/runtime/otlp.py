"""Export over OTLP: the metrics of /metrics, and a trace of a frame per stream now and then. Off by default.

Nothing is measured for it: metrics are converted from the Prometheus registry, and a trace is made of the times that
every frame carries anyway. Encoding and sending is OpenTelemetry's own exporter, over HTTP with protobuf.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import structlog

from streamd import __version__
from streamd.config import OtlpSettings
from streamd.errors import ConfigError
from streamd.flow.threads import NamedThread
from streamd.security.redact import redact
from streamd.telemetry.logs import Throttle
from streamd.types import Detections

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric
    from opentelemetry.sdk.trace import ReadableSpan
    from prometheus_client import CollectorRegistry, Counter
    from prometheus_client import Metric as Family

log = structlog.get_logger(__name__)

SEND_S = 5.0
"""Longest time that one export may take."""
TRACES_S = 2.0
"""How often collected traces are sent."""
MOST_TRACES = 1000
"""Traces that may wait to be sent."""
CLOSE_S = 2.0
_WARN_EVERY_S = 60.0
_STAGES = ("decode", "queue", "preprocess", "infer", "postprocess")


def check_installed() -> None:
    """
    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    try:
        import opentelemetry.exporter.otlp.proto.http.metric_exporter
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"otlp: {error.name} is not installed: pip install 'streamd[otlp]'") from None


class OtlpExporter:
    """Sends metrics and traces in its own thread. What cannot be sent is counted and dropped.

    Args:
        settings: where to, and how often.
        instance: identity of this process.
        registry: what /metrics shows; None: no metrics (the parent of a worker has them).
        count: exports by signal (`metrics`, `traces`) and result (`ok`, `failed`).

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(
        self, settings: OtlpSettings, instance: str, registry: CollectorRegistry | None, count: Counter
    ) -> None:
        check_installed()
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        # It logs each attempt, with the whole address, through Python's own logging; `_report` says it once a minute.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._settings, self._count = settings, count
        self._registry = registry if settings.metrics_every_s else None
        base = settings.endpoint.rstrip("/")
        headers = {h.name: h.value.get_secret_value() for h in settings.headers}
        options: dict[str, Any] = {"headers": headers, "timeout": SEND_S}
        self._metrics = OTLPMetricExporter(endpoint=f"{base}/v1/metrics", **options)
        self._spans = OTLPSpanExporter(endpoint=f"{base}/v1/traces", **options)
        self._resource = Resource(
            {
                "service.name": "streamd",
                "service.version": __version__,
                "service.instance.id": instance,
                "host.name": socket.gethostname(),
            }
        )
        self._scope = InstrumentationScope("streamd", __version__)
        self._began_ns = time.time_ns()
        self._next: dict[str, int] = {}
        self._every_ns = int(settings.traces_every_s * 1e9)
        self._traced: deque[tuple[Detections, int]] = deque(maxlen=MOST_TRACES)
        self._random = random.Random()  # noqa: S311 - identifiers, no secrets
        self._throttle = Throttle(_WARN_EVERY_S)
        self._closed = threading.Event()
        self._thread = NamedThread(self._run, "otlp")
        self._thread.start()

    @property
    def traces(self) -> bool:
        """Whether `frame` has a use for frames."""
        return self._every_ns > 0

    def frame(self, detections: Detections) -> None:
        """Takes note of a published frame whose stream is due. One thread per stream."""
        now = detections.times.postprocessed
        due = self._next.get(detections.stream)
        if due is None:
            # Spread over the interval: streams that start together are not traced together.
            self._next[detections.stream] = now + int(self._random.random() * self._every_ns)
        elif now >= due:
            self._next[detections.stream] = now + self._every_ns
            self._traced.append((detections, time.time_ns() - time.monotonic_ns()))

    def close(self) -> None:
        """Sends what is there, for a moment at most."""
        self._closed.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        every = self._settings.metrics_every_s
        next_metrics = time.monotonic() + every if self._registry is not None else float("inf")
        while not self._closed.wait(max(0.0, min(TRACES_S, next_metrics - time.monotonic()))):
            self._send_traces()
            if time.monotonic() >= next_metrics:
                self._send_metrics()
                next_metrics = max(next_metrics + every, time.monotonic())
        self._send_traces()
        if self._registry is not None:
            self._send_metrics()

    def _send_traces(self) -> None:
        if not self._traced:
            return
        frames = [self._traced.popleft() for _ in range(len(self._traced))]
        self._report("traces", lambda: self._spans.export([span for f in frames for span in self._spans_of(*f)]))

    def _send_metrics(self) -> None:
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics

        assert self._registry is not None
        found = metrics_of(self._registry.collect(), self._began_ns, time.time_ns())
        scope = ScopeMetrics(self._scope, found, "")
        data = MetricsData([ResourceMetrics(self._resource, [scope], "")])
        self._report("metrics", lambda: self._metrics.export(data, timeout_millis=SEND_S * 1e3))

    def _report(self, signal: str, send: Callable[[], Any]) -> None:
        """Sends, counts, and says once a minute that it does not work."""
        problem = "refused or not reachable"
        try:
            good = send().name == "SUCCESS"
        except Exception as error:  # noqa: BLE001 - whatever it is, the next export is tried
            good, problem = False, f"{type(error).__name__}: {error}"
        self._count.labels(signal=signal, result="ok" if good else "failed").inc()
        if not good and self._throttle.take() is not None:
            log.warning(
                "OTLP export failed", signal=signal, endpoint=redact(self._settings.endpoint), error=redact(problem)
            )

    def _spans_of(self, detections: Detections, offset_ns: int) -> Iterator[ReadableSpan]:
        """One span of the frame, and one of each stage within it."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

        trace = self._random.getrandbits(128) or 1

        def context() -> SpanContext:
            return SpanContext(trace, self._random.getrandbits(64) or 1, False, TraceFlags(TraceFlags.SAMPLED))

        times = [t + offset_ns for t in detections.times]
        attributes: dict[str, Any] = {
            "streamd.stream": detections.stream,
            "streamd.epoch": detections.epoch,
            "streamd.seq": detections.seq,
            "streamd.detections": len(detections.score),
            "streamd.model": detections.model.name,
        }
        common: dict[str, Any] = {"resource": self._resource, "instrumentation_scope": self._scope}
        whole = context()
        yield ReadableSpan(
            "frame", whole, attributes=attributes, kind=SpanKind.CONSUMER, start_time=times[0], end_time=times[-1],
            **common,
        )  # fmt: skip
        for name, start, end in zip(_STAGES, times, times[1:], strict=False):
            yield ReadableSpan(name, context(), parent=whole, start_time=start, end_time=end, **common)


def metrics_of(families: Iterable[Family], began_ns: int, now_ns: int) -> list[Metric]:
    """Prometheus metrics in OpenTelemetry's form, cumulative.

    Counters are sums without `_total`, which exporters to Prometheus add again; what is neither a counter nor a
    histogram is a gauge.

    Args:
        families: as a registry collects them.
        began_ns: since when they count, Unix nanoseconds.
        now_ns: of the values.
    """
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, Metric, NumberDataPoint, Sum

    found = []
    for family in families:
        data: Any
        if family.type == "histogram":
            points = _histogram_points(family, began_ns, now_ns)
            data = Histogram(points, AggregationTemporality.CUMULATIVE)
        else:
            numbers = [
                NumberDataPoint(s.labels, began_ns, now_ns, float(s.value))
                for s in family.samples
                if not s.name.endswith("_created")
            ]
            counter = family.type == "counter"
            data = Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True) if counter else Gauge(numbers)
            points = numbers
        if points:
            found.append(Metric(family.name, family.documentation, "", data))
    return found


def _histogram_points(family: Family, began_ns: int, now_ns: int) -> list[Any]:
    from opentelemetry.sdk.metrics import export

    point: Any = export.HistogramDataPoint  # its least and greatest value may be None, which its types do not say
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in family.samples:
        labels: Mapping[str, str] = {k: v for k, v in sample.labels.items() if k != "le"}
        key = tuple(sorted(labels.items()))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[key] = sample.value
    points = []
    for key, bounds in buckets.items():
        bounds.sort()
        cumulative = [int(count) for _, count in bounds]
        counts = [after - before for before, after in zip([0, *cumulative], cumulative, strict=False)]
        points.append(
            point(
                attributes=dict(key),
                start_time_unix_nano=began_ns,
                time_unix_nano=now_ns,
                count=cumulative[-1],
                sum=sums.get(key, 0.0),
                bucket_counts=counts,
                explicit_bounds=[b for b, _ in bounds[:-1]],
                min=None,
                max=None,
            )
        )
    return points
