"""INT8 and FP16 are built and measured on a real GPU, and the faster one is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamd.engine.tensorrt.builder import build
from streamd.engine.tensorrt.fastest import WORTH, batch_times
from streamd.engine.tensorrt.job import BuildOptions, prepare
from tests.engine.onnx_models import conv_relu, qdq

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def test_both_are_measured_and_the_faster_one_is_kept(gpu: None, tmp_path: Path) -> None:
    floating = conv_relu(tmp_path / "float.onnx")
    wanted = prepare(qdq(tmp_path / "int8.onnx"), BuildOptions(batch=(1, 64, 256), float_model=floating))
    assert wanted.recipe.precision == "fastest"
    plan, sidecar = build(wanted)
    made = sidecar.provenance
    assert made is not None
    assert made.precision is not None
    times = made.compared_ms
    assert {name: sorted(each, key=int) for name, each in times.items()} == {
        "int8": ["1", "64", "256"], "fp16": ["1", "64", "256"],
    }  # fmt: skip
    for each in times.values():
        assert 0.001 < each["1"] < each["256"] < 100
    assert made.precision == ("int8" if times["int8"]["64"] <= WORTH * times["fp16"]["64"] else "fp16")
    again = batch_times(wanted, {made.precision: plan})[made.precision]
    assert again[256] == pytest.approx(times[made.precision]["256"], rel=0.5)
