"""The example package adds its kinds when pip installs it: its sink counts what is detected."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from tests.behaviour.daemon import daemon, until
from tests.conftest import ROOT
from tests.docs.plugins import install

EXAMPLE = ROOT / "docs" / "examples" / "plugin"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "package")
    return install(folder / "package", folder / "installed")


def test_its_sink_at_work(plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", plugin)
    counts = tmp_path / "counts.csv"
    config = f"""
model: {{path: none}}
engine: {{kind: "null"}}
streams: [{{id: a, kind: synthetic, width: 64, height: 64, fps: 20}}]
sinks: [{{kind: counts, path: {counts.name}, interval_s: 0.2}}]
"""
    with daemon(tmp_path, config) as running:
        until(lambda: running.value("streamd_sink_messages_total", sink="counts0") >= 20, 60, "frames arrive")
        assert running.stop() == 0
    total: dict[tuple[str, str], int] = {}
    for _, stream, label, count in csv.reader(counts.open()):
        total[stream, label] = total.get((stream, label), 0) + int(count)
    ((key, seen),) = total.items()  # the null engine sees one object in every frame
    assert (key[0], seen) == ("a", running.summary("a")["published"])
