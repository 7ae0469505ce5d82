"""One batch in flight: its stream, events and buffers, all allocated before the first frame except host staging."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import structlog

from streamd.engine.tensorrt import decode, kernels, suppress
from streamd.engine.tensorrt.cuda import Device, DeviceBuffer, PinnedBuffer
from streamd.engine.tensorrt.enqueue import Graph
from streamd.types import Candidates, DecodePlan, FloatArray, Frame, ModelSpec, Outputs, TensorSpec

log = structlog.get_logger(__name__)

_COUNTS_ALIGN = 256


def tensor_bytes(spec: TensorSpec, batch: int) -> int:
    """Bytes of a tensor whose first dimension is the batch."""
    return batch * int(np.prod(spec.shape[1:], dtype=np.int64)) * np.dtype(spec.dtype).itemsize


class TensorRtSlot:
    """See the module.

    Args:
        index: number of the slot.
        device: its device.
        spec: the model; all dimensions except the batch are known.
        batch: frames that input and outputs can hold: a plan's minimum batch may be larger than any batch sent.
        plan: how to decode boxes on the device; None returns the raw outputs.
        capacity: candidates per frame.
    """

    def __init__(
        self, index: int, device: Device, spec: ModelSpec, batch: int, plan: DecodePlan | None, capacity: int
    ) -> None:
        self.index = index
        self.count = 0
        """Frames of the batch."""
        self.pending = False
        """Enqueued and not collected."""
        self.held: Sequence[Frame] = ()
        """Frames whose device memory the letterbox kernel may still read."""
        self.graphs: dict[int, Graph] = {}
        """By batch size."""
        self.stream = device.stream()
        # Events in the stream: the letterbox starts and ends, the network starts, everything is done.
        self.started, self.ready, self.running, self.done = (device.event() for _ in range(4))
        self.surfaces = device.event()
        """End of the hardware decoders' work when the batch was assembled."""
        self._device, self._spec, self._plan, self._capacity = device, spec, plan, capacity
        self.pictures = device.allocate_pinned(spec.max_batch * kernels.PICTURE_BYTES)
        self.pictures_device = device.allocate(self.pictures.size)
        self.staging: PinnedBuffer | None = None
        self.staging_device: DeviceBuffer | None = None
        self.input = device.allocate(tensor_bytes(spec.input, batch))
        self.outputs = [device.allocate(tensor_bytes(o, batch)) for o in spec.outputs]
        self.addresses = [(spec.input.name, self.input.address)]
        self.addresses += [(o.name, b.address) for o, b in zip(spec.outputs, self.outputs, strict=True)]
        self.raw: list[PinnedBuffer] = []
        self._layout: suppress.Layout | None = None
        """Whether NMS is done on the device."""
        self.counts_bytes = -(-spec.max_batch * 4 // _COUNTS_ALIGN) * _COUNTS_ALIGN
        if plan is None:
            self.raw = [device.allocate_pinned(tensor_bytes(o, spec.max_batch)) for o in spec.outputs]
        else:
            self._make_decoder(plan)

    def _make_decoder(self, plan: DecodePlan) -> None:
        """The block that is copied back, with counts and candidates or boxes, and the kernels' views of it."""
        device, spec = self._device, self._spec
        if plan.suppress:
            self._layout = suppress.Layout(spec.max_batch, self._capacity, plan.max_det)
        self.result = device.allocate_pinned(self.result_bytes(spec.max_batch))
        self.result_device = device.allocate(self.result.size)
        candidates = self.result_device.address + self.counts_bytes
        if self._layout is not None:
            self.scratch_device = device.allocate(self._layout.scratch_bytes)
            candidates = self.scratch_device.address
            self.suppress_device = self._upload(self._layout.pack(plan, self.result_device.address, candidates))
            self._boxes = suppress.Boxes(self.result.bytes, self._layout)
        self.decode_device = self._upload(
            decode.pack(
                plan, spec.outputs, (spec.input_height, spec.input_width), [b.address for b in self.outputs],
                self.result_device.address, candidates, self._capacity,
            )
        )  # fmt: skip

    def _upload(self, packed: bytes) -> DeviceBuffer:
        device = self._device
        buffer, pinned = device.allocate(len(packed)), device.allocate_pinned(len(packed))
        pinned.bytes[:] = np.frombuffer(packed, np.uint8)
        with device:
            device.to_device(self.stream, buffer.address, pinned.bytes)
            self.stream.synchronize()
        device.free(pinned)
        return buffer

    def result_bytes(self, frames: int) -> int:
        """What is copied back for this many frames: their counts and candidates, or boxes."""
        if self._layout is not None:
            return self._layout.result_bytes(frames)
        return self.counts_bytes + frames * self._capacity * decode.CANDIDATE.itemsize

    # ------------------------------------------------------------------------------------------------------- input

    def reserve(self, needed: int) -> None:
        """Room for `needed` bytes of host pictures. It grows with the largest batch seen, while the slot is idle."""
        if needed == 0 or (self.staging is not None and self.staging.size >= needed):
            return
        for old in (self.staging, self.staging_device):
            if old is not None:
                self._device.free(old)
        self.staging = self.staging_device = None
        size = needed + needed // 4
        self.staging = self._device.allocate_pinned(size)
        self.staging_device = self._device.allocate(size)
        log.debug("staging grew", slot=self.index, mib=round(size / 2**20, 1))

    def pack(
        self,
        frames: Sequence[Frame],
        layouts: Sequence[list[tuple[int, int, int]]],
        geometries: Sequence[kernels.Geometry],
    ) -> None:
        """Writes the pictures' structures, and copies host planes, into pinned memory."""
        offset = 0
        base = 0 if self.staging_device is None else self.staging_device.address
        target = 0 if self.staging is None else self.staging.address

        def copy(at: int, address: int, size: int) -> None:
            ctypes.memmove(target + at, address, size)

        for i, (frame, planes, geometry) in enumerate(zip(frames, layouts, geometries, strict=True)):
            if frame.picture.device is None:
                reached, offset = kernels.stage(planes, base, offset, copy)
            else:
                reached = [(address, pitch) for address, pitch, _ in planes]
            kernels.pack_picture(self.pictures.view, i, reached, geometry)

    # ------------------------------------------------------------------------------------------------------ output

    def raw_outputs(self) -> Outputs:
        """The collected batch's outputs: views of pinned memory where they are float32 or float16."""
        found: list[FloatArray] = []
        for spec, raw in zip(self._spec.outputs, self.raw, strict=True):
            values = raw.bytes[: tensor_bytes(spec, self.count)].view(spec.dtype).reshape(self.count, *spec.shape[1:])
            # A head reads only a small part, and converts only that.
            found.append(values if spec.dtype == "float16" else values.astype(np.float32, copy=False))
        return found

    def counts(self) -> list[int]:
        """Number of candidates of each frame of the collected batch; may exceed the capacity."""
        found: list[int] = self.result.bytes[: self.count * 4].view(np.uint32).tolist()
        return found

    def candidates(self, counts: Sequence[int]) -> list[Candidates]:
        """Candidates of each frame, copied; after NMS on the device, views of pinned memory."""
        if self._layout is not None:
            return self._boxes.candidates(self.count)
        end = self.result_bytes(self.count)
        records = self.result.bytes[self.counts_bytes : end].view(decode.CANDIDATE).reshape(-1, self._capacity)
        return [decode.candidates_of(records[i, : min(c, self._capacity)]) for i, c in enumerate(counts)]

    def free(self) -> None:
        """Releases frames and graphs; the device frees the rest."""
        self.held = ()
        self.graphs.clear()
