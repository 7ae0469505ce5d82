"""`streamd count`: a box that moves by a known path, what is wrong with rules, and a real clip."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from streamd.cli import detect, main
from streamd.cli.count import rows_of, table
from tests.cli.walker import Walker, clip_for
from tests.conftest import shared

LINE = "[{name: gate, points: [[0.5, 0], [0.5, 1]], directions: [left, right]}]"
ZONE = "{name: middle, points: [[0.25, 0.1], [0.75, 0.1], [0.75, 0.9], [0.25, 0.9]]}"


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(detect, "open_backend", Walker)
    return clip_for(tmp_path / "clip.mp4", 100)


def test_counts_and_dwell_are_those_of_the_path(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = clip.parent / "counts.csv"
    arguments = ["count", str(clip), "--lines", LINE, "--zones", ZONE, "--csv", str(out)]
    assert main([*arguments, "--json"]) == 0
    left, right, zone = json.loads(capsys.readouterr().out)
    assert (left["direction"], left["label"], left["count"], left["uncertain"]) == ("left", "", 0, 0)
    assert (right["direction"], right["label"], right["count"], right["uncertain"]) == ("right", "thing", 1, 0)
    assert (zone["kind"], zone["name"], zone["label"], zone["count"]) == ("zone", "middle", "thing", 1)
    # 96 pixels at 37.5 a second: seconds of the clip, which is read faster than it plays.
    assert zone["dwell_s"] == zone["mean_dwell_s"] == pytest.approx(96 / 37.5, abs=0.15)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["direction"], row["label"], row["count"]) for row in rows] == [
        ("left", "", "0"), ("right", "thing", "1"), ("", "thing", "1"),
    ]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert any(line.split() == ["line", "gate", "right", "thing", "1", "0"] for line in shown.splitlines())
    assert max(map(len, shown.splitlines())) <= 80


def test_each_input_is_counted_by_itself(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = clip_for(clip.parent / "other.mp4", 20)
    assert main(["count", str(clip), str(other), "--lines", LINE, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(Path(row["input"]).name, row["direction"], row["count"]) for row in rows] == [
        ("clip.mp4", "left", 0), ("clip.mp4", "right", 1), ("other.mp4", "left", 0), ("other.mp4", "right", 0),
    ]  # fmt: skip


def test_an_input_that_fails_is_named_and_the_others_are_counted(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["count", "none.mp4", str(clip), "--lines", LINE, "--json"]) == 4
    out, err = capsys.readouterr()
    assert [(Path(row["input"]).name, row["count"]) for row in json.loads(out)] == [("clip.mp4", 0), ("clip.mp4", 1)]
    assert "none.mp4: No such file" in err


def test_of_inputs_that_cannot_be_read_no_count_is_shown(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "none.mp4", "--lines", LINE]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert "none.mp4: No such file" in err


def test_rules_may_be_in_a_file_of_the_configuration_s_form(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = clip.parent / "rules.yaml"
    hours = "    schedule: {timezone: UTC, times: [{end: '00:01'}]}\n"
    file.write_text(f"zones:\n  - {ZONE}\nlines:\n  - name: gate\n    points: [[0.5, 0], [0.5, 1]]\n{hours}")
    assert main(["count", str(clip), "--lines", str(file), "--zones", str(file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [(row["name"], row["count"]) for row in json.loads(out)] == [("gate", 0), ("gate", 1), ("middle", 1)]
    assert "gate: schedule is ignored" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --lines or --zones"),
        (["--lines", "none.yaml"], "--lines: none.yaml"),
        (["--lines", "[{name: a"], "--lines: line 1: not valid YAML"),
        (["--lines", "[]"], "--lines: expected a list of lines"),
        (["--lines", "[{name: a}]"], "--lines[0].points: is required"),
        (["--lines", "[{name: a, points: [[0, 0], [1, 1]], side: b}]"], "--lines[0].side: unknown field; expected"),
        (["--lines", "[{name: a, points: [[0, 0], [640, 1]]}]"], "--lines[0].points[1]: (640, 1) is outside"),
        (["--zones", "[{name: a, points: [[0, 0], [1, 1]]}]"], "--zones[0].points: expected at least three corners"),
        (["--zones", ZONE[:-1] + ", classes: [cow]}"], "--zones[0].classes[0]: the model has no class cow"),
        (["--lines", LINE, "--csv", "none/out.csv"], "--csv none/out.csv: its folder does not exist"),
        (["picture.png", "--lines", LINE], "picture.png: images cannot be tracked"),
    ],
)
def test_what_is_wrong_is_named(
    clip: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["count", str(clip), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_table_of_long_names_fits_80_columns() -> None:
    from rich.console import Console

    way = {"north" * 6: {"person" * 4: 123456}}
    rows = list(rows_of("v" * 60 + ".mp4", {"lines": {"line" * 10: {"crossings": way, "uncertain": way}}, "zones": {}}))
    console = Console(width=80, record=True)
    console.print(table([*rows, dataclasses.replace(rows[0], input="w")]))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("123456" in line for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_true_crossings_of_a_real_clip(capsys: pytest.CaptureFixture[str]) -> None:
    """The list was made by eye before the code was run on the clip. Its first third: docs/rules.md has all of it."""
    listed = [line.split(",") for line in Path(__file__).with_name("vtest_crossings.csv").read_text().splitlines()]
    true = Counter(way for frame, way, *_ in listed if frame.isdigit() and int(frame) < 300)
    assert true == {"left": 7, "right": 2}
    line = "[{name: path, points: [[0.456, 0.26], [0.456, 0.68]], directions: [left, right]}]"
    model = ["--model", str(shared("models/yolov5n_heads.onnx")), "--labels", str(shared("models/coco80.txt"))]
    options = ["--classes", "person", "--lines", line, "--limit", "303", "--json"]
    assert main(["count", str(shared("videos/vtest.avi")), *model, *options]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["direction"]: row["count"] for row in rows} == true
    assert [row["uncertain"] for row in rows] == [0, 0]


def test_people_of_a_real_clip(capsys: pytest.CaptureFixture[str]) -> None:
    clip = shared("videos/vtest.avi")
    assert main(["count", str(clip), "--limit", "40", "--zones", ZONE, "--classes", "person", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["label"] == "person"
    assert 3 <= row["count"] <= 12
    assert 0 < row["mean_dwell_s"] <= 4.0


def test_the_table_overwrites_nothing_that_is_read(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "lines.yaml"
    rules.write_text(LINE)
    for file in (clip, rules):
        before = file.read_bytes()
        assert main(["count", str(clip), "--lines", str(rules), "--csv", str(file)]) == 2
        assert "is one of the files that are read" in capsys.readouterr().err
        assert file.read_bytes() == before
