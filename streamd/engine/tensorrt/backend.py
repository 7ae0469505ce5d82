"""The TensorRT backend: copies and the letterbox kernel, the network, box decoding, all on the slot's own stream.

A frame in device memory is read where the decoder left it. Only a small block of results is copied back: the boxes of
each frame and their number. Nothing is allocated once slots have seen their largest batch, and no thread waits for the
whole device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import structlog

from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.model import model_file, settle_spec, sha256_of
from streamd.engine.sidecar import read_sidecar
from streamd.engine.tensorrt import decode, glance, kernels, suppress
from streamd.engine.tensorrt.cuda import Device
from streamd.engine.tensorrt.enqueue import Kernel
from streamd.engine.tensorrt.replay import Replay
from streamd.engine.tensorrt.runtime import Network
from streamd.engine.tensorrt.slot import TensorRtSlot, tensor_bytes
from streamd.engine.tensorrt.thumbnail import Thumbnailer
from streamd.errors import BackendError, FrameError, ModelError
from streamd.flow.contracts import Backend
from streamd.types import Candidates, DecodePlan, Frame, Letterbox, ModelSpec, Outputs

if TYPE_CHECKING:
    from streamd.engine.tensorrt import TensorRtSettings

log = structlog.get_logger(__name__)

_WARN_EVERY_S = 10.0
THUMBNAIL = "preprocess_uint8"
KERNELS = {f"preprocess_{kind}": kernels.PREPROCESS_ARGUMENTS for kind in kernels.INPUT_TYPES}
KERNELS |= {kernel.name: "P" for kernel in decode.KERNELS.values()} | {"suppress": "P", glance.KERNEL: glance.ARGUMENTS}


class TensorRtBackend(Backend[TensorRtSlot]):
    """See `streamd.engine.Backend`.

    Args:
        settings: device and performance options.
        model: an ONNX model, for which a plan is found or built, or a plan.
        batch: `max` bounds the batch; the plan's own limit by default.

    Raises:
        ModelError: the model or plan is missing, damaged, or not what was declared.
        BackendError: no GPU, driver, TensorRT or pycuda, or the device refused.
    """

    title = "TensorRT"

    def __init__(self, settings: TensorRtSettings, model: ModelSettings, *, batch: BatchSettings) -> None:
        path = model_file(model.path)
        from streamd.engine.tensorrt.version import load_trt, vendor_logger

        self._settings = settings
        self._slots: list[TensorRtSlot] = []
        self._plan: DecodePlan | None = None
        self._network: Network | None = None
        self._surface_reader: glance.SurfaceGlances | None = None
        self._reads_surfaces: bool | None = None
        self._graph_sizes: tuple[int, ...] = ()
        self._warned_at = -_WARN_EVERY_S
        self._capacity = 0
        """Room for candidates of a frame."""
        self.overflows = 0
        """Number of frames so far with more candidates than there was room for."""
        trt = load_trt()
        # Before TensorRT or FFmpeg touch the GPU: the context's flags can be set only now.
        self._device = Device(settings.ordinal)
        try:
            from streamd.engine.tensorrt.builder import plan_for

            plan = plan_for(model, settings, batch)
            self._network = Network(plan, trt, vendor_logger(), self._device)
            self.spec = self._settle(model, path, batch)
            self._geometries = kernels.Geometries(
                self.spec.input_width, self.spec.input_height, self.spec.color, self.spec.placement
            )
            self._normalization = self.spec.normalization()
            self._kernels: dict[str, Kernel] = self._device.kernels(kernels.ptx(), KERNELS)
        except BaseException:
            self.close()
            raise
        self._thumbnailer: Thumbnailer | None = None
        log.info(
            "TensorRT ready", gpu=self._device.name, tensorrt=trt.version_text, plan=str(plan),
            max_batch=self.spec.max_batch, input=f"{self.spec.input.dtype}{list(self.spec.input.shape)}",
        )  # fmt: skip

    def _settle(self, model: ModelSettings, path: Path, batch: BatchSettings) -> ModelSpec:
        network = self._network
        assert network is not None
        first = network.plan
        if batch.max is not None and batch.max > first.max_batch:
            raise ModelError(
                f"plan {first.path}: takes {first.max_batch} frames a batch, but batch.max asks for {batch.max}; "
                "build it for larger batches or lower batch.max"
            )
        spec = settle_spec(model, path, sha256_of(path), first.inputs, first.outputs, {}, batch.max or first.max_batch)
        if spec.input.dtype not in kernels.INPUT_TYPES:
            raise ModelError(
                f"plan {first.path}: input {spec.input.name} is {spec.input.dtype}; "
                f"supported: {', '.join(kernels.INPUT_TYPES)}"
            )
        first.check_input(spec.input)
        if path != first.path and (not spec.labels or spec.head is None):
            # The plan was built from the model: its sidecar has what the builder found out about the model.
            sidecar = read_sidecar(first.path)
            spec = replace(
                spec, labels=spec.labels or sidecar.labels or (), head=spec.head if spec.head else sidecar.head
            )
        network.open_contexts(self._settings.slots, self._device.stream())
        return replace(spec, outputs=network.settle_outputs(spec.input))

    @property
    def slots(self) -> Sequence[TensorRtSlot]:
        """See `Backend.slots`."""
        return self._slots

    @property
    def device(self) -> int:
        """CUDA ordinal: hardware decoders of this device hand their frames over without a copy."""
        return self._settings.ordinal

    # ------------------------------------------------------------------------------------------------------- start

    def start(self, plan: DecodePlan | None = None) -> None:
        """See `Backend.start`."""
        if plan is not None:
            try:
                decode.check(plan, self.spec.outputs, (self.spec.input_height, self.spec.input_width))
            except BackendError as error:
                log.warning("boxes are decoded on the host", reason=str(error))
                plan = None
        self._plan = plan
        self._capacity = 0 if plan is None else decode.capacity(plan, self._settings.max_candidates)
        assert self._network is not None
        batch = max(self.spec.max_batch, self._network.plan.min_batch)
        for index in range(self._settings.slots):
            self._slots.append(TensorRtSlot(index, self._device, self.spec, batch, plan, self._capacity))
        for slot in self._slots:
            self._warm(slot)
        if self._settings.graphs != "off":
            replay = Replay(self._device, self.spec, self._enqueue)
            self._graph_sizes = replay.make(self._slots, required=self._settings.graphs == "on")
        log.info(
            "GPU memory", buffers_mib=self._device.device_bytes >> 20, pinned_mib=self._device.pinned_bytes >> 20,
            scratch_mib=self.memory["scratch"] >> 20, graphs=list(self._graph_sizes),
        )  # fmt: skip

    def _warm(self, slot: TensorRtSlot) -> None:
        """The first use of a kernel loads it, and the first batch of a shape allocates memory: done here rather than on
        the first frame."""
        for frames in {1, self.spec.max_batch}:
            with self._device:
                # Pictures of zero size: the kernel pads and reads nothing.
                slot.pictures.bytes[:] = 0
                slot.started.record(slot.stream)
                self._launch_preprocess(slot, frames)
                slot.ready.record(slot.stream)
            slot.count, slot.pending = frames, True
            self.infer(slot)
            self._wait(slot)

    # ------------------------------------------------------------------------------------------------------ stages

    def preprocess(self, slot: TensorRtSlot, frames: Sequence[Frame]) -> Sequence[Letterbox]:
        """See `Backend.preprocess`. A picture that cannot be read raises FrameError before anything is enqueued."""
        geometries = [self._geometries.of(f) for f in frames]
        layouts = [self._layout(f, g) for f, g in zip(frames, geometries, strict=True)]
        needed = 0
        for frame, planes in zip(frames, layouts, strict=True):
            if frame.picture.device is None:
                needed = kernels.stage(planes, 0, needed, None)[1]
        on_device = [f for f in frames if f.picture.device is not None]
        with self._device:
            if slot.pending:
                # The previous attempt at this batch (with a bad frame) may still be reading what is about to be
                # overwritten.
                slot.ready.synchronize()
            self._release_read()
            slot.reserve(needed)
            slot.pack(frames, layouts, geometries)
            stream = slot.stream
            slot.started.record(stream)
            if on_device:
                # FFmpeg maps and copies its surfaces on the legacy stream.
                slot.surfaces.record(None)
                stream.wait(slot.surfaces)
            if needed:
                assert slot.staging is not None
                assert slot.staging_device is not None
                self._device.to_device(stream, slot.staging_device.address, slot.staging.bytes[:needed])
            slot.held = on_device
            slot.pending = True
            self._launch_preprocess(slot, len(frames))
            slot.ready.record(stream)
        slot.count = len(frames)
        return [g.box for g in geometries]

    def _layout(self, frame: Frame, geometry: kernels.Geometry) -> list[tuple[int, int, int]]:
        device = frame.picture.device
        if device is not None and device != self._settings.ordinal:
            raise FrameError(
                f"stream {frame.stream}: the picture is on GPU {device}, the model on GPU {self._settings.ordinal}; "
                "decode on the model's GPU or in software"
            )
        return kernels.plane_layout(frame, geometry)

    def _launch_preprocess(self, slot: TensorRtSlot, frames: int) -> None:
        spec, device = self.spec, self._device
        used = frames * kernels.PICTURE_BYTES
        device.to_device(slot.stream, slot.pictures_device.address, slot.pictures.bytes[:used])
        self._kernels[f"preprocess_{spec.input.dtype}"].launch(
            slot.stream,
            kernels.preprocess_grid(spec.input_width, spec.input_height, frames),
            kernels.BLOCK,
            *kernels.preprocess_arguments(
                slot.pictures_device.address, slot.input.address, spec.input_width, spec.input_height,
                nhwc=spec.layout == "NHWC", normalization=self._normalization, pad=spec.pad_value,
            ),
        )  # fmt: skip

    def _release_read(self) -> None:
        """Releases decoder surfaces that other slots' kernels have finished reading, long before their boxes are
        published."""
        for slot in self._slots:
            if slot.held and slot.pending and slot.ready.reached():
                slot.held = ()

    def infer(self, slot: TensorRtSlot) -> None:
        """See `Backend.infer`."""
        assert self._network is not None
        frames = slot.count
        execution = self._network.execution(slot.index)
        with self._device:
            if execution.done is not None:
                slot.stream.wait(execution.done)
            slot.running.record(slot.stream)
            graph = slot.graphs.get(frames)
            if graph is not None:
                graph.launch()
            else:
                self._enqueue(slot, frames)
            slot.done.record(slot.stream)
            if execution.done is not None:
                execution.done.record(slot.stream)

    def _enqueue(self, slot: TensorRtSlot, frames: int) -> None:
        """Enqueues the network, box decoding, NMS and the copy back: the part that a graph captures."""
        assert self._network is not None
        execution = self._network.execution(slot.index)
        execution.set_batch(self.spec.input, frames)
        execution.enqueue(slot.addresses, slot.stream)
        device, plan = self._device, self._plan
        if plan is None:
            for spec, buffer, raw in zip(self.spec.outputs, slot.outputs, slot.raw, strict=True):
                device.to_host(slot.stream, raw.bytes[: tensor_bytes(spec, frames)], buffer.address)
            return
        device.zero(slot.stream, slot.result_device.address, slot.counts_bytes)
        self._kernels[decode.kernel_name(plan)].launch(
            slot.stream, decode.decode_grid(plan, self.spec.outputs, frames), decode.BLOCK, slot.decode_device.address
        )
        if plan.suppress:
            self._kernels["suppress"].launch(slot.stream, (frames, 1, 1), suppress.BLOCK, slot.suppress_device.address)
        device.to_host(slot.stream, slot.result.bytes[: slot.result_bytes(frames)], slot.result_device.address)

    def _wait(self, slot: TensorRtSlot) -> None:
        with self._device:
            slot.done.synchronize()
        slot.held = ()
        slot.pending = False

    def collect(self, slot: TensorRtSlot) -> Outputs | Sequence[Candidates]:
        """See `Backend.collect`."""
        self._wait(slot)
        if self._plan is None:
            return slot.raw_outputs()
        counts = slot.counts()
        over = [c for c in counts if c > self._capacity]
        if over:
            self._overflowed(over)
        return slot.candidates(counts)

    def _overflowed(self, counts: Sequence[int]) -> None:
        self.overflows += len(counts)
        now = time.monotonic()
        if now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = now
            log.warning(
                "more candidates than fit; the rest of these frames' boxes is lost", candidates=max(counts),
                max_candidates=self._capacity, frames_so_far=self.overflows,
                advice="raise model.detect.conf or engine.max_candidates",
            )  # fmt: skip

    def thumbnail(self, frame: Frame, width: int, height: int) -> npt.NDArray[np.uint8]:
        """A small upright picture for display, (height, width, 3) uint8, BGR, of a frame whose batch was collected.

        For one thread, which may differ from those of the stages.

        Raises:
            FrameError: the picture cannot be read.
            BackendError: the device failed.
        """
        if self._thumbnailer is None:
            self._thumbnailer = Thumbnailer(self._device, self._kernels[THUMBNAIL])
        return self._thumbnailer.make(frame, width, height)

    def surface_reader(self) -> glance.SurfaceGlances | None:
        """See `Backend.surface_reader`."""
        if self._reads_surfaces is None:
            try:
                self._surface_reader = glance.SurfaceGlances(self._device, self._kernels[glance.KERNEL])
            except BackendError as error:
                log.warning("motion is found in pictures on the host only: decode: auto is software", why=str(error))
            self._reads_surfaces = self._surface_reader is not None
        return self._surface_reader

    # ----------------------------------------------------------------------------------------------------- figures

    def device_times(self, slot: TensorRtSlot) -> dict[str, float]:
        """Seconds that the device spent on the slot's last collected batch: preprocess (including copies) and infer
        (the rest).

        Valid from `collect` to the slot's next `preprocess`.
        """
        with self._device:
            return {
                "preprocess": slot.ready.seconds_since(slot.started),
                "infer": slot.done.seconds_since(slot.running),
            }

    @property
    def memory(self) -> dict[str, int]:
        """Bytes held: buffers and scratch on the device, pinned memory on the host, and free memory of the device."""
        free, total = self._device.recent_memory()
        return {
            "buffers": self._device.device_bytes,
            "scratch": 0 if self._network is None else self._network.scratch_bytes,
            "pinned": self._device.pinned_bytes,
            "device_free": free,
            "device_total": total,
        }

    def close(self) -> None:
        """See `Backend.close`."""
        slots, self._slots = self._slots, []
        if self._surface_reader is not None:
            self._surface_reader.close()
        try:
            if slots:
                with self._device:
                    for slot in slots:
                        slot.stream.synchronize()
        except BackendError as error:
            log.warning("GPU work did not end cleanly", error=str(error))
        for slot in slots:
            slot.free()
        network, self._network = self._network, None
        try:
            if network is not None:
                network.close()
        finally:
            self._device.close()
