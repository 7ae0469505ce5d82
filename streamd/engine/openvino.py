"""OpenVINO: the backend for machines without an NVIDIA GPU.

The letterboxed uint8 picture goes straight into the request's own tensor; conversion, scaling and the change of layout
happen inside the compiled graph. Final transpositions of the model are removed from the graph and replaced by NumPy
views, which cost nothing and leave each output channel contiguous for the head."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from streamd.engine import ENGINES, BatchSettings, EngineSettings, ModelSettings
from streamd.engine.model import SIZE_INPUTS, model_file, settle_spec, sha256_of, size_value
from streamd.engine.openvino_graph import join_slices
from streamd.engine.signalstack import signal_stack_kept
from streamd.errors import BackendError, ConfigError, ModelError
from streamd.flow.contracts import Backend
from streamd.imaging.letterbox import HostLetterbox
from streamd.security.trust import distrust
from streamd.types import DecodePlan, Frame, Letterbox, ModelSpec, Outputs, TensorSpec


@ENGINES.register
class OpenVinoSettings(EngineSettings):
    """OpenVINO on a CPU or Intel GPU: the backend for machines without an NVIDIA GPU."""

    kind: Literal["openvino"] = "openvino"
    device: str = Field("CPU", description="OpenVINO device name: CPU, GPU, NPU, AUTO.")
    hint: Literal["auto", "latency", "throughput"] = Field(
        "auto",
        description="What to optimise for. auto: latency if one live stream is the whole load, otherwise throughput.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Number of inference threads. Default: one for every core that the process may use.",
    )
    requests: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Number of batches in flight. Default: OpenVINO's optimum for the hint, plus two.",
    )
    precision: Literal["auto", "f32", "bf16", "f16"] = Field(
        "auto",
        description="Arithmetic of float layers. auto: OpenVINO's choice, which is bf16 on CPUs that have it, at a "
        "small loss of precision.",
    )
    cache_dir: str | None = Field(
        None,
        description="Folder in which OpenVINO keeps compiled models, so that the next start is faster. Default: none.",
    )

    def aside(self) -> EngineSettings:
        """See `EngineSettings.aside`: one thread and one request, unless more are configured."""
        return self.model_copy(update={"threads": self.threads or 1, "requests": self.requests or 1})

    def open(self, model: ModelSettings, *, batch: BatchSettings, live: bool = False) -> Backend[Any]:
        """See `EngineSettings.open`."""
        return OpenVinoBackend(self, model, batch=batch, live=live)


class OpenVinoSlot:
    """One infer request with the input it reads from."""

    def __init__(self, index: int, request: Any, pixels: npt.NDArray[np.uint8]) -> None:
        self.index = index
        self.request = request
        self.pixels = pixels
        """(max_batch, H, W, 3)"""
        self.boxes: list[Letterbox | None] = [None] * len(pixels)
        """The geometry whose padding each picture of the input currently has."""
        self.count = 0


def _tensor_spec(port: Any) -> TensorSpec:
    shape = tuple(d.get_length() if d.is_static else -1 for d in port.partial_shape)
    name = port.get_any_name() if port.get_names() else f"{port.get_node().get_friendly_name()}"
    return TensorSpec(
        name,
        shape,
        {"f32": "float32", "f16": "float16", "u8": "uint8", "i8": "int8"}.get(
            port.element_type.get_type_name(), port.element_type.get_type_name()
        ),
    )


class OpenVinoBackend(Backend[OpenVinoSlot]):
    """See `streamd.engine.Backend`.

    Args:
        settings: device and performance options.
        model: the model file.
        batch: `max` bounds the batch; a CPU gains nothing from batching, so it is 1 by default.
        live: a single live stream is the whole load (for the hint `auto`).
    """

    title = "OpenVINO"

    def __init__(
        self, settings: OpenVinoSettings, model: ModelSettings, *, batch: BatchSettings, live: bool = False
    ) -> None:
        try:
            import openvino as ov
        except ImportError as error:
            raise BackendError(f"backend openvino: the package openvino is not installed ({error})") from error
        self._ov = ov
        self._settings = settings
        self._latency = settings.hint == "latency" or (settings.hint == "auto" and live)
        path = model_file(model.path)
        self._core = ov.Core()
        try:
            self._model = self._core.read_model(path)
            inputs = [_tensor_spec(p) for p in self._model.inputs]
            outputs = tuple(_tensor_spec(p) for p in self._model.outputs)
        except Exception as error:
            raise ModelError(f"model {path}: OpenVINO cannot read it: {_first_line(error)}") from error
        spec = settle_spec(
            model,
            path,
            sha256_of(path),
            inputs,
            outputs,
            self._metadata(),
            batch.max or 1,
        )
        if spec.input.shape[0] > 0 and batch.max is not None and batch.max > spec.input.shape[0]:
            raise ModelError(
                f"model {path}: its batch is fixed at {spec.input.shape[0]}, but batch.max asks for {batch.max}; "
                "export it with a dynamic batch or lower batch.max"
            )
        first: Any = (
            spec.max_batch if spec.max_batch == 1 or spec.input.shape[0] > 0 else ov.Dimension(1, spec.max_batch)
        )
        self._static = not isinstance(first, ov.Dimension)
        try:
            self._fix_size_input(spec)
            self._model.reshape({spec.input.name: ov.PartialShape([first, *spec.input.shape[1:]])})
            join_slices(self._model)
            self._permutations = self._lift_transposes()
            outputs = tuple(
                _permuted(_tensor_spec(p), order)
                for p, order in zip(self._model.outputs, self._permutations, strict=True)
            )
            self._build_input(spec)
        except Exception as error:
            reason = _first_line(error)
            if "bad_alloc" in reason:
                reason = "there is not enough memory for it"
            raise ModelError(
                f"model {path}: cannot be prepared for input {list(spec.input.shape)}: {reason}"
            ) from error
        self.spec = replace(spec, outputs=outputs)
        self._slots: list[OpenVinoSlot] = []
        self._letterbox = HostLetterbox.of(spec)
        self._compiled: Any = None

    @property
    def slots(self) -> Sequence[OpenVinoSlot]:
        """See `Backend.slots`."""
        return self._slots

    def _metadata(self) -> dict[str, str]:
        try:
            found = self._model.get_rt_info()["framework"]
            keys = list(found.value.keys()) if hasattr(found, "value") else list(found)
            return {str(k): self._model.get_rt_info(["framework", str(k)]).astype(str) for k in keys}
        except (KeyError, RuntimeError, AttributeError, TypeError, UnicodeDecodeError):
            return {}

    def _fix_size_input(self, spec: ModelSpec) -> None:
        """Replaces an input of `SIZE_INPUTS` by a constant: the size of the network's input."""
        from openvino import opset13

        for parameter in list(self._model.get_parameters()):
            output = parameter.output(0)
            if _tensor_spec(output).name in SIZE_INPUTS:
                # One row also serves a dynamic batch, since it is only multiplied with batched values.
                value = size_value(spec, max(1, spec.input.shape[0]))
                output.replace(opset13.constant(value, output.get_element_type()).output(0))
                self._model.remove_parameter(parameter)

    def _lift_transposes(self) -> list[tuple[int, ...] | None]:
        """Removes each output's final Transpose; returns, per output, the order that restores it."""
        orders: list[tuple[int, ...] | None] = []
        for output in self._model.outputs:
            result = output.get_node()
            producer = result.input_value(0).get_node()
            order = None
            if producer.get_type_name() == "Transpose" and len(producer.output(0).get_target_inputs()) == 1:
                constant = producer.input_value(1).get_node()
                if constant.get_type_name() == "Constant":
                    order = tuple(int(v) for v in constant.get_data())
            if order is not None and order[0] == 0:
                names = output.get_names()
                source = producer.input_value(0)
                result.input(0).replace_source_output(source)
                source.set_names(names)
            else:
                order = None
            orders.append(order)
        self._model.validate_nodes_and_infer_types()
        return orders

    def _build_input(self, spec: Any) -> None:
        from openvino.preprocess import PrePostProcessor

        ov = self._ov
        steps = PrePostProcessor(self._model)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        into = steps.input().preprocess().convert_element_type(ov.Type.f32)
        if spec.mean is None and spec.std is None:
            into.scale(1 / spec.scale)
        else:
            gain, offset = spec.normalization()
            into.mean((-offset / gain).tolist()).scale((1 / gain).tolist())
        steps.input().model().set_layout(ov.Layout(spec.layout))
        for i in range(len(self._model.outputs)):
            steps.output(i).tensor().set_element_type(ov.Type.f32)
        self._model = steps.build()

    @signal_stack_kept()
    def start(self, plan: DecodePlan | None = None) -> None:
        """See `Backend.start`. The plan is not used: thresholding on the host costs 0.1 ms per frame."""
        hint = "LATENCY" if self._latency else "THROUGHPUT"
        threads = self._settings.threads or len(os.sched_getaffinity(0))
        options: dict[str, Any] = {"PERFORMANCE_HINT": hint}
        if self._settings.device.startswith("CPU"):
            # Pinned inference threads would compete with the decoders for the cores they are pinned to.
            options |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        if self._settings.precision != "auto":
            options["INFERENCE_PRECISION_HINT"] = self._settings.precision
        if self._settings.cache_dir:
            # The folder holds compiled code.
            with contextlib.suppress(OSError):
                if (doubt := distrust(os.stat(self._settings.cache_dir))) is not None:
                    raise ConfigError(f"engine.cache_dir {self._settings.cache_dir}: {doubt}")
            options["CACHE_DIR"] = self._settings.cache_dir
        try:
            self._compiled = self._core.compile_model(self._model, self._settings.device, options)
            wanted = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
            count = self._settings.requests or wanted + 2
            shape = (self.spec.max_batch, self.spec.input_height, self.spec.input_width, 3)
            slots = []
            for index in range(count):
                request = self._compiled.create_infer_request()
                pixels = request.get_input_tensor().data if self._static else np.empty(shape, np.uint8)
                pixels[:] = self.spec.pad_value
                slots.append(OpenVinoSlot(index, request, pixels))
            self._slots = slots
            # The first inference of a request allocates memory: better now than on the first frame.
            for slot in slots:
                slot.count = 1 if not self._static else self.spec.max_batch
                self.infer(slot)
            for slot in slots:
                self.collect(slot)
        except Exception as error:
            raise BackendError(
                f"backend openvino: device {self._settings.device} cannot run {self.spec.path}: {_first_line(error)}"
            ) from error

    def preprocess(self, slot: OpenVinoSlot, frames: Sequence[Frame]) -> Sequence[Letterbox]:
        """See `Backend.preprocess`. Raises FrameError for a picture that cannot be scaled."""
        boxes = []
        for i, frame in enumerate(frames):
            last, slot.boxes[i] = slot.boxes[i], None
            box = self._letterbox(frame, slot.pixels[i], last)
            slot.boxes[i] = box
            boxes.append(box)
        slot.count = len(frames)
        return boxes

    def infer(self, slot: OpenVinoSlot) -> None:
        """See `Backend.infer`."""
        try:
            if not self._static:
                slot.request.set_input_tensor(self._ov.Tensor(slot.pixels[: slot.count], shared_memory=True))
            slot.request.start_async()
        except RuntimeError as error:
            raise BackendError(f"backend openvino: inference cannot start: {_first_line(error)}") from error

    def collect(self, slot: OpenVinoSlot) -> Outputs:
        """See `Backend.collect`."""
        try:
            slot.request.wait()
        except RuntimeError as error:
            raise BackendError(f"backend openvino: inference failed: {_first_line(error)}") from error
        outputs = []
        for i, order in enumerate(self._permutations):
            data = slot.request.get_output_tensor(i).data[: slot.count]
            outputs.append(data if order is None else data.transpose(order))
        return outputs

    def close(self) -> None:
        """See `Backend.close`."""
        for slot in self._slots:
            slot.request.cancel()
        self._slots = []
        self._compiled = None


def _permuted(spec: TensorSpec, order: tuple[int, ...] | None) -> TensorSpec:
    return spec if order is None else replace(spec, shape=tuple(spec.shape[i] for i in order))


def _first_line(error: BaseException) -> str:
    """The last line of an OpenVINO message: the first ones are file names of OpenVINO."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
