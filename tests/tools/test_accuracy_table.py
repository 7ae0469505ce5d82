"""The table of calibration methods: a row for each method, with what `quantize` said of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from streamd.engine.sidecar import Sidecar, write_sidecar
from streamd.models.calibrate import METHODS
from tests.conftest import ROOT
from tests.models.nets import detector, pictures


def test_every_method_has_a_row(tmp_path: Path) -> None:
    model = detector(tmp_path / "net.onnx", act="relu")
    write_sidecar(model, Sidecar(labels=("thing",)))
    images = pictures(tmp_path / "images", 4, seed=3)
    (tmp_path / "labels").mkdir()
    for image in images.iterdir():
        (tmp_path / "labels" / f"{image.stem}.txt").write_text("0 0.5 0.5 0.9 0.9\n")
    options = ["--images", pictures(tmp_path / "calibration", 8, seed=9), "--eval-images", images]
    options += ["--labels", tmp_path / "labels", "--out", tmp_path / "out"]
    command = [sys.executable, ROOT / "tools/accuracy_table.py", model, *options]
    told = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in told.stdout.splitlines()]
    assert [row[:2] for row in rows] == [["net", method] for method in METHODS]
    for row, method in zip(rows, METHODS, strict=True):
        found = json.loads((tmp_path / "out" / f"net_{method}.result.json").read_text())
        told_of = dict(zip(head, row, strict=True))
        assert told_of["mAP INT8"] == f"{found['accuracy']['map']:.4f}"
        assert told_of["lost"].replace("−", "-").startswith(f"{found['accuracy']['map_drop']:.4f}")
        assert told_of["in float"].endswith("of 10")
        assert 0 < float(told_of["boxes agreed on"].removesuffix(" %")) <= 100
    # One recording of the activations serves all methods.
    assert [json.loads((tmp_path / "out" / f"net_{m}.result.json").read_text())["cached"] for m in METHODS] == [
        False, *[True] * (len(METHODS) - 1),
    ]  # fmt: skip
