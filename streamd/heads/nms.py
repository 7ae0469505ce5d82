"""Greedy non-maximum suppression in NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamd.types import Float32Array, Int32Array

MAX_CANDIDATES = 4096
"""Largest number of candidates considered, best first: limits the time for a frame full of boxes (YOLOv5's limit is
30,000)."""


def nms(
    xyxy: Float32Array, score: Float32Array, class_id: Int32Array, iou: float, max_det: int, *, agnostic: bool = False
) -> npt.NDArray[np.intp]:
    """Keeps the best box of each cluster, class by class.

    Greedy: boxes are visited in descending order of score, and each one drops the later ones of its class whose
    intersection over union with it exceeds `iou` (Felzenszwalb et al. 2010, and every YOLO since).

    Args:
        xyxy: (M, 4) corners.
        score: (M,)
        class_id: (M,)
        iou: a later box is dropped if its IoU exceeds this.
        max_det: largest number of boxes kept.
        agnostic: one cluster may span classes.

    Returns:
        Indices of the kept boxes in descending order of score.
    """
    order = (-score).argsort(kind="stable")[:MAX_CANDIDATES]
    boxes: npt.NDArray[np.floating] = xyxy[order]
    if not agnostic and len(order) > 1:
        # Classes are shifted so far apart that their boxes cannot touch; float64 keeps the corners exact.
        span = float(np.abs(boxes).max()) * 2 + 1
        boxes = boxes.astype(np.float64) + (class_id[order].astype(np.float64) * span)[:, None]
    x1, y1, x2, y2 = (np.ascontiguousarray(boxes[:, i]) for i in range(4))
    area = (x2 - x1) * (y2 - y1)
    kept: list[int] = []
    rest = np.arange(len(order))
    while len(rest) and len(kept) < max_det:
        best, rest = rest[0], rest[1:]
        kept.append(int(best))
        if not len(rest):
            break
        width = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        height = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        union = area[best] + area[rest] - overlap
        rest = rest[overlap <= iou * union]
    return order[np.array(kept, np.intp)]
