"""Clips of real recordings, compared picture by picture with what a decoder makes of the whole file."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path
from typing import Any

import av
import pytest

from tests.conftest import shared
from tests.events.evidence.stage import Stage, ffprobe_errors

BEGIN, END, PLAYED = 90, 110, 180


class Enough(Exception):
    """No more pictures are needed."""


def sums(path: Path, count: int | None = None) -> list[tuple[float, int]]:
    """Time in seconds and checksum of the first pictures, as they are shown."""
    with av.open(str(path)) as container:
        frames = itertools.islice(container.decode(video=0), count)
        return [(frame.time or 0.0, zlib.crc32(frame.to_ndarray(format="gray"))) for frame in frames]


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("vtest.avi", ".mkv"),  # msmpeg4
        ("finite_car.mp4", ".mp4"),  # H.265
        ("person-bicycle-car-detection.mp4", ".mp4"),  # H.264
    ],
)
def test_a_clip_has_the_pictures_of_its_file_and_boxes_on_the_right_ones(
    tmp_path: Path, name: str, ending: str
) -> None:
    video = shared(f"videos/{name}")
    stage = Stage(tmp_path / "media", ring_s=60)

    def tell(frame: Any, _: int) -> None:
        if frame.seq == BEGIN:
            stage.event("begin", frame)
        elif frame.seq == END:
            stage.event("end", frame)
        elif frame.seq >= PLAYED:
            raise Enough

    with pytest.raises(Enough):
        stage.play(video, tell)
    whole = sums(video, PLAYED + 60)
    path, told = stage.clip()
    assert path.suffix == ending
    assert ffprobe_errors(path) == ""
    found = sums(path)
    first = told["frames"][0]["seq"]
    assert [crc for _, crc in found] == [crc for _, crc in whole[first : first + len(found)]]
    assert whole[first][0] <= whole[BEGIN][0] - 1.0, "from a second before the begin, or earlier"
    assert whole[first + len(found) - 1][0] >= whole[END][0] + 0.9, (
        "to a second after the end, but for reordered pictures"
    )
    assert told["events"][0]["complete"] is True
    for frame in told["frames"]:
        _, crc = min(found, key=lambda each: abs(each[0] - frame["t"]))
        assert crc == whole[frame["seq"]][1], "the boxes of a frame lie on its picture"
