"""`streamd detect --track`: ids in the messages, and paths, rules and counts in the saved video."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from streamd.analysis.rules.settings import LineSettings
from streamd.cli import detect, main
from streamd.cli.annotate import Annotator, color_of
from streamd.cli.overlay import PATH_FRAMES, Overlay, _line_text, _zone_text
from streamd.types import Boxes, Detections, Tracks
from tests.cli.walker import FPS, HEIGHT, WIDTH, Walker, clip_for
from tests.frames import detections, frames

LINE = "[{name: gate, points: [[0.5, 0], [0.5, 1]]}]"


def test_detect_track_tells_ids_of_each_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detect, "open_backend", Walker)
    clips = [str(clip_for(tmp_path / f"{name}.mp4", 80)) for name in "ab"]
    assert main(["detect", *clips, "--model", "x", "--track", "--json"]) == 0
    ids: dict[str, set[int]] = {}
    for line in capsys.readouterr().out.splitlines():
        message = json.loads(line)
        (found,) = message["detections"]
        ids.setdefault(message["source"], set()).add(found["track"]["id"])
        assert found["track"]["velocity"][0] == pytest.approx(1.5 * FPS, rel=0.2) or found["track"]["age_s"] < 1
    assert list(ids) == clips
    assert [len(each) for each in ids.values()] == [1, 1]
    assert not set.intersection(*ids.values())


def test_detect_counts_and_saves_with_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import av

    monkeypatch.setattr(detect, "open_backend", Walker)
    clip, saved = clip_for(tmp_path / "a.mp4", 90), tmp_path / "out"
    arguments = ["detect", str(clip), "--model", "x", "--json", "--save", str(saved)]
    assert main([*arguments, "--lines", LINE]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["counts"]["lines"]["gate"]["crossings"] == {"in": {}, "out": {"thing": 1}}
    pictures = []
    for path in (saved / "a.mp4", clip):
        with av.open(str(path)) as container:
            pictures.append([f.to_ndarray(format="rgb24").astype(int) for f in container.decode(video=0)][-1])
    changed = np.abs(pictures[0] - pictures[1]).max(axis=2) > 40
    assert changed[80:, WIDTH // 2 - 2 : WIDTH // 2 + 2].any(axis=1).all()  # the line, from the box to the lower edge
    assert changed[68:73, 110:135].any(axis=0).all()  # the path, behind the box


def tracked(seq: int, number: int, x: float) -> Detections:
    import dataclasses

    box = np.array([[x - 5, 20, x + 5, 50]], np.float32)
    tracks = Tracks(np.array([number]), np.zeros(1), np.zeros((1, 2)))
    return dataclasses.replace(
        detections(boxes=1), seq=seq, boxes=Boxes(box, np.ones(1, np.float32), np.zeros(1, np.int32), tracks),
    )  # fmt: skip


def test_paths_are_short_and_forgotten() -> None:
    overlay = Overlay()
    for seq in range(3 * PATH_FRAMES):
        overlay.draw(np.zeros((HEIGHT, WIDTH, 3), np.uint8), tracked(seq, 7, seq))
    assert len(overlay._paths[7]) == PATH_FRAMES
    assert overlay._paths[7][-1] == (3 * PATH_FRAMES - 1, 3 * PATH_FRAMES - 1, 50)
    overlay.draw(np.zeros((HEIGHT, WIDTH, 3), np.uint8), tracked(5 * PATH_FRAMES, 0, 9))
    assert not overlay._paths


def test_a_line_is_drawn_where_it_is() -> None:
    line = LineSettings(name="gate", points=((0.25, 0.5), (0.75, 0.5)))
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    Overlay(lines=[line]).draw(image, detections(boxes=0))
    colored = np.abs(image.astype(int) - color_of("gate")).max(axis=2) < 60
    row = round(0.5 * (HEIGHT - 1))
    assert colored[row, round(0.25 * WIDTH) + 2 : round(0.75 * WIDTH) - 2].all()
    assert not colored[row + 3 :].any()


def test_no_box_covers_the_counts(tmp_path: Path) -> None:
    """The label of an object at the upper end of a line is written below that of the line."""
    line = LineSettings(name="gate", points=((0.5, 0.5), (0.5, 0.9)))
    overlay = Overlay(lines=[line])
    expected = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    overlay.write(expected, detections(boxes=0))
    written = np.nonzero(expected.any(axis=2))
    frame, found = frames("s", 1, WIDTH, HEIGHT)[0], detections(boxes=1)
    found.xyxy[0] = (0.5 * WIDTH, 0.5 * HEIGHT, WIDTH, HEIGHT)
    annotator = Annotator(tmp_path, [], overlay.draw, overlay.write)
    annotator.add(frame, found, "s.png", fps=None)
    (path,) = tmp_path.iterdir()
    image = cv2.imread(str(path))
    assert image is not None
    assert len(written[0]) > 50
    assert np.abs(image[written].astype(int) - expected[written]).max() < 60


def test_counts_in_words() -> None:
    crossings = {"crossings": {"in": {"car": 2, "bus": 1}, "out": {}}, "uncertain": {"in": {}, "out": {"car": 1}}}
    assert _line_text("gate", crossings) == "gate: in 3, out 0+1?"
    assert _zone_text("yard", {"occupancy": 2, "begun": {"car": 5}}) == "yard: 2 inside, 5 in total"
    assert _zone_text("yard", {"occupancy": None, "begun": {}}) == "yard: ? inside, 0 in total"
