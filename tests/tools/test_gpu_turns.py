"""Two daemons that take turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gpu_suite
import pytest
from gpu_turns import say_turns

from tests.clips import write_clip


def _tracking(tmp_path: Path, clip: Path, *more: str) -> dict[str, Any]:
    code = gpu_suite.main([
        "tracking", "--plans", "none", "--engine", "null", "--decode", "software", "--clips", str(clip),
        "--counts", "2", "--seconds", "0.5", "--out", str(tmp_path / "out"), *more,
    ])  # fmt: skip
    assert code == 0
    (found,) = json.loads((tmp_path / "out" / "tracking.json").read_text()).values()
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_two_daemons_take_turns(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=50, size=(64, 64))
    found = _tracking(tmp_path, clip, "--turns", "2", "--pairs", "2")
    assert [len(found[kind]) for kind in ("off", "on")] == [4, 4]
    assert min(found["off"] + found["on"]) > 0
    assert [len(found["each"]), len(found["pairs"])] == [4, 2]
    assert all(each["postprocess"] > 0 for kind in ("off", "on") for each in found["cpu_us"][kind])
    assert found["mean"] == pytest.approx(sum(found["pairs"]) / 2, abs=1e-3)


@pytest.mark.slow
def test_workers_run_one_after_another(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=50, size=(64, 64))
    found = _tracking(tmp_path, clip, "--turns", "1", "--workers", "2")
    assert found["off"][0] > 0
    assert found["on"][0] > 0


def test_a_daemon_that_publishes_nothing_is_told(tmp_path: Path) -> None:
    found = _tracking(tmp_path, tmp_path / "none.mp4", "--pairs", "1", "--turns", "1")
    assert say_turns(found) == found["error"] == "0 of 2 streams have published"


def test_a_share_is_told_with_its_error() -> None:
    found = {
        "off": [100.0, 101.0, 104.0], "on": [96.0, 97.0, 97.0], "each": [0.96, 0.97, 0.93], "pairs": [0.96],
        "cpu_us": {"off": [{"postprocess": 33.0}], "on": [{"postprocess": 40.0}]}, "mean": 0.96, "standard_error": 0.01,
    }  # fmt: skip
    assert say_turns(found) == (
        "101 and 97 frames/s (medians of 3 turns), share by pair [0.96], mean 0.96 ± 0.01; "
        "postprocess thread, µs a frame: off [33.0], on [40.0]"
    )
