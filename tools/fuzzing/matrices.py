"""Display matrices and aspect ratios declared by files and cameras, followed down to the network's input."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.target import Target

_LAYOUT = struct.Struct("=36siiHHHHHH")
"""Matrix, aspect ratio, size of the picture, and a region of interest."""
_ONE = 1 << 16
_TURN = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
"""a, b, c, d of a clockwise rotation: x' = a·x + c·y, y' = b·x + d·y, y downwards."""


def elements() -> dict[tuple[int, bool], tuple[int, int, int, int]]:
    """The eight ways to turn and mirror a picture."""
    found = {}
    for turn, (a, b, c, d) in _TURN.items():
        found[turn, False] = (a, b, c, d)
        found[turn, True] = (-a, b, -c, d)  # then left to right
    return found


class Matrices(Target):
    """See `_LAYOUT`."""

    name = "matrices"
    what = "display matrices, aspect ratios and crops: orientation, letterbox, boxes back"
    tokens = (
        struct.pack("=i", _ONE),
        struct.pack("=i", -_ONE),
        struct.pack("=i", -(1 << 31)),
        struct.pack("=i", (1 << 31) - 1),
        bytes(4),
        b"\0\0\xc0\x7f",
        b"\1\0\0\0\0\0\0\0",
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        made = []
        for k, (a, b, c, d) in enumerate(elements().values()):
            matrix = struct.pack("=9i", a * _ONE, b * _ONE, 0, c * _ONE, d * _ONE, 0, 0, 0, 1 << 30)
            made.append(_LAYOUT.pack(matrix, 1 + k % 3, 1 + k // 4, 64, 48, 8, 4, 32, 24))
        return made

    def open(self) -> None:
        import av

        from streamd.imaging.letterbox import HostLetterbox

        self._frame = av.VideoFrame
        self._letterbox = HostLetterbox(96, 64)
        self._natives: dict[tuple[int, int], Any] = {}

    def run(self, data: bytes) -> None:
        from streamd.sources.picture import aspect_of, orientation, picture_of
        from streamd.types import Box, Frame, Letterbox

        orientation(data)
        matrix, over, under, *sizes = _LAYOUT.unpack(data[: _LAYOUT.size].ljust(_LAYOUT.size, b"\0"))
        turn, mirrored = orientation(matrix)
        self._check(struct.unpack("=9i", matrix), turn, mirrored)
        width, height = (2 * (1 + size % 64) for size in sizes[:2])
        native = self._natives.get((width, height))
        if native is None:
            native = self._natives[width, height] = self._frame(width, height, "yuv420p")
        aspect = aspect_of(Fraction(over, under) if under else None)
        picture = picture_of(native, rotation=turn, mirrored=mirrored, pixel_aspect=aspect)
        upright = (height, width) if turn % 180 else (width, height)
        x, y = sizes[2] % upright[0], sizes[3] % upright[1]
        roi = Box(x, y, 1 + sizes[4] % (upright[0] - x), 1 + sizes[5] % (upright[1] - y))
        frame = Frame("a", picture, *upright, 0, 0, 0, roi=roi)
        image = np.full((64, 96, 3), 1, np.uint8)
        self._letterbox(frame, image)
        fitted = Letterbox.fit(roi, 96, 64, pixel_aspect=picture.pixel_aspect)
        inside = np.zeros((64, 96), bool)
        right, below = fitted.pad_x + fitted.content_width, fitted.pad_y + fitted.content_height
        inside[fitted.pad_y : below, fitted.pad_x : right] = True
        assert (image[~inside] == 114).all(), "the picture is painted into the margin"
        corners = np.array([[fitted.pad_x, fitted.pad_y, right, below]], np.float32)
        assert np.allclose(fitted.to_source(corners), [[x, y, x + roi.width, y + roi.height]], atol=0.01)

    def _check(self, matrix: tuple[int, ...], turn: int, mirrored: bool) -> None:
        a, b, _, c, d, *_ = matrix
        if a * d == b * c:
            assert (turn, mirrored) == (0, False), "a matrix that maps the picture to a line turns it"
            return
        near = {key: sum(p * q for p, q in zip((a, b, c, d), e, strict=True)) for key, e in elements().items()}
        assert near[turn, mirrored] == max(near.values()), "another orientation is nearer"


TARGETS: tuple[type[Target], ...] = (Matrices,)
