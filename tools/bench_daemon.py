"""A daemon in a process of its own and its subscriber in this one, for benchmarks."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class Started:
    """A daemon that has been started."""

    pid: int
    """It leads a process group of its own, with all that it starts."""
    subscriber: Any
    """A ZeroMQ socket that receives every message of the daemon."""
    metrics_port: int


def configuration(args: argparse.Namespace, port: int, metrics_port: int) -> dict[str, Any]:
    """The daemon's configuration by the options of `bench.py` and `gpu_suite.py`.

    Args:
        args: the options.
        port: of its ZeroMQ sink.
        metrics_port: of its metrics.
    """
    engine: dict[str, Any] = {"kind": args.engine}
    if args.hint:
        engine["hint"] = args.hint
    if args.requests:
        engine["requests"] = args.requests
    if args.mps:
        engine["mps"] = True
    if args.devices != [0]:
        engine["device"] = args.devices
    pace = "realtime" if args.live else "asap"
    stream: dict[str, Any] = {
        "url": str(Path(args.video).resolve()), "loop": True, "pace": pace, "decode": args.decode,
    }  # fmt: skip
    if args.isolation == "process":
        stream["isolation"] = "process"
    if getattr(args, "max_fps", None):
        stream["max_fps"] = args.max_fps
    stream |= getattr(args, "stream", {})
    return {
        "model": {"path": args.model if args.model == "none" else str(Path(args.model).resolve())},
        "engine": engine,
        "streams": [stream | {"id": f"s{i}"} for i in range(args.streams)],
        "sinks": [{"kind": "zmq", "bind": f"tcp://127.0.0.1:{port}", "hwm": 10_000, "ring": 4096}],
        "batch": {"max": args.batch, "age_ms": args.age_ms},
        "workers": args.workers,
        "metrics": {"listen": f"127.0.0.1:{metrics_port}", "page": bool(getattr(args, "viewer", 0))},
        "logging": {"level": "warning"},
        **getattr(args, "config", {}),
    }


@contextlib.contextmanager
def started(args: argparse.Namespace) -> Iterator[Started]:
    """Runs a daemon with a subscriber; ends both.

    Args:
        args: the options of `bench.py` or `gpu_suite.py`.
    """
    import zmq

    port, metrics_port = free_port(), free_port()
    context = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.RCVHWM, 0)  # messages that arrive while memory is read must not be lost
    subscriber.setsockopt_string(zmq.SUBSCRIBE, "streamd/1/")
    subscriber.connect(f"tcp://127.0.0.1:{port}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.yaml"
        path.write_text(json.dumps(configuration(args, port, metrics_port)))
        environment = os.environ | getattr(args, "environment", {})
        command = [sys.executable, "-m", "streamd", "run", str(path)]
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            yield Started(process.pid, subscriber, metrics_port)
        finally:
            process.terminate()
            process.wait(60)
            subscriber.close(0)
            context.term()
