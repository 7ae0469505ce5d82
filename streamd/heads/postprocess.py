"""From outputs to detections in source pixels: the same final steps for every head and every backend."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.errors import ConfigError
from streamd.heads import DetectSettings, Head
from streamd.heads.native import library, to_source
from streamd.heads.validate import NONE, all_possible, inside, possible
from streamd.types import (
    Candidates,
    DecodePlan,
    Details,
    Float32Array,
    Found,
    FoundBatch,
    Int32Array,
    Letterbox,
    Outputs,
)


def class_numbers(names: Sequence[str | int], labels: Sequence[str], field: str) -> list[int]:
    """The class numbers of `names`, each a label or a number.

    Raises:
        ConfigError: a name or number that the labels do not have, with near matches.
    """
    numbers = []
    for name in names:
        if isinstance(name, int) or (name.isdigit() and name not in labels):
            if not 0 <= int(name) < len(labels):
                raise ConfigError(f"{field}: class {name} is not in 0..{len(labels) - 1}")
            numbers.append(int(name))
        elif name in labels:
            numbers.append(list(labels).index(name))
        else:
            raise ConfigError(f"{field}: the model has no class {name!r}; {instead_of(name, labels)}")
    return numbers


def instead_of(name: str, labels: Sequence[str]) -> str:
    """What to write instead of a class that the model does not have."""
    if len(parts := re.split(r"[,;]\s*", name)) > 1 and all(part in labels for part in parts):
        return f"give each class by itself: {' '.join(parts)} on the command line, [{', '.join(parts)}] in a file"
    if near := difflib.get_close_matches(name.lower(), labels, n=3):
        return f"did you mean {' or '.join(near)}?"
    more = f" and {len(labels) - 6} more" if len(labels) > 6 else ""
    return f"its classes are {', '.join(labels[:6])}{more}"


def with_suppression(plan: DecodePlan, labels: Sequence[str], detect: DetectSettings) -> DecodePlan:
    """The plan for a device that also filters and suppresses, with the same result as `Postprocess`.

    Raises:
        ConfigError: a class that the labels do not have.
    """
    floors: tuple[float, ...] = ()
    if detect.classes is not None or detect.class_conf:
        wanted: Collection[int] = range(len(labels))
        if detect.classes is not None:
            wanted = class_numbers(detect.classes, labels, "model.detect.classes")
        numbers = class_numbers(list(detect.class_conf), labels, "model.detect.class_conf")
        own = dict(zip(numbers, detect.class_conf.values(), strict=True))
        floors = tuple(own.get(i, detect.conf) if i in wanted else math.inf for i in range(len(labels)))
    return replace(
        plan, class_conf=floors, suppress=True, iou=detect.iou, max_det=detect.max_det, agnostic=detect.agnostic
    )


_ONE = np.ones((), np.float32)
"""An array: NumPy takes half the time that it takes with a Python number."""


class Postprocess:
    """Decodes outputs, leaves out invalid boxes, filters, suppresses, and maps to source pixels. For one thread.

    Args:
        head: decodes raw outputs.
        detect: thresholds and filters.
        labels: class names in order.

    Raises:
        ConfigError: a class that the labels do not have.
    """

    def __init__(self, head: Head, detect: DetectSettings, labels: Sequence[str]) -> None:
        self.rejected: Mapping[str, int] = NONE
        """Invalid boxes of the last frame that were left out, by one of `validate.REASONS`."""
        self.details: Details | None = None
        """Details of the last frame's boxes; None if the head has none."""
        self._native = library()
        self._head = head
        self._detect = detect
        self._wanted: np.ndarray[tuple[int], np.dtype[np.bool_]] | None = None
        if detect.classes is not None:
            self._wanted = np.zeros(len(labels), np.bool_)
            self._wanted[class_numbers(detect.classes, labels, "model.detect.classes")] = True
        self._class_conf: Float32Array | None = None
        if detect.class_conf:
            self._class_conf = np.full(len(labels), detect.conf, np.float32)
            numbers = class_numbers(list(detect.class_conf), labels, "model.detect.class_conf")
            self._class_conf[numbers] = list(detect.class_conf.values())

    def __call__(
        self, outputs: Outputs | Sequence[Candidates], index: int, letterbox: Letterbox
    ) -> tuple[Float32Array, Float32Array, Int32Array]:
        """Decodes frame `index` of a batch.

        Returns:
            xyxy (N, 4) in source pixels, score (N,) in descending order, class_id (N,). None of them is a view of
            `outputs`.
        """
        first = outputs[index] if isinstance(outputs[0], Candidates) else None
        found = first if isinstance(first, Candidates) else self._head.candidates(outputs, index)  # type: ignore[arg-type]
        self.rejected = NONE
        if len(found.score):
            found, self.rejected = possible(found)
        if found.suppressed:
            xyxy, score, class_id, _ = self._in_picture(
                letterbox.to_source(found.xyxy), found.score, found.class_id.copy()
            )
            return xyxy, score, class_id
        if len(found.score) and (self._wanted is not None or self._class_conf is not None):
            keep = np.ones(len(found.score), np.bool_)
            if self._wanted is not None:
                keep &= self._wanted[found.class_id]
            if self._class_conf is not None:
                keep &= found.score >= self._class_conf[found.class_id]
            found = found.take(keep)
        if self._head.nms:
            order = self._head.suppress(found, self._detect)
        else:
            order = (-found.score).argsort(kind="stable")[: self._detect.max_det]
        xyxy, score, class_id, there = self._in_picture(
            letterbox.to_source(found.xyxy[order]), found.score[order], found.class_id[order]
        )
        if self._head.detailed:
            kept = found.take(order if there is None else order[there])
            self.details = None
            if first is None and len(kept.score):
                self.details = self._head.details(outputs, index, kept, letterbox)  # type: ignore[arg-type]
        return xyxy, score, class_id

    def batch(self, outputs: Outputs | Sequence[Candidates], letterboxes: Sequence[Letterbox]) -> Sequence[Found]:
        """Decodes all frames of a batch.

        What a device has suppressed is processed together: by one compiled call, or a few of NumPy, for the batch.

        Args:
            outputs: of the batch.
            letterboxes: of each frame.
        """
        if isinstance(outputs[0], Candidates):
            given: Any = outputs[: len(letterboxes)]
            if all(found.suppressed for found in given):
                if self._native is not None:
                    each = to_source(self._native, given, letterboxes)
                    if isinstance(each, FoundBatch):
                        return each
                    return [self._one(outputs, i, letterboxes[i]) if one is None else one for i, one in enumerate(each)]
                together = self._together(given, letterboxes) if len(letterboxes) > 1 else None
                if together is not None:
                    return together
        return [self._one(outputs, i, letterbox) for i, letterbox in enumerate(letterboxes)]

    def _one(self, outputs: Outputs | Sequence[Candidates], index: int, letterbox: Letterbox) -> Found:
        xyxy, score, class_id = self(outputs, index, letterbox)
        return Found(xyxy, score, class_id, self.rejected, self.details)

    def _together(self, given: Sequence[Candidates], letterboxes: Sequence[Letterbox]) -> list[Found] | None:
        """The frames of a device that suppresses; None if a box is to be left out."""
        counts = [len(found.score) for found in given]
        score, class_id = np.concatenate([f.score for f in given]), np.concatenate([f.class_id for f in given])
        joined = Candidates(np.concatenate([f.xyxy for f in given]), score, class_id, True)
        if not len(score) or not all_possible(joined):
            return None
        xyxy = Letterbox.all_to_source(letterboxes, counts, joined.xyxy)
        if inside(xyxy) is not None:
            return None
        np.minimum(score, _ONE, out=score)
        each, begin = [], 0
        for n in counts:
            end = begin + n
            each.append(Found(xyxy[begin:end], score[begin:end], class_id[begin:end], NONE))
            begin = end
        return each

    def _in_picture(
        self, xyxy: Float32Array, score: Float32Array, class_id: Int32Array
    ) -> tuple[Float32Array, Float32Array, Int32Array, npt.NDArray[np.bool_] | None]:
        """The boxes with a visible part, in source pixels and clipped to the picture; and which ones these are, None
        for all."""
        there = inside(xyxy)
        if there is not None:
            self.rejected = {**self.rejected, "outside": int(len(there) - there.sum())}
            xyxy, score, class_id = xyxy[there], score[there], class_id[there]
        return xyxy, np.minimum(score, _ONE), class_id, there
