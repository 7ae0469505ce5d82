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


def table(*options: Any) -> list[list[str]]:
    command = [sys.executable, str(ROOT / "tools/family_table.py"), *map(str, options)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in told.stdout.splitlines()]


def test_one_command_makes_the_table(tmp_path: Path) -> None:
    model = detector(tmp_path / "net.onnx", act="relu")
    write_sidecar(model, Sidecar(labels=("thing",)))
    sets = {name: labelled(tmp_path / name, seed) for seed, name in enumerate(("first", "second", "seen"))}
    calibration = pictures(tmp_path / "calibration", 8, seed=9)
    asked = [model, "--images", calibration, "--out", tmp_path / "out", "--threads", 1, "--title", "net=A net"]
    asked += [part for name, folder in sets.items() for part in ("--set", f"{name}={folder}")]
    asked += ["--trained", "net=seen"]
    head, line, in_float, in_int8 = table(*asked, "--speed")
    assert head[2:6] == ["4 of first", "4 of second", "seen", "lost in the mean"]
    assert (head[-2:], set("".join(line))) == (["OpenVINO, ms", "H200, ms"], {"-"})
    found = json.loads((tmp_path / "out" / "net.result.json").read_text())
    assert set(found["sets"]) == {"first", "second"}
    assert (in_float[0], in_int8[0], in_int8[1][-5:]) == ("A net, 64", "INT8", "of 10")
    for form, cells in (("float", in_float), ("int8", in_int8)):
        assert len(cells) == len(head)
        for i, name in ((2, "first"), (3, "second")):
            assert cells[i].startswith(f"{found['sets'][name][form]['map']:.4f}")
        assert cells[-2] == f"{found['speed'][f'{form}_best_ms']:.2f}"
        assert cells[-1] == ""
    for i, name in ((2, "first"), (3, "second")):
        one = found["sets"][name]
        assert one["drop"] == one["float"]["map"] - one["int8"]["map"]
        assert in_int8[i].replace("−", "-").startswith(f"{one['int8']['map']:.4f}, {one['drop']:.4f} (")
    assert (in_float[1], in_float[4:6], in_int8[4]) == ("", ["in training", ""], "in training")
    # What is there is not measured again; the times of plans called like the models come from the GPU's file.
    found["sets"]["first"]["drop"], found["sets"]["second"]["drop"] = 0.0123, -0.0023
    found["sets"]["first"]["interval"] = {"low": -0.001, "high": 0.03}
    (tmp_path / "out" / "net.result.json").write_text(json.dumps(found))
    gpu = tmp_path / "engine.json"
    times: dict[str, Any] = {
        "net graphs on": {"1": {"ms": 0.464}, "16": {"ms": 1.5}},
        "net graphs off": {"1": {"ms": 0.7}},
    }
    times |= {"net_int8 graphs on": {"error": "no"}, "net_int8 graphs off": {"16": {"ms": 1.2}}}
    gpu.write_text(json.dumps(times))
    _, _, in_float, in_int8 = table(*asked, "--gpu-json", gpu)
    assert (in_float[-1], in_int8[-1]) == ("0.46", "")
    assert (in_int8[2].split(", ")[1], in_int8[5].split(" (")[0]) == ("0.0123 (−0.0010 to 0.0300)", "0.0050")
    low, high = (float(end) for end in in_int8[5].replace("−", "-").removesuffix(")").split(" (")[1].split(" to "))
    means = np.mean([np.sort(found["sets"][name]["losses"]) for name in ("first", "second")], axis=0)
    assert means[0] <= low <= high <= means[-1]
    _, _, in_float, in_int8 = table(*asked, "--gpu-json", gpu, "--gpu-batch", 16)
    assert (in_float[-1], in_int8[-1]) == ("1.50", "1.20")
    # Of an INT8 file that there is, nothing is made.
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.onnx")}
    given = tmp_path / "out" / "net_int8.onnx"
    _, _, _, again = table(f"{model}={given}", *asked[1:], "--out", tmp_path / "again")
    assert again[3].split()[0] == in_int8[3].split()[0]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.onnx")} == made
