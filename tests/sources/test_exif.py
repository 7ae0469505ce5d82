"""The Exif orientation of still pictures: in every container that has one, as files and as streams."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given

from streamd.cli.annotate import upright_bgr
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.sources.exif import exif_orientation
from streamd.sources.images import read_image
from streamd.sources.picture import turned

TURNS = {
    1: (0, False), 2: (0, True), 3: (180, False), 4: (180, True), 5: (90, True), 6: (90, False), 7: (270, True),
    8: (270, False),
}  # fmt: skip
Pixels = npt.NDArray[np.uint8]


def tiff(tag: int, order: str = "<", before: int = 0) -> bytes:
    """A TIFF block with so many other entries before the orientation."""
    entries = [struct.pack(order + "HHII", 0x0200 + i, 4, 1, 7) for i in range(before)]
    entries.append(struct.pack(order + "HHIHH", 0x0112, 3, 1, tag, 0))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)


def jpeg(picture: bytes, block: bytes) -> bytes:
    """With the block behind another APP1 segment, as cameras write it that also write XMP."""
    segments = (b"http://ns.adobe.com/xap/1.0/\0<x/>", b"Exif\0\0" + block)
    marked = b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments)
    return picture[:2] + marked + picture[2:]


def png(picture: bytes, block: bytes) -> bytes:
    chunk = b"eXIf" + block
    made = struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return picture[:33] + made + picture[33:]


def webp(picture: bytes, block: bytes) -> bytes:
    odd = b"XMP " + struct.pack("<I", 3) + b"abc\0"
    body = picture[8:] + odd + b"EXIF" + struct.pack("<I", len(block)) + block
    return b"RIFF" + struct.pack("<I", len(body)) + body


def encoded(suffix: str, image: Pixels) -> bytes:
    done, data = cv2.imencode(suffix, image)
    assert done
    return data.tobytes()


def scene() -> Pixels:
    """No symmetry: whatever is turned or mirrored wrongly differs."""
    blocks = np.random.default_rng(3).integers(0, 255, (6, 8, 3), np.uint8)
    return np.asarray(cv2.resize(blocks, (160, 120), interpolation=cv2.INTER_NEAREST), np.uint8)


def stored(tag: int) -> Pixels:
    """How a camera stores the scene that is to be turned by `tag`."""
    upright = scene()
    made: dict[int, Any] = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }  # fmt: skip
    return np.ascontiguousarray(made[tag])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tag", [*TURNS, 0, 9])
def test_every_container(tag: int, order: str) -> None:
    block = tiff(tag, order, before=20)
    small = np.zeros((8, 8, 3), np.uint8)
    for data in (
        jpeg(encoded(".jpg", small), block), png(encoded(".png", small), block), webp(encoded(".webp", small), block),
        webp(encoded(".webp", small), b"Exif\0\0" + block), block,
    ):  # fmt: skip
        assert exif_orientation(data) == TURNS.get(tag)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("tag", TURNS)
def test_a_picture_is_turned_as_a_file_and_as_a_stream(tmp_path: Path, suffix: str, tag: int) -> None:
    into = jpeg if suffix == ".jpg" else png
    path = tmp_path / f"i{suffix}"
    path.write_bytes(into(encoded(suffix, stored(tag)), tiff(tag)))
    source = AvSource(AvStreamSettings.model_validate({"id": "s", "url": str(path), "pace": "asap"}))
    source.open()
    for frame in (read_image(path), next(iter(source.frames()))):
        assert (frame.width, frame.height) == (160, 120)
        difference = np.abs(upright_bgr(frame).astype(int) - scene()).mean()
        assert difference < 8
    source.close()


@given(
    st.binary(max_size=200),
    st.sampled_from([b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"RIFF0000WEBP", b"II*\0", b""]),
)
def test_no_data_makes_it_fail_or_hang(data: bytes, head: bytes) -> None:
    assert exif_orientation(head + data) in (None, *TURNS.values())


@pytest.mark.parametrize(
    ("angle", "rotation"), [(0, 0), (90, 270), (-90, 90), (180, 180), (-180, 180), (88, 270), (-3, 0), (360, 0)]
)
def test_an_angle_alone(angle: float, rotation: int) -> None:
    assert turned(angle) == (rotation, False)
