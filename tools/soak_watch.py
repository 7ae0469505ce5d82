"""Measurements of a soak test: samples, a subscriber that counts missing frames, and the result."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from gauge import Slope, held, slope

from streamd.sinks.message import DetectionsMessage, StatusMessage, decode
from tests.behaviour.daemon import Running

IN_FLIGHT_LIMIT = 200
"""Largest possible number of frames of one stream between its ring and the sinks."""
Metrics = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Keeper:
    """A subscriber that always reads: latencies, and frames that are missing without a message reporting it."""

    def __init__(self, endpoint: str) -> None:
        self.untold = 0
        """Missing frames, minus those reported in `dropped`."""
        self.frames = 0
        self.negative = 0
        """Latencies below zero."""
        self.states: dict[str, StatusMessage] = {}
        self._next: dict[str, int] = {}
        self._latencies: list[float] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._endpoint = endpoint
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.subscribe(b"")
            socket.connect(self._endpoint)
            while not self._stop.is_set() or socket.poll(300):
                if not socket.poll(100):
                    continue
                message = decode(socket.recv_multipart())
                if isinstance(message, StatusMessage):
                    self.states[message.stream] = message
                    continue
                if not isinstance(message, DetectionsMessage):
                    continue
                self.frames += 1
                self.untold += message.seq - self._next.get(message.stream, message.seq - message.dropped)
                self.untold -= message.dropped
                self._next[message.stream] = message.seq + 1
                self.negative += message.latency_ms.total < 0 or message.latency_ms.queue < 0
                with self._lock:
                    self._latencies.append(message.latency_ms.total)

    def latencies(self) -> list[float]:
        """Milliseconds, of all frames since the last call."""
        with self._lock:
            found, self._latencies = self._latencies, []
        return found

    def close(self) -> None:
        """Receives messages in transit, then ends."""
        self._stop.set()
        self._thread.join(10)


@dataclass(slots=True)
class Sample:
    """One sample of the daemon."""

    hours: float
    calm: bool
    """All streams were healthy, and had been for a while."""
    rss: int
    fds: int
    threads: int
    device: float | None
    """Device memory in use, bytes; None without a GPU."""
    p50: float | None
    p99: float | None
    """Capture to publish, milliseconds, since the sample before."""


def in_flight(metrics: Metrics) -> dict[str, float]:
    """received - published - dropped, by stream."""
    signs = {"received": 1, "published": -1, "dropped": -1}
    found: dict[str, float] = {}
    for (name, labels), value in metrics.items():
        sign = signs.get(name.removeprefix("streamd_frames_").removesuffix("_total"))
        if sign is not None:
            stream = dict(labels)["stream"]
            found[stream] = found.get(stream, 0) + sign * value
    return found


def device_memory(metrics: Metrics) -> float | None:
    """Bytes in use on all devices, by any process."""
    of: Counter[str] = Counter()
    for (name, labels), value in metrics.items():
        if name == "streamd_device_memory_bytes":
            of[dict(labels)["kind"]] += int(value)
    return float(of["device_total"] - of["device_free"]) if of["device_total"] else None


class Watch:
    """Samples the daemon in a separate thread."""

    def __init__(self, running: Running, keeper: Keeper, every_s: float) -> None:
        self.samples: list[Sample] = []
        self.wrong: list[str] = []
        """Samples in which received = published + dropped + in flight did not hold."""
        self.metrics: Metrics = {}
        """Of the last sample."""
        self.calm = False
        self._running, self._keeper, self._every = running, keeper, every_s
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self._sample()
            except OSError as error:
                self.wrong.append(f"no metrics: {error}")

    def _sample(self) -> None:
        calm = self.calm
        metrics = self.metrics = self._running.metrics()
        for stream, count in in_flight(metrics).items():
            if not 0 <= count <= IN_FLIGHT_LIMIT:
                self.wrong.append(f"{stream}: {count:g} frames in flight")
        now, latencies = held(self._running.process.pid), self._keeper.latencies()
        p50, p99 = (float(p) for p in np.percentile(latencies, [50, 99])) if latencies else (None, None)
        hours = (time.monotonic() - self._started) / 3600
        calm = calm and self.calm
        self.samples.append(Sample(hours, calm, now.rss, now.fds, now.threads, device_memory(metrics), p50, p99))

    def close(self) -> None:
        """Ends."""
        self._stop.set()
        self._thread.join(10)


@dataclass(frozen=True, slots=True)
class Row:
    """A quantity's course over the calm samples after the warm-up."""

    name: str
    first: float
    last: float
    line: Slope
    limit: float
    """Units an hour."""

    @property
    def verdict(self) -> str:
        """good, BAD where the growth is beyond the limit by more than two standard errors, unclear between them."""
        if not self.line.per > self.limit:
            return "good" if self.line.per == self.line.per else "unclear"
        return "BAD" if self.line.per - 2 * self.line.error > self.limit else "unclear"


@dataclass(slots=True)
class Report:
    """The table at the end, and what else was found."""

    rows: list[Row]
    facts: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong and all(row.verdict != "BAD" for row in self.rows)

    def __str__(self) -> str:
        lines = ["| | first | last | slope an hour | limit | |", "|---|---|---|---|---|---|"]
        for r in self.rows:
            rise = f"{r.line.per:+.2f} ± {r.line.error:.2f}"
            lines.append(f"| {r.name} | {r.first:.2f} | {r.last:.2f} | {rise} | {r.limit:.2f} | {r.verdict} |")
        lines += ["", *(f"- {name}: {text}" for name, text in self.facts)]
        lines += [f"- WRONG: {text}" for text in self.wrong]
        return "\n".join([*lines, "", "good" if self.good else "BAD"])


def rows(samples: Sequence[Sample]) -> list[Row]:
    """The course of everything that must not grow. Means of the first and the last quarter stand for the ends."""

    def row(name: str, of: Callable[[Sample], Any], limit: Callable[[float], float]) -> Row | None:
        points = [(s.hours, float(of(s))) for s in samples if of(s) is not None]
        if not points:
            return None
        values = [y for _, y in points]
        end = max(1, len(values) // 4)
        first, last = sum(values[:end]) / end, sum(values[-end:]) / end
        return Row(name, first, last, slope([x for x, _ in points], values), limit(first))

    found = [
        row("RSS, MB", lambda s: s.rss / 1e6, lambda _: 1.0),
        row("device memory, MB", lambda s: None if s.device is None else s.device / 1e6, lambda _: 1.0),
        row("file descriptors", lambda s: s.fds, lambda _: 1.0),
        row("threads", lambda s: s.threads, lambda _: 1.0),
        row("p50 capture to publish, ms", lambda s: s.p50, lambda first: 0.2 * first),
        row("p99 capture to publish, ms", lambda s: s.p99, lambda first: 0.2 * first),
    ]
    return [r for r in found if r is not None]


def log_summaries(running: Running) -> dict[str, dict[str, Any]]:
    """What the daemon logs of every stream at its end."""
    return {line["stream"]: line for line in running.log() if line["event"] == "stream summary"}


def write_samples(path: Path, samples: Sequence[Sample], report: Report) -> None:
    """As JSON."""
    import json
    from dataclasses import asdict

    path.write_text(json.dumps({
        "samples": [asdict(s) for s in samples],
        "rows": [asdict(r) | {"verdict": r.verdict} for r in report.rows],
        "facts": dict(report.facts), "wrong": report.wrong, "good": report.good,
    }, indent=1))  # fmt: skip
