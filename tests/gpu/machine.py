"""Runs the kernels on a GPU, through the structures and calls that the backend uses, with no network between."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.analysis.glance import COLUMNS, ROWS
from streamd.analysis.glance.picture import Layout
from streamd.engine.tensorrt import decode as dec
from streamd.engine.tensorrt import glance as gla
from streamd.engine.tensorrt import kernels as ker
from streamd.engine.tensorrt import suppress as sup
from streamd.engine.tensorrt.backend import KERNELS
from streamd.engine.tensorrt.cuda import Device, DeviceBuffer
from streamd.types import Candidates, DecodePlan, Frame, Letterbox, ModelSpec, Picture, TensorSpec
from tests.gpu.kernel_cases import INPUT, surface_of


class Gpu:
    """See `tests.gpu.kernel_cases.Machine`. Host pictures are copied to the device first."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.stream = device.stream()
        self.kernels = device.kernels(ker.ptx(), KERNELS)

    def upload(self, data: bytes | npt.NDArray[Any]) -> DeviceBuffer:
        flat = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data).view(np.uint8)
        pinned = self.device.allocate_pinned(flat.nbytes)
        pinned.bytes[:] = flat.reshape(-1)
        buffer = self.device.allocate(flat.nbytes)
        with self.device:
            self.device.to_device(self.stream, buffer.address, pinned.bytes)
            self.stream.synchronize()
        self.device.free(pinned)
        return buffer

    def download(self, buffer: DeviceBuffer) -> npt.NDArray[np.uint8]:
        pinned = self.device.allocate_pinned(buffer.size)
        with self.device:
            self.device.to_host(self.stream, pinned.bytes, buffer.address)
            self.stream.synchronize()
        out: npt.NDArray[np.uint8] = pinned.bytes.copy()
        self.device.free(pinned)
        return out

    def on_device(self, frame: Frame) -> Frame:
        """The same frame with its planes in device memory, as a hardware decoder hands them out."""
        planes = []
        for plane in frame.picture.native.planes:
            buffer = self.upload(bytes(memoryview(plane)))
            planes.append(SimpleNamespace(buffer_ptr=buffer.address, line_size=plane.line_size))
        p = frame.picture
        native: Any = SimpleNamespace(planes=planes)
        picture = Picture(
            native, p.format, p.width, p.height, p.matrix, p.full_range, p.rotation, self.device.ordinal, p.mirrored,
            p.pixel_aspect,
        )  # fmt: skip
        return Frame(frame.stream, picture, frame.width, frame.height, 0, 0, 0, roi=frame.roi)

    def preprocess(self, frames: Sequence[Frame], spec: ModelSpec) -> tuple[npt.NDArray[Any], list[Letterbox]]:
        width, height, nhwc, dtype = spec.input_width, spec.input_height, spec.layout == "NHWC", spec.input.dtype
        geometries = ker.Geometries(width, height, spec.color, spec.placement)
        table = bytearray(ker.PICTURE_BYTES * len(frames))
        boxes = []
        for i, frame in enumerate(frames):
            geometry = geometries.of(frame)
            there = frame if frame.picture.device is not None else self.on_device(frame)
            planes = [(address, pitch) for address, pitch, _ in ker.plane_layout(there, geometry)]
            ker.pack_picture(table, i, planes, geometry)
            boxes.append(geometry.box)
        shape = (len(frames), height, width, 3) if nhwc else (len(frames), 3, height, width)
        pictures = self.upload(bytes(table))
        out = self.device.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        with self.device:
            self.kernels[f"preprocess_{dtype}"].launch(
                self.stream, ker.preprocess_grid(width, height, len(frames)), ker.BLOCK,
                *ker.preprocess_arguments(
                    pictures.address, out.address, width, height, nhwc=nhwc, normalization=spec.normalization(),
                    pad=spec.pad_value,
                ),
            )  # fmt: skip
            self.stream.synchronize()
        return self.download(out).view(dtype).reshape(shape), boxes

    def decode(
        self, plan: DecodePlan, specs: Sequence[TensorSpec], outputs: Sequence[npt.NDArray[Any]], capacity: int
    ) -> tuple[list[Candidates], list[int]]:
        counts, records = self._decode(plan, specs, outputs, capacity)
        found = counts.tolist()
        return [dec.candidates_of(records[i, : min(n, capacity)]) for i, n in enumerate(found)], found

    def suppress(self, plan: DecodePlan, records: npt.NDArray[np.void], counts: Sequence[int]) -> list[Candidates]:
        frames, capacity = records.shape
        layout = sup.Layout(frames, capacity, plan.max_det)
        first = np.zeros(layout.result_bytes(frames), np.uint8)
        first[: frames * 4].view(np.uint32)[:] = counts
        there = np.full(layout.scratch_bytes, 0xA5, np.uint8)
        there[: records.nbytes] = records.view(np.uint8).reshape(-1)
        result, scratch = self.upload(first), self.upload(there)
        packed = self.upload(layout.pack(plan, result.address, scratch.address))
        with self.device:
            self.kernels["suppress"].launch(self.stream, (frames, 1, 1), sup.BLOCK, packed.address)
            self.stream.synchronize()
        found = sup.Boxes(self.download(result), layout).candidates(frames)
        for buffer in (result, scratch, packed):
            self.device.free(buffer)
        return found

    def detect(
        self, plan: DecodePlan, specs: Sequence[TensorSpec], outputs: Sequence[npt.NDArray[Any]], capacity: int
    ) -> list[Candidates]:
        counts, records = self._decode(plan, specs, outputs, capacity)
        assert plan.suppress
        return self.suppress(plan, records, counts.tolist())

    def glance(self, frames: Sequence[tuple[Frame, Layout]]) -> npt.NDArray[np.uint8]:
        on_device = [(self.on_device(frame), layout) for frame, layout in frames]
        table = b"".join(surface_of(frame, layout) for frame, layout in on_device)
        out = self.device.allocate_pinned(len(frames) * gla.CELLS)
        with self.device:
            self.kernels[gla.KERNEL].launch(
                self.stream, (ROWS, len(frames), 1), (COLUMNS, 1, 1), out.address,
                table.ljust(gla.MOST * gla.SURFACE_BYTES, b"\0"),
            )  # fmt: skip
            self.stream.synchronize()
        made: npt.NDArray[np.uint8] = out.bytes.reshape(len(frames), ROWS, COLUMNS).copy()
        self.device.free(out)
        return made

    def _decode(
        self, plan: DecodePlan, specs: Sequence[TensorSpec], outputs: Sequence[npt.NDArray[Any]], capacity: int
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.void]]:
        frames = len(outputs[0])
        arrays = [self.upload(o) for o in outputs]
        counts = self.device.allocate(frames * 4)
        records = self.device.allocate(frames * capacity * dec.CANDIDATE.itemsize)
        packed = self.upload(
            dec.pack(plan, specs, INPUT, [a.address for a in arrays], counts.address, records.address, capacity)
        )
        with self.device:
            self.kernels[dec.kernel_name(plan)].launch(
                self.stream, dec.decode_grid(plan, specs, frames), dec.BLOCK, packed.address
            )
            self.stream.synchronize()
        rows = self.download(records).view(dec.CANDIDATE).reshape(frames, capacity)
        return self.download(counts).view(np.uint32), rows
