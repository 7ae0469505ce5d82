"""A real Prometheus for tests."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.configs.test_observability import CONFIGS
from tests.conftest import program
from tests.events.journals import until


class Prometheus:
    """Its HTTP API."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of what an expression is now, where the value is finite."""
        found = self.ask("query", query=expression)["result"]
        return [(each["metric"], value) for each in found if math.isfinite(value := float(each["value"][1]))]

    def values(self, expression: str) -> list[float]:
        """What an expression is now, each series's finite value."""
        return [value for _, value in self.series(expression)]

    def alerts(self) -> list[dict[str, str]]:
        """Labels of the alerts that are pending or fire."""
        return [alert["labels"] for alert in self.ask("alerts")["alerts"]]


@contextlib.contextmanager
def prometheus(folder: Path, jobs: Sequence[dict[str, Any]]) -> Iterator[Prometheus]:
    """Runs one with our configuration, but for its jobs, once a second."""
    found = program("prometheus", "prometheus")
    values = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())
    values["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    values["rule_files"] = [str(CONFIGS / name) for name in values["rule_files"]]
    values["scrape_configs"] = list(jobs)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(values))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [
        found, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _ready(address), 60)
        yield Prometheus(address)
    finally:
        process.kill()
        process.wait()


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/-/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:  # refused, or 503
        return False


def shown(expression: str) -> str:
    """The expression as Grafana sends it, with every stream chosen."""
    return expression.replace("$__rate_interval", "10s").replace('"$instance"', '".*"').replace('"$stream"', '".*"')
