"""The models that come with streamd: whole, small, and as accurate as their card says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from streamd.cli import main
from streamd.engine.model import ASSETS, model_file, sha256_of
from streamd.engine.sidecar import read_sidecar
from streamd.models.inspect import inspect
from tests.conftest import shared
from tests.engine.trt import trt_here

CARD = (ASSETS / "road6.md").read_text()
CLASSES = ("person", "bicycle", "car", "motorcycle", "bus", "truck")


def test_both_are_whole_and_the_int8_one_is_made_of_the_other() -> None:
    small, whole = model_file("builtin:road6"), model_file("builtin:road6_float")
    assert small.stat().st_size < 2.5e6
    made = read_sidecar(small).provenance
    assert made is not None
    assert (made.source, made.source_sha256) == (whole.name, sha256_of(whole))
    for file in (small, whole):
        sidecar = read_sidecar(file)
        assert sidecar.sha256 == sha256_of(file)
        assert sidecar.labels == CLASSES
        found = inspect(str(file))
        assert (found.head, found.input_size) == ("yolov5_heads", (416, 416))
        assert found.parameters is not None
        assert f"{found.parameters / 1e6:.3f} million parameters" in CARD
    assert inspect(str(small)).quantized


@pytest.mark.slow
def test_the_card_tells_what_evaluate_measures(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("builtin:road6_float", "builtin:road6")
    told = {n: [float(v) for v in re.findall(rf"^\| `{n}` \| ([\d.]+) \| ([\d.]+) \|$", CARD, re.M)[0]] for n in names}
    data = ["--images", shared("images/coco_val128/images"), "--labels", shared("images/coco_val128/labels")]
    data += ["--label-names", shared("models/coco80.txt"), "--json"]
    assert main(["evaluate", *names, *map(str, data)]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    for name, measured in zip(names, models, strict=True):
        # With few boxes, mAP50 moves by 0.006 with the arithmetic of the processor.
        assert measured["map"] == pytest.approx(told[name][0], abs=0.005)
        assert measured["map50"] == pytest.approx(told[name][1], abs=0.01)
        assert measured["map50"] > 0.395
        assert [c["label"] for c in measured["classes"]] == list(CLASSES)


def test_tensorrt_builds_it_in_int8_without_being_told(tmp_path: Path) -> None:
    trt_here()
    out = tmp_path / "road6.plan"
    assert main(["build", "builtin:road6", "--out", str(out)]) == 0
    made = read_sidecar(out).provenance
    assert made is not None
    assert made.precision == "int8"
    assert read_sidecar(out).labels == CLASSES
