"""The bench of the journal runs, and what it counts is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_it_measures(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/bench_journal.py"), str(tmp_path)]
    done = subprocess.run([*command, "--seconds", "0.5", "--rows", "2000", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for rate in (10, 100, 1000):
        each = told[f"at_{rate}_per_s"]
        assert each["lost"] == 0
        assert 0 < each["submit_us"]["p50"] <= each["submit_us"]["p99"] <= each["submit_us"]["max"]
        assert 0 < each["commit_ms"]["p50"] <= each["commit_ms"]["p99"] < 10_000
    assert told["sustained"]["events_per_s"] > 0
    assert (told["large"]["rows"], told["large"]["deleted"]) == (2000, 31)
    assert list(tmp_path.iterdir()) == []
