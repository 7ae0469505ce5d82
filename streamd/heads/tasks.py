"""Shared by the heads for pose, oriented boxes and segmentation: rows in Ultralytics' layout.

Before NMS, (B, 4+C+E, N): centre and size in input pixels, class scores, and E values of the task. With NMS inside, or
from a model that needs none (YOLO26), (B, N, 6+E): box, score, class number, and the same E values.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from pydantic import Field

from streamd.errors import ConfigError, ModelError
from streamd.heads import DecodeOptions, Head, HeadSettings
from streamd.heads.coco import COCO80
from streamd.heads.common import EMPTY, NORMALIZED_MAX, as_float32, cells, corners, label_boxes, listed
from streamd.heads.end_to_end import MOST_ROWS, detected
from streamd.heads.validate import check_numbers, largest_finite, mostly_outside_unit, span
from streamd.types import Candidates, Float32Array, ModelSpec, Outputs

ToCorners = Callable[[Float32Array, Float32Array], Float32Array]
"""(M, 4) first columns and (M, E) extra values to (M, 4) corners of upright boxes in input pixels."""


def center_boxes(box: Float32Array, extra: Float32Array) -> Float32Array:
    """`ToCorners` of centre and size."""
    return corners(box[:, 0], box[:, 1], box[:, 2], box[:, 3])


def corner_boxes(box: Float32Array, extra: Float32Array) -> Float32Array:
    """`ToCorners` of corners."""
    return np.ascontiguousarray(box)


def said_shape(spec: ModelSpec, key: str) -> tuple[int, ...] | None:
    """Integers that the exporter wrote into the metadata, such as "[17, 3]"; None if there are none."""
    try:
        found = ast.literal_eval(spec.metadata.get(key, "").strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    fits = isinstance(found, (list, tuple)) and all(type(n) is int and 0 < n < 10_000 for n in found)
    return tuple(found) if fits else None


class TaskSettings(HeadSettings):
    """Settings shared by these heads."""

    end_to_end: bool | None = Field(
        None,
        description="Rows have a score and a class number (after NMS), not a score for each class. Default: from the "
        "shape.",
    )
    of_boxes: ClassVar[str] = "their boxes"

    def is_final(self, shape: tuple[int, ...], extra: int, spec: ModelSpec) -> bool:
        """Whether an output of this shape has rows that need no NMS.

        Args:
            shape: shape of the output with the rows.
            extra: E.
            spec: the model.

        Raises:
            ConfigError: it contradicts the declaration, or could be either.
        """
        final = len(shape) == 3 and shape[2] == 6 + extra and 1 <= shape[1] <= MOST_ROWS
        dense = len(shape) == 3 and shape[1] >= 5 + extra
        if dense and final:
            # A real network has more cells than its rows have columns.
            dense = shape[2] == cells(spec.input_height, spec.input_width)
        fits = {True: final, False: dense, None: final != dense}[self.end_to_end]
        if fits:
            return final if self.end_to_end is None else self.end_to_end
        kind = getattr(self, "kind", "")
        if final and dense:
            raise ConfigError(
                f"model {spec.path}: output {listed(spec)} fits {kind} before and after NMS; declare "
                f"model.head: {{kind: {kind}, end_to_end: true}}, or false"
            )
        raise ConfigError(
            f"model.head: {kind} with {extra} values for {self.of_boxes} expects (B, 4+C+{extra}, N), or "
            f"(B, N, {6 + extra}) after NMS; {spec.path} has {listed(spec)}"
        )


class TaskHead(Head):
    """Boxes, scores and extra values of rows.

    Args:
        kind: for messages.
        spec: the model.
        options: thresholds.
        output: which output has the rows.
        extra: E.
        final: see `TaskSettings.is_final`.
        to_corners: convert rows to upright boxes, before and after NMS.
    """

    detailed = True

    def __init__(
        self,
        kind: str,
        spec: ModelSpec,
        options: DecodeOptions,
        *,
        output: int,
        extra: int,
        final: bool,
        to_corners: tuple[ToCorners, ToCorners] = (center_boxes, corner_boxes),
    ) -> None:
        self._kind, self._path, self._options = kind, spec.path, options
        self._output, self._extra, self._final = output, extra, final
        self._to_corners = to_corners[final]
        self._checked = False
        self.nms = not final
        shape = spec.outputs[output].shape
        self.classes = (len(spec.labels) or len(COCO80)) if final else shape[1] - 4 - extra

    def _check(self, boxes: Float32Array, scores: Float32Array) -> None:
        """Checks the first frame; `boxes` (M, 4), `scores` (M, …)."""
        check_numbers(self._path, boxes, scores)
        if mostly_outside_unit(scores):
            raise ModelError(
                f"model {self._path}: declared or recognised as {self._kind}, but what should be class scores is "
                f"{span(scores)}, not 0 to 1. Check the number of classes ({self.classes}) and of extra values "
                f"({self._extra}); if these are logits, export the model with its sigmoid"
            )
        largest = largest_finite(boxes)
        if 0 < largest <= NORMALIZED_MAX:
            raise ModelError(
                f"model {self._path}: declared or recognised as {self._kind}, but no box value exceeds {largest:.3g}, "
                "where input pixels are expected: its boxes are normalised to 0..1. Export it with boxes in pixels"
            )
        self._checked = largest > 0

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`."""
        values = as_float32(outputs[self._output][index])
        return self._of_rows(values) if self._final else self._of_columns(values)

    def _of_columns(self, columns: Float32Array) -> Candidates:
        scores = columns[4 : 4 + self.classes]
        if not self._checked:
            self._check(columns[:4].T, scores.T)
        (keep,) = np.nonzero(scores.max(axis=0) >= self._options.conf)
        if not len(keep):
            return EMPTY
        rows = np.ascontiguousarray(columns[:, keep].T)
        extra = self._own(rows[:, :4], rows[:, 4 + self.classes :])
        return label_boxes(
            self._to_corners(rows[:, :4], rows[:, 4 + self.classes :]),
            rows[:, 4 : 4 + self.classes],
            self._options,
            extra,
        )

    def _of_rows(self, rows: Float32Array) -> Candidates:
        rows = detected(rows, self._options.conf, self.classes)
        if not len(rows):
            return EMPTY
        if not self._checked:
            self._check(rows[:, :4], rows[:, 4:5])
        box, extra = rows[:, :4], rows[:, 6:]
        return Candidates(
            self._to_corners(box, extra),
            np.ascontiguousarray(rows[:, 4]),
            rows[:, 5].astype(np.int32),
            extra=self._own(box, extra),
        )

    def _own(self, box: Float32Array, extra: Float32Array) -> Float32Array:
        """`Candidates.extra` from the rows' first columns (M, 4) and extra values (M, E)."""
        return extra
