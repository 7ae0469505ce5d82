"""The builds of gpu_suite.py."""

from __future__ import annotations

import json
from pathlib import Path

import gpu_suite
import pytest
from gpu_build import Wanted, effort_of

from tests.engine.onnx_models import qdq
from tests.engine.trt import trt_here


def test_a_plan_at_an_effort_has_a_name_of_its_own() -> None:
    own = Wanted.of("v5=m.onnx:int8:1,16,32")
    assert own == Wanted("v5", Path("m.onnx"), "int8", ("1", "16", "32"))
    assert own.at(None) == own
    assert own.at(0) == Wanted("v5-effort0", Path("m.onnx"), "int8", ("1", "16", "32"), 0)


def test_efforts() -> None:
    assert [effort_of(text) for text in ("own", "0", "5")] == [None, 0, 5]
    for text in ("6", "-1", "012", ""):
        with pytest.raises(ValueError, match=f"^{text}$"):
            effort_of(text)


def test_a_plan_is_built_at_each_effort(tmp_path: Path) -> None:
    trt = trt_here()
    wanted = f"m={qdq(tmp_path / 'm.onnx')}:int8:1,2,4"
    code = gpu_suite.main(["build", "--build", wanted, "--effort", "own", "1", "--jobs", "2", "--out", str(tmp_path)])
    assert code == 0
    found = json.loads((tmp_path / "build.json").read_text())
    assert {name: result["exit"] for name, result in found.items()} == {"m": 0, "m-effort1": 0}
    assert (tmp_path / "m.plan").is_file()
    assert (tmp_path / "m-effort1.plan").is_file()
    told = (tmp_path / "m-effort1.log").read_text()
    assert ("effort is ignored" in told) == trt.is_rtx
    assert (", effort 1, built in" in told) == trt.has_effort_levels
    assert "effort" not in (tmp_path / "m.log").read_text()
