"""Accuracy of a model as the daemon runs it: COCO mAP through the daemon's letterbox, engine, head and NMS."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamd.engine import BatchSettings, EngineConfig, ModelSettings, open_backend
from streamd.errors import ConfigError, FrameError, SourceError
from streamd.heads import DetectSettings
from streamd.heads.detector import open_detector
from streamd.heads.postprocess import instead_of
from streamd.models.bootstrap import Matches, matches_of
from streamd.models.dataset import Dataset
from streamd.sources.images import read_image
from streamd.types import Float32Array, Frame, Int32Array, Letterbox, ModelSpec

COCO_DETECT = DetectSettings(conf=0.001, iou=0.6, max_det=300, multi_label=True)
"""The settings of YOLOv5's own validation: every class above the threshold, COCO's thresholds."""
Progress = Callable[[int, int], None]
"""Called with (done, total) after each item."""


@dataclass(frozen=True)
class Boxes:
    """One model's detections in one image."""

    name: str
    width: int
    height: int
    xyxy: Float32Array
    """(N, 4) upright pixels."""
    score: Float32Array
    """(N,)"""
    class_id: Int32Array
    """(N,)"""


class Detector:
    """Runs one model offline through the daemon's own parts: pictures in, boxes out. A context manager.

    Args:
        model: the model file and its input.
        detect: thresholds.
        engine: settings of a backend, e.g. {"kind": "openvino", "threads": 2}.
        head: kind of the head. Default: as the sidecar declares, otherwise from the output shapes.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: its head cannot be determined.
        BackendError: the device failed.
    """

    def __init__(
        self,
        model: ModelSettings,
        detect: DetectSettings,
        engine: dict[str, Any] | None = None,
        head: str | None = None,
    ) -> None:
        from pydantic import TypeAdapter

        settings = TypeAdapter(EngineConfig).validate_python(engine or {"kind": "auto"})
        self._backend = open_backend(settings, model, batch=BatchSettings(max=None))
        try:
            detector = open_detector(self._backend.spec, head, detect)
            self._backend.start(detector.plan)
        except BaseException:
            self._backend.close()
            raise
        self.labels, self._postprocess = detector.labels, detector.postprocess

    @property
    def spec(self) -> ModelSpec:
        """The model in use."""
        return self._backend.spec

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the engine."""
        self._backend.close()

    def detect(self, frames: Iterable[tuple[str, Frame]]) -> Iterator[Boxes]:
        """Runs (name, frame) pairs and yields in order, with as many in flight as the engine has slots."""
        slots = list(self._backend.slots)
        flying: list[tuple[Any, str, Frame, Letterbox]] = []

        def land() -> Boxes:
            slot, name, frame, letterbox = flying.pop(0)
            xyxy, score, class_id = self._postprocess(self._backend.collect(slot), 0, letterbox)
            slots.append(slot)
            return Boxes(name, frame.width, frame.height, xyxy, score, class_id)

        for name, frame in frames:
            if not slots:
                yield land()
            slot = slots.pop(0)
            try:
                (letterbox,) = self._backend.preprocess(slot, [frame])
            except FrameError as error:
                raise SourceError("corrupt", f"image {name}: {error}", permanent=True) from error
            self._backend.infer(slot)
            flying.append((slot, name, frame, letterbox))
        while flying:
            yield land()


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy for one class of the labels."""

    class_id: int
    label: str
    boxes: int
    """Labelled boxes."""
    ap: float
    """Mean average precision over IoU 0.50 to 0.95."""
    ap50: float
    """Average precision at IoU 0.50."""


@dataclass(frozen=True)
class Accuracy:
    """COCO figures of one model on one set of images."""

    model: str
    sha256: str
    map: float
    map50: float
    map75: float
    classes: tuple[ClassAccuracy, ...]
    images: int
    """Images that were read and evaluated."""
    boxes: int
    unlabelled: int
    left_out: int = 0
    """Labelled boxes of classes that the model does not know."""
    unreadable: tuple[str, ...] = ()
    """One message per image that could not be read."""
    seconds: float = 0.0
    matches: Matches | None = field(default=None, repr=False, compare=False)
    """How boxes and labels match, for `bootstrap.paired_drop`."""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        body = {k: getattr(self, k) for k in ("model", "sha256", "map", "map50", "map75", "images", "boxes")}
        return body | {
            "unlabelled": self.unlabelled,
            "left_out": self.left_out,
            "unreadable": list(self.unreadable),
            "seconds": round(self.seconds, 3),
            "classes": [vars(c) for c in self.classes],
        }


@dataclass
class _Reader:
    """Reads images in order and records those that cannot be read."""

    images: Sequence[Path]
    progress: Progress | None = None
    unreadable: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, Frame]]:
        for i, path in enumerate(self.images):
            try:
                frame = read_image(path)
            except SourceError as error:
                self.unreadable.append(str(error))
                continue
            finally:
                if self.progress is not None:
                    self.progress(i + 1, len(self.images))
            yield path.name, frame


def class_numbers(names: Sequence[str], labels: Sequence[str], option: str = "--classes") -> list[int]:
    """The numbers of the classes called `names`.

    Raises:
        ConfigError: the model has no class of that name; near ones are told.
    """
    for name in names:
        if name not in labels:
            raise ConfigError(f"{option} {name}: the model has no such class; {instead_of(name, labels)}")
    return [labels.index(name) for name in names]


def coco_scores(
    found: Sequence[Boxes], dataset: Dataset, labels: Sequence[str], classes: Sequence[str] | None = None
) -> dict[str, Any]:
    """COCO metrics of detections against labels, computed by pycocotools.

    Args:
        found: what the model found in each image.
        dataset: the labels, by image name.
        labels: the model's class names.
        classes: count only these, for labels that are complete for some classes only. Default: every class that the
            labels have.

    Returns:
        map, map50, map75, boxes, classes (of `ClassAccuracy`), matches (for `bootstrap`).

    Raises:
        ConfigError: a class that the model does not have, or no labelled box that counts.
    """
    judged = None if classes is None else set(class_numbers(classes, labels))
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ConfigError(
            f"evaluate: the package pycocotools is not installed ({error}); pip install 'streamd[quantize]'"
        ) from error
    annotations: list[dict[str, Any]] = []
    detections: list[list[float]] = []
    for number, image in enumerate(found, 1):
        truth = dataset.truth.get(image.name)
        if truth is not None:
            boxes = truth.pixels(image.width, image.height).astype(np.float64)
            for class_id, (x1, y1, x2, y2), crowd, area in zip(
                truth.class_id.tolist(), boxes.tolist(), truth.crowd.tolist(), truth.area.tolist(), strict=True
            ):
                if judged is not None and class_id not in judged:
                    continue
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": class_id,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": area or (x2 - x1) * (y2 - y1),
                        "iscrowd": crowd,
                    }
                )
        for (x1, y1, x2, y2), score, class_id in zip(
            image.xyxy.tolist(), image.score.tolist(), image.class_id.tolist(), strict=True
        ):
            detections.append([number, x1, y1, x2 - x1, y2 - y1, score, class_id])
    present = sorted({a["category_id"] for a in annotations})
    if not present:
        of = "" if classes is None else f" of {', '.join(classes)}"
        raise ConfigError(
            f"evaluate: no readable image has a labelled box{of}; check that the labels belong to the images"
        )
    # pycocotools prints its progress; we print the figures ourselves.
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        truth_set.dataset = {
            "info": {},
            "images": [{"id": i, "width": b.width, "height": b.height} for i, b in enumerate(found, 1)],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(labels)],
        }
        truth_set.createIndex()
        table = np.array(detections, np.float64).reshape(-1, 7)
        scorer = COCOeval(truth_set, truth_set.loadRes(table) if len(table) else _nothing(truth_set), "bbox")
        # A class that never appears in the labels has no precision; it must not count as zero.
        scorer.params.catIds = present
        # Only boxes of any size are asked for; the other three ranges would take three times as long again.
        scorer.params.areaRng, scorer.params.areaRngLbl = scorer.params.areaRng[:1], scorer.params.areaRngLbl[:1]
        scorer.evaluate()
        scorer.accumulate()
    # (IoU thresholds, recalls, classes, area range all, 100 detections)
    precision = scorer.eval["precision"][:, :, :, 0, -1]

    def mean(values: Any) -> float:
        kept = values[values > -1]
        return float(kept.mean()) if kept.size else 0.0

    counts = np.bincount([a["category_id"] for a in annotations], minlength=len(labels))
    return {
        "map": mean(precision),
        "map50": mean(precision[0]),
        "map75": mean(precision[5]),
        "boxes": len(annotations),
        "classes": tuple(
            ClassAccuracy(c, labels[c], int(counts[c]), mean(precision[:, :, i]), mean(precision[0, :, i]))
            for i, c in enumerate(present)
        ),
        "matches": matches_of(scorer, [b.name for b in found]),
    }


def _nothing(truth_set: Any) -> Any:
    """An empty result set, which `loadRes` rejects."""
    empty = type(truth_set)()
    empty.dataset = truth_set.dataset | {"annotations": []}
    empty.createIndex()
    return empty


def evaluate(
    detector: Detector,
    dataset: Dataset,
    progress: Progress | None = None,
    classes: Sequence[str] | None = None,
) -> Accuracy:
    """Runs the detector over the dataset. Open it with `COCO_DETECT` to get figures comparable with published ones.

    Args:
        detector: the model.
        dataset: images and labels.
        progress: is told after each image.
        classes: count only these; see `coco_scores`.

    Raises:
        ConfigError: no image could be read, or a class is not there.
    """
    if classes is not None:
        class_numbers(classes, detector.labels)
    reader = _Reader(dataset.images, progress)
    started = time.monotonic()
    found = list(detector.detect(reader))
    seconds = time.monotonic() - started
    if not found:
        raise ConfigError(
            f"evaluate: none of the {len(dataset.images)} images can be read; the first: {reader.unreadable[0]}"
        )
    spec = detector.spec
    return Accuracy(
        model=Path(spec.path).name,
        sha256=spec.sha256,
        images=len(found),
        unlabelled=dataset.unlabelled,
        left_out=dataset.left_out,
        unreadable=tuple(reader.unreadable),
        seconds=seconds,
        **coco_scores(found, dataset, detector.labels, classes),
    )
