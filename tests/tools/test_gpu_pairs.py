"""What gpu_suite.py compares, and how it shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpu_suite
import pytest
from gpu_pairs import say_losses, say_shares, with_and_without


def test_runs_with_and_without_a_section_take_turns() -> None:
    seen: list[dict[str, Any]] = []

    def run(config: dict[str, Any]) -> dict[str, Any]:
        seen.append(config)
        return {"fps": (90.0 if "tracking" in config else 100.0) - 10 * len(seen)}

    found = with_and_without(run, {"tracking": {"kind": "iou"}, "batch": {}}, "tracking", 3)
    off: dict[str, Any] = {"batch": {}}
    on = off | {"tracking": {"kind": "iou"}}
    assert seen == [off, on, on, off, off, on]
    assert (found["off"], found["on"]) == ([90.0, 60.0, 50.0], [70.0, 60.0, 30.0])
    assert found["share"] == 1.0
    assert found["each"] == [0.778, 1.0, 0.6]
    assert (found["mean"], found["standard_error"]) == (0.793, 0.116)
    assert say_shares(found).endswith("share 1.0 of medians, [0.778, 1.0, 0.6] by turn, mean 0.793 ± 0.116")


def test_a_run_that_fails_is_told_and_ends_the_comparison() -> None:
    found = with_and_without(lambda config: {"error": "no GPU"} if config else {"fps": 1.0}, {}, "tracking", 3)
    assert say_shares(found) == "tracking on: no GPU"
    assert len(found["runs"]) == 2


def test_a_float_model_without_its_plan_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = gpu_suite.main(["loss", "--float", "a=b.onnx", "--set", f"c={tmp_path}", "--out", str(tmp_path)])
    assert code == 1
    assert "no plan of --plans or --build is called a" in capsys.readouterr().err


def test_a_loss_is_shown_with_its_interval() -> None:
    one = {"float": {"map": 0.3}, "int8": {"map": 0.298}, "drop": 0.002, "interval": {"low": -0.001, "high": 0.005}}
    assert say_losses({"val": one}) == "val 0.3000 -> 0.2980, lost 0.0020 (-0.0010 to 0.0050)"
    assert say_losses({"val": one | {"interval": None}}) == "val 0.3000 -> 0.2980, lost 0.0020"
