"""What every backend does with a model file before its library opens it: find it, hash it, specify it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.engine import BUILTIN, ModelSettings
from streamd.engine.onnx.reader import external_weights
from streamd.engine.sidecar import Sidecar, read_sidecar
from streamd.errors import ConfigError, ModelError
from streamd.security.text import is_encodable, printable
from streamd.security.trust import distrust, distrust_acl, read_text
from streamd.types import CENTERED, ModelSpec, Placement, TensorSpec

MAX_NAME = 200
"""Characters of a class name."""
MAX_LABELS_BYTES = 1 << 20
MAX_MODEL_BYTES = 4 << 30
SIZE_INPUTS = ("orig_target_sizes",)
"""Names of an input (B, 2), width and height, by which a model scales its boxes (RT-DETR, D-FINE, DEIM).

Engines set it to the size of the network's input, so that boxes are in input pixels as for other models.
"""
_GIVE_LABELS = "give model.labels (a list, or a file with one name a line)"
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
            what = "is a folder" if file.is_dir() else "is no file" if file.exists() else "does not exist"
            raise ModelError(
                f"model {file}: {what}; give the path of an ONNX model, an OpenVINO .xml or a TensorRT plan, or "
                f"{BUILTIN}road6"
            )
        for part in parts_of(file):
            if part.exists() and not part.is_file():  # to open a pipe would wait for its writer
                raise ModelError(f"model {part}: is no file; export or copy the model again")
            with part.open("rb") as handle:
                found = os.fstat(handle.fileno())
                doubt = distrust(found) or distrust_acl(handle.fileno()) or _no_model(part, handle.read(64))
            if doubt is not None:
                raise ModelError(f"model {part}: {doubt}")
            if found.st_size == 0 and part == file:
                raise ModelError(f"model {part}: is empty; export or copy it again")
            if found.st_size > MAX_MODEL_BYTES:
                raise ModelError(f"model {part}: larger than {MAX_MODEL_BYTES} bytes; expected a detector")
    except OSError as error:
        missing = error.filename is not None and Path(error.filename) != file
        what = f"its weights are in {error.filename}, which" if missing else "it"
        raise ModelError(f"model {file}: {what} cannot be read: {error.strerror}") from error
    return file


_CHECKPOINTS = {
    ".pt": "a PyTorch checkpoint",
    ".pth": "a PyTorch checkpoint",
    ".ckpt": "a PyTorch checkpoint",
    ".torchscript": "a TorchScript model",
    ".safetensors": "a file of weights only",
    ".h5": "a Keras model",
    ".keras": "a Keras model",
    ".weights": "a file of weights only",
}
"""By suffix: what is often given for a model, but cannot be opened."""


def _no_model(path: Path, start: bytes) -> str | None:
    """What a file is that is often given for a model; None if it may be one."""
    if kind := _CHECKPOINTS.get(path.suffix.lower()):
        how = f"; with Ultralytics: yolo export model={path.name} format=onnx" if path.suffix.lower() == ".pt" else ""
        return f"is {kind}; export the model to ONNX{how}"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the model itself; fetch it with: git lfs pull"
    if path.suffix == ".onnx" and start.lstrip()[:1] in (b"<", b"{"):
        return "is a web page or text, not a model; download or export it again"
    return None


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a model: of its file and its external weight files, if any."""
    digest = hashlib.sha256()
    for file in parts_of(path):
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def parts_of(path: Path) -> list[Path]:
    """The model's file and its weight files: those of an OpenVINO .xml, or external ones of an ONNX model.

    Raises:
        ModelError: weights are in a place that is not allowed.
    """
    if path.suffix == ".onnx":
        return [path, *external_weights(path)]
    weights = path.with_suffix(".bin")
    return [path, weights] if path.suffix == ".xml" and weights.exists() else [path]


def read_labels(path: str, what: str = "model.labels") -> tuple[str, ...]:
    """Class names from a text file, one per line. `what` names the setting in an error."""
    file = Path(os.path.expanduser(path))
    text = read_text(file, MAX_LABELS_BYTES, what=f"{what}: {file}", expected="a text file with one name per line")
    labels = tuple(line.strip() for line in text.rstrip().splitlines())
    if not labels:
        raise ConfigError(f"{what}: {file} contains no names; expected one per line")
    if not all(labels):
        raise ConfigError(
            f"{what}: {file}: line {labels.index('') + 1} is empty; expected the name of each class, in order"
        )
    return labels


def _metadata_labels(metadata: Mapping[str, str], path: Path) -> tuple[str, ...]:
    """Class names from an exporter's `names` entry: a dict or list, as Python (Ultralytics) or JSON writes it.

    Raises:
        ModelError: an entry that cannot be the names of classes 0, 1, 2 …
    """
    text = metadata.get("names", "").strip()
    if not text:
        return ()
    problem = f"model {path}: its `names` metadata"
    if len(text) > MAX_LABELS_BYTES:
        raise ModelError(f"{problem} is longer than {MAX_LABELS_BYTES} characters; {_GIVE_LABELS}")
    names = _literal(text)
    if isinstance(names, dict):
        numbers = [_class_number(key) for key in names]
        if sorted(n for n in numbers if n is not None) != list(range(len(names))):
            found = ", ".join(str(key)[:20] for key in list(names)[:4])
            raise ModelError(f"{problem} numbers classes {found}, …; expected 0 to {len(names) - 1}; {_GIVE_LABELS}")
        by_number = dict(zip(numbers, names.values(), strict=True))
        names = [by_number[n] for n in range(len(names))]
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, (str, int, float)) for name in names):
        raise ModelError(f"{problem} is neither a list nor a dict of class names: {text[:40]!a}; {_GIVE_LABELS}")
    labels = tuple(printable(str(name)) for name in names)
    if (blank := next((i for i, label in enumerate(labels) if not label.strip()), None)) is not None:
        raise ModelError(f"{problem} has an empty name for class {blank}; {_GIVE_LABELS}")
    return labels


def _literal(text: str) -> Any:
    """The value of `text` as JSON or else as a Python literal; None if it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _class_number(key: object) -> int | None:
    """JSON keys are always strings."""
    if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10:
        return int(key)
    return key if isinstance(key, int) and not isinstance(key, bool) else None


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
        wanted = settings.DEFAULT_SIZE
    height, width = (have if have > 0 else want for have, want in zip((height, width), wanted, strict=True))
    # A size chosen here must suit every stride; the one that the model was exported for always does (RF-DETR: 560).
    step = 1 if not settings.STRIDED else 8 if min(found) > 0 else 32
    if height % step or width % step:
        raise ModelError(f"model {path}: input size {height}×{width} must be a multiple of {step} in both directions")
    return height, width


def size_input(inputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """The input of `SIZE_INPUTS`, if there is one."""
    found = [t for t in inputs if t.name in SIZE_INPUTS and len(t.shape) == 2]
    return found[0] if len(found) == 1 else None


def size_value(spec: ModelSpec, batch: int) -> npt.NDArray[np.int64]:
    """(batch, 2) value of an input of `SIZE_INPUTS`: width and height of the network's input."""
    return np.tile(np.array([spec.input_width, spec.input_height], np.int64), (batch, 1))


def image_input(inputs: Sequence[TensorSpec], path: Path) -> TensorSpec:
    """The input for pictures. There may also be one of `SIZE_INPUTS`.

    Raises:
        ModelError: there is no such input, more than one, or a further input.
    """
    images = [t for t in inputs if len(t.shape) == 4]
    if len(images) != 1 or len(inputs) > 1 + (size_input(inputs) is not None):
        listed = ", ".join(f"{t.name}{list(t.shape)}" for t in inputs) or "none"
        raise ModelError(
            f"model {path}: expected one image input of shape (batch, 3, H, W), found {listed}; the only other "
            f"input that a model may have is {SIZE_INPUTS[0]} (batch, 2)"
        )
    return images[0]


def _declares_input(said: ModelSettings | Sidecar) -> bool:
    """Whether it declares how pixels become the network's input."""
    return any(v is not None for v in (said.color, said.scale, said.mean, said.std, said.resize, said.align))


def settle_spec(
    settings: ModelSettings,
    path: Path,
    sha256: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
    max_batch: int,
) -> ModelSpec:
    """Merges what the library reads from the model with the sidecar and the configuration. The configuration has
    precedence over the sidecar, and the sidecar over the model.

    Args:
        inputs: as in the model; -1 for a dynamic dimension.
        outputs: as in the model; replaced by the caller once shapes are fixed.
        max_batch: the batch that the backend wants, unless the model's is fixed.

    Raises:
        ModelError: there is not exactly one 4-D image input (see `image_input`), or file and settings contradict each
            other.
    """
    sidecar: Sidecar = read_sidecar(path)
    if sidecar.sha256 is not None and sidecar.sha256 != sha256:
        raise ModelError(
            f"model {path}: its sidecar was written for another file (SHA-256 {sidecar.sha256[:12]}…, this one has "
            f"{sha256[:12]}…); delete the sidecar or restore the model"
        )
    image = image_input(inputs, path)
    if image.shape[1] == 3 or (image.shape[1] == -1 and image.shape[3] != 3):
        layout, size = "NCHW", _input_size(settings, image.shape[2:4], path)
        fixed = (image.shape[0], 3, *size)
    elif image.shape[3] == 3:
        layout, size = "NHWC", _input_size(settings, image.shape[1:3], path)
        fixed = (image.shape[0], *size, 3)
    else:
        raise ModelError(f"model {path}: input {image.name} has shape {list(image.shape)}; expected 3 colour channels")
    batch = image.shape[0]
    scale = settings.scale or sidecar.scale or 1 / 255
    if image.dtype in ("uint8", "int8") and scale * 255 < 2:
        raise ModelError(
            f"model {path}: its input is {image.dtype}, but model.scale {scale:g} leaves nothing of pixels 0..255; "
            "declare model.scale (1 for an input that takes pixels as they are)"
        )
    labels = settings.labels
    if isinstance(labels, str):
        labels = read_labels(labels)
    for given in (*(labels or ()), settings.name or ""):
        if not is_encodable(given):
            raise ConfigError(f"model {path}: the name {given!a} cannot be written as UTF-8; rename it")
    names = labels or sidecar.labels or _metadata_labels(metadata, path)
    if (long := next((name for name in names if len(name) > MAX_NAME), None)) is not None:
        raise ModelError(
            f"model {path}: the class name {long[:20]!a}… has {len(long)} characters; expected at most {MAX_NAME}: "
            f"it is part of every message; {_GIVE_LABELS}"
        )
    return ModelSpec(
        path=str(path),
        sha256=sha256,
        name=settings.name or re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem),
        input=TensorSpec(image.name, fixed, image.dtype),
        outputs=tuple(outputs),
        labels=names,
        layout="NCHW" if layout == "NCHW" else "NHWC",
        color=settings.color or sidecar.color or "RGB",
        scale=scale,
        mean=settings.mean or sidecar.mean,
        std=settings.std or sidecar.std,
        pad_value=next(v for v in (settings.pad_value, sidecar.pad_value, 114) if v is not None),
        placement=Placement(
            settings.resize or sidecar.resize or settings.DEFAULT_RESIZE,
            settings.align or sidecar.align or CENTERED.align,
        ),
        input_declared=_declares_input(settings) or (_declares_input(sidecar) and not sidecar.input_assumed),
        max_batch=batch if batch > 0 else max_batch,
        metadata={"task": sidecar.task, **metadata} if sidecar.task else dict(metadata),
        head=sidecar.head,
    )
