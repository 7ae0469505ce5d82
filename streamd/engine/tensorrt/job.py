"""What to build, decided before anything is built: precision, batch profile, and the recipe that identifies a plan.

How a precision is reached depends on the builder and on the model:

| model \\ builder | up to 10 (precision flags) | 11 and RTX (strongly typed) |
|---|---|---|
| Q/DQ nodes, int8 | INT8 and FP16 flags: INT8 where the nodes say so, otherwise the fastest | the file's own types |
| Q/DQ nodes, mixed | ranges instead of the nodes (see `pairs`): INT8 or FP16 by layer, whatever is fastest | rejected |
| float, fp16 | FP16 flag | the file is converted (see `half`) |
| float, int8 | entropy calibrator (see `calibrator`) | rejected: `streamd quantize` makes a Q/DQ model |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from streamd.engine import ModelSettings
from streamd.engine.model import settle_spec
from streamd.engine.onnx.reader import OnnxFile, read_onnx
from streamd.engine.tensorrt import driver, plans
from streamd.engine.tensorrt.calibrator import Calibration
from streamd.engine.tensorrt.plans import Recipe
from streamd.engine.tensorrt.version import Trt, load_trt
from streamd.errors import BackendError, ConfigError, ModelError
from streamd.types import ModelSpec

Precision = Literal["fp32", "fp16", "int8", "mixed"]
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
    device: int = 0
    """CUDA ordinal of the GPU to build on."""
    input_size: tuple[int, int] | None = None
    """Height and width for a model with a dynamic input size."""
    calibration: Calibration | None = None
    """Implicit INT8, if the builder supports it."""


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

    @property
    def source(self) -> str:
        """The model's file name."""
        return self.onnx.path.name


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


def settle_precision(trt: Trt, onnx: OnnxFile, options: BuildOptions) -> tuple[Precision, str]:
    """The precision and how it is reached, in words.

    Raises:
        ConfigError: the model or the installed TensorRT does not support the request.
    """
    asked = options.precision
    if onnx.quantized:
        if options.calibration is not None:
            raise ConfigError(
                f"model {onnx.path}: has Q/DQ nodes, so it is calibrated already; omit the calibration "
                "options, or build from the float model"
            )
        if asked in ("fp32", "fp16"):
            # Without its pairs, a quantized model is worse than with them: its weights and biases were fitted to
            # quantized activations.
            raise ConfigError(
                f"model {onnx.path}: has Q/DQ nodes, which make it INT8; precision {asked} needs the float model"
            )
        if asked == "mixed" and not trt.has_precision_flags:
            raise ConfigError(
                f"model {onnx.path}: precision mixed: {trt} takes precisions from the file; use int8, or the float "
                "model for fp16"
            )
        if asked == "mixed":
            return "mixed", "INT8 or FP16 by layer, by measured time"
        return "int8", "explicit Q/DQ"
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
    if asked == "fp32":
        return "fp32", "as exported"
    return "fp16", "FP16 flag" if trt.has_precision_flags else "converted to float16"


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
    # Only what the model itself says: the configuration's overrides apply to the plan, too.
    bare = ModelSettings(path=str(path), input_size=options.input_size)
    spec = settle_spec(bare, path, onnx.sha256, onnx.inputs, (), onnx.metadata, 1)
    profile = settle_profile(path, spec.input.shape[0], options.batch, most)
    precision, method = settle_precision(trt, onnx, options)
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
    )
    return Job(trt, gpu, onnx, replace(spec, max_batch=profile[2]), options, recipe, method)
