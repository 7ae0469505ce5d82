"""What every backend does with a model file before its vendor's library sees it: find it, hash it, specify it."""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from streamd.engine import BUILTIN, ModelSettings
from streamd.engine.sidecar import Sidecar, read_sidecar
from streamd.errors import ConfigError, ModelError
from streamd.security.trust import distrust, read_text
from streamd.types import ModelSpec, TensorSpec

MAX_LABELS_BYTES = 1 << 20
MAX_MODEL_BYTES = 4 << 30
PLAN_SUFFIXES = (".plan", ".engine", ".trt")
"""File name suffixes of TensorRT plans."""
ASSETS = Path(__file__).resolve().parent.parent / "assets"
"""The folder of the bundled models: builtin:NAME is NAME.onnx there."""


def _builtin(name: str) -> Path:
    known = {file.stem: file for file in ASSETS.glob("*.onnx")}
    if name not in known:
        listed = ", ".join(f"{BUILTIN}{stem}" for stem in sorted(known)) or "none in this installation"
        raise ModelError(f"model {BUILTIN}{name}: there is no such bundled model; available: {listed}")
    return known[name]


def model_file(path: str) -> Path:
    """The model at `path`, or the bundled one for builtin:NAME.

    Checks that it is a readable, non-empty file that nobody else can change.

    Raises:
        ModelError: names the path and what is wrong.
    """
    file = _builtin(path.removeprefix(BUILTIN)) if path.startswith(BUILTIN) else Path(os.path.expanduser(path))
    try:
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            raise ModelError(
                f"model {file}: {what}; give the path of an ONNX model, an OpenVINO .xml or a TensorRT plan, or "
                f"{BUILTIN}road6"
            )
        for part in parts_of(file):
            with part.open("rb") as handle:
                found = os.fstat(handle.fileno())
            if (doubt := distrust(found)) is not None:
                raise ModelError(f"model {part}: {doubt}")
            if found.st_size == 0 and part == file:
                raise ModelError(f"model {part}: is empty; export or copy it again")
            if found.st_size > MAX_MODEL_BYTES:
                raise ModelError(f"model {part}: larger than {MAX_MODEL_BYTES} bytes; expected a detector")
    except OSError as error:
        raise ModelError(f"model {file}: cannot be read: {error.strerror}") from error
    return file


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file (including the weights of an OpenVINO .xml)."""
    digest = hashlib.sha256()
    for file in parts_of(path):
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def parts_of(path: Path) -> list[Path]:
    """The model's file, and the weight file of an OpenVINO .xml."""
    weights = path.with_suffix(".bin")
    return [path, weights] if path.suffix == ".xml" and weights.exists() else [path]


def read_labels(path: str, what: str = "model.labels") -> tuple[str, ...]:
    """Class names from a text file, one per line. `what` names the setting in an error."""
    file = Path(os.path.expanduser(path))
    text = read_text(file, MAX_LABELS_BYTES, what=f"{what}: {file}", expected="a text file with one name per line")
    labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not labels:
        raise ConfigError(f"{what}: {file} contains no names; expected one per line")
    return labels


def _metadata_labels(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Class names from an exporter's `names` entry: a Python dict or list literal, as Ultralytics writes it."""
    text = metadata.get("names", "")
    if not text or len(text) > MAX_LABELS_BYTES:
        return ()
    try:
        names = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return ()
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        return tuple(str(names[i]) for i in range(len(names)))
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()


def _input_size(settings: ModelSettings, found: Sequence[int], path: Path) -> tuple[int, int]:
    height, width = found
    wanted = settings.input_size
    for name, have, want in (("height", height, wanted and wanted[0]), ("width", width, wanted and wanted[1])):
        if want is not None and have > 0 and have != want:
            raise ModelError(
                f"model {path}: its input {name} is fixed at {have}, but model.input_size is {want}; "
                "export the model with that size or remove input_size"
            )
    if wanted is None:
        wanted = (640, 640)
    height, width = (have if have > 0 else want for have, want in zip((height, width), wanted, strict=True))
    if height % 32 or width % 32:
        raise ModelError(f"model {path}: input size {height}×{width} must be a multiple of 32 in both directions")
    return height, width


def settle_spec(
    settings: ModelSettings,
    path: Path,
    sha256: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
    max_batch: int,
) -> ModelSpec:
    """Merges the vendor's findings with the sidecar and the configuration, which take precedence in this order.

    Args:
        inputs: as found; -1 for a dynamic dimension.
        outputs: as found; replaced by the caller once shapes are fixed.
        max_batch: the batch that the backend wants, before the model's own limit.

    Raises:
        ModelError: there is not exactly one 4-D image input, or file and settings contradict each other.
    """
    sidecar: Sidecar = read_sidecar(path)
    if sidecar.sha256 is not None and sidecar.sha256 != sha256:
        raise ModelError(
            f"model {path}: its sidecar was written for another file (SHA-256 {sidecar.sha256[:12]}…, this one has "
            f"{sha256[:12]}…); delete the sidecar or restore the model"
        )
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        listed = ", ".join(f"{t.name}{list(t.shape)}" for t in inputs) or "none"
        raise ModelError(f"model {path}: expected one image input of shape (batch, 3, H, W), found {listed}")
    image = inputs[0]
    if image.shape[1] in (3, -1):
        layout, size = "NCHW", _input_size(settings, image.shape[2:4], path)
        fixed = (image.shape[0], 3, *size)
    elif image.shape[3] == 3:
        layout, size = "NHWC", _input_size(settings, image.shape[1:3], path)
        fixed = (image.shape[0], *size, 3)
    else:
        raise ModelError(f"model {path}: input {image.name} has shape {list(image.shape)}; expected 3 colour channels")
    batch = image.shape[0]
    labels = settings.labels
    if isinstance(labels, str):
        labels = read_labels(labels)
    return ModelSpec(
        path=str(path),
        sha256=sha256,
        name=settings.name or re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem),
        input=TensorSpec(image.name, fixed, image.dtype),
        outputs=tuple(outputs),
        labels=labels or sidecar.labels or _metadata_labels(metadata),
        layout="NCHW" if layout == "NCHW" else "NHWC",
        color=settings.color or sidecar.color or "RGB",
        scale=settings.scale or sidecar.scale or 1 / 255,
        pad_value=next(v for v in (settings.pad_value, sidecar.pad_value, 114) if v is not None),
        max_batch=batch if batch > 0 else max_batch,
        metadata=dict(metadata),
        head=sidecar.head,
    )
