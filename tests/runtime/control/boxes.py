"""Daemons that are boxes of a fleet, in this process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamd.config import Config
from streamd.config.loader import load
from streamd.fleet.records import Assignment, DaemonReport, Order, StreamReport
from streamd.runtime.control.client import ControlClient
from streamd.runtime.control.server import ControlServer
from streamd.runtime.control.station import Station, without_streams
from streamd.runtime.daemon import Daemon

ZONE = "zones: [{name: all, anchor: center, points: [[0, 0], [1, 0], [1, 1], [0, 1]]}]"


def until(condition: Callable[[], object], what: str, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.02)


def text(streams: str) -> str:
    return (
        'model: {path: none}\nengine: {kind: "null"}\nmetrics: {listen: null}\n'
        f"sinks: [{{kind: jsonl, path: out.jsonl, status: true}}]\nstreams:\n{streams}"
    )


def stream(name: str, more: str = "") -> str:
    return f"  - {{id: {name}, kind: synthetic, width: 64, height: 64, fps: 25{', ' + more if more else ''}}}\n"


class LiveBox:
    """One box with its control socket."""

    def __init__(self, folder: Path, name: str, config: str) -> None:
        self.folder, self.name = folder / name, name
        self.folder.mkdir(mode=0o700)
        self.file = self.folder / "fleet.yaml"
        self.file.write_text(config)
        loaded = self.load()
        self.daemon = Daemon(without_streams(loaded))
        self.station = Station(self.daemon, loaded, "r1")
        self.path = self.folder / "control"
        self.server = ControlServer(self.path, self.station.exchange, self._reload, self.daemon.stop)
        self.code: int | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.client = ControlClient(self.path, 20.0)
        self.number = 0
        until(lambda: self.daemon.started, "it runs")

    def load(self) -> Config:
        config = load(self.file, share=False).config
        state = str(self.folder / "state")
        return config.model_copy(update={"events": config.events.model_copy(update={"state_dir": state})})

    def _reload(self) -> None:
        self.station.configure(self.load(), "r2")

    def _run(self) -> None:
        self.code = self.daemon.run(handle_signals=False)

    def tell(self, **streams: Assignment) -> DaemonReport:
        return self.settle({}, **streams)

    def settle(self, settled: dict[str, int], /, **streams: Assignment) -> DaemonReport:
        self.number += 1
        highest = max([0, *(a.generation for a in streams.values())])
        return self.client.exchange(Order(self.number, self.name, highest, streams, settled))

    def ask(self) -> DaemonReport:
        return self.client.exchange(None)

    def seen(self, name: str) -> StreamReport:
        """What it says of a stream; nothing has happened yet where it says nothing."""
        return self.ask().streams.get(name) or StreamReport(0, "CONNECTING")

    def told(self, kind: str, stream: str) -> list[dict[str, Any]]:
        """What the sink has written."""
        out = self.folder / "out.jsonl"
        lines = out.read_text().splitlines() if out.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [m for m in found if m.get("stream") == stream and kind in m]

    def close(self) -> None:
        self.client.close()
        self.daemon.stop()
        self.thread.join(60)
        self.server.close()


@contextmanager
def box(folder: Path, name: str, config: str) -> Iterator[LiveBox]:
    made = LiveBox(folder, name, config)
    try:
        yield made
    finally:
        made.close()
