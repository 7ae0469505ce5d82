"""What to build, decided before anything is built: precision, batch profile, and the recipe that identifies a plan.

How a precision is reached depends on the builder and on the model:

| model \\ builder | up to 10 (precision flags) | 11 and RTX (strongly typed) |
|---|---|---|
| Q/DQ nodes, int8 | INT8 and FP16 flags: INT8 where the nodes say so, otherwise the fastest | the file's own types |
| Q/DQ nodes, mixed | ranges instead of the nodes (see `pairs`): INT8 or FP16 by layer, whatever is fastest | rejected |
| Q/DQ nodes, fp16 or fp32 | the float model that it was made from | the same |
| Q/DQ nodes, auto | the faster of int8 and fp16 (see `fastest`), if the float model is at hand | the same |
| float, fp16 | FP16 flag | the file is converted (see `half`) |
| float, int8 | entropy calibrator (see `calibrator`) | rejected: `streamd quantize` makes a Q/DQ model |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import structlog

from streamd.engine import ModelSettings
from streamd.engine.model import settle_spec
from streamd.engine.onnx.reader import OnnxFile, read_onnx
from streamd.engine.sidecar import read_sidecar
from streamd.engine.tensorrt import driver, plans
from streamd.engine.tensorrt.calibrator import Calibration
from streamd.engine.tensorrt.plans import Recipe
from streamd.engine.tensorrt.version import HEURISTIC_EFFORT, OWN_EFFORT, QUICK_EFFORT, Trt, load_trt
from streamd.errors import BackendError, ConfigError, ModelError
from streamd.types import ModelSpec

log = structlog.get_logger(__name__)

Precision = Literal["fp32", "fp16", "int8", "mixed", "fastest"]
DEFAULT_MAX_BATCH = 16
"""Largest batch of a plan for a model with a dynamic batch if the configuration sets no limit."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build. Every field except the timing cache is part of a plan's identity."""

    precision: Literal["auto", "fp32", "fp16", "int8", "mixed"] = "auto"
    batch: tuple[int, int, int] | None = None
    """Minimum, optimum, maximum. None: 1, half, maximum for a dynamic batch, and the model's own for a fixed one."""
    profiles: int = 1
    """Number of identical optimization profiles: before 10, each execution context needs its own."""
    workspace_mb: int = 1024
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    effort: int | None = None
    """How thoroughly to search for the fastest plan, 0 to 5 (see `settle_effort`). None: TensorRT's own default."""
    device: int = 0
    """CUDA ordinal of the GPU to build on."""
    input_size: tuple[int, int] | None = None
    """Height and width for a model with a dynamic input size."""
    calibration: Calibration | None = None
    """Implicit INT8, if the builder supports it."""
    float_model: Path | None = None
    """The float model that a quantized one was made from. None: the file that the sidecar of the latter names, if it is
    in the same folder."""


@dataclass(frozen=True)
class Job:
    """A build with all choices made. Created by `prepare`, without building."""

    trt: Trt
    gpu: driver.Gpu | None
    onnx: OnnxFile
    spec: ModelSpec
    options: BuildOptions
    recipe: Recipe
    method: str
    """How the precision is reached, in words."""
    floating: OnnxFile | None = None
    """The float model that a quantized one was made from, if it is at hand."""

    @property
    def source(self) -> str:
        """The model's file name."""
        return self.onnx.path.name

    @property
    def parsed(self) -> OnnxFile:
        """The file that TensorRT reads: the float model, if the precision needs its weights."""
        return self.onnx if self.floating is None or self.recipe.precision == "int8" else self.floating


def settle_profile(
    path: Path, fixed: int, batch: tuple[int, int, int] | None, most: int | None = None
) -> tuple[int, int, int]:
    """The batch profile: minimum, optimum, maximum.

    Args:
        path: the model, for messages.
        fixed: the model's own batch, -1 if it is dynamic.
        batch: as requested, or None.
        most: the largest batch that will be used, if `batch` is None.

    Raises:
        ConfigError: the batch sizes do not ascend from at least 1.
        ModelError: the model's batch is fixed at another size.
    """
    if batch is None:
        if fixed > 0:
            if most is not None and most > fixed:
                raise ModelError(
                    f"model {path}: its batch is fixed at {fixed}, but batch.max is {most}; export it with a "
                    "dynamic batch or lower batch.max"
                )
            return fixed, fixed, fixed
        most = most or DEFAULT_MAX_BATCH
        return 1, math.ceil(most / 2), most
    least, best, top = batch
    if not 1 <= least <= best <= top:
        raise ConfigError(f"--batch {least} {best} {top}: expected ascending sizes from 1 (minimum, optimum, maximum)")
    if fixed > 0 and batch != (fixed, fixed, fixed):
        raise ModelError(
            f"model {path}: its batch is fixed at {fixed}; omit --batch, or export it with a dynamic batch"
        )
    return batch


def settle_precision(
    trt: Trt, onnx: OnnxFile, options: BuildOptions, floating: OnnxFile | None = None
) -> tuple[Precision, str]:
    """The precision and how it is reached, in words.

    Args:
        trt: the installed TensorRT.
        onnx: the model.
        options: how to build.
        floating: the float model that `onnx` was quantized from, if it is at hand.

    Raises:
        ConfigError: the model or the installed TensorRT does not support the request.
    """
    if onnx.quantized:
        return _of_quantized(trt, onnx, options, floating)
    asked = options.precision
    if asked == "mixed":
        raise ConfigError(
            f"model {onnx.path}: precision mixed needs Q/DQ nodes, whose ranges it uses; add them with "
            "`streamd quantize`"
        )
    if asked == "int8" or (asked == "auto" and options.calibration is not None):
        if not trt.has_implicit_int8:
            raise ConfigError(
                f"model {onnx.path}: precision int8 needs Q/DQ nodes, as {trt} has no implicit calibration; add "
                "them with `streamd quantize`"
            )
        if options.calibration is None:
            raise ConfigError(
                f"model {onnx.path}: precision int8 needs Q/DQ nodes (add them with `streamd quantize`) or "
                "calibration images (--calibrate-images)"
            )
        return "int8", "implicit entropy calibration"
    if options.calibration is not None:
        raise ConfigError(f"precision {asked}: calibration is for int8 only; omit its options")
    return ("fp32", "as exported") if asked == "fp32" else ("fp16", half_method(trt))


def settle_effort(trt: Trt, asked: int | None) -> int | None:
    """The effort of the build, None for TensorRT's own.

    TensorRT 8.5 has its own and two below it, of which the lower serves for 0, too. RTX does not search while it
    builds.

    Raises:
        ConfigError: this version cannot search more, or less, than by default.
    """
    if asked is None or trt.has_effort_levels:
        return asked
    if asked == OWN_EFFORT or trt.is_rtx:
        return None
    if asked > OWN_EFFORT or not trt.has_tactic_heuristic:
        raise ConfigError(f"effort {asked}: not supported by {trt}; needs TensorRT 8.6 or later")
    return HEURISTIC_EFFORT if asked == HEURISTIC_EFFORT else QUICK_EFFORT


def half_method(trt: Trt) -> str:
    """How half precision is reached, in words."""
    return "FP16 flag" if trt.has_precision_flags else "converted to float16"


def _of_quantized(trt: Trt, onnx: OnnxFile, options: BuildOptions, floating: OnnxFile | None) -> tuple[Precision, str]:
    asked = options.precision
    if options.calibration is not None:
        raise ConfigError(
            f"model {onnx.path}: has Q/DQ nodes, so it is calibrated already; omit the calibration "
            "options, or build from the float model"
        )
    if asked in ("fp32", "fp16"):
        # Without its pairs, a quantized model is worse than with them: its weights and biases were fitted to
        # quantized activations.
        if floating is None:
            source = _source_name(onnx)
            beside = f": put {source} into its folder" if source else ""
            raise ConfigError(
                f"model {onnx.path}: has Q/DQ nodes, which make it INT8; precision {asked} needs the float model that "
                f"it was made from{beside}, or name it (--float-model, engine.float_model)"
            )
        how = "as exported" if asked == "fp32" else half_method(trt)
        return ("fp32" if asked == "fp32" else "fp16"), f"{how}, from {floating.path.name}"
    if asked == "mixed" and not trt.has_precision_flags:
        raise ConfigError(f"model {onnx.path}: precision mixed: {trt} takes precisions from the file; use int8 or fp16")
    if asked == "mixed":
        return "mixed", "INT8 or FP16 by layer, by measured time"
    if asked == "auto" and floating is not None:
        return "fastest", "the faster of INT8 and FP16"
    return "int8", "explicit Q/DQ"


def _source_name(onnx: OnnxFile) -> str | None:
    """The file name of the float model, by the sidecar of a quantized one."""
    made = read_sidecar(onnx.path).provenance
    return made.source if made is not None else None


def find_float(onnx: OnnxFile, given: Path | None) -> OnnxFile | None:
    """The float model that a quantized one was made from; None for a float model, or if it is not at hand.

    Args:
        onnx: the quantized model.
        given: the float model, if the user names it.

    Raises:
        ConfigError: the file that the user names is not the one it was made from.
        ModelError: that file cannot be read.
    """
    made = read_sidecar(onnx.path).provenance if onnx.quantized else None
    if not onnx.quantized:
        if given is not None:
            raise ConfigError(f"float model {given}: {onnx.path} is a float model itself; leave it out")
        return None
    if given is not None:
        found = read_onnx(given)
        if found.quantized or (made is not None and made.source_sha256 not in (None, found.sha256)):
            name = f" ({made.source})" if made is not None and made.source else ""
            raise ConfigError(
                f"float model {given}: is not the model{name} that {onnx.path} was quantized from; name that one, or "
                "quantize again"
            )
        return found
    if made is None or not made.source or not made.source_sha256:
        return None
    path = onnx.path.with_name(Path(made.source).name)
    if not path.is_file() or path == onnx.path:
        return None
    try:
        found = read_onnx(path)
    except ModelError as error:
        log.info("float model cannot be read; FP16 is not compared", model=str(path), reason=str(error))
        return None
    if found.sha256 != made.source_sha256 or found.quantized:
        log.info("float model has changed since it was quantized; FP16 is not compared", model=str(path))
        return None
    return found


def prepare(path: Path, options: BuildOptions, *, most: int | None = None) -> Job:
    """Reads the model and makes every choice; nothing is built.

    Args:
        path: the ONNX file.
        options: how to build.
        most: see `settle_profile`.

    Raises:
        ModelError: the file is not a usable ONNX model.
        ConfigError: the options contradict the model or the installed TensorRT.
        BackendError: no TensorRT, or no GPU although one is needed.
    """
    trt = load_trt()
    onnx = read_onnx(path)
    gpu = driver.find_gpu(options.device)
    if gpu is None and not trt.is_rtx:
        raise BackendError(
            f"{trt} needs an NVIDIA GPU for building, but ordinal {options.device} does not exist (nvidia-smi lists "
            "them); build on the machine that will run the plan"
        )
    if options.version_compatible and not trt.has_version_compatible:
        raise ConfigError(f"--version-compatible: not supported by {trt}; needs TensorRT 8.6 or later")
    if options.hardware_compatible and not trt.has_hardware_compatible and not trt.is_rtx:
        raise ConfigError(f"--hardware-compatible: not supported by {trt}; needs TensorRT 8.6 or later")
    effort = settle_effort(trt, options.effort)
    # Only what the model itself says: the configuration's overrides apply to the plan, too.
    bare = ModelSettings(path=str(path), input_size=options.input_size)
    spec = settle_spec(bare, path, onnx.sha256, onnx.inputs, (), onnx.metadata, 1)
    profile = settle_profile(path, spec.input.shape[0], options.batch, most)
    floating = find_float(onnx, options.float_model)
    precision, method = settle_precision(trt, onnx, options, floating)
    if precision == "fastest" and gpu is None:
        precision, method = "int8", "explicit Q/DQ"  # nothing can be timed here
    recipe = Recipe(
        model_sha256=onnx.sha256,
        precision=precision,
        profile=profile,
        tensorrt=plans.built_by(trt, version_compatible=options.version_compatible),
        gpu=plans.built_for(trt, gpu, hardware_compatible=options.hardware_compatible),
        input_size=(spec.input_height, spec.input_width),
        profiles=options.profiles,
        workspace_mb=options.workspace_mb,
        calibration_sha256=options.calibration.sha256 if options.calibration else None,
        float_sha256=floating.sha256 if floating is not None and precision != "int8" else None,
        effort=effort,
    )
    return Job(trt, gpu, onnx, replace(spec, max_batch=profile[2]), options, recipe, method, floating)
