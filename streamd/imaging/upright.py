"""Whole upright pictures of frames, for people to look at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.imaging.letterbox import HostLetterbox
from streamd.types import Frame

Image = npt.NDArray[np.uint8]
Download = Callable[[Frame, int, int], Image]
"""Scales a frame in device memory to a width and a height, on the device, and brings it to the host as BGR."""
_GEOMETRIES = 16


class UprightScaler:
    """Makes pictures of any frame. Any thread.

    Args:
        downloads: by CUDA ordinal: what brings a picture from the device.
    """

    def __init__(self, downloads: Mapping[int, Download]) -> None:
        self._downloads = downloads
        self._local = threading.local()

    def __call__(self, frame: Frame, width: int) -> Image | None:
        """The whole upright picture, (H, W, 3) BGR with square pixels, at most `width` pixels wide and high.

        None if the picture cannot be accessed.
        """
        frame = replace(frame, roi=None)
        seen = frame.width * frame.picture.pixel_aspect
        scale = min(1.0, width / seen, width / frame.height)
        size = max(1, round(seen * scale)), max(1, round(frame.height * scale))
        if frame.picture.device is not None:
            download = self._downloads.get(frame.picture.device)
            return None if download is None else download(frame, *size)
        # A letterbox belongs to one thread; the postprocess thread of each device has its own.
        scalers: dict[Any, HostLetterbox] = self._local.__dict__.setdefault("scalers", {})
        scaler = scalers.get(size)
        if scaler is None:
            if len(scalers) >= _GEOMETRIES:
                scalers.clear()
            scaler = scalers[size] = HostLetterbox(*size, color="BGR")
        image: Image = np.empty((size[1], size[0], 3), np.uint8)
        scaler(frame, image)
        return image
