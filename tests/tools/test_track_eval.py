"""The tool that measures the trackers, and the quality that they are held to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import track_eval

from streamd.analysis.tracking import open_tracker
from streamd.analysis.tracking.bytetrack import ByteTrackSettings
from tests.conftest import ROOT, shared

GOALS = {
    "full": (57.5, 67.0),
    "every3": (48.5, 55.0),
    "every6": (38.0, 41.0),
    "drop20": (55.5, 64.0),
    "drop50": (51.0, 58.0),
    "burst": (49.5, 54.0),
}
"""HOTA and IDF1 that the defaults reach on MOT17 sequences with made-up detections, at least."""


@pytest.fixture(scope="module")
def sequences() -> list[track_eval.Sequence_]:
    return track_eval.read_folder(shared("tracking"))


@pytest.mark.parametrize("mode", GOALS)
def test_the_defaults_track_people_well(sequences: list[track_eval.Sequence_], mode: str) -> None:
    found = track_eval.evaluate(open_tracker(ByteTrackSettings()), sequences, mode)
    hota, idf1 = GOALS[mode]
    assert found["HOTA"] >= hota, found
    assert found["IDF1"] >= idf1, found


def write(folder: Path, truth: str, found: str, length: int = 10) -> None:
    folder.mkdir(parents=True)
    (folder / "seqinfo.ini").write_text(
        f"[Sequence]\nname=x\nframeRate=10\nseqLength={length}\nimWidth=640\nimHeight=480\n"
    )
    (folder / "gt.txt").write_text(truth)
    (folder / "det.txt").write_text(found)


def rows(score: float, people: int = 3) -> tuple[str, str]:
    """People who walk to the right for ten frames, and exactly their boxes."""
    truth, found = [], []
    for frame in range(1, 11):
        for person in range(1, people + 1):
            box = f"{10 * person + 3 * frame},{100 * person},40,80"
            truth.append(f"{frame},{person},{box},1,1,1")
            found.append(f"{frame},-1,{box},{score},-1,-1,-1")
    return "\n".join(truth) + "\n", "\n".join(found) + "\n"


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/track_eval.py"), *args], capture_output=True, text=True, check=False
    )


def test_perfect_boxes_are_tracked_perfectly(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, *rows(0.9))
    done = run(str(tmp_path), "--modes", "full,every2,drop50", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == ["full", "every2", "drop50"]
    for row in found.values():
        assert list(row) == ["HOTA", "AssA", "IDF1", "MOTA", "IDSW", "us"]
        assert (row["HOTA"], row["AssA"], row["IDF1"], row["MOTA"], row["IDSW"]) == (100, 100, 100, 100, 0)
        assert row["us"] > 0


def test_only_people_with_the_flag_count(tmp_path: Path) -> None:
    truth, found = rows(0.9)
    write(tmp_path / "a", truth + "1,9,400,400,20,20,0,1,1\n1,10,440,400,20,20,1,3,1\n", found)
    (sequence,) = track_eval.read_folder(tmp_path)
    assert sequence.truth[0].tolist() == [1, 2, 3]
    assert track_eval.evaluate(open_tracker(ByteTrackSettings()), [sequence], "full")["MOTA"] == 100


def test_modes_leave_the_frames_that_they_say() -> None:
    assert track_eval.kept("every3", 8, 25).tolist() == [0, 3, 6]
    assert track_eval.kept("burst", 20, 2).tolist() == [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15, 16, 19]
    kept = track_eval.kept("drop20", 1000, 25)
    assert kept.tolist() == np.flatnonzero(np.random.default_rng(1).random(1000) >= 0.2).tolist()
    for wrong in ("half", "every0", "drop", "drop100"):
        with pytest.raises(ValueError, match=f"unknown mode {wrong}"):
            track_eval.kept(wrong, 1, 1)


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    for args, words in (
        ((str(tmp_path),), "no sequence here"),
        ((str(tmp_path), "--modes", "some"), "unknown mode some"),
    ):
        done = run(*args)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    write(tmp_path / "a", *rows(0.9))
    (tmp_path / "a" / "det.txt").write_text("1,-1,nothing\n")
    done = run(str(tmp_path))
    assert done.returncode == 2
    assert "MOTChallenge" in done.stderr
    assert done.stderr.count("\n") == 1
