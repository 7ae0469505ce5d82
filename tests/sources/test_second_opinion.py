"""A video that the GPU gives no picture of: the software decoder tells whose fault it is."""

from __future__ import annotations

from pathlib import Path

import av
from av.error import ExternalError

from streamd.sources.av import AvStreamSettings
from streamd.sources.second_opinion import is_external, plays_in_software
from tests.conftest import shared


def settings(path: Path) -> AvStreamSettings:
    return AvStreamSettings(id="s", url=str(path))


def test_a_valid_clip_plays() -> None:
    assert plays_in_software(settings(shared("videos/ped_amir.mp4")))


def test_damage_or_no_video_does_not(tmp_path: Path) -> None:
    whole = shared("videos/ped_amir.mp4").read_bytes()
    start = whole.index(b"mdat") + 4
    damaged = tmp_path / "damaged.mp4"
    # The index stays: every packet is found, and none of them is a picture.
    end = start + int.from_bytes(whole[start - 8 : start - 4], "big") - 8
    damaged.write_bytes(whole[:start] + bytes(end - start) + whole[end:])
    with av.open(str(damaged)) as container:
        assert container.streams.video[0].frames > 0
    assert not plays_in_software(settings(damaged))
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    assert not plays_in_software(settings(text))
    assert not plays_in_software(settings(tmp_path / "missing.mp4"))


def test_what_the_driver_says_is_not_what_the_file_is() -> None:
    assert is_external(ExternalError(1, "Generic error in an external library"))
    assert is_external(av.error.MemoryError(12, "Cannot allocate memory"))
    assert not is_external(av.error.InvalidDataError(1, "Invalid data found when processing input"))
