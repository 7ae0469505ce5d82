"""The JSON file beside a model (`MODEL.json`) that says what the model itself cannot.

Everything in it is optional; the configuration overrides it, and it overrides the model's own metadata.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from streamd.engine import Channels, Spread
from streamd.errors import ConfigError
from streamd.security.trust import read_text
from streamd.settings import Settings

MAX_BYTES = 4 << 20


class Provenance(Settings):
    """How a quantised model or an engine was made. Written by `streamd quantize` and `streamd build`."""

    source: str | None = Field(None, description="File name of the model it was made from.")
    source_sha256: str | None = Field(None, description="SHA-256 of that model.")
    method: str | None = Field(None, description="Calibration method, or how the builder chose the precision.")
    calibration_sha256: str | None = Field(None, description="SHA-256 over the calibration data and settings.")
    accuracy: dict[str, float] = Field(default_factory=dict, description="What was measured, e.g. map, map_float.")
    agreement: float | None = Field(None, description="Fraction of the float model's boxes that were found again.")
    float_layers: tuple[str, ...] = Field((), description="Layers left in float.")
    precision: str | None = Field(None, description="fp32, fp16, int8 or mixed (INT8 or FP16 by layer).")
    compared_ms: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="Milliseconds per batch by precision and batch size, where precisions were "
        "compared and the faster one was kept.",
    )
    tensorrt: str | None = Field(None, description="TensorRT version that built the engine.")
    driver: str | None = Field(None, description="NVIDIA driver version at build time.")
    gpu: str | None = Field(None, description="GPU name and compute capability the engine was built for.")
    profile: tuple[int, int, int] | None = Field(None, description="Batch profile: least, best, most.")
    effort: int | None = Field(
        None, ge=0, le=5, description="How thoroughly TensorRT searched, 0 to 5; absent: its own default."
    )
    build_seconds: float | None = Field(None, description="How long the build took.")
    tools: dict[str, str] = Field(default_factory=dict, description="Versions of the packages that did the work.")
    forced: bool = Field(False, description="True if the accuracy gate was overridden.")
    key: str | None = Field(None, description="What an automatically built plan was built for; compared at start.")


class Sidecar(Settings):
    """The whole file."""

    version: Literal[1] = Field(1, description="Version of this file's format.")
    labels: tuple[str, ...] | None = Field(None, description="Class names in order.")
    color: Literal["RGB", "BGR"] | None = Field(None, description="Channel order of the input.")
    scale: float | None = Field(
        None, gt=0, le=1, description="Pixels 0..255 are multiplied by this; 1 leaves them as they are."
    )
    mean: Channels | None = Field(None, description="For each channel, in the order of color: subtracted after scale.")
    std: Spread | None = Field(None, description="For each channel: the result is divided by it.")
    resize: Literal["letterbox", "stretch"] | None = Field(None, description="How a picture is fitted to the input.")
    align: Literal["center", "top_left"] | None = Field(None, description="Where a letterboxed picture lies.")
    pad_value: int | None = Field(None, ge=0, le=255, description="Grey level around the letterboxed picture.")
    input_assumed: bool = Field(
        False, description="True if how the input is made was not declared, and this file repeats the defaults."
    )
    task: str | None = Field(None, description="The model's task according to its exporter.")
    head: dict[str, Any] | None = Field(None, description="The head, as in the configuration's model.head.")
    sha256: str | None = Field(None, description="SHA-256 of the model file this belongs to.")
    provenance: Provenance | None = Field(None, description="How the model was made.")


def sidecar_path(model: str | os.PathLike[str]) -> Path:
    """Where the sidecar of `model` is: the model's path with `.json` added."""
    return Path(f"{os.fspath(model)}.json")


def read_sidecar(model: str | os.PathLike[str]) -> Sidecar:
    """Reads the sidecar of `model`; an absent one is an empty one.

    Raises:
        ConfigError: the file is unreadable, too large, writable by others, not JSON, or has an unknown field.
    """
    path = sidecar_path(model)
    if not os.path.lexists(path):
        return Sidecar()
    text = read_text(path, MAX_BYTES, what=f"sidecar {path}", expected="JSON with names and numbers only")
    try:
        values = json.loads(text)
        json.dumps(values, ensure_ascii=False).encode()  # a lone surrogate could be read but never written
        return Sidecar.model_validate(values)
    except (json.JSONDecodeError, UnicodeEncodeError, RecursionError) as error:
        raise ConfigError(f"sidecar {path}: not valid JSON ({error}); correct or delete it") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"sidecar {path}: {problems}") from error


def write_sidecar(model: str | os.PathLike[str], sidecar: Sidecar) -> None:
    """Writes the sidecar of `model` beside it, atomically."""
    path = sidecar_path(model)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        body = sidecar.model_dump(mode="json", exclude_defaults=True) | {"version": 1}
        temporary.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"sidecar {path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
