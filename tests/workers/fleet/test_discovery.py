"""A real Prometheus with the jobs of configs/prometheus.yml learns of real boxes from a coordinator's /sd."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamd.fleet.records import BoxReport, Order
from streamd.workers.fleet.box import BoxHost, Configuration, Place
from streamd.workers.fleet.host import CoordinatorHost
from tests.configs.prometheus import prometheus, shown
from tests.configs.test_observability import CONFIGS, panels
from tests.events.journals import until
from tests.workers.fleet.test_host import Nodes

PATIENCE_S = 90.0
TEXT = """
model: {path: none}
engine: {kind: "null"}
fleet: {box: {fps: 100}, stream_fps: 10, listen: "127.0.0.1:0"}
streams:
  - {id: s0, kind: synthetic, fps: 10}
  - {id: s1, kind: synthetic, fps: 10}
  - {id: s2, kind: synthetic, fps: 10}
  - {id: s3, kind: synthetic, fps: 10}
"""


def jobs(listens: str) -> list[dict[str, Any]]:
    """Those of a fleet, which are commented out."""
    lines = (CONFIGS / "prometheus.yml").read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if "job_name: streamd-fleet" in line)
    block = []
    for line in lines[begin:]:
        if not line.startswith("  # "):
            break
        block.append(line.removeprefix("  # "))
    text = "\n".join(block).replace("127.0.0.1:9189", listens).replace("refresh_interval: 15s", "refresh_interval: 1s")
    assert text.count(listens) == 2
    found: list[dict[str, Any]] = yaml.safe_load(text)
    return found


@contextlib.contextmanager
def boxes(folder: Path, coordinator: CoordinatorHost, names: tuple[str, ...]) -> Iterator[dict[str, BoxHost]]:
    made: dict[str, BoxHost] = {}

    def report(report: BoxReport) -> Order:
        return coordinator.report(report)

    try:
        for name in names:
            place = Place(name, f"node-{name}", "127.0.0.1", 1, (), dict(os.environ))
            made[name] = BoxHost(place, report, coordinator.configuration, str(folder))
            made[name].start()
        yield made
    finally:
        for box in made.values():
            box.stop()


@pytest.mark.slow  # two starts of a daemon, and a lease
def test_prometheus_learns_of_boxes_and_of_their_loss() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        coordinator = CoordinatorHost(Configuration(TEXT, str(folder)), Nodes())
        stack.callback(coordinator.close)
        coordinator.start()
        assert coordinator.listens is not None
        made = stack.enter_context(boxes(folder, coordinator, ("n1", "n2")))
        server = stack.enter_context(prometheus(folder, jobs(coordinator.listens)))

        def ups() -> dict[tuple[str, str], float]:
            return {(m["box"], m["node"]): up for m, up in server.series('up{job="streamd"}')}

        until(lambda: ups() == {("n1", "node-n1"): 1, ("n2", "node-n2"): 1}, PATIENCE_S)
        published = 'sum by (stream) (rate(streamd_frames_published_total{job="streamd"}[5s])) > 5'
        until(lambda: {m["stream"] for m, _ in server.series(published)} == {"s0", "s1", "s2", "s3"}, PATIENCE_S)
        until(lambda: server.values('streamd_fleet_boxes{state="UP"}') == [2], PATIENCE_S)
        until(lambda: server.values('streamd_fleet_streams{state="RUNNING"}') == [4], PATIENCE_S)
        assert server.values("streamd_fleet_spare") == [1]
        assert not [a for a in server.alerts() if a["alertname"].startswith("StreamdFleet")]

        made["n2"].stop()  # its daemon ends, and nothing reports
        until(lambda: ups() == {("n1", "node-n1"): 1, ("n2", "node-n2"): 0}, PATIENCE_S)
        until(lambda: server.values('streamd_fleet_boxes{state="LOST"}') == [1], PATIENCE_S)
        running = 'sum by (box) (streamd_stream_state{job="streamd",state="LIVE"})'
        until(lambda: server.series(running) == [({"box": "n1"}, 4)], PATIENCE_S)
        names = {"StreamdFleetBoxLost", "StreamdFleetNoSpareBox"}
        until(lambda: names <= {a["alertname"] for a in server.alerts()}, PATIENCE_S)
        fleets = {shown(e) for _, e in panels() if re.search(r"\bstreamd_fleet_(?!streams_waiting)", e)}
        assert len(fleets) > 6
        until(lambda: all(server.values(expression) for expression in fleets), PATIENCE_S)  # there are moves now
