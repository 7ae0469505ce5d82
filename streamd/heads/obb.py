"""Rotated boxes, as Ultralytics exports YOLOv8-obb, YOLO11-obb and YOLO26-obb.

Rows have centre, size and, as the only extra value, an angle in radians, clockwise from the x axis to the side called
width. Overlap is measured between Gaussians (Llerena et al. 2021, Probabilistic IoU), as in the family's own NMS.
Theirs (Fast NMS) also lets dropped boxes drop others; here, as for all heads, only kept boxes do."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from streamd.heads import HEADS, DecodeOptions, DetectSettings, Head, HeadSettings
from streamd.heads.nms import MAX_CANDIDATES
from streamd.heads.tasks import TaskHead, TaskSettings
from streamd.types import Candidates, Details, Float32Array, Letterbox, ModelSpec, Outputs

_TINY = 1e-7
_SIGNS = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]], np.float32)
"""Signs of half the width and half the height, for each corner in order around the box."""


@HEADS.register
class ObbSettings(TaskSettings):
    """Rotated boxes as exported by Ultralytics: (B, 4+C+1, N), or (B, N, 7) after NMS, with the angle last."""

    kind: Literal["obb"] = "obb"
    form: ClassVar[str] = "(B, 4+C+1, N)"
    sigmoid_contradicts: ClassVar[str] = (
        ", but obb expects boxes in input pixels; export the model without it, or declare another head"
    )
    tasks: ClassVar[tuple[str, ...]] = ("obb",)
    of_boxes: ClassVar[str] = "the angle"

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`. By the metadata, since an angle looks like one more class."""
        return cls() if spec.metadata.get("task", "").strip().lower() == "obb" and len(spec.outputs) == 1 else None

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        final = self.is_final(spec.outputs[0].shape if len(spec.outputs) == 1 else (), 1, spec)
        return Obb(spec, options, final=final)


class Obb(TaskHead):
    """See the module. `Candidates.extra` is (M, 5): cx, cy, width, height, angle."""

    def __init__(self, spec: ModelSpec, options: DecodeOptions, *, final: bool) -> None:
        super().__init__(
            "obb", spec, options, output=0, extra=1, final=final, to_corners=(upright_boxes, upright_boxes)
        )

    def _own(self, box: Float32Array, extra: Float32Array) -> Float32Array:
        return np.concatenate([box, extra], axis=1)

    def suppress(self, found: Candidates, detect: DetectSettings) -> npt.NDArray[np.intp]:
        """See `Head.suppress`."""
        assert found.extra is not None or not len(found.score)
        if found.extra is None:
            return np.empty(0, np.intp)
        class_id = np.zeros_like(found.class_id) if detect.agnostic else found.class_id
        return rotated_nms(found.extra, found.score, class_id, detect.iou, detect.max_det)

    def details(self, outputs: Outputs, index: int, kept: Candidates, letterbox: Letterbox) -> Details:
        """See `Head.details`."""
        assert kept.extra is not None
        return Details(oriented=letterbox.points_to_source(rotated_corners(kept.extra), clip=False))


def upright_boxes(box: Float32Array, angle: Float32Array) -> Float32Array:
    """(M, 4) corners of the smallest upright boxes around rotated ones, given by (M, 4) cx cy w h and (M, 1) angle."""
    with np.errstate(invalid="ignore"):  # an infinite angle makes a box that is left out
        cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    half = np.concatenate([box[:, 2:3] * cos + box[:, 3:4] * sin, box[:, 2:3] * sin + box[:, 3:4] * cos], axis=1) / 2
    # A box without width or height is invalid and must be left out, whatever its other side is.
    half[box[:, 2:].min(axis=1, initial=np.inf) <= 0] = -1
    return np.concatenate([box[:, :2] - half, box[:, :2] + half], axis=1)


def rotated_corners(boxes: Float32Array) -> Float32Array:
    """(M, 4, 2) corners of (M, 5) cx, cy, width, height, angle, in order around each."""
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    half = boxes[:, None, 2:4] / 2 * _SIGNS
    out = np.empty((len(boxes), 4, 2), np.float32)
    out[..., 0] = boxes[:, :1] + half[..., 0] * cos[:, None] - half[..., 1] * sin[:, None]
    out[..., 1] = boxes[:, 1:2] + half[..., 0] * sin[:, None] + half[..., 1] * cos[:, None]
    return out


def covariances(boxes: Float32Array) -> npt.NDArray[np.float64]:
    """(3, M) variances along x and y and the covariance, of boxes (M, 5) as Gaussians."""
    wide, high = np.square(boxes[:, 2:4].astype(np.float64)).T / 12
    cos, sin = np.cos(boxes[:, 4].astype(np.float64)), np.sin(boxes[:, 4].astype(np.float64))
    return np.stack([wide * cos**2 + high * sin**2, wide * sin**2 + high * cos**2, (wide - high) * cos * sin])


def probabilistic_iou(
    center: npt.NDArray[np.float64], spread: npt.NDArray[np.float64], centers: npt.NDArray[np.float64],
    spreads: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:  # fmt: skip
    """1 minus the Hellinger distance of one box to others, 0 to 1.

    Args:
        center: (2,)
        spread: (3,) by `covariances`.
        centers: (2, M)
        spreads: (3, M)
    """
    a, b, c = spread[:, None] + spreads
    dx, dy = center[:, None] - centers
    determinant = a * b - c**2
    distance = (a * dy**2 + b * dx**2 - 2 * c * dx * dy) / (determinant + _TINY) / 4
    own = max(float(spread[0] * spread[1] - spread[2] ** 2), 0.0)
    others = np.maximum(spreads[0] * spreads[1] - spreads[2] ** 2, 0)
    distance += np.log(determinant / (4 * np.sqrt(own * others) + _TINY) + _TINY) / 2
    np.clip(distance, _TINY, 100, out=distance)
    out: npt.NDArray[np.float64] = 1 - np.sqrt(1 - np.exp(-distance) + _TINY)
    return out


def rotated_nms(
    boxes: Float32Array, score: Float32Array, class_id: npt.NDArray[np.int32], iou: float, max_det: int
) -> npt.NDArray[np.intp]:
    """Keeps the best rotated box of each cluster, class by class: `nms` with `probabilistic_iou`.

    Args:
        boxes: (M, 5) cx, cy, width, height, angle in radians.
        score: (M,)
        class_id: (M,)
        iou: a later box is dropped if its overlap exceeds this.
        max_det: largest number of boxes kept.

    Returns:
        Indices of the kept boxes in descending order of score.
    """
    order = np.argsort(-score, kind="stable")[:MAX_CANDIDATES]
    boxes, class_id = boxes[order], class_id[order]
    centers, spreads = boxes[:, :2].T.astype(np.float64), covariances(boxes)
    kept: list[int] = []
    rest = np.arange(len(order))
    while len(rest) and len(kept) < max_det:
        best, rest = rest[0], rest[1:]
        kept.append(int(best))
        if len(rest):
            overlap = probabilistic_iou(centers[:, best], spreads[:, best], centers[:, rest], spreads[:, rest])
            rest = rest[(overlap <= iou) | (class_id[rest] != class_id[best])]
    return order[np.array(kept, np.intp)]
