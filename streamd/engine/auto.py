"""The engine auto: chooses the backend of a configuration, and logs why."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any, Literal

import structlog

from streamd.engine import ENGINES, BatchSettings, EngineSettings, ModelSettings
from streamd.engine.model import PLAN_SUFFIXES
from streamd.engine.openvino import OpenVinoSettings
from streamd.engine.tensorrt import TensorRtSettings
from streamd.flow.contracts import Backend

log = structlog.get_logger(__name__)


def tensorrt_unavailable() -> str | None:
    """None if TensorRT can be used, otherwise the reason why not."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1 was not found)"
    if driver.cuInit(0) != 0:
        return "the NVIDIA driver finds no usable GPU"
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no GPU"
    if not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx")):
        return "TensorRT is not installed (pip install 'streamd[trt]')"
    if importlib.util.find_spec("pycuda") is None:
        return "pycuda is not installed (pip install 'streamd[trt]')"
    return None


def choice(model: ModelSettings) -> tuple[OpenVinoSettings | TensorRtSettings, str]:
    """What `kind: auto` chooses, and why."""
    if Path(model.path).suffix in PLAN_SUFFIXES:
        return TensorRtSettings(), "the model is a TensorRT plan"
    missing = tensorrt_unavailable()
    if missing is None:
        return TensorRtSettings(), "an NVIDIA GPU and TensorRT are available"
    return OpenVinoSettings(), missing


def resolve(model: ModelSettings) -> OpenVinoSettings | TensorRtSettings:
    """Chooses for `kind: auto` and logs the choice with its reason."""
    chosen, reason = choice(model)
    log.info("engine chosen", backend=chosen.kind, reason=reason)
    return chosen


@ENGINES.register
class AutoSettings(EngineSettings):
    """TensorRT if an NVIDIA GPU and TensorRT are available, OpenVINO otherwise; the log says which and why."""

    kind: Literal["auto"] = "auto"

    def aside(self) -> EngineSettings:
        """See `EngineSettings.aside`."""
        return _AsideSettings()

    def open(self, model: ModelSettings, *, batch: BatchSettings, live: bool = False) -> Backend[Any]:
        """See `EngineSettings.open`."""
        return resolve(model).open(model, batch=batch, live=live)


class _AsideSettings(AutoSettings):
    """The same choice, for a network beside the main one."""

    def open(self, model: ModelSettings, *, batch: BatchSettings, live: bool = False) -> Backend[Any]:
        """See `EngineSettings.open`."""
        return resolve(model).aside().open(model, batch=batch, live=live)
