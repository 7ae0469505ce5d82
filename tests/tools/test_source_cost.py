"""What a frame costs in the source, step by step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.clips import write_clip
from tests.conftest import ROOT

STEPS = ["demux", "decode", "source", "runner"]


def test_every_step_is_measured_with_what_is_above_it(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=100, size=(64, 64), gop=50)
    command = [sys.executable, str(ROOT / "tools/source_cost.py"), str(clip), "--streams", "2", "--seconds", "0.5"]
    told = subprocess.run([*command, "--json", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "out").read_text())
    assert [json.loads(line) for line in told.stdout.splitlines()] == rows
    assert [row["step"] for row in rows] == STEPS
    assert all(row["frames_s"] > 0 and row["cpu_us"] > 0 and row["waits"] >= 0 for row in rows)
    by_step = {row["step"]: row["cpu_us"] for row in rows}
    assert by_step["demux"] < by_step["decode"] < by_step["runner"]


def test_a_clip_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/source_cost.py"), str(tmp_path / "none.mp4")]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "a stream gives no demux" in told.stderr
