#!/usr/bin/env python3
"""Measures the parent's cost of passing on a message of a worker process: real relays, a real publisher, a real
subscriber.

    python tools/relay_bench.py [--workers 4] [--boxes 10] [--seconds 5]

Each worker process sends one encoded message repeatedly; the subscriber, also a process, only counts. The output is the
number of messages per second that the parent passes on, and its CPU time per message: of its Python thread and of
ZeroMQ's threads."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from streamd.sinks import open_sink
from streamd.sinks.encoding import split_detections
from streamd.sinks.envelope import DETECTIONS, Message
from streamd.sinks.zmq import ZmqSettings
from streamd.telemetry.metrics import Metrics
from streamd.types import Boxes, Detections, ModelInfo, StageTimes
from streamd.workers.forward import Forwarder
from streamd.workers.relay import RelaySink


def message(boxes: int) -> tuple[bytes, bytes]:
    """One frame's detections as JSON, before and behind the number of dropped frames."""
    now = time.monotonic_ns()
    random = np.random.default_rng(0)
    xyxy = random.random((boxes, 4), np.float32) * 1000
    found = Detections(
        "camera-1", 0, 0, 0, time.time_ns(), 1920, 1080, StageTimes(*[now] * 6),
        ModelInfo("yolov5n", "ab" * 32, ("person",)),
        Boxes(xyxy, np.full(boxes, 0.5, np.float32), np.zeros(boxes, np.int32)),
    )  # fmt: skip
    return split_detections(found, "0123456789abcdef", "json")


def send(endpoint: str, worker: int, boxes: int) -> None:
    """A worker: sends as fast as the parent takes."""
    relay = RelaySink(endpoint, life=1)
    relay.open()
    before, after = message(boxes)
    seq = 0
    while True:
        if relay.send(Message(DETECTIONS, f"camera-{worker}", before, after, seq=seq)) is None:
            seq += 1
        else:
            time.sleep(0.001)


def count(endpoint: str, counter: Any) -> None:
    """The subscriber."""
    import zmq

    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 100_000)
    socket.subscribe(b"")
    socket.connect(endpoint)
    while True:
        socket.recv()
        socket.recv()
        counter.value += 1


def cpu(name: str) -> float:
    """CPU seconds of this process's threads whose name begins with `name`."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith(name):
            total += sum(map(int, (task / "stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Runs and prints."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workers", type=int, default=4)
    p.add_argument("--boxes", type=int, default=10)
    p.add_argument("--seconds", type=float, default=5.0)
    args = p.parse_args()
    spawn = multiprocessing.get_context("spawn")
    counter = spawn.RawValue("Q", 0)
    with tempfile.TemporaryDirectory() as folder:
        relay, publisher = f"ipc://{folder}/relay", f"ipc://{folder}/publisher"
        sink = open_sink(ZmqSettings(bind=publisher, hwm=100_000))
        metrics = Metrics(CollectorRegistry())
        forwarder = Forwarder("zmq", sink, relay, "json", metrics, heartbeat_s=5, boot_id="bench")
        forwarder.open()
        others = [spawn.Process(target=count, args=(publisher, counter), daemon=True)]
        others += [spawn.Process(target=send, args=(relay, i, args.boxes), daemon=True) for i in range(args.workers)]
        for process in others:
            process.start()
        forwarder.start()
        while not counter.value:
            time.sleep(0.1)
        time.sleep(2)

        def passed() -> int:
            return sum(forwarder.passed(f"camera-{i}")[0] for i in range(args.workers))

        before = (passed(), counter.value, cpu("sink"), cpu("ZMQ"), time.monotonic())
        time.sleep(args.seconds)
        after = (passed(), counter.value, cpu("sink"), cpu("ZMQ"), time.monotonic())
        sent, got, python, zmq, elapsed = (b - a for a, b in zip(before, after, strict=True))
        for process in others:
            process.kill()
        print(
            f"{args.workers} workers, messages of {len(message(args.boxes))} bytes: {sent / elapsed:,.0f} passed on a "
            f"second, {got / elapsed:,.0f} received; CPU a message: Python thread {python / sent * 1e6:.1f} µs, "
            f"ZeroMQ's {zmq / sent * 1e6:.1f} µs"
        )
        forwarder.close(2)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
