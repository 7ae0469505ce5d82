"""One ONNX model to one engine plan, on any TensorRT from 8.5 to 11 and on TensorRT-RTX."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import structlog

from streamd.engine.model import size_input, size_value
from streamd.engine.onnx.constants import with_constant
from streamd.engine.onnx.pairs import without_pairs
from streamd.engine.onnx.reader import OnnxFile
from streamd.engine.onnx.stem import float_stem
from streamd.engine.onnx.weights import in_float
from streamd.engine.sidecar import Provenance, Sidecar, read_sidecar
from streamd.engine.tensorrt import driver, outputs
from streamd.engine.tensorrt.calibrator import make_calibrator
from streamd.engine.tensorrt.files import write_whole
from streamd.engine.tensorrt.job import Job
from streamd.engine.tensorrt.version import QUICK_EFFORT, tidy, vendor_logger
from streamd.errors import BackendError, ConfigError, ModelError

log = structlog.get_logger(__name__)

_MAX_LISTED = 5
_MAX_TIMING_BYTES = 256 << 20


@contextmanager
def _vendor(job: Job, what: str) -> Iterator[Any]:
    """Translates TensorRT's exceptions. Yields its logger."""
    logger = vendor_logger()
    logger.take_errors()
    try:
        yield logger
    except (RuntimeError, TypeError, ValueError, MemoryError) as error:
        # pybind11 raises a TypeError if a constructor returns nothing.
        details = [*logger.take_errors(), tidy(str(error))]
        raise BackendError(f"{job.trt}: {what} {job.onnx.path} failed: {details[0]}") from error


def _parse_errors(parser: Any, onnx: OnnxFile, job: Job) -> ModelError:
    """One error for all nodes that the parser rejected."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        index = int(error.node())
        if 0 <= index < len(onnx.nodes):
            where = f"node {onnx.nodes[index]}"
        else:
            where = f"node {error.node_name()}" if getattr(error, "node_name", str)() else ""
        text = tidy(str(error.desc()))
        # "false" is an assertion without further information.
        text = "" if text in ("false", "") else f": {text}"
        code = str(error.code()).rsplit(".", 1)[-1].lower().replace("_", " ")
        found.append(f"{where or 'file'}: {code}{text}")
    vendor_logger().take_errors()
    listed = "; ".join(found[:_MAX_LISTED]) or "no reason given"
    more = f"; and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    return ModelError(f"model {onnx.path}: {job.trt} cannot parse it: {listed}{more}")


def _load(job: Job) -> tuple[bytes, Mapping[str, float]]:
    """The bytes to parse, with the picture as the only input, and the ranges of tensors where pairs were removed."""
    (data, ranges), size = _converted(job), size_input(job.onnx.inputs)
    if size is None:
        return data, ranges
    # One row also serves a dynamic batch, since it is only multiplied with batched values.
    value = size_value(job.spec, max(1, job.spec.input.shape[0])).astype(size.dtype)
    return with_constant(data, size.name, value), ranges


def _converted(job: Job) -> tuple[bytes, Mapping[str, float]]:
    """The file's bytes in the precision to be parsed, and ranges (see `_load`)."""
    if job.recipe.precision == "fp16" and job.trt.always_strongly_typed:
        from streamd.engine.onnx.half import to_half

        return to_half(job.parsed.path), {}
    if job.recipe.precision in ("fp16", "fp32"):
        return _read(job.parsed), {}
    data = _read(job.onnx)
    if not job.onnx.quantized or not job.trt.has_precision_flags:
        # Strongly typed networks compute what the file says: there, a float stem would be in single precision.
        return data, {}
    data = in_float(data)
    if job.recipe.precision == "int8":
        stem_in_float = float_stem(data)
        # Without any pair, a builder of INT8 asks for a calibrator.
        return (stem_in_float if b"QuantizeLinear" in stem_in_float else data), {}
    found = without_pairs(data)
    if found is None:
        raise ModelError(
            f"model {job.onnx.path}: precision {job.recipe.precision}: its Q/DQ nodes are not pairs of symmetric INT8 "
            "as `streamd quantize` writes them; use precision int8, or build from the float model"
        )
    if job.parsed is not job.onnx:
        # The weights and biases of a quantized model were fitted to quantized activations.
        return _read(job.parsed), found.float_ranges
    return found.model, found.ranges


def _read(onnx: OnnxFile) -> bytes:
    try:
        return onnx.path.read_bytes()
    except OSError as error:
        raise ModelError(f"model {onnx.path}: cannot be read: {error.strerror}") from error


def _takes_halves(job: Job) -> bool:
    """Whether the builder may choose float16 for inputs and outputs. Calibrators use single precision."""
    return job.trt.has_precision_flags and job.recipe.precision != "fp32" and job.options.calibration is None


def _parse(job: Job, builder: Any, logger: Any) -> tuple[Any, Any]:
    """(network, parser); the parser owns weights that the network points to."""
    trt = job.trt.module
    network = builder.create_network(job.trt.network_flags)
    parser = trt.OnnxParser(network, logger)
    if job.options.version_compatible and hasattr(trt, "OnnxParserFlag") and job.trt.version < (10,):
        # Plans cannot include plugins: instance normalisation must be the native layer (the default since 10).
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    data, ranges = _load(job)
    if not parser.parse(data, str(job.parsed.path)):
        # Indices point into what was parsed; a converted graph is not the one that was read.
        same = hashlib.sha256(data).hexdigest() == job.parsed.file_sha256
        raise _parse_errors(parser, job.parsed if same else replace(job.parsed, nodes=()), job)
    if network.num_inputs != 1 or network.num_outputs < 1:
        raise ModelError(
            f"model {job.parsed.path}: {network.num_inputs} inputs and {network.num_outputs} outputs after parsing; "
            "expected one image and at least one output"
        )
    image = network.get_input(0)
    if _takes_halves(job) and image.dtype == trt.float32:
        # Halves the bytes that the letterbox writes and the stem reads.
        image.dtype = trt.float16
    _set_ranges(job, network, ranges)
    return network, parser


def _set_ranges(job: Job, network: Any, ranges: Mapping[str, float]) -> None:
    """Tells the builder which tensors may be INT8, and their steps."""
    if not ranges:
        return
    tensors = [network.get_input(0)]
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        tensors += [layer.get_output(i) for i in range(layer.num_outputs)]
    known = 0
    for tensor in tensors:
        most = ranges.get(tensor.name)
        if most is not None:
            known += bool(tensor.set_dynamic_range(-most, most))
    log.debug("ranges for INT8", model=str(job.onnx.path), known=known, given=len(ranges), tensors=len(tensors))


def _timing_cache(job: Job, config: Any) -> None:
    """Attaches the timing cache: the file's if it fits this GPU and version, otherwise an empty one."""
    path = job.options.timing_cache
    if path is None or not job.trt.has_timing_cache:
        return
    data = b""
    try:
        if path.stat().st_size <= _MAX_TIMING_BYTES:
            data = path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"timing cache {path}: cannot be read: {error.strerror}") from error
    cache = config.create_timing_cache(data)
    if not data or (cache is not None and config.set_timing_cache(cache, False)):
        if not data:
            config.set_timing_cache(cache, False)
        return
    vendor_logger().take_errors()
    log.warning("timing cache does not fit and is not used", cache=str(path), tensorrt=str(job.trt), gpu=str(job.gpu))
    config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timing_cache(job: Job, config: Any) -> None:
    path = job.options.timing_cache
    if path is None or not job.trt.has_timing_cache:
        return
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        write_whole(path, memoryview(cache.serialize()))
    except OSError as error:
        # The plan is valid without it; only the next build will be slow.
        log.warning("timing cache cannot be written", cache=str(path), reason=error.strerror)


def _add_profiles(job: Job, builder: Any, config: Any, tensor: Any) -> None:
    fixed = job.spec.input.shape[1:]
    shapes = [(n, *fixed) for n in job.recipe.profile]
    for _ in range(job.options.profiles):
        profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise ModelError(f"model {job.onnx.path}: {job.trt} refuses the input shapes {shapes}")
    if job.options.calibration is not None:
        profile = builder.create_optimization_profile()
        size = job.options.calibration.batch_size
        profile.set_shape(tensor.name, *[(size, *fixed)] * 3)
        if not config.set_calibration_profile(profile):
            raise ModelError(f"model {job.onnx.path}: {job.trt} refuses to calibrate with batches of {size}")


def _own_tactics(job: Job, config: Any) -> None:
    """Excludes cuBLAS and cuDNN, as TensorRT 10 does by default, so that a plan needs neither of them to run."""
    trt = job.trt.module
    names = ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
    # Later versions have levels of their own, which say whether kernels are compiled.
    if not job.trt.has_effort_levels and job.recipe.effort == QUICK_EFFORT:
        names.remove("JIT_CONVOLUTIONS")
    own = [getattr(trt.TacticSource, name) for name in names if hasattr(getattr(trt, "TacticSource", None), name)]
    if own:
        config.set_tactic_sources(sum(1 << int(source) for source in own))


def _set_effort(job: Job, config: Any) -> None:
    """Says how thoroughly to search."""
    effort = job.recipe.effort
    if effort is None:
        return
    if job.trt.has_effort_levels:
        config.builder_optimization_level = effort
    else:
        config.set_flag(job.trt.module.BuilderFlag.ENABLE_TACTIC_HEURISTIC)


def _configure(job: Job, builder: Any, network: Any) -> tuple[Any, Any]:
    """(builder configuration, calibrator or None)"""
    trt, options = job.trt.module, job.options
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if job.trt.has_precision_flags:
        if job.recipe.precision != "fp32":
            config.set_flag(trt.BuilderFlag.FP16)
        if job.recipe.precision in ("int8", "mixed"):
            config.set_flag(trt.BuilderFlag.INT8)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible and job.trt.has_hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    _set_effort(job, config)
    _own_tactics(job, config)
    calibrator = None
    if options.calibration is not None:
        calibrator = make_calibrator(job.trt, options.calibration)
        config.int8_calibrator = calibrator
    _add_profiles(job, builder, config, network.get_input(0))
    _timing_cache(job, config)
    return config, calibrator


def _build_error(job: Job, errors: list[str]) -> BackendError:
    advice = f"workspace was {job.options.workspace_mb} MiB"
    if any("nvinfer_lean" in text for text in errors):
        advice = "a version-compatible plan includes the lean runtime, which is a separate package: tensorrt-lean"
    return BackendError(
        f"{job.trt} cannot build {job.onnx.path}: {'; '.join(errors[:2]) or 'no reason given'} ({advice})"
    )


def build_one(job: Job) -> tuple[Any, Sidecar]:
    """Builds one plan, of a settled precision; minutes on a GPU.

    Returns:
        The serialized plan (a buffer), and its sidecar without the plan's own hash.

    Raises:
        ModelError: TensorRT cannot parse the model; each node that it rejects is named.
        BackendError: the builder failed.
    """
    started = time.monotonic()
    with driver.current(job.options.device) if job.gpu else nullcontext(), _vendor(job, "building") as logger:
        trt = job.trt.module
        builder = trt.Builder(logger)
        if hasattr(trt, "init_libnvinfer_plugins"):
            trt.init_libnvinfer_plugins(logger, "")
        network, parser = _parse(job, builder, logger)
        heads = outputs.give_convolutions(job.trt, network, half=_takes_halves(job))
        if heads and job.spec.head is None:
            job = replace(job, spec=replace(job.spec, head=outputs.DECLARED))
        config, calibrator = _configure(job, builder, network)
        try:
            plan = builder.build_serialized_network(network, config)
        finally:
            if calibrator is not None:
                calibrator.close()
        if calibrator is not None and calibrator.error is not None:
            raise calibrator.error
        errors = logger.take_errors()
        if plan is None:
            raise _build_error(job, errors)
        if errors:
            log.warning("TensorRT reported errors but built the plan", count=len(errors), first=errors[0])
        _save_timing_cache(job, config)
        # The builder keeps pointers into these until it has finished.
        del config, parser, network, builder
    return plan, describe(job, round(time.monotonic() - started, 3))


def describe(job: Job, seconds: float) -> Sidecar:
    """What is needed to run the plan without the model, and where it came from."""
    above = (read_sidecar(job.onnx.path).provenance if job.parsed is job.onnx else None) or Provenance()
    method = job.method if above.method is None or not job.onnx.quantized else f"{job.method} ({above.method})"
    provenance = Provenance(
        source=job.source,
        source_sha256=job.recipe.model_sha256,
        method=method,
        calibration_sha256=job.recipe.calibration_sha256 or above.calibration_sha256,
        float_layers=above.float_layers,
        precision=job.recipe.precision,
        tensorrt=job.recipe.tensorrt,
        driver=job.gpu.driver if job.gpu else None,
        gpu=job.recipe.gpu,
        profile=job.recipe.profile,
        effort=job.recipe.effort,
        build_seconds=seconds,
        tools={job.trt.name: job.trt.version_text},
        forced=above.forced,
        key=job.recipe.key,
    )
    return Sidecar(
        version=1,
        labels=job.spec.labels or None,
        color=job.spec.color,
        scale=job.spec.scale,
        mean=job.spec.mean,
        std=job.spec.std,
        resize=job.spec.placement.resize,
        align=job.spec.placement.align,
        pad_value=job.spec.pad_value,
        input_assumed=not job.spec.input_declared,
        task=job.spec.metadata.get("task"),
        head=dict(job.spec.head) if job.spec.head is not None else None,
        sha256=None,
        provenance=provenance,
    )
