"""Image files: orientation, and which ones a folder has."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from streamd.errors import SourceError
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.sources.images import list_images, read_image
from streamd.types import Frame


def jpeg(path: Path, orientation: int | None = None, order: str = "<") -> Path:
    good, data = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))
    assert good
    content = data.tobytes()
    if orientation is not None:
        mark = b"II" if order == "<" else b"MM"
        entry = struct.pack(order + "HHIH2x", 0x0112, 3, 1, orientation)
        tiff = mark + struct.pack(order + "HIH", 42, 8, 1) + entry + bytes(4)
        body = b"Exif\0\0" + tiff
        content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + content[2:]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("tag", "found"),
    [
        (0, (0, False)), (1, (0, False)), (2, (0, True)), (3, (180, False)), (4, (180, True)), (5, (90, True)),
        (6, (90, False)), (7, (270, True)), (8, (270, False)), (9, (0, False)), (None, (0, False)),
    ],
)  # fmt: skip
def test_exif_orientations(tmp_path: Path, tag: int | None, found: tuple[int, bool], order: str) -> None:
    frame = read_image(jpeg(tmp_path / "a.jpg", tag, order))
    assert (frame.picture.rotation, frame.picture.mirrored) == found
    assert (frame.width, frame.height) == ((48, 64) if found[0] in (90, 270) else (64, 48))


def test_folders_below(tmp_path: Path) -> None:
    for name in ("b.jpg", "below/a.jpg", "below/deeper/c.PNG", "below/text.txt", "._b.jpg", "below/._a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert list_images(tmp_path) == [tmp_path / "b.jpg"]
    found = list_images(tmp_path, recursive=True)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b.jpg", "below/a.jpg", "below/deeper/c.PNG"]
    empty = tmp_path / "below" / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match=r"contains no image; expected \.bmp"):
        list_images(empty)
    (empty / "clip.MP4").touch()
    with pytest.raises(SourceError, match=r"contains no image; of a video, give the file itself, such as .*clip\.MP4"):
        list_images(empty)
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(SourceError, match=f"contains no image; {tmp_path}/below does"):
        list_images(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(SourceError, match="is a folder" if kind == "folder" else "is not a regular file"):
        read_image(path)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey"])
def test_a_jpeg_that_is_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    """Its decoder makes a picture of it, whose lower part is grey."""
    noise = np.random.default_rng(3).integers(0, 256, (12, 16) if kind == "grey" else (12, 16, 3), np.uint8)
    picture = cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(kind == "progressive")]
    content = cv2.imencode(".jpg", picture, options)[1].tobytes()
    path = tmp_path / "a.jpg"
    for share in range(10, 100, 10):
        path.write_bytes(content[: len(content) * share // 100])
        with pytest.raises(SourceError, match=r"a\.jpg: (is damaged or cut off|cannot be decoded)"):
            read_image(path)
    for whole in (content, content[:-2], content + b"trailing bytes"):  # some writers omit the end's marker
        path.write_bytes(whole)
        assert (read_image(path).width, read_image(path).height) == (320, 240)


def test_an_animated_webp_is_called_by_its_name(tmp_path: Path) -> None:
    animation = cv2.Animation()
    animation.frames = [np.full((48, 64, 3), grey, np.uint8) for grey in (50, 200)]
    animation.durations = np.array([100, 100])  # type: ignore[assignment]  # a list is refused
    path = tmp_path / "a.webp"
    assert cv2.imwriteanimation(str(path), animation)
    with pytest.raises(SourceError, match=r"a\.webp: is an animated WebP"):
        read_image(path)
    with pytest.raises(SourceError, match=r"a\.webp: is an animated WebP"):
        played(path)
    path.write_bytes(b"RIFF\x10\0\0\0WEBPVP8 ")
    with pytest.raises(SourceError, match="cannot be decoded as an image"):
        read_image(path)


def played(path: Path) -> Frame:
    """The first frame of a stream of this picture."""
    source = open_source(AvStreamSettings.model_validate({"id": "a", "url": str(path), "every_s": 0.5, "loop": True}))
    try:
        source.open()
        return next(iter(source.frames()))
    finally:
        source.close()


def test_a_tiff_with_a_jpeg_inside_is_refused(tmp_path: Path) -> None:
    """FFmpeg makes a black picture of it."""
    path = tmp_path / "a.tiff"
    grey = np.full((48, 64), 90, np.uint8)
    assert cv2.imwrite(str(path), grey, [cv2.IMWRITE_TIFF_COMPRESSION, 7])
    for read in (read_image, played):
        with pytest.raises(SourceError, match="is a TIFF with JPEG inside"):
            read(path)
    for compression in (1, 5, 8):  # none, LZW, deflate
        assert cv2.imwrite(str(path), grey, [cv2.IMWRITE_TIFF_COMPRESSION, compression])
        native = read_image(path).picture.native
        assert isinstance(native, av.VideoFrame)
        assert abs(int(native.to_ndarray(format="rgb24").mean()) - 90) <= 1
