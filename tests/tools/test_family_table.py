"""The table of families: what is measured and in which column it stands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from streamd.engine.sidecar import Sidecar, write_sidecar
from tests.conftest import ROOT
from tests.models.nets import detector, pictures


def labelled(folder: Path, seed: int) -> Path:
    folder.mkdir()
    images = pictures(folder / "images", 4, seed=seed)
    (folder / "labels").mkdir()
    for i, image in enumerate(sorted(images.iterdir())):
        (folder / "labels" / f"{image.stem}.txt").write_text(f"0 0.5 0.5 {0.4 + 0.1 * i} 0.5\n")
    return folder


def tables(*options: Any) -> list[list[list[str]]]:
    """Rows of cells of both tables, below their heads."""
    command = [sys.executable, str(ROOT / "tools/family_table.py"), *map(str, options)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    made = []
    for text in told.stdout.strip("\n").split("\n\n"):
        rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines()]
        assert len({len(row) for row in rows}) == 1
        assert set("".join(rows[1])) == {"-"}
        made.append([rows[0], *rows[2:]])
    return made


def test_one_command_makes_the_table(tmp_path: Path) -> None:
    model = detector(tmp_path / "net.onnx", act="relu")
    write_sidecar(model, Sidecar(labels=("thing",)))
    sets = {name: labelled(tmp_path / name, seed) for seed, name in enumerate(("first", "second", "seen"))}
    calibration = pictures(tmp_path / "calibration", 8, seed=9)
    asked = [model, "--images", calibration, "--out", tmp_path / "out", "--threads", 1, "--title", "net=A net"]
    asked += [part for name, folder in sets.items() for part in ("--set", f"{name}={folder}")]
    asked += ["--trained", "net=seen"]
    (head, *judged), (costs, cost) = tables(*asked, "--speed")
    assert head == ["model, input", "images", "mAP float", "mAP INT8", "lost (95 % interval)"]
    assert costs[3:] == ["OpenVINO float, ms", "OpenVINO INT8, ms", "H200 FP16, ms", "H200 INT8, ms"]
    found = json.loads((tmp_path / "out" / "net.result.json").read_text())
    assert set(found["sets"]) == {"first", "second"}
    assert [row[:2] for row in judged] == [
        ["A net, 64", "4 of first"], ["", "4 of second"], ["", "seen"], ["", "mean"],
    ]  # fmt: skip
    for row, name in zip(judged, ("first", "second"), strict=False):
        one = found["sets"][name]
        assert one["drop"] == one["float"]["map"] - one["int8"]["map"]
        assert row[2:4] == [f"{one[form]['map']:.4f}" for form in ("float", "int8")]
        assert row[4].replace("−", "-").startswith(f"{one['drop']:.4f} (")
    assert judged[2][2:] == ["in training", "", ""]
    assert (cost[0], cost[1][-5:]) == ("A net, 64", "of 10")
    assert cost[3:] == [*(f"{found['speed'][f'{form}_best_ms']:.2f}" for form in ("float", "int8")), "", ""]
    # What is there is not measured again; the times of plans called like the models come from the GPU's file.
    found["sets"]["first"]["drop"], found["sets"]["second"]["drop"] = 0.0123, -0.0023
    found["sets"]["first"]["interval"] = {"low": -0.001, "high": 0.03}
    found["float_layers"], found["float_share"] = ["a", "b"], 0.0123
    (tmp_path / "out" / "net.result.json").write_text(json.dumps(found))
    gpu = tmp_path / "engine.json"
    times: dict[str, Any] = {
        "net graphs on": {"1": {"ms": 0.464}, "16": {"ms": 1.5}},
        "net graphs off": {"1": {"ms": 0.7}},
    }
    times |= {"net_int8 graphs on": {"error": "no"}, "net_int8 graphs off": {"16": {"ms": 1.2}}}
    gpu.write_text(json.dumps(times))
    (_, first, second, _, mean), (_, cost) = tables(*asked, "--gpu-json", gpu)
    assert (cost[1:3], cost[5:]) == (["2 of 10", "1.2 %"], ["0.46", ""])
    assert (first[4], second[4].split(" (")[0]) == ("0.0123 (−0.0010 to 0.0300)", "−0.0023")
    assert mean[4].split(" (")[0] == "0.0050"
    low, high = (float(end) for end in mean[4].replace("−", "-").removesuffix(")").split(" (")[1].split(" to "))
    means = np.mean([np.sort(found["sets"][name]["losses"]) for name in ("first", "second")], axis=0)
    assert means[0] <= low <= high <= means[-1]
    _, (_, cost) = tables(*asked, "--gpu-json", gpu, "--gpu-batch", 16)
    assert cost[5:] == ["1.50", "1.20"]
    # Of an INT8 file that there is, nothing is made.
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.onnx")}
    given = tmp_path / "out" / "net_int8.onnx"
    (_, _, again, *_), _ = tables(f"{model}={given}", *asked[1:], "--out", tmp_path / "again")
    assert again[3] == second[3]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.onnx")} == made
