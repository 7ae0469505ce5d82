"""Small pictures of frames that the GPU's decoder left in its memory: see `glance.c`, which does everything.

A frame waits for one launch that may be under way, and for its own, which it shares with all that wait by then: of any
number of streams, on a CUDA stream of its own. Only the cells reach the host: the kernel writes them there."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np

from streamd.analysis.compiled import compiled
from streamd.analysis.glance import COLUMNS, ROWS, Luma
from streamd.analysis.glance.picture import Layout
from streamd.engine.tensorrt.cuda import Device
from streamd.engine.tensorrt.enqueue import Kernel
from streamd.errors import BackendError
from streamd.types import Picture

KERNEL = "glance"
MOST = 64
"""Frames that one launch reads, at most."""
SURFACE_BYTES = 32
ARGUMENTS = f"P{MOST * SURFACE_BYTES}s"
"""Of the kernel: where the cells go, and the frames' `Surface`s."""
CELLS = ROWS * COLUMNS

_CALLS = (
    "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuEventRecord", "cuStreamWaitEvent", "cuLaunchKernel",
    "cuStreamSynchronize",
)  # fmt: skip
_STEPS = ("", "cuCtxPushCurrent", "cuEventRecord", "cuStreamWaitEvent", "cuLaunchKernel", "cuStreamSynchronize")
_STEP = 10_000
_CLOSED = -1


@functools.cache
def library(path: str | None = None) -> tuple[Any, ...] | None:
    """The compiled functions `size`, `open`, `close`, `counts` and `take` of glance.c; None where there are none.

    Args:
        path: of the file; the one that was built with the package by default.
    """
    names = tuple(f"glances_{name}" for name in ("size", "open", "close", "counts", "take"))
    functions = compiled(Path(__file__).with_name("_glance"), names, path)
    if functions is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    arguments: list[list[Any]] = [
        [], [pointer, pointer], [pointer], [pointer, pointer],
        [pointer, ctypes.c_uint64, number, number, number, number, number, pointer],
    ]  # fmt: skip
    for function, types in zip(functions, arguments, strict=True):
        function.argtypes = types
    return functions


class SurfaceGlances:
    """See `streamd.analysis.glance.picture.SurfaceReader`. Allocates once, 0.9 MB of page-locked memory.

    Args:
        device: where the frames are.
        kernel: `KERNEL` of kernels.cu.
        functions: see `library`.

    Raises:
        BackendError: the device refused, or nothing was compiled.
    """

    def __init__(self, device: Device, kernel: Kernel, functions: tuple[Any, ...] | None = None) -> None:
        found = functions or library()
        if found is None:
            raise BackendError(
                "backend tensorrt: frames on the GPU cannot be glanced at: streamd was installed without its compiled "
                "parts; reinstall it where there is a C compiler"
            )
        size, opened, self._close, self._counts, self._take = found
        self.device = device.ordinal
        self._check = device.check
        self._cells = device.allocate_pinned(MOST * CELLS)
        self._stream, self._surfaces = device.stream(), device.event()
        driver = (ctypes.c_uint64 * 11)(
            *device.addresses(_CALLS), device.context, self._stream.handle, self._surfaces.handle or 0,
            kernel.handle or 0, self._cells.address,
        )  # fmt: skip
        # Kept as long as this object: a thread that was abandoned may still come.
        self._memory = ctypes.create_string_buffer(size())
        self._glances = ctypes.addressof(self._memory)
        opened(self._glances, ctypes.addressof(driver))

    def read(self, picture: Picture, layout: Layout) -> Luma:
        """See `SurfaceReader.read`."""
        plane: Any = picture.native.planes[0]
        out: Luma = np.empty((ROWS, COLUMNS), np.uint8)
        status = self._take(
            self._glances, plane.buffer_ptr, plane.line_size, picture.width, picture.height, layout.size, layout.shift,
            out.__array_interface__["data"][0],
        )  # fmt: skip
        if status:
            self._fail(status)
        return out

    def _fail(self, status: int) -> None:
        if status == _CLOSED:
            raise BackendError("backend tensorrt: the GPU is closed")
        step, code = divmod(status, _STEP)
        self._check(code, f"{_STEPS[step]} of a glance")

    @property
    def counts(self) -> tuple[int, int]:
        """Launches so far, and frames that they read. Any thread."""
        out = (ctypes.c_uint64 * 2)()
        self._counts(self._glances, ctypes.addressof(out))
        return out[0], out[1]

    def close(self) -> None:
        """Refuses further frames and waits for those under way. Idempotent; before the device is closed."""
        self._close(self._glances)
