"""The tool that measures what tracking costs."""

from __future__ import annotations

import json
from pathlib import Path

import bench_tracking
import pytest


def test_both_rows_publish_the_same_boxes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for i in range(8):
        found = [
            {"class_id": 2, "label": "car", "score": score, "box": [100 * k + 4 * i, 90, 100 * k + 60 + 4 * i, 150]}
            for k, score in enumerate((0.9, 0.6, 0.2))
        ]
        lines.append(json.dumps({"width": 640, "height": 360, "detections": found}))
    path = tmp_path / "boxes.jsonl"
    path.write_text("\n".join(lines))
    arguments = [str(path), "--streams", "3", "--batches", "8", "--rounds", "1", "--threads", "1", "--json"]
    monkeypatch.setattr("sys.argv", ["bench_tracking.py", *arguments])
    assert bench_tracking.main() == 0
    found = json.loads(capsys.readouterr().out)
    # The third box is below the threshold: only the tracker sees it.
    assert found["without"]["boxes"] == found["with"]["boxes"] == 2
    assert found["with"]["bytes"] > found["without"]["bytes"]
    assert found["with"]["postprocess"] > 0


def test_a_file_without_messages_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text("no message\n")
    monkeypatch.setattr("sys.argv", ["bench_tracking.py", str(path)])
    assert bench_tracking.main() == 2
    assert "none.jsonl: no detections message" in capsys.readouterr().err
