"""Running TensorRT plans: what a plan takes and gives, and its execution contexts.

Only the calls that name tensors are used; 8.5 introduced them and 11 still has them. Before 10, an optimisation profile
serves one context at a time, so slots share contexts where the plan has fewer profiles than there are slots; a shared
context's scratch memory then makes each batch wait, on the device, for the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamd.engine.model import MAX_MODEL_BYTES
from streamd.engine.tensorrt.cuda import Device
from streamd.engine.tensorrt.enqueue import Event, Stream
from streamd.errors import BackendError, ConfigError, ModelError
from streamd.security.trust import read_bytes
from streamd.types import TensorSpec

_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "BF16": "bfloat16",
}
_HINTS = (
    # (a part of what TensorRT says, what it means)
    ("version tag", "was built by another TensorRT version"),
    ("safety version", "was built by another TensorRT version"),
    ("serialization version", "was built by another TensorRT version"),
    ("incompatible with this version", "was built by another TensorRT version"),
    ("incompatible device", "was built for another GPU"),
    ("compute capability", "was built for another GPU"),
    ("magic tag", "is no TensorRT plan, or was cut short"),
    ("magictag", "is no TensorRT plan, or was cut short"),
    ("unexpected end", "was cut short"),
    ("size", "was cut short or damaged"),
    ("plugin", "needs a plugin that is not here"),
)


def _explain(errors: Sequence[str]) -> str:
    """One clause from what TensorRT logged while refusing a plan."""
    said = " ".join(errors)
    for part, meaning in _HINTS:
        if part in said.lower():
            return f"{meaning} ({errors[0]})"
    return f"TensorRT refuses it ({errors[0]})" if errors else "TensorRT refuses it without a reason"


class Plan:
    """One deserialised plan: its tensors and the batches it takes. Opened with the device current.

    Args:
        path: the plan.
        trt: the installed TensorRT, from `version.load_trt`.
        logger: the vendor's logger, from `version.vendor_logger`.

    Raises:
        ModelError: it cannot be read, is damaged, or was built for another version or GPU.
        BackendError: TensorRT itself cannot start.
    """

    def __init__(self, path: Path, trt: Any, logger: Any) -> None:
        self.path = path
        self._trt = trt
        self._logger = logger
        try:
            # A plan is code: what is loaded is the very file that was looked at.
            content = read_bytes(path, MAX_MODEL_BYTES, what=f"plan {path}", expected="a TensorRT plan")
        except ConfigError as error:
            raise ModelError(str(error)) from error
        if not content:
            raise ModelError(f"plan {path}: is empty; copy it or build it again with `streamd build`")
        logger.take_errors()
        try:
            # The runtime must outlive its engine.
            self._runtime = trt.module.Runtime(logger)
        except Exception as error:
            raise BackendError(f"backend tensorrt: {trt} cannot start: {_said(logger, error)}") from error
        try:
            engine = self._runtime.deserialize_cuda_engine(content)
        except Exception as error:
            raise ModelError(f"plan {path}: cannot be loaded by {trt}: {_said(logger, error)}") from error
        if engine is None:
            raise ModelError(
                f"plan {path}: {_explain(logger.take_errors())}; this is {trt}. A plan runs only where it was built: "
                "build it again here with `streamd build`, or give the ONNX model"
            )
        self.engine: Any = engine
        self._read_tensors()

    def _read_tensors(self) -> None:
        engine, module = self.engine, self._trt.module
        if getattr(engine, "has_implicit_batch_dimension", False):
            raise ModelError(f"plan {self.path}: has an implicit batch dimension; build it again from the ONNX model")
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            kind = engine.get_tensor_dtype(name)
            spec = TensorSpec(
                name, tuple(int(d) for d in engine.get_tensor_shape(name)), _TYPES.get(_name(kind), _name(kind).lower())
            )
            if engine.get_tensor_format(name) != module.TensorFormat.LINEAR:
                raise ModelError(f"plan {self.path}: tensor {name} is not stored linearly; build it again")
            (inputs if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT else outputs).append(spec)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.profiles = int(engine.num_optimization_profiles)
        self.min_batch = self.max_batch = 0
        if inputs and inputs[0].shape:
            self._read_batches(inputs[0])

    def _read_batches(self, image: TensorSpec) -> None:
        if image.shape[0] > 0:
            self.min_batch = self.max_batch = image.shape[0]
            return
        # Before 8.6 TensorRT answers for the first profile only, and warns of the others.
        asked = 1 if self.profile_per_context else max(1, self.profiles)
        limits = [self.engine.get_tensor_profile_shape(image.name, p) for p in range(asked)]
        # All profiles of a plan of ours are alike; of a foreign one, what every profile takes is used.
        self.min_batch = max(int(low[0]) for low, _, _ in limits)
        self.max_batch = min(int(high[0]) for _, _, high in limits)
        self._limits = [(tuple(map(int, low)), tuple(map(int, high))) for low, _, high in limits]
        if self.max_batch < self.min_batch:
            raise ModelError(f"plan {self.path}: its optimisation profiles take different batches; build it again")

    def check_input(self, image: TensorSpec) -> None:
        """Whether the plan takes `image`, whose dimensions but the batch are fixed.

        Raises:
            ModelError: its optimisation profiles do not.
        """
        for low, high in getattr(self, "_limits", ()):
            if any(not a <= d <= b for d, a, b in zip(image.shape[1:], low[1:], high[1:], strict=True)):
                raise ModelError(
                    f"plan {self.path}: takes inputs of {list(low[1:])} to {list(high[1:])}, not "
                    f"{list(image.shape[1:])}; set model.input_size"
                )

    @property
    def profile_per_context(self) -> bool:
        """Two contexts cannot use one optimisation profile at a time."""
        return bool(self._trt.profile_per_context)

    @property
    def scratch_bytes(self) -> int:
        """Device memory that each execution context takes."""
        size = getattr(self.engine, "device_memory_size_v2", None)
        return int(self.engine.device_memory_size if size is None else size)

    def contexts(self, slots: int) -> list[Execution]:
        """Execution contexts for so many slots, one each where that is possible. Called with the device current.

        Raises:
            BackendError: the device has no memory left for them.
        """
        count = slots if not self.profile_per_context else max(1, min(slots, self.profiles))
        made = []
        for i in range(count):
            context = self.engine.create_execution_context()
            if context is None:
                raise BackendError(
                    f"backend tensorrt: execution context {i + 1} of {count} for {self.path}: "
                    f"{_said(self._logger, None)}; lower engine.slots or batch.max"
                )
            made.append(Execution(self, context, shared=count < slots))
        return made

    def close(self) -> None:
        """Frees the engine; its contexts must be gone."""
        self.engine = None
        self._runtime = None


class Execution:
    """One execution context. Its calls come from one thread, with the device current.

    Args:
        plan: what it runs.
        context: the vendor's.
        shared: several slots use it.
    """

    def __init__(self, plan: Plan, context: Any, *, shared: bool) -> None:
        self.plan = plan
        self.shared = shared
        self.done: Event | None = None
        """Where it is shared: the end of its last batch."""
        self._context = context
        self._batch = 0
        self._input = plan.inputs[0].name

    def use_profile(self, index: int, stream: Stream) -> None:
        """Binds an optimisation profile; needed once, before the first batch."""
        if not self._context.set_optimization_profile_async(index, stream.handle):
            raise BackendError(f"backend tensorrt: {self.plan.path}: profile {index}: {self._said()}")
        stream.synchronize()

    def set_batch(self, image: TensorSpec, frames: int) -> int:
        """Sets the input's shape for so many frames; returns the batch that runs, which may be larger.

        Args:
            image: dimensions but the batch are fixed.
        """
        batch = max(frames, self.plan.min_batch)
        if batch != self._batch:
            self._batch = 0
            if not self._context.set_input_shape(self._input, (batch, *image.shape[1:])):
                raise BackendError(f"backend tensorrt: {self.plan.path}: batch of {batch}: {self._said()}")
            self._batch = batch
        return batch

    def output_shape(self, name: str) -> tuple[int, ...]:
        """An output's shape for the batch that was set; -1 where it depends on the data."""
        return tuple(int(d) for d in self._context.get_tensor_shape(name))

    def enqueue(self, addresses: Sequence[tuple[str, int]], stream: Stream) -> None:
        """Enqueues the network.

        Args:
            addresses: (name, device address) of every input and output.

        Raises:
            BackendError: TensorRT refused.
        """
        context = self._context
        for name, address in addresses:
            if not context.set_tensor_address(name, address):
                raise BackendError(f"backend tensorrt: {self.plan.path}: address of {name}: {self._said()}")
        if not context.execute_async_v3(stream.handle):
            raise BackendError(f"backend tensorrt: {self.plan.path}: cannot be run: {self._said()}")

    def profile(self, profiler: Any) -> None:
        """Has every later batch report each layer's time to the vendor's IProfiler; batches then wait for their end."""
        self._context.profiler = profiler

    def _said(self) -> str:
        return _said(self.plan._logger, None)

    def close(self) -> None:
        """Frees the context."""
        self._context = None


class Network:
    """A plan with its execution contexts.

    Args:
        path: the plan.
        trt: the installed TensorRT.
        logger: its logger.
        device: where it runs.

    Raises:
        ModelError: the plan cannot be loaded.
        BackendError: TensorRT cannot start.
    """

    def __init__(self, path: Path, trt: Any, logger: Any, device: Device) -> None:
        self._device = device
        self._executions: list[Execution] = []
        with device:
            self.plan = Plan(path, trt, logger)

    @property
    def scratch_bytes(self) -> int:
        """Device memory that the execution contexts take."""
        return self.plan.scratch_bytes * len(self._executions)

    def open_contexts(self, slots: int, stream: Stream) -> None:
        """Makes the execution contexts.

        Args:
            slots: how many batches may be in flight.
            stream: for the little that this enqueues.

        Raises:
            BackendError: the device refused.
        """
        with self._device:
            self._executions = self.plan.contexts(slots)
            if self.plan.profile_per_context:
                # A new context has profile 0 only while no other has it.
                for index, execution in enumerate(self._executions[1:], 1):
                    execution.use_profile(index, stream)
        for execution in self._executions:
            if execution.shared:
                execution.done = self._device.event()

    def execution(self, slot: int) -> Execution:
        """The context that runs a slot's batches."""
        return self._executions[slot % len(self._executions)]

    def settle_outputs(self, image: TensorSpec) -> tuple[TensorSpec, ...]:
        """The outputs with every dimension but the batch known. Contexts must be open.

        Raises:
            ModelError: a shape depends on the data, the first dimension is not the batch, or NumPy lacks the type.
        """
        plan, execution = self.plan, self._executions[0]
        settled = []
        with self._device:
            batch = execution.set_batch(image, plan.max_batch)
            for spec in plan.outputs:
                shape = execution.output_shape(spec.name)
                if not shape or shape[0] != batch or min(shape) < 1 or spec.dtype == "bfloat16":
                    raise ModelError(
                        f"plan {plan.path}: output {spec.name}{list(shape)} {spec.dtype} of a batch of {batch} must "
                        "have the batch first, fixed dimensions after it and a type NumPy knows; export the model so"
                    )
                settled.append(TensorSpec(spec.name, (-1, *shape[1:]), spec.dtype))
        return tuple(settled)

    def close(self) -> None:
        """Frees contexts and plan. Idempotent."""
        with self._device:
            for execution in self._executions:
                execution.close()
            self._executions = []
            self.plan.close()


def _name(kind: Any) -> str:
    return str(getattr(kind, "name", kind))


def _said(logger: Any, error: BaseException | None) -> str:
    """What TensorRT logged as an error, else the exception, on one line."""
    errors = logger.take_errors()
    if errors:
        return str(errors[0])
    text = " ".join(str(error).split()) if error is not None else ""
    return text[:300] or (type(error).__name__ if error is not None else "it says no reason")
