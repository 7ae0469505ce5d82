"""CUDA graphs of a slot's batches: one launch instead of about a hundred."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from streamd.engine.tensorrt import decode
from streamd.engine.tensorrt.cuda import Device
from streamd.engine.tensorrt.slot import TensorRtSlot, tensor_bytes
from streamd.errors import BackendError
from streamd.types import ModelSpec

log = structlog.get_logger(__name__)

Enqueue = Callable[[TensorRtSlot, int], None]
"""Enqueues a batch of this many frames on a slot's stream."""
_SAMPLE_BYTES = 1 << 20
"""How many elements of each output of a batch's last frame are compared."""


def graph_sizes(max_batch: int) -> tuple[int, ...]:
    """Batch sizes worth a graph: every small one, for which launching dominates, then powers of two."""
    sizes = {n for n in range(1, max_batch + 1) if n <= 8 or n & (n - 1) == 0}
    return tuple(sorted(sizes | {max_batch}))


class Replay:
    """Captures graphs and verifies them.

    TensorRT guarantees little about a graph whose context has since run another shape. After every size has been
    captured, each graph is therefore replayed and its outputs are compared with those of plain execution.

    Args:
        device: the slots' device.
        spec: the model.
        enqueue: what is captured.
    """

    def __init__(self, device: Device, spec: ModelSpec, enqueue: Enqueue) -> None:
        self._device = device
        self._spec = spec
        self._enqueue = enqueue

    def make(self, slots: Sequence[TensorRtSlot], *, required: bool) -> tuple[int, ...]:
        """Gives each slot its graphs; returns their batch sizes, or none if graphs are not available.

        Args:
            slots: idle.
            required: raise an error if graphs are not available, instead of a log line.

        Raises:
            BackendError: see `required`.
        """
        api = self._device.graphs()
        if api is None:
            if required:
                raise BackendError(
                    "backend tensorrt: engine.graphs is on, but cuda-bindings cannot be loaded; "
                    "pip install cuda-bindings, or set graphs: auto"
                )
            return ()
        sizes = graph_sizes(self._spec.max_batch)
        try:
            expected = [(s, n, self._capture(s, n, api)) for s in slots for n in sizes]
            wrong = sorted({n for s, n, want in expected if not self._replays(s, n, want)})
            if wrong:
                raise BackendError(
                    f"backend tensorrt: graphs of batches {wrong} changed the outputs; set engine.graphs: off"
                )
        except BackendError as error:
            for slot in slots:
                for graph in slot.graphs.values():
                    self._device.discard(graph)
                slot.graphs.clear()
            if required:
                raise
            log.warning("CUDA graphs are disabled", reason=str(error))
            return ()
        return sizes

    def _capture(self, slot: TensorRtSlot, frames: int, api: Any) -> list[npt.NDArray[np.uint8]]:
        """Captures one batch size; returns the outputs of plain execution for a fixed input."""
        with self._device:
            self._fill_input(slot, frames)
            # The first run of a shape may allocate, which is not allowed during a capture.
            self._enqueue(slot, frames)
            slot.stream.synchronize()
            expected = self._sample(slot, frames)
            slot.graphs[frames] = self._device.capture(api, slot.stream, lambda: self._enqueue(slot, frames))
        return expected

    def _replays(self, slot: TensorRtSlot, frames: int, expected: list[npt.NDArray[np.uint8]]) -> bool:
        with self._device:
            self._fill_input(slot, frames)
            for buffer in slot.outputs:
                self._device.zero(slot.stream, buffer.address, buffer.size)
            slot.graphs[frames].launch()
            slot.stream.synchronize()
            found = self._sample(slot, frames)
        for spec, got, want in zip(self._spec.outputs, found, expected, strict=True):
            if spec.dtype not in decode.TYPES:
                if not np.array_equal(got, want):
                    return False
                continue
            a, b = (v.view(spec.dtype).astype(np.float32) for v in (got, want))
            if not np.allclose(a, b, rtol=1e-2, atol=1e-2, equal_nan=True):
                return False
        return True

    def _fill_input(self, slot: TensorRtSlot, frames: int) -> None:
        """The same noise for each frame of a batch."""
        spec = self._spec.input
        size = tensor_bytes(spec, 1)
        top = 1.0 if spec.dtype.startswith("float") else 100.0
        count = size // np.dtype(spec.dtype).itemsize
        values = np.random.default_rng(7).uniform(0, top, count).astype(spec.dtype)
        pinned = self._device.allocate_pinned(size)
        pinned.bytes[:] = values.view(np.uint8)
        for i in range(frames):
            self._device.to_device(slot.stream, slot.input.address + i * size, pinned.bytes)
        slot.stream.synchronize()
        self._device.free(pinned)

    def _sample(self, slot: TensorRtSlot, frames: int) -> list[npt.NDArray[np.uint8]]:
        found = []
        for spec, buffer in zip(self._spec.outputs, slot.outputs, strict=True):
            size = tensor_bytes(spec, 1)
            pinned = self._device.allocate_pinned(min(size, _SAMPLE_BYTES))
            self._device.to_host(slot.stream, pinned.bytes, buffer.address + (frames - 1) * size)
            slot.stream.synchronize()
            found.append(pinned.bytes.copy())
            self._device.free(pinned)
        return found
