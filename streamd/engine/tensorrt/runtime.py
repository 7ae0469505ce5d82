"""Runs TensorRT plans: a plan's inputs and outputs, and its execution contexts.

Only the name-based tensor calls are used; 8.5 introduced them and 11 still has them. Before 10, an optimization profile
serves one context at a time, so slots share contexts if the plan has fewer profiles than there are slots. The scratch
memory of a shared context then makes each batch wait, on the device, for the previous one.
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
    # (part of TensorRT's message, meaning)
    ("version tag", "was built by another TensorRT version"),
    ("safety version", "was built by another TensorRT version"),
    ("serialization version", "was built by another TensorRT version"),
    ("incompatible with this version", "was built by another TensorRT version"),
    ("incompatible device", "was built for another GPU"),
    ("compute capability", "was built for another GPU"),
    ("magic tag", "is not a TensorRT plan, or was truncated"),
    ("magictag", "is not a TensorRT plan, or was truncated"),
    ("unexpected end", "was truncated"),
    ("size", "was truncated or damaged"),
    ("plugin", "needs a plugin that is not available"),
)


def _explain(errors: Sequence[str]) -> str:
    """One clause from TensorRT's log messages for a rejected plan."""
    said = " ".join(errors)
    for part, meaning in _HINTS:
        if part in said.lower():
            return f"{meaning} ({errors[0]})"
    return f"TensorRT rejects it ({errors[0]})" if errors else "TensorRT rejects it without a reason"


class Plan:
    """One deserialised plan: its tensors and its batch sizes. Opened with the device current.

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
            # A plan is code: exactly the bytes that were checked are loaded.
            content = read_bytes(path, MAX_MODEL_BYTES, what=f"plan {path}", expected="a TensorRT plan")
        except ConfigError as error:
            raise ModelError(str(error)) from error
        if not content:
            raise ModelError(f"plan {path}: is empty; copy it again or rebuild it with `streamd build`")
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
                "rebuild it here with `streamd build`, or give the ONNX model"
            )
        self.engine: Any = engine
        self._read_tensors()

    def _read_tensors(self) -> None:
        engine, module = self.engine, self._trt.module
        if getattr(engine, "has_implicit_batch_dimension", False):
            raise ModelError(f"plan {self.path}: has an implicit batch dimension; rebuild it from the ONNX model")
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            kind = engine.get_tensor_dtype(name)
            spec = TensorSpec(
                name, tuple(int(d) for d in engine.get_tensor_shape(name)), _TYPES.get(_name(kind), _name(kind).lower())
            )
            if engine.get_tensor_format(name) != module.TensorFormat.LINEAR:
                raise ModelError(f"plan {self.path}: tensor {name} is not stored linearly; rebuild it")
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
        # Before 8.6, TensorRT answers for the first profile only, and warns about the others.
        asked = 1 if self.profile_per_context else max(1, self.profiles)
        limits = [self.engine.get_tensor_profile_shape(image.name, p) for p in range(asked)]
        # All profiles of our plans are identical; for a foreign plan, use what every profile accepts.
        self.min_batch = max(int(low[0]) for low, _, _ in limits)
        self.max_batch = min(int(high[0]) for _, _, high in limits)
        self._limits = [(tuple(map(int, low)), tuple(map(int, high))) for low, _, high in limits]
        if self.max_batch < self.min_batch:
            raise ModelError(f"plan {self.path}: its optimization profiles have no common batch size; rebuild it")

    def check_input(self, image: TensorSpec) -> None:
        """Checks that the plan accepts `image`, whose dimensions except the batch are fixed.

        Raises:
            ModelError: its optimization profiles do not accept it.
        """
        for low, high in getattr(self, "_limits", ()):
            if any(not a <= d <= b for d, a, b in zip(image.shape[1:], low[1:], high[1:], strict=True)):
                raise ModelError(
                    f"plan {self.path}: accepts inputs of {list(low[1:])} to {list(high[1:])}, not "
                    f"{list(image.shape[1:])}; set model.input_size"
                )

    @property
    def profile_per_context(self) -> bool:
        """Whether two contexts cannot use one optimization profile at the same time."""
        return bool(self._trt.profile_per_context)

    @property
    def scratch_bytes(self) -> int:
        """Device memory used by each execution context."""
        size = getattr(self.engine, "device_memory_size_v2", None)
        return int(self.engine.device_memory_size if size is None else size)

    def contexts(self, slots: int) -> list[Execution]:
        """Creates execution contexts for this many slots, one each if possible. Called with the device current.

        Raises:
            BackendError: the device does not have enough memory.
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
        """Frees the engine; its contexts must have been freed."""
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
        """For a shared context: the end of its last batch."""
        self._context = context
        self._batch = 0
        self._input = plan.inputs[0].name

    def use_profile(self, index: int, stream: Stream) -> None:
        """Binds an optimization profile; needed once, before the first batch."""
        if not self._context.set_optimization_profile_async(index, stream.handle):
            raise BackendError(f"backend tensorrt: {self.plan.path}: profile {index}: {self._said()}")
        stream.synchronize()

    def set_batch(self, image: TensorSpec, frames: int) -> int:
        """Sets the input's shape for this many frames; returns the batch that runs, which may be larger.

        Args:
            image: the dimensions except the batch are fixed.
        """
        batch = max(frames, self.plan.min_batch)
        if batch != self._batch:
            self._batch = 0
            if not self._context.set_input_shape(self._input, (batch, *image.shape[1:])):
                raise BackendError(f"backend tensorrt: {self.plan.path}: batch of {batch}: {self._said()}")
            self._batch = batch
        return batch

    def output_shape(self, name: str) -> tuple[int, ...]:
        """An output's shape for the current batch; -1 for a dimension that depends on the data."""
        return tuple(int(d) for d in self._context.get_tensor_shape(name))

    def enqueue(self, addresses: Sequence[tuple[str, int]], stream: Stream) -> None:
        """Enqueues the network.

        Args:
            addresses: (name, device address) of every input and output.

        Raises:
            BackendError: TensorRT failed.
        """
        context = self._context
        for name, address in addresses:
            if not context.set_tensor_address(name, address):
                raise BackendError(f"backend tensorrt: {self.plan.path}: address of {name}: {self._said()}")
        if not context.execute_async_v3(stream.handle):
            raise BackendError(f"backend tensorrt: {self.plan.path}: cannot be run: {self._said()}")

    def profile(self, profiler: Any) -> None:
        """Makes later batches report each layer's time to the vendor's IProfiler; each batch then waits for its end."""
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
        """Device memory used by the execution contexts."""
        return self.plan.scratch_bytes * len(self._executions)

    def open_contexts(self, slots: int, stream: Stream) -> None:
        """Creates the execution contexts.

        Args:
            slots: number of batches that may be in flight.
            stream: for the little work that this enqueues.

        Raises:
            BackendError: the device failed.
        """
        with self._device:
            self._executions = self.plan.contexts(slots)
            if self.plan.profile_per_context:
                # A new context gets profile 0 only if no other has it.
                for index, execution in enumerate(self._executions[1:], 1):
                    execution.use_profile(index, stream)
        for execution in self._executions:
            if execution.shared:
                execution.done = self._device.event()

    def execution(self, slot: int) -> Execution:
        """The context that runs a slot's batches."""
        return self._executions[slot % len(self._executions)]

    def settle_outputs(self, image: TensorSpec) -> tuple[TensorSpec, ...]:
        """The outputs, with all dimensions except the batch known. Contexts must be open.

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
                        "have the batch first, then fixed dimensions, and a type that NumPy has; export it that way"
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
    """TensorRT's logged errors, otherwise the exception, on one line."""
    errors = logger.take_errors()
    if errors:
        return str(errors[0])
    text = " ".join(str(error).split()) if error is not None else ""
    return text[:300] or (type(error).__name__ if error is not None else "no reason given")
