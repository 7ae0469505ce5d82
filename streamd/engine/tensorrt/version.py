"""A thin adapter over TensorRT 8.5 to 11 and TensorRT-RTX: which one is installed, and what it supports.

Capabilities are queried from the module rather than derived from its version: flags were removed in steps (implicit
calibration and weakly typed networks with 11; RTX never had them), and vendors backport.
"""

from __future__ import annotations

import functools
import importlib
import re
import threading
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from streamd.errors import BackendError

log = structlog.get_logger(__name__)

OLDEST = (8, 5)
OWN_EFFORT = 3
"""What TensorRT does unless told otherwise, of the efforts 0 to 5."""
HEURISTIC_EFFORT = 2
"""The effort of TensorRT 8.5 that leaves tactics out by a guess of their time."""
QUICK_EFFORT = 1
"""The one below: it also leaves out convolutions whose source code is compiled while the plan is built. Compiling one
takes seconds of one core, longer than to time it."""
_NAMES: tuple[Literal["tensorrt", "tensorrt_rtx"], ...] = ("tensorrt", "tensorrt_rtx")
_MAX_ERRORS = 50


@dataclass(frozen=True)
class Trt:
    """The installed TensorRT."""

    module: Any
    name: Literal["tensorrt", "tensorrt_rtx"]
    version: tuple[int, ...]

    @property
    def version_text(self) -> str:
        """E.g. 8.5.3.1."""
        return ".".join(map(str, self.version))

    def __str__(self) -> str:
        return f"{'TensorRT-RTX' if self.is_rtx else 'TensorRT'} {self.version_text}"

    @property
    def is_rtx(self) -> bool:
        """TensorRT-RTX: builds without a GPU, compiles kernels on the GPU that runs the plan."""
        return self.name == "tensorrt_rtx"

    @property
    def has_precision_flags(self) -> bool:
        """Whether the builder chooses precisions itself within flags (FP16, INT8)."""
        return hasattr(self.module.BuilderFlag, "FP16")

    @property
    def always_strongly_typed(self) -> bool:
        """Whether the ONNX file determines the precision of each layer."""
        return not self.has_precision_flags

    @property
    def has_implicit_int8(self) -> bool:
        """Whether INT8 from a calibrator, without Q/DQ nodes, is supported (up to 10)."""
        return self.has_precision_flags and hasattr(self.module, "IInt8EntropyCalibrator2")

    @property
    def has_version_compatible(self) -> bool:
        """Whether plans can be built for newer versions (8.6 and later; RTX has the flag, but not the runtime)."""
        return not self.is_rtx and hasattr(self.module.BuilderFlag, "VERSION_COMPATIBLE")

    @property
    def has_hardware_compatible(self) -> bool:
        """Whether plans can be built for other GPUs (8.6 and later). RTX plans need no such mode."""
        return not self.is_rtx and hasattr(self.module, "HardwareCompatibilityLevel")

    @property
    def has_effort_levels(self) -> bool:
        """Whether the builder can be told how thoroughly to search, from 0 to 5 (8.6 and later).

        RTX has the setting, but its plans are the same at every level: it searches on the GPU that runs them.
        """
        return not self.is_rtx and hasattr(self.module.IBuilderConfig, "builder_optimization_level")

    @property
    def has_tactic_heuristic(self) -> bool:
        """Whether tactics can be left out by a guess of their time: the only choice of 8.5, and level 2 since then."""
        return not self.has_effort_levels and hasattr(self.module.BuilderFlag, "ENABLE_TACTIC_HEURISTIC")

    @property
    def has_timing_cache(self) -> bool:
        """Whether tactics are timed while building. RTX chooses them when a plan first runs; its caches do nothing."""
        return not self.is_rtx

    @property
    def profile_per_context(self) -> bool:
        """Whether each execution context needs its own optimization profile (before 10)."""
        return not self.is_rtx and self.version < (10,)

    @property
    def network_flags(self) -> int:
        """The flags of `Builder.create_network` for an ONNX model."""
        flags = self.module.NetworkDefinitionCreationFlag
        value = 0
        # 10 made explicit batch the only kind and warns about the flag; 11 does not have it.
        if hasattr(flags, "EXPLICIT_BATCH") and self.version < (10,):
            value |= 1 << int(flags.EXPLICIT_BATCH)
        if self.always_strongly_typed and hasattr(flags, "STRONGLY_TYPED"):
            value |= 1 << int(flags.STRONGLY_TYPED)
        return value


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 10.3.0.26 for `10.3.0.26+cuda12`, and only 10.3.0 for `10.3.0.post26`."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


@functools.cache
def load_trt() -> Trt:
    """The installed TensorRT: `tensorrt`, otherwise `tensorrt_rtx`.

    Raises:
        BackendError: neither can be imported, or it is older than 8.5; the message says what to install.
    """
    reasons = []
    for name in _NAMES:
        try:
            module = importlib.import_module(name)
            version = parse_version(str(module.__version__))
        except ImportError as error:
            reasons.append(f"{name}: {error}")
            continue
        except (OSError, RuntimeError, AttributeError) as error:
            # A wheel whose shared libraries are missing or broken.
            reasons.append(f"{name}: {type(error).__name__}: {error}")
            continue
        found = Trt(module, name, version)
        if not found.is_rtx and version < OLDEST:
            reasons.append(f"{name}: version {found.version_text} is too old, 8.5 or later is needed")
            continue
        return found
    raise BackendError(
        f"TensorRT cannot be loaded ({'; '.join(reasons)}); install it with pip install 'streamd[trt]', or "
        "tensorrt-rtx for GeForce RTX; on Jetson use the system's own Python packages (python3-libnvinfer)"
    )


@functools.cache
def vendor_logger() -> Any:
    """The only ILogger of the process: TensorRT binds to the first one and complains about others.

    INFO is logged as debug, WARNING as a warning. Errors are not logged but kept: the caller whose call fails takes
    them with `take_errors()` and raises, so that a failure is one message rather than ten.
    """
    trt = load_trt().module

    base: Any = trt.ILogger

    class VendorLogger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._lock = threading.Lock()
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = int(severity)
            if level <= int(trt.ILogger.ERROR):
                with self._lock:
                    if len(self._errors) < _MAX_ERRORS:
                        self._errors.append(tidy(message))
            elif level == int(trt.ILogger.WARNING):
                log.warning("TensorRT", message=tidy(message))
            elif level == int(trt.ILogger.INFO):
                log.debug("TensorRT", message=message)

        def take_errors(self) -> list[str]:
            """The errors since the last call, oldest first."""
            with self._lock:
                errors, self._errors = self._errors, []
            return errors

    return VendorLogger()


def tidy(message: str) -> str:
    """A vendor's message on one line, without the builder's own source locations, at most 400 characters."""
    message = re.sub(r"\s*\b[Ii]n \S+ at \S+?\.(cpp|h|hpp|cu):\d+", "", message)
    message = re.sub(r"\[?\b[\w/.-]+\.(cpp|h|hpp|cu)(:|::)[\w:<>~]*\]?:?\s*", "", message)
    return " ".join(message.split())[:400]
