"""The accuracy gate: rejects a quantized model that lost more accuracy than allowed.

With labels the measure is COCO mAP, before and after, with the interval that a paired bootstrap over the images gives
for the difference. A model is refused if the measured loss is above the limit. If the limit lies inside the interval,
the verdict says that the images do not decide, and how many would. If proof is required, every model is refused whose
interval does not end below the limit.

Without labels it is agreement: of all boxes that either model reports with a score of at least 0.25, the share that the
other model also finds, with the same class, an IoU of at least 0.5, one to one, and a score of at least 0.15 (so that a
box moving from 0.26 to 0.24 does not count as lost).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamd.engine import ModelSettings
from streamd.errors import GateError
from streamd.heads import DetectSettings
from streamd.models.bootstrap import Drop, paired_drop
from streamd.models.dataset import open_dataset
from streamd.models.evaluate import COCO_DETECT, Accuracy, Boxes, Detector, Progress, evaluate
from streamd.types import Float32Array, Frame

MAX_DROP = 0.01
"""Default for the largest acceptable loss of mAP."""
MIN_AGREEMENT = 0.95
"""Default for the least acceptable agreement, used when there are no labels.

Measured on two models and four methods (docs/accuracy.md): every variant that lost at most 0.014 mAP agreed on 96.9 %
of boxes or more; every variant that lost 0.017 or more agreed on 93.7 % or less.
"""
SURE, NEAR = 0.25, 0.15
MATCH_IOU = 0.5
LEAST_MAP = 0.01
"""A float model below this mAP was not really measured: the labels, the classes or the head are wrong."""


@dataclass(frozen=True)
class Verdict:
    """The gate's result."""

    accuracy: dict[str, float] = field(default_factory=dict)
    """map, map_float, map_drop, map_drop_low, map_drop_high, map50, map50_float, images; empty without labels."""
    interval: Drop | None = None
    """Of the loss of mAP; None without labels, or on a single image."""
    agreement: float | None = None
    refusal: str | None = None
    """Why the model must not be written; None if it passed."""
    undecided: str | None = None
    """Set if the images are too few to tell on which side of the limit the loss lies."""
    score: float = 0.0
    """The loss in the gate's measure (mAP, or 1 − agreement), for comparing candidates."""
    allowed: float = 0.0

    @property
    def passed(self) -> bool:
        """True if the model may be written."""
        return self.refusal is None


def iou_matrix(a: Float32Array, b: Float32Array) -> Float32Array:
    """(N, M) intersection over union of (N, 4) and (M, 4) corners."""
    top = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.prod(np.clip(bottom - top, 0, None), axis=2)
    areas = np.prod(a[:, 2:] - a[:, :2], axis=1)[:, None] + np.prod(b[:, 2:] - b[:, :2], axis=1)[None]
    out: Float32Array = (overlap / np.maximum(areas - overlap, 1e-9)).astype(np.float32)
    return out


def found_again(a: Boxes, b: Boxes) -> tuple[int, int]:
    """(found, sure): how many of `a`'s boxes of at least `SURE` `b` also has, of how many. Empty boxes do not count."""
    solid = np.minimum(a.xyxy[:, 2] - a.xyxy[:, 0], a.xyxy[:, 3] - a.xyxy[:, 1]) > 1
    wanted = np.flatnonzero((a.score >= SURE) & solid)
    others = np.flatnonzero(b.score >= NEAR)
    if not len(wanted) or not len(others):
        return 0, len(wanted)
    overlap = iou_matrix(a.xyxy[wanted], b.xyxy[others])
    overlap[a.class_id[wanted][:, None] != b.class_id[others][None]] = 0
    found = 0
    for row in overlap:
        best = int(row.argmax())
        if row[best] >= MATCH_IOU:
            found += 1
            overlap[:, best] = 0
    return found, len(wanted)


def agreement(first: Iterable[Boxes], second: Iterable[Boxes]) -> tuple[float, int]:
    """(share of boxes found by both models, boxes compared) over the same images in the same order."""
    found = total = 0
    for a, b in zip(first, second, strict=True):
        for hits, boxes in (found_again(a, b), found_again(b, a)):
            found, total = found + hits, total + boxes
    return (found / total if total else 0.0), total


class Gate:
    """Compares candidates with one float model, which is measured only once.

    Args:
        engine: backend settings for the measurement.
        max_drop: largest acceptable loss of mAP.
        images: folder of labelled images, if there are labels.
        files: only these of the folder. Default: all.
        labels: folder of YOLO text files or COCO JSON file; None measures agreement.
        frames: yields the (name, frame) pairs on which agreement is measured.
        head: kind of the head. Default: what the sidecar or the shapes say.
        prove: refuse unless the upper end of the interval, too, is within `max_drop`.
        classes: count only these classes. Default: every one that the labels have.
    """

    def __init__(
        self,
        engine: dict[str, Any],
        *,
        max_drop: float = MAX_DROP,
        min_agreement: float = MIN_AGREEMENT,
        images: str | Path | None = None,
        files: Sequence[Path] | None = None,
        labels: str | Path | None = None,
        frames: Callable[[], Iterable[tuple[str, Frame]]] | None = None,
        head: str | None = None,
        prove: bool = False,
        classes: Sequence[str] | None = None,
    ) -> None:
        self._engine, self._max_drop, self._min_agreement = engine, max_drop, min_agreement
        self._files, self._prove, self._classes = files, prove, classes
        self._images, self._labels, self._frames, self._head = images, labels, frames, head
        self._float_accuracy: Accuracy | None = None
        self._float_boxes: list[Boxes] | None = None

    def _evaluate(self, model: Path, progress: Progress | None) -> Accuracy:
        assert self._images is not None
        assert self._labels is not None
        with Detector(ModelSettings(path=str(model)), COCO_DETECT, self._engine, self._head) as detector:
            dataset = open_dataset(self._images, self._labels, detector.labels, files=self._files)
            return evaluate(detector, dataset, progress, self._classes)

    def _detect(self, model: Path) -> list[Boxes]:
        assert self._frames is not None
        detect = DetectSettings(conf=NEAR)
        with Detector(ModelSettings(path=str(model)), detect, self._engine, self._head) as detector:
            return list(detector.detect(self._frames()))

    def open(self, model: Path, progress: Progress | None = None) -> None:
        """Measures the float model.

        Raises:
            GateError: its own accuracy is so low that the measurement is meaningless.
        """
        if self._labels is not None:
            found = self._float_accuracy = self._evaluate(model, progress)
            if found.map < LEAST_MAP:
                raise GateError(
                    f"model {model}: the float model itself only reaches mAP {found.map:.4f} on {self._images}, so "
                    "its INT8 form cannot be judged; check that its head and its class numbers match the labels"
                )
            return
        self._float_boxes = self._detect(model)
        total = agreement(self._float_boxes, self._float_boxes)[1]
        if not total:
            raise GateError(
                f"model {model}: the float model finds nothing in {len(self._float_boxes)} images, so its INT8 form "
                "cannot be compared with it; check its head, give other images with --eval-images or "
                "labels with --labels, or write it unchecked with --force"
            )

    def judge(self, model: Path, progress: Progress | None = None) -> Verdict:
        """Measures a candidate. Call `open` first."""
        if self._float_accuracy is not None:
            return self._compare(self._float_accuracy, self._evaluate(model, progress))
        assert self._float_boxes is not None
        share, total = agreement(self._float_boxes, self._detect(model))
        refusal = None
        if share < self._min_agreement:
            refusal = (
                f"its detections agree with the float model's in {share:.1%} of {total} boxes, less than the "
                f"{self._min_agreement:.0%} required without labels"
            )
        return Verdict(agreement=round(share, 5), refusal=refusal, score=1 - share, allowed=1 - self._min_agreement)

    def _compare(self, before: Accuracy, after: Accuracy) -> Verdict:
        drop, limit = before.map - after.map, self._max_drop
        figures: dict[str, float] = {
            "map": after.map, "map_float": before.map, "map_drop": drop,
            "map50": after.map50, "map50_float": before.map50, "images": after.images,
        }  # fmt: skip
        interval = None
        if before.matches is not None and after.matches is not None:
            interval = paired_drop(before.matches, after.matches)
        if interval is not None:
            figures |= {"map_drop_low": interval.low, "map_drop_high": interval.high}
        refusal, undecided = _against(drop, interval, limit)
        if refusal is None and self._prove and undecided is not None:
            refusal, undecided = f"{undecided}, and proof was asked for (--prove)", None
        if refusal is not None:
            refusal = f"mAP {interval or f'lost {drop:.4f}'} ({before.map:.4f} to {after.map:.4f}): {refusal}"
        return Verdict(
            {k: round(v, 5) for k, v in figures.items()},
            interval=interval,
            refusal=refusal,
            undecided=undecided,
            score=drop,
            allowed=limit,
        )


def _against(drop: float, interval: Drop | None, limit: float) -> tuple[str | None, str | None]:
    """(why it is refused, why it is not decided) of a loss against its limit."""
    undecided = None
    if interval is None:
        undecided = f"one image cannot show that the loss is within --max-drop {limit:g}"
    elif interval.low <= limit < interval.high:
        count = interval.images_to_decide(limit)
        needed = "no number of images would" if count is None else f"about {count:,} such images would"
        undecided = f"{interval.images} images cannot tell on which side of --max-drop {limit:g} that is; {needed}"
    if drop > limit:
        return f"more than --max-drop {limit:g}" + ("" if undecided is None else f", though {undecided}"), None
    return None, undecided
