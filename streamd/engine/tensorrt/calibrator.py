"""Implicit INT8 (TensorRT up to 10): the entropy calibrator, with a cache that records what it was made from.

TensorRT runs the float network over the batches, collects a histogram of every activation and chooses the clipping
range with the least relative entropy (its "entropy calibration 2"). It does not know where the images came from and
would accept any cache, so a cache has a file beside it (`FILE.json`) that records its key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from streamd.engine.tensorrt.driver import DeviceMemory
from streamd.engine.tensorrt.files import write_whole
from streamd.engine.tensorrt.version import Trt
from streamd.errors import BackendError, ConfigError
from streamd.types import Float32Array

log = structlog.get_logger(__name__)

MAX_CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class Calibration:
    """What to calibrate with: batches, a cache, or both."""

    sha256: str
    """Hash over model, images, their number and the batch size."""
    batch_size: int = 8
    batches: Callable[[], Iterator[Float32Array]] | None = field(default=None, compare=False)
    """Called once; yields (batch_size, 3, H, W) arrays, scaled as the network expects."""
    cache: Path | None = None
    model_sha256: str = ""
    """Of the model to calibrate; a cache that was made from another one is refused."""


def _cache_note(cache: Path) -> Path:
    return Path(f"{cache}.json")


def read_cache(calibration: Calibration) -> bytes | None:
    """The calibration cache, if there is one that fits.

    Raises:
        ConfigError: it cannot be read, or none fits and there are no images to calibrate with either.
    """
    cache, why = calibration.cache, "no --calibration-cache was given"
    if cache is not None:
        try:
            if cache.stat().st_size > MAX_CACHE_BYTES:
                raise ConfigError(
                    f"calibration cache {cache}: larger than {MAX_CACHE_BYTES} bytes; expected a calibration cache"
                )
            data = cache.read_bytes()
            note = _note_of(cache)
            if calibration.batches is None:
                # There are no images to compare with. What another program wrote has no note: trust the caller.
                fits = note.get("model") in (None, calibration.model_sha256)
            else:
                fits = bool(note.get("key")) and note["key"] == calibration.sha256
            if fits:
                log.info("calibration cache used", cache=str(cache))
                return data
            why = "it was made from another model or other images"
        except FileNotFoundError:
            why = "it does not exist"
        except OSError as error:
            raise ConfigError(f"calibration cache {cache}: cannot be read: {error.strerror}") from error
    if calibration.batches is None:
        raise ConfigError(f"calibration cache {cache}: {why}; give --calibrate-images")
    log.info("calibrating", cache=str(cache) if cache else None, reason=why)
    return None


def _note_of(cache: Path) -> dict[str, Any]:
    try:
        note = json.loads(_cache_note(cache).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def make_calibrator(trt: Trt, calibration: Calibration) -> Any:
    """An IInt8EntropyCalibrator2. Keep it alive until the build is done, then `close` it and check its `error`.

    Raises:
        BackendError: this TensorRT does not support implicit INT8.
        ConfigError: see `read_cache`.
    """
    if not trt.has_implicit_int8:
        raise BackendError(
            f"{trt} has no INT8 calibrator (removed with 11); make an explicit Q/DQ model with `streamd quantize`"
        )
    known = read_cache(calibration)

    base: Any = trt.module.IInt8EntropyCalibrator2

    class EntropyCalibrator(base):  # type: ignore[misc]
        """Stores exceptions, which must not pass through the vendor's frames, and ends the calibration."""

        def __init__(self) -> None:
            base.__init__(self)
            self.error: BaseException | None = None
            self.batches = 0
            self._iterator: Iterator[Float32Array] | None = None
            self._memory: DeviceMemory | None = None

        def get_batch_size(self) -> int:
            return calibration.batch_size

        def get_batch(self, names: list[str]) -> list[int] | None:
            try:
                if self._iterator is None:
                    self._iterator = iter(calibration.batches() if calibration.batches is not None else ())
                batch = next(self._iterator, None)
                if batch is None:
                    return None
                pixels = np.ascontiguousarray(batch, np.float32)
                if self._memory is None:
                    self._memory = DeviceMemory(pixels.nbytes)
                self._memory.write(pixels.ctypes.data, pixels.nbytes)
                self.batches += 1
                return [self._memory.address]
            except Exception as error:  # noqa: BLE001 - raised again by the builder, on this side of the vendor
                self.error = error
                return None

        def read_calibration_cache(self) -> bytes | None:
            return known

        def write_calibration_cache(self, cache: Any) -> None:
            if calibration.cache is None or self.error is not None:
                return
            try:
                write_whole(calibration.cache, bytes(cache))
                note = {"key": calibration.sha256, "model": calibration.model_sha256}
                write_whole(_cache_note(calibration.cache), json.dumps(note).encode())
            except OSError as error:
                self.error = ConfigError(f"calibration cache {calibration.cache}: cannot be written: {error.strerror}")

        def close(self) -> None:
            if self._memory is not None:
                self._memory.free()

    return EntropyCalibrator()
