"""The tool that measures what tracking costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bench_tracking
import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Recorded boxes: two of three are published."""
    lines = []
    for i in range(8):
        found = [
            {"class_id": 2, "label": "car", "score": score, "box": [100 * k + 4 * i, 90, 100 * k + 60 + 4 * i, 150]}
            for k, score in enumerate((0.9, 0.6, 0.2))
        ]
        lines.append(json.dumps({"width": 640, "height": 360, "detections": found}))
    path = tmp_path / "boxes.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_both_rows_publish_the_same_boxes(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(path), "--streams", "3", "--batches", "8", "--rounds", "1", "--threads", "1", "--json"]
    monkeypatch.setattr("sys.argv", ["bench_tracking.py", *arguments])
    assert bench_tracking.main() == 0
    found = json.loads(capsys.readouterr().out)
    # The third box is below the threshold: only the tracker sees it.
    assert found["without"]["boxes"] == found["with"]["boxes"] == 2
    assert found["with"]["bytes"] > found["without"]["bytes"]
    assert found["with"]["postprocess"] > 0


def test_beside_threads_that_decode(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(path), "--streams", "2", "--rounds", "1", "--decoders", "3", "--seconds", "0.3", "--json"]
    monkeypatch.setattr("sys.argv", ["bench_tracking.py", *arguments, "--picture", "64x64"])
    interval = sys.getswitchinterval()
    try:
        assert bench_tracking.main() == 0
    finally:
        sys.setswitchinterval(interval)
    found = json.loads(capsys.readouterr().out)
    assert all(found[row]["frames/s"] > 0 and found[row]["cpu"] > 0 for row in ("without", "with"))
    # Both are rounded.
    assert found["more"]["frames/s"] == pytest.approx(
        found["with"]["frames/s"] / found["without"]["frames/s"], rel=0.01
    )


def test_a_file_without_messages_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text("no message\n")
    monkeypatch.setattr("sys.argv", ["bench_tracking.py", str(path)])
    assert bench_tracking.main() == 2
    assert "none.jsonl: no detections message" in capsys.readouterr().err
