"""Small pictures of frames in device memory, for display: the letterbox kernel writes them, and only they are
copied."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from streamd.engine.tensorrt import kernels
from streamd.engine.tensorrt.cuda import Device, DeviceBuffer, PinnedBuffer
from streamd.engine.tensorrt.enqueue import Kernel
from streamd.types import Frame

_SIZES = 16
"""Number of sizes whose geometries are kept."""


class Thumbnailer:
    """Works on its own stream, so that it waits for no batch and no batch waits for it. For one thread.

    Nothing is allocated before the first picture; its buffers grow with the largest one.

    Args:
        device: where the frames are.
        kernel: `preprocess_uint8`.
    """

    def __init__(self, device: Device, kernel: Kernel) -> None:
        self._device, self._kernel = device, kernel
        self._stream = device.stream()
        self._done = device.event()
        self._table: PinnedBuffer | None = None
        self._table_device: DeviceBuffer | None = None
        self._pixels: PinnedBuffer | None = None
        self._pixels_device: DeviceBuffer | None = None
        self._geometries: OrderedDict[tuple[int, int], kernels.Geometries] = OrderedDict()

    def make(self, frame: Frame, width: int, height: int) -> npt.NDArray[np.uint8]:
        """The upright picture of `frame`, or the part of it that `roi` names, scaled to `width` × `height`.

        Args:
            frame: a frame on this device that is completely decoded: its batch has been collected.
            width: pixels.
            height: pixels.

        Returns:
            (height, width, 3) uint8, BGR.

        Raises:
            FrameError: the picture cannot be read.
            BackendError: the device failed.
        """
        geometry = self._geometry(frame, width, height)
        planes = [(address, pitch) for address, pitch, _ in kernels.plane_layout(frame, geometry)]
        size = width * height * 3
        table, table_device, pixels, pixels_device = self._reserve(size)
        kernels.pack_picture(table.view, 0, planes, geometry)
        device, stream = self._device, self._stream
        with device:
            device.to_device(stream, table_device.address, table.bytes)
            self._kernel.launch(
                stream, kernels.preprocess_grid(width, height, 1), kernels.BLOCK,
                *kernels.preprocess_arguments(
                    table_device.address, pixels_device.address, width, height,
                    nhwc=True, normalization=kernels.PIXELS, pad=0,
                ),
            )  # fmt: skip
            device.to_host(stream, pixels.bytes[:size], pixels_device.address)
            self._done.record(stream)
            self._done.synchronize()
        made: npt.NDArray[np.uint8] = pixels.bytes[:size].reshape(height, width, 3).copy()
        return made

    def _geometry(self, frame: Frame, width: int, height: int) -> kernels.Geometry:
        made = self._geometries.get((width, height))
        if made is None:
            made = self._geometries[width, height] = kernels.Geometries(width, height, "BGR")
            if len(self._geometries) > _SIZES:
                self._geometries.popitem(last=False)
        return made.of(frame)

    def _reserve(self, size: int) -> tuple[PinnedBuffer, DeviceBuffer, PinnedBuffer, DeviceBuffer]:
        device = self._device
        if self._table is None or self._table_device is None:
            self._table = device.allocate_pinned(kernels.PICTURE_BYTES)
            self._table_device = device.allocate(kernels.PICTURE_BYTES)
        if self._pixels is None or self._pixels_device is None or self._pixels.size < size:
            for old in (self._pixels, self._pixels_device):
                if old is not None:
                    device.free(old)
            self._pixels, self._pixels_device = device.allocate_pinned(size), device.allocate(size)
        return self._table, self._table_device, self._pixels, self._pixels_device
