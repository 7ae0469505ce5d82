"""Boxes on pictures: colours, sizes, files."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
import pytest

from streamd.cli.annotate import COLORS, Video, color_of, draw
from streamd.errors import SinkError
from streamd.types import Detections
from tests.conftest import ROOT
from tests.frames import detections


def test_colours_are_the_pages_and_tell_the_bundled_models_classes_apart() -> None:
    script = (ROOT / "streamd" / "web" / "static" / "pictures.js").read_text()
    assert re.findall(r'"#([0-9a-f]{6})"', script.split("const COLORS")[1].split("]")[0]) == list(COLORS)
    assert "hash * 31 +" in script
    assert "(hash % 97) % COLORS.length" in script
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
