"""The example package adds its kinds when pip installs it: a source plays, a head decodes, a sink counts."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tests.behaviour.daemon import daemon, until
from tests.conftest import ROOT
from tests.docs.plugins import install, passed
from tests.engine.onnx_models import save

EXAMPLE = ROOT / "docs" / "examples" / "plugin"
BOXES = np.array(
    [
        # cx cy w h, then the scores of two classes
        [16, 16, 10, 10, 0.9, 0.1],
        [48, 48, 12, 12, 0.2, 0.8],
        [32, 32, 8, 8, 0.1, 0.1],
    ],
    np.float32,
)
"""What the model says of every picture: one car, one person, and nothing."""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "package")
    return install(folder / "package", folder / "installed")


def rows_model(path: Path) -> Path:
    """A model with an output of (B, N, 4+C) that does not depend on the picture."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["rows", "nothing"], ["out"]),
    ]
    return save(path, nodes, {"zero": np.float32(0), "rows": BOXES[None]}, batch=1, size=64)


def test_its_head_and_its_sink_at_work(plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", plugin)
    model, counts = rows_model(tmp_path / "rows.onnx"), tmp_path / "counts.csv"
    (tmp_path / "pictures").mkdir()
    for i in range(7):
        np.full(64 * 64 * 3 // 2, 10 * i, np.uint8).tofile(tmp_path / "pictures" / f"{i}.yuv")
    config = f"""
model: {{path: {model}, labels: [car, person], head: {{kind: yolov8_rows}}}}
engine: {{kind: openvino}}
streams:
  - {{id: a, kind: synthetic, width: 64, height: 64, fps: 20}}
  - {{id: b, kind: raw_folder, folder: pictures, width: 64, height: 64, fps: 0}}
  - {{id: c, kind: raw_folder, folder: pictures, width: 64, height: 48, fps: 0}}
sinks: [{{kind: counts, path: {counts.name}, interval_s: 0.2}}]
"""
    with daemon(tmp_path, config) as running:
        until(lambda: running.value("streamd_sink_messages_total", sink="counts0") >= 20, 60, "frames arrive")
        assert running.stop() == 0
    total: dict[tuple[str, str], int] = {}
    for _, stream, label, count in csv.reader(counts.open()):
        total[stream, label] = total.get((stream, label), 0) + int(count)
    published = running.summary("a")["published"]
    assert total == {("a", "car"): published, ("a", "person"): published, ("b", "car"): 7, ("b", "person"): 7}
    (told,) = {
        line["detail"] for line in running.log() if line.get("stream") == "c" and line.get("reason") == "corrupt"
    }
    assert "0.yuv: has 6144 bytes; expected 4608 for 64 x 48 pixels; check width and height" in told


def test_its_kinds_pass_the_contract_suites(plugin: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", plugin)
    shutil.copy(EXAMPLE / "test_kinds.py", tmp_path)
    assert re.fullmatch(r"2\d passed", passed(tmp_path / "test_kinds.py"))


def test_the_schema_describes_it_where_it_is_asked_to(plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", plugin)

    def definitions(*options: str) -> set[str]:
        command = [sys.executable, "-m", "streamd", "schema", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return set(json.loads(done.stdout)["$defs"])

    assert "CountsSettings" not in definitions()
    assert "CountsSettings" in definitions("--plugins")
