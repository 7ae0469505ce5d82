"""The small picture of a frame, from the planes that the decoder wrote.

A cell is the rounded mean of its area: all its columns in at most `MOST_ROWS` rows, evenly spaced. The mean over the
columns is what keeps thin things that move from being missed (aliasing); a thing lower than the distance of two rows,
3 pixels at 1080p and 6 at 2160p, may pass between them, and is too small for a network's input.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from streamd.analysis.glance import COLUMNS, ROWS, Glance, Luma
from streamd.analysis.glance.native import library
from streamd.errors import BackendError
from streamd.types import Frame, Picture

MOST_ROWS = 4
"""Rows of the frame that a cell is made of. At 1080p, all twelve took three times as long."""

_EIGHT = (
    "gray", "yuv410p", "yuv411p", "yuv420p", "yuv422p", "yuv440p", "yuv444p", "yuvj411p", "yuvj420p", "yuvj422p",
    "yuvj440p", "yuvj444p", "yuva420p", "yuva422p", "yuva444p", "nv12", "nv21", "nv16", "nv24", "nv42",
)  # fmt: skip
_DEEP = ("yuv420p", "yuv422p", "yuv440p", "yuv444p", "gray")


class Layout(NamedTuple):
    """Where the luma of a pixel format lies in its first plane."""

    size: int
    """Bytes of a sample, 1 or 2 (little endian)."""
    step: int = 1
    """Samples from one to the next."""
    offset: int = 0
    """The first one."""
    shift: int = 0
    """Bits to leave out, so that 8 remain."""


LAYOUTS: dict[str, Layout] = {
    **{name: Layout(1) for name in _EIGHT},
    **{f"{name}{bits}le": Layout(2, shift=bits - 8) for name in _DEEP for bits in (9, 10, 12, 14, 16)},
    # The samples of these are in the upper bits.
    **{name: Layout(2, shift=8) for name in ("p010le", "p012le", "p016le", "p210le", "p216le", "p410le", "p416le")},
    "yuyv422": Layout(1, 2, 0),
    "yvyu422": Layout(1, 2, 0),
    "uyvy422": Layout(1, 2, 1),
}
"""Pixel formats whose luma can be read, by FFmpeg's names."""


class SurfaceReader(Protocol):
    """Reads frames in the memory of a GPU."""

    @property
    def device(self) -> int:
        """CUDA ordinal of the GPU."""
        ...

    def read(self, picture: Picture, layout: Layout) -> Luma:
        """The small picture of one in the memory of `device`; see `Glance.luma`. Any thread; waits for the GPU.

        Raises:
            BackendError: the GPU failed.
        """
        ...


class Grid:
    """Which rows and columns of a frame of one size make up which cells."""

    def __init__(self, width: int, height: int) -> None:
        self.size = width, height
        edges = np.arange(COLUMNS + 1) * width // COLUMNS
        starts = np.arange(ROWS + 1) * height // ROWS
        # A frame of fewer pixels than cells repeats them.
        self.repeats = width < COLUMNS or height < ROWS
        self.columns: list[tuple[int, int]] = [(int(a), max(int(b), int(a) + 1)) for a, b in itertools.pairwise(edges)]
        self.rows: list[npt.NDArray[np.int64]] = []
        for top, bottom in zip(starts.tolist(), starts[1:].tolist(), strict=False):
            height_of = max(bottom - top, 1)
            taken = min(height_of, MOST_ROWS)
            # The middle rows of `taken` equal parts.
            self.rows.append(top + (2 * np.arange(taken) + 1) * height_of // (2 * taken))
        self.edges = np.ascontiguousarray(edges, np.int64)
        self.taken = np.array([len(rows) for rows in self.rows], np.int64)
        self.flat = np.concatenate(self.rows).astype(np.int64)
        self.sums = np.empty(2 * width, np.uint32)
        """Room for a row of the frame, of any format."""
        self.addresses = (
            self.flat.ctypes.data, self.taken.ctypes.data, self.edges.ctypes.data, self.sums.ctypes.data,
        )  # fmt: skip


def mean_of(plane: npt.NDArray[np.uint8 | np.uint16], grid: Grid, shift: int) -> Luma:
    """The reference: means over the cells of a grid.

    Args:
        plane: (height, width) samples.
        grid: of that size.
        shift: bits by which a sample exceeds 8.
    """
    out = np.empty((ROWS, COLUMNS), np.uint8)
    edges = np.array([a for a, _ in grid.columns])
    widths = np.array([b - a for a, b in grid.columns])
    taken = grid.taken.astype(np.int64)
    if grid.repeats:
        means = np.empty((ROWS, COLUMNS))
        for r, rows in enumerate(grid.rows):
            sums = plane[rows].sum(axis=0, dtype=np.int64)
            means[r] = [sums[a:b].sum() / ((b - a) * len(rows)) for a, b in grid.columns]
        out[:] = np.minimum(np.floor(means / (1 << shift) + 0.5), 255)
        return out
    stops = np.concatenate(([0], np.cumsum(taken)[:-1]))
    lines = np.add.reduceat(plane[grid.flat], stops, axis=0, dtype=np.uint32)
    sums = np.add.reduceat(lines, edges, axis=1, dtype=np.uint64).astype(np.int64)
    count = (taken[:, None] * widths[None, :]) << shift
    np.minimum((2 * sums + count) // (2 * count), 255, out=out, casting="unsafe")
    return out


class Glancer:
    """Makes the small pictures of one stream. For one thread.

    Args:
        native: see `native.library`; what was built with the package by default, None for NumPy.
        surfaces: reads frames in the memory of a GPU; None where there is no such reader.
    """

    def __init__(self, native: tuple[Any, Any] | bool | None = True, surfaces: SurfaceReader | None = None) -> None:
        self._native = library() if native is True else (native or None)
        self._surfaces = surfaces
        self._grid: Grid | None = None
        self.unreadable = ""
        """Why the last frame could not be read; empty if it could."""

    def take(self, frame: Frame) -> Glance | None:
        """The small picture of a frame, or None where its luma cannot be read (`unreadable` says why)."""
        picture = frame.picture
        layout = LAYOUTS.get(picture.format)
        luma: Luma | None
        if layout is None or sys.byteorder != "little":
            self.unreadable = f"the luma of pixel format {picture.format} cannot be read"
            luma = None
        elif picture.device is None:
            luma = self._luma(picture, layout)
        else:
            luma = self._luma_there(picture, layout)
        if luma is None:
            return None
        self.unreadable = ""
        key = bool(getattr(picture.native, "key_frame", False))
        return Glance(
            luma, frame.captured_ns, frame.wall_ns, frame.pts_ns, picture.width, picture.height, picture.rotation,
            picture.mirrored, picture.full_range, frame.epoch, frame.seq, key,
        )  # fmt: skip

    def _luma_there(self, picture: Picture, layout: Layout) -> Luma | None:
        """Of a picture in the memory of a GPU."""
        reader = self._surfaces
        if reader is None:
            self.unreadable = "the picture is in the memory of a GPU"
        elif reader.device != picture.device:
            self.unreadable = f"the picture is on GPU {picture.device}, the model on GPU {reader.device}"
        elif layout.step != 1:
            self.unreadable = f"the luma of pixel format {picture.format} cannot be read on a GPU"
        else:
            try:
                return reader.read(picture, layout)
            except BackendError as error:
                self.unreadable = str(error)
        return None

    def _luma(self, picture: Picture, layout: Layout) -> Luma:
        grid = self._grid
        if grid is None or grid.size != (picture.width, picture.height):
            grid = self._grid = Grid(picture.width, picture.height)
        plane = picture.native.planes[0]
        address, pitch = plane.buffer_ptr, plane.line_size
        if self._native is None or grid.repeats:
            return mean_of(samples(address, pitch, picture.width, picture.height, layout), grid, layout.shift)
        out: Luma = np.empty((ROWS, COLUMNS), np.uint8)
        rows, taken, edges, sums = grid.addresses
        if layout.size == 1:
            function, third = self._native[0], layout.step
        else:
            function, third = self._native[1], layout.shift
        function(
            address + layout.offset, pitch, third, rows, taken, ROWS, edges, COLUMNS, sums,
            out.__array_interface__["data"][0],
        )  # fmt: skip
        return out


def samples(address: int, pitch: int, width: int, height: int, layout: Layout) -> npt.NDArray[np.uint8 | np.uint16]:
    """A view (height, width) of the luma samples at an address; valid as long as the picture is."""
    used = (height - 1) * pitch + width * layout.step * layout.size
    raw: Any = (ctypes.c_uint8 * used).from_address(address)
    dtype = np.dtype(np.uint8) if layout.size == 1 else np.dtype("<u2")
    strides = pitch, layout.step * layout.size
    view: npt.NDArray[Any] = np.ndarray((height, width), dtype, raw, layout.offset, strides)
    return view
