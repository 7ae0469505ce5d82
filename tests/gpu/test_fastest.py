"""INT8 and FP16 are built and measured on a real GPU, and the faster one is kept."""

from __future__ import annotations

import pytest

from streamd.engine.model import model_file
from streamd.engine.tensorrt.builder import build
from streamd.engine.tensorrt.fastest import WORTH, batch_times
from streamd.engine.tensorrt.job import BuildOptions, prepare

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def test_both_are_measured_and_the_faster_one_is_kept(gpu: None) -> None:
    wanted = prepare(model_file("builtin:road6"), BuildOptions(batch=(1, 4, 8)))
    assert wanted.recipe.precision == "fastest"
    plan, sidecar = build(wanted)
    made = sidecar.provenance
    assert made is not None
    assert made.precision is not None
    times = made.compared_ms
    assert {name: sorted(each, key=int) for name, each in times.items()} == {
        "int8": ["1", "4", "8"], "fp16": ["1", "4", "8"],
    }  # fmt: skip
    for each in times.values():
        assert 0.01 < each["1"] < each["8"] < 100
    assert made.precision == ("int8" if times["int8"]["4"] <= WORTH * times["fp16"]["4"] else "fp16")
    again = batch_times(wanted, {made.precision: plan})[made.precision]
    assert again[4] == pytest.approx(times[made.precision]["4"], rel=0.3)
