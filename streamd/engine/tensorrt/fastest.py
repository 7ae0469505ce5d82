"""Chooses between INT8 and FP16 by measured time: builds both plans and runs them in turn on the GPU.

INT8 is not always the faster one. On GPUs with fast half-precision units, the conversions between the layers of a
quantized model cost more than its convolutions save.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from streamd.engine.sidecar import Sidecar
from streamd.engine.tensorrt.cuda import Device
from streamd.engine.tensorrt.job import Job, half_method
from streamd.engine.tensorrt.network import build_one
from streamd.engine.tensorrt.runtime import Network
from streamd.engine.tensorrt.slot import tensor_bytes
from streamd.engine.tensorrt.version import vendor_logger
from streamd.errors import BackendError
from streamd.types import TensorSpec

log = structlog.get_logger(__name__)

WORTH = 0.97
"""INT8 has to take at most this share of FP16's time: half precision loses less accuracy."""
ROUNDS = 40
"""Batches of each size and plan, of which the median counts."""

Times = dict[str, dict[int, float]]
"""Milliseconds per batch, by precision and batch size."""
Build = Callable[[Job], tuple[Any, Sidecar]]
Measure = Callable[[Job, Mapping[str, Any]], Times]


def as_precision(job: Job, precision: str) -> Job:
    """The job of one candidate, `int8` or `fp16`."""
    assert job.floating is not None
    method = "explicit Q/DQ" if precision == "int8" else f"{half_method(job.trt)}, from {job.floating.path.name}"
    return replace(job, recipe=replace(job.recipe, precision=precision), method=method)


def build_fastest(job: Job, build: Build = build_one, measure: Measure | None = None) -> tuple[Any, Sidecar]:
    """Builds both plans and keeps the faster one.

    If only one of them can be built, that one is kept.

    Args:
        job: a job of precision `fastest`.
        build: builds one plan.
        measure: measures the plans, by precision; the default runs them on the GPU.

    Returns:
        The serialized plan, and its sidecar without the plan's own hash, with the times of both.

    Raises:
        ModelError: TensorRT cannot parse the model.
        BackendError: neither plan could be built.
    """
    made: dict[str, tuple[Any, Sidecar]] = {}
    failed: BackendError | None = None
    for precision in ("int8", "fp16"):
        try:
            made[precision] = build(as_precision(job, precision))
        except BackendError as error:
            log.warning(
                "this precision cannot be built", model=str(job.onnx.path), precision=precision, reason=str(error)
            )
            failed = failed or error
    if not made:
        assert failed is not None
        raise failed
    times: Times = {}
    if len(made) > 1:
        times = (measure or batch_times)(job, {name: plan for name, (plan, _) in made.items()})
    chosen = choose(times, job.recipe.profile[1]) if times else next(iter(made))
    plan, sidecar = made[chosen]
    compared = {name: {str(n): ms for n, ms in each.items()} for name, each in times.items()}
    log.info(
        "precision chosen by measured time", model=str(job.onnx.path), precision=chosen, gpu=str(job.gpu),
        ms_per_batch=compared,
    )  # fmt: skip
    assert sidecar.provenance is not None
    seconds = [each.provenance.build_seconds or 0.0 for _, each in made.values() if each.provenance is not None]
    provenance = sidecar.provenance.model_copy(
        update={
            "key": job.recipe.key, "build_seconds": round(sum(seconds), 3),
            "compared_ms": compared,
        }
    )  # fmt: skip
    return plan, sidecar.model_copy(update={"provenance": provenance})


def choose(times: Times, batch: int) -> str:
    """The precision to keep.

    Args:
        times: of `int8` and `fp16`.
        batch: the size that decides: the one that plans are optimized for.
    """
    return "int8" if times["int8"][batch] <= WORTH * times["fp16"][batch] else "fp16"


def verdict(compared: Mapping[str, Mapping[str, float]]) -> str:
    """One line that compares the times in a sidecar's `compared_ms`."""
    int8, fp16 = compared["int8"], compared["fp16"]
    sizes = sorted(int8, key=int)
    each = ", ".join(f"{int8[n]:.2f} / {fp16[n]:.2f} ms at {n}" for n in sizes)
    shares = [int8[n] / fp16[n] for n in sizes]
    return f"time per batch, INT8 / FP16: {each} ({min(shares):.2f} to {max(shares):.2f} of FP16's)"


class _Runner:
    """One plan on the GPU. Used with the device current."""

    def __init__(self, job: Job, device: Device, path: Path) -> None:
        self._device = device
        self._stream = device.stream()
        self._started, self._ended = device.event(), device.event()
        self._network = Network(path, job.trt, vendor_logger(), device)
        self._network.open_contexts(1, self._stream)
        self._execution = self._network.execution(0)
        image = self._network.plan.inputs[0]
        self._image = TensorSpec(image.name, (-1, *job.spec.input.shape[1:]), image.dtype)
        outputs = self._network.settle_outputs(self._image)
        most = max(job.recipe.profile[2], self._network.plan.min_batch)
        self._buffers = [(t.name, device.allocate(tensor_bytes(t, most))) for t in (self._image, *outputs)]
        self._addresses = [(name, buffer.address) for name, buffer in self._buffers]
        self._graph: Any = None

    def prepare(self, batch: int) -> None:
        """Sets the batch size, and captures a graph of it where that is possible, as the daemon does."""
        self._drop_graph()
        self._execution.set_batch(self._image, batch)
        for _ in range(3):
            self._execution.enqueue(self._addresses, self._stream)
        self._stream.synchronize()
        api = self._device.graphs()
        if api is None:
            return
        try:
            self._graph = self._device.capture(
                api, self._stream, lambda: self._execution.enqueue(self._addresses, self._stream)
            )
        except BackendError as error:
            log.debug("no CUDA graph; timed without", reason=str(error))

    def run(self) -> float:
        """Device time of one batch in milliseconds."""
        self._started.record(self._stream)
        if self._graph is not None:
            self._graph.launch()
        else:
            self._execution.enqueue(self._addresses, self._stream)
        self._ended.record(self._stream)
        self._ended.synchronize()
        return self._ended.seconds_since(self._started) * 1e3

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._device.discard(self._graph)
            self._graph = None

    def close(self) -> None:
        self._drop_graph()
        self._network.close()


def batch_times(job: Job, made: Mapping[str, Any]) -> Times:
    """Measures plans on the GPU of the job, in turn, so that whatever else runs there meets all alike.

    Args:
        job: what they were built for.
        made: serialized plans by precision.

    Returns:
        Median milliseconds per batch, for the smallest, the best and the largest batch of the profile.

    Raises:
        BackendError: a plan does not run.
    """
    times: Times = {name: {} for name in made}
    device = Device(job.options.device)
    try:
        with tempfile.TemporaryDirectory(prefix="streamd-plans-") as folder:
            runners = {name: _runner(job, device, Path(folder) / f"{name}.plan", made[name]) for name in made}
        try:
            with device:
                for batch in sorted(set(job.recipe.profile)):
                    for name, ms in _medians(runners, batch).items():
                        times[name][batch] = round(ms, 4)
        finally:
            for runner in runners.values():
                runner.close()
    finally:
        device.close()
    return times


def _runner(job: Job, device: Device, path: Path, plan: Any) -> _Runner:
    try:
        path.write_bytes(memoryview(plan))
    except OSError as error:
        raise BackendError(
            f"plan for {job.onnx.path}: {path.parent}: cannot be written for measuring: {error.strerror}; set TMPDIR "
            "to a folder with room"
        ) from error
    with device:
        return _Runner(job, device, path)


def _medians(runners: Mapping[str, _Runner], batch: int) -> dict[str, float]:
    for runner in runners.values():
        runner.prepare(batch)
        runner.run()
    samples: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, runner in runners.items():
            samples[name].append(runner.run())
    return {name: statistics.median(values) for name, values in samples.items()}
