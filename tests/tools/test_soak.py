"""The soak's verdict: what grows is found, what only wavers is not, and no frame is unaccounted for."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import soak
from gauge import held, slope
from soak_watch import Row, Sample, in_flight, rows

from tests.conftest import ROOT


def samples(growth_mb_h: float, noise_mb: float = 0.5) -> list[Sample]:
    chance = random.Random(3)
    return [
        Sample(
            i / 120, True, int((100 + growth_mb_h * i / 120 + chance.gauss(0, noise_mb)) * 1e6), 20, 9, None, 2.0, 5.0
        )
        for i in range(120)
    ]


@pytest.mark.parametrize(("growth", "verdict"), [(0.0, "good"), (-3.0, "good"), (1.1, "unclear"), (3.0, "BAD")])
def test_growth_is_told_from_noise(growth: float, verdict: str) -> None:
    found = {row.name: row for row in rows(samples(growth))}
    assert found["RSS, MB"].verdict == verdict
    assert found["threads"].verdict == found["p99 capture to publish, ms"].verdict == "good"
    assert "device memory, MB" not in found


def test_a_line_through_points() -> None:
    line = slope([0, 1, 2, 3], [1, 3, 5, 7])
    assert (line.per, line.error) == (2, 0)
    assert math.isnan(slope([1, 1, 1], [1, 2, 3]).per)
    assert Row("x", 0, 0, slope([1], [1]), 1).verdict == "unclear"


def test_frames_in_flight() -> None:
    def of(name: str, stream: str, **more: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        return f"streamd_frames_{name}_total", tuple(sorted({"stream": stream, **more}.items()))

    metrics = {
        of("received", "a"): 10.0, of("published", "a"): 6.0, of("dropped", "a", reason="ring_full"): 2.0,
        of("dropped", "a", reason="too_old"): 1.0, of("received", "b"): 3.0, of("corrupt", "b"): 9.0,
    }  # fmt: skip
    assert in_flight(metrics) == {"a": 1, "b": 3}


def test_what_a_process_holds() -> None:
    before = held(os.getpid())
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with (ROOT / "pyproject.toml").open():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        now = held(os.getpid())
        child.communicate(b"\n")
    stop.set()
    thread.join()
    assert now.rss > before.rss
    assert now.fds > before.fds
    assert now.threads >= before.threads + 2


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A few seconds of trouble and rest, from the command line to the table."""
    monkeypatch.setattr(soak, "TROUBLE_S", 8.0)
    monkeypatch.setattr(soak, "REST_S", 8.0)
    out = tmp_path / "o.json"
    monkeypatch.setattr(sys, "argv", ["soak.py", "--minutes", "1", "--cameras", "3", "--crowd", "--json", str(out)])
    with pytest.raises(SystemExit):
        soak.main()
    table = capsys.readouterr().out
    assert "received = published + dropped + in flight in all but 0" in table
    assert " 0 frames missing and not reported" in table
    assert "is not published + dropped" not in table
    assert "ended with" not in table
    assert "peers refused: " in table
    assert "still connected" not in table
    assert "out.jsonl" not in table
    assert len(json.loads(out.read_text())["samples"]) >= 5
