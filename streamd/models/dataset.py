"""Labelled images: a folder of pictures with YOLO text files or one COCO JSON file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamd.errors import ConfigError, SourceError
from streamd.sources.images import list_images
from streamd.types import Float32Array, Int32Array

MAX_JSON_BYTES = 1 << 30
MAX_TEXT_BYTES = 16 << 20


@dataclass(frozen=True)
class Truth:
    """The labelled boxes of one image."""

    class_id: Int32Array
    """(N,)"""
    xyxy: Float32Array
    """(N, 4): in pixels of the upright image, or as fractions of its size if `relative`."""
    crowd: Int32Array
    """(N,) 1 if the box is a crowd, which counts neither as found nor as missed."""
    area: Float32Array
    """(N,) labelled area in pixels; 0 to use the area of the box."""
    relative: bool

    def pixels(self, width: int, height: int) -> Float32Array:
        """The boxes in pixels of an image of `width` × `height`."""
        return self.xyxy * np.array([width, height, width, height], np.float32) if self.relative else self.xyxy


@dataclass(frozen=True)
class Dataset:
    """Images, and the labels of those that have any, by file name."""

    images: tuple[Path, ...]
    truth: dict[str, Truth]
    unlabelled: int
    """Images without a label entry: treated as empty."""
    left_out: int = 0
    """Boxes of classes that the model does not know."""


def _truth(rows: Sequence[tuple[float, ...]], *, relative: bool) -> Truth:
    table = np.array(rows, np.float64).reshape(-1, 7)
    return Truth(
        table[:, 0].astype(np.int32),
        table[:, 1:5].astype(np.float32),
        table[:, 5].astype(np.int32),
        table[:, 6].astype(np.float32),
        relative,
    )


def read_yolo(path: Path, classes: int) -> Truth:
    """Reads one YOLO text file: one box per line, `class cx cy w h`, coordinates as fractions of the image size.

    Args:
        path: the file.
        classes: number of classes.

    Raises:
        ConfigError: names file and line: not five numbers, an unknown class, or a value outside 0..1.
    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ConfigError(f"labels {path}: larger than {MAX_TEXT_BYTES} bytes; expected one box per line")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"labels {path}: cannot be read: {reason}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not (fields := line.split()):
            continue
        try:
            # float also takes 1_0 and the digits of every script.
            values = [float(f) for f in fields] if line.isascii() and "_" not in line else []
        except ValueError:
            values = []
        if len(values) != 5 or not values[0].is_integer():
            raise ConfigError(f"labels {path}:{number}: expected `class cx cy w h`, found {line[:80]!r}")
        if not 0 <= values[0] < classes:
            raise ConfigError(
                f"labels {path}:{number}: class {fields[0]} is not one of 0..{classes - 1}; "
                "if the labels use other class numbers than the model, give `streamd evaluate --label-names FILE`"
            )
        if not all(-0.01 <= v <= 1.01 for v in values[1:]):
            raise ConfigError(
                f"labels {path}:{number}: {line[:80]!r} has a value outside 0..1; expected fractions of the image size"
            )
        c, x, y, w, h = values
        rows.append((c, x - w / 2, y - h / 2, x + w / 2, y + h / 2, 0.0, 0.0))
    return _truth(rows, relative=True)


def _category_map(categories: Sequence[dict[str, Any]], labels: Sequence[str], path: Path) -> dict[int, int]:
    """Maps COCO category id to class number, -1 if the model has no such class.

    By name if the names are the model's or include all of the model's; otherwise by order of id.
    """
    known = {name: i for i, name in enumerate(labels)}
    names = [c.get("name") for c in categories]
    if known.keys() >= set(names) or known.keys() <= set(names):
        return {int(c["id"]): known.get(c["name"], -1) for c in categories}
    ids = sorted(int(c["id"]) for c in categories)
    if len(ids) != len(labels):
        strange = next(str(c.get("name")) for c in categories if c.get("name") not in known)
        raise ConfigError(
            f"labels {path}: {len(ids)} categories, including {strange!r} which the model does not know, for a model "
            f"with {len(labels)} classes; use the model's class names, or list all of its classes in its order"
        )
    return {number: i for i, number in enumerate(ids)}


def read_coco(path: Path, labels: Sequence[str]) -> dict[str, Truth]:
    """Reads a COCO annotation file (`images`, `annotations`, `categories`); boxes by image file name.

    Raises:
        ConfigError: not JSON, not in COCO format, or categories that do not fit `labels`.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"labels {path}: larger than {MAX_JSON_BYTES} bytes; expected a COCO annotation file")
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"labels {path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(
            f"labels {path}: not valid JSON ({error}); expected a COCO annotation file, or a folder of YOLO text files"
        ) from error
    try:
        classes = _category_map(data["categories"], labels, path)
        names = {image["id"]: Path(image["file_name"]).name for image in data["images"]}
        rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in names.values()}
        for a in data["annotations"]:
            x, y, w, h = a["bbox"]
            row = (classes[a["category_id"]], x, y, x + w, y + h, a.get("iscrowd", 0), a.get("area", 0.0))
            rows[names[a["image_id"]]].append(row)
        return {name: _truth(found, relative=False) for name, found in rows.items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f"labels {path}: not a COCO annotation file (images, annotations, categories): {error!r}"
        ) from error


def image_folder(folder: str | Path) -> list[Path]:
    """The images in `folder`, by name.

    Raises:
        ConfigError: the folder does not exist or is empty.
    """
    try:
        return list_images(folder)
    except SourceError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"image folder {folder}: cannot be read: {error.strerror}") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shared_pictures(first: Sequence[Path], second: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of files, one of each list, with the same content. Names do not matter.

    Only files that have an equal in size are read.

    Raises:
        ConfigError: a file cannot be read.
    """
    try:
        sizes: dict[int, list[Path]] = {}
        for path in first:
            sizes.setdefault(path.stat().st_size, []).append(path)
        digests: dict[int, dict[str, Path]] = {}
        pairs = []
        for path in second:
            size = path.stat().st_size
            if size in sizes:
                if size not in digests:
                    digests[size] = {_sha256(other): other for other in sizes[size]}
                if (same := digests[size].get(_sha256(path))) is not None:
                    pairs.append((same, path))
        return pairs
    except OSError as error:
        raise ConfigError(f"image {error.filename}: cannot be read: {error.strerror}") from error


def _class_table(label_names: Sequence[str], names: Sequence[str]) -> Int32Array:
    """The model's class number for each class of the labels, -1 if it has none."""
    known = {name: i for i, name in enumerate(names)}
    table = np.array([known.get(name, -1) for name in label_names], np.int32)
    if not (table >= 0).any():
        raise ConfigError(
            f"labels: none of their {len(label_names)} classes ({label_names[0]}, …) is one of the model's: "
            + ", ".join(names[:10])
        )
    return table


def _renumbered(truth: Truth, table: Int32Array | None) -> tuple[Truth, int]:
    """The boxes of the model's classes, renumbered to match it, and the number of boxes dropped."""
    number = truth.class_id if table is None else table[truth.class_id]
    keep = number >= 0
    kept = Truth(number[keep], truth.xyxy[keep], truth.crowd[keep], truth.area[keep], truth.relative)
    return kept, int((~keep).sum())


def open_dataset(
    images: str | Path,
    labels: str | Path,
    names: Sequence[str],
    label_names: Sequence[str] | None = None,
    files: Sequence[Path] | None = None,
) -> Dataset:
    """Lists the images and reads their labels.

    Args:
        images: folder of images.
        labels: folder of YOLO text files (same stem as the image), or a COCO JSON file.
        names: the model's class names in order.
        label_names: class names for the numbers in YOLO text files, if they differ from the model's; boxes of classes
            that the model does not have are ignored. A COCO file has its own names.
        files: only these of the folder. Default: all.

    Raises:
        ConfigError: no images, no labels for any of them, or labels that do not fit the model.
    """
    files = image_folder(images) if files is None else files
    if not files:
        raise ConfigError(f"image folder {images}: no image is left to measure on")
    where = Path(labels)
    truth: dict[str, Truth] = {}
    table = None
    if where.is_dir():
        table = None if label_names is None else _class_table(label_names, names)
        for file in files:
            text = where / f"{file.stem}.txt"
            if text.exists():
                truth[file.name] = read_yolo(text, len(label_names or names))
        expected = f"a file like {files[0].stem}.txt"
    elif where.is_file():
        found = read_coco(where, names)
        truth = {file.name: found[file.name] for file in files if file.name in found}
        expected = f"an entry for {files[0].name}"
    else:
        raise ConfigError(f"labels {where}: does not exist; give a folder of YOLO text files or a COCO JSON file")
    left_out = 0
    for name, every in truth.items():
        truth[name], strange = _renumbered(every, table)
        left_out += strange
    if not any(len(t.class_id) for t in truth.values()):
        raise ConfigError(f"labels {where}: no box for any of the {len(files)} images in {images}; expected {expected}")
    return Dataset(tuple(files), truth, len(files) - len(truth), left_out)
