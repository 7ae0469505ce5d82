"""Boxes on pictures: colours, sizes, files."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamd.cli.annotate import COLORS, LIMBS, Annotator, Image, Video, color_of, draw, same_file
from streamd.errors import SinkError
from streamd.types import Attribute, Details, Detections
from tests.conftest import ROOT
from tests.frames import detections, frames


def test_colours_are_the_pages_and_tell_the_bundled_models_classes_apart() -> None:
    script = (ROOT / "streamd" / "web" / "static" / "pictures.js").read_text()
    assert re.findall(r'"#([0-9a-f]{6})"', script.split("const COLORS")[1].split("]")[0]) == list(COLORS)
    assert "hash * 31 +" in script
    assert "(hash % 97) % COLORS.length" in script
    limbs = re.findall(r"\[(\d+), (\d+)\]", script.split("const LIMBS")[1].split(";")[0])
    assert [(int(a), int(b)) for a, b in limbs] == list(LIMBS)
    assert len({color_of(label) for label in ("person", "bicycle", "car", "motorcycle", "bus", "truck")}) == 6


@pytest.mark.parametrize("size", [(144, 176), (272, 640), (2160, 3840)])
def test_labels_stay_inside_the_picture_and_lines_grow_with_it(size: tuple[int, int]) -> None:
    height, width = size
    found: Detections = detections(boxes=1)
    found.xyxy[:] = [width - 30, 0, width - 4, height - 4]
    image = draw(np.full((*size, 3), 128, np.uint8), found)
    color = np.array(color_of(found.model.labels[int(found.class_id[0])]))
    hit = (np.abs(image.astype(int) - color).sum(2) < 12).nonzero()
    assert hit[0].min() <= 2  # the label is at the top edge, whole
    row = (np.abs(image[height // 2].astype(int) - color).sum(1) < 60).sum()
    assert row == pytest.approx(2 * max(1, round(max(0.4, min(size) / 1100) * 2.2)), abs=4)


def test_what_classifiers_say_makes_the_label_longer() -> None:
    found = detections(boxes=1)
    found.xyxy[:] = [4, 60, 20, 90]
    said = [(Attribute("colour", "darkgreen", 0.8, 0, 1),)]
    color = np.array(color_of(found.model.labels[0]))

    def end(d: Detections) -> int:
        image = draw(np.full((100, 400, 3), 128, np.uint8), d)
        return int((np.abs(image.astype(int) - color).sum(2) < 12).nonzero()[1].max())

    assert end(replace(found, attributes=said)) > end(found) + 60


def test_a_video_keeps_its_first_size_and_says_where_it_cannot_be(tmp_path: Path) -> None:
    video = Video(tmp_path / "v.mp4", 12.5)
    for size in ((47, 65), (96, 128)):
        video.add(np.full((*size, 3), 90, np.uint8))
    video.close()
    with av.open(str(tmp_path / "v.mp4")) as container:
        found = container.streams.video[0]
        assert (found.width, found.height, found.average_rate) == (64, 46, 12.5)
        assert len(list(container.decode(found))) == 2
    for path in (tmp_path / "none" / "v.mp4", tmp_path / "v.nothing"):
        with pytest.raises(SinkError, match=re.escape(str(path))):
            broken = Video(path, 25)
            broken.add(np.zeros((48, 64, 3), np.uint8))
            broken.close()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (499, 1), (3, 2)])
def test_a_video_of_pictures_of_a_pixel(tmp_path: Path, width: int, height: int) -> None:
    video = Video(tmp_path / "v.mp4", 10)
    for _ in range(2):
        video.add(np.full((height, width, 3), 90, np.uint8))
    video.close()
    with av.open(str(tmp_path / "v.mp4")) as container:
        frames = [(frame.width, frame.height) for frame in container.decode(video=0)]
    assert frames == [(max(2, width // 2 * 2), max(2, height // 2 * 2))] * 2


def _picture(folder: Path, name: str | bytes) -> str:
    path = folder / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"the input")
    return str(path)


def test_no_input_and_no_other_output_is_overwritten(tmp_path: Path) -> None:
    inputs = [_picture(tmp_path, name) for name in ("out/a.jpg", "one/a.jpg", "two/a.jpg", "two/b.png", "two/c.webp")]
    (tmp_path / "out" / "b.png").symlink_to(inputs[3])
    annotator = Annotator(tmp_path / "out", map(Path, inputs))
    for name in inputs:
        annotator.add(frames("s", 1)[0], detections(), name, fps=None)
        annotator.add(frames("s", 1)[0], detections(), name, fps=None)
    assert [Path(name).read_bytes() for name in inputs] == [b"the input"] * 5
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a-2.jpg", "a-3.jpg", "a-4.jpg", "a.jpg", "b-2.png", "b.png", "c.png"]
    assert annotator.written() == f"10 images in {tmp_path / 'out'}"


def test_a_second_run_replaces_what_the_first_wrote(tmp_path: Path) -> None:
    name = _picture(tmp_path, "a.jpg")
    for _ in range(2):
        Annotator(tmp_path / "out", [Path(name)]).add(frames("s", 1)[0], detections(), name, fps=None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg"]


def test_a_video_beside_its_input_gets_another_name(tmp_path: Path) -> None:
    name = _picture(tmp_path, "clip.mp4")
    annotator = Annotator(tmp_path, [Path(name)])
    annotator.add(frames("s", 1)[0], detections(), name, fps=10)
    annotator.add(frames("s", 1)[0], detections(), "rtmp://host/live/a-secret-key", fps=10)
    annotator.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip-2.mp4", "clip.mp4", "stream.mp4"]
    assert Path(name).read_bytes() == b"the input"
    assert annotator.written() == f"{tmp_path / 'clip-2.mp4'}, {tmp_path / 'stream.mp4'}"


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = _picture(tmp_path, b"\xff\xfe.jpg")
    annotator = Annotator(tmp_path / "out", [Path(name)])
    annotator.add(frames("s", 1)[0], detections(), name, fps=None)
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"\xff\xfe.jpg"]
    annotator.written().encode()


def test_what_is_the_same_file(tmp_path: Path) -> None:
    name = _picture(tmp_path, "a.mp4")
    os.link(name, tmp_path / "linked.mp4")
    assert same_file(name, tmp_path / "linked.mp4")
    assert not same_file(name, tmp_path / "none.mp4")
    assert not same_file("rtsp://cam/x", "rtsp://cam/x")


def _colored(image: Image, label: str) -> Any:
    return np.abs(image.astype(int) - color_of(label)).sum(2) < 40


def test_keypoints_are_drawn_with_the_limbs_between_sure_ones() -> None:
    found = detections(boxes=1)
    label = found.model.labels[int(found.class_id[0])]
    found.xyxy[:] = [2, 2, 6, 6]
    points = np.zeros((1, 17, 3), np.float32)
    points[0, 5], points[0, 7], points[0, 9] = (100, 100, 0.9), (300, 100, 0.6), (300, 300, 0.4)  # shoulder to wrist
    image = _colored(draw(_grey(), replace(found, details=Details(keypoints=points))), label)
    assert image[100, 200]
    assert image[100, 300]
    assert not image[295:305, 295:305].any()
    assert not image[200, 295:305].any()
    # Of other sets of points nobody knows the limbs.
    image = _colored(draw(_grey(), replace(found, details=Details(keypoints=points[:, :10]))), label)
    assert image[100, 300]
    assert not image[95:105, 150:250].any()


def test_rotated_boxes_replace_upright_ones_and_outlines_are_filled() -> None:
    found = detections(boxes=1)
    label = found.model.labels[int(found.class_id[0])]
    found.xyxy[:] = [100, 100, 300, 300]
    diamond = np.array([[[200, 100], [300, 200], [200, 300], [100, 200]]], np.float32)
    image = _colored(draw(_grey(), replace(found, details=Details(oriented=diamond))), label)
    assert image[150, 150]
    assert image[250, 250]
    assert not image[295:305, 290:310].any()
    picture = draw(_grey(), replace(found, details=Details(polygons=list(diamond))))
    image = _colored(picture, label)
    assert image[150, 150]
    assert image[300, 290]  # the upright box, too
    assert (picture[200, 200] != 128).any()
    assert (picture[290, 290] == 128).all()
    empty = [np.empty((0, 2), np.float32)]
    assert _colored(draw(_grey(), replace(found, details=Details(polygons=empty))), label)[200, 100]


def _grey() -> Image:
    return np.full((400, 400, 3), 128, np.uint8)
