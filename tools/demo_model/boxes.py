"""Arithmetic on a few boxes in NumPy: overlap, suppression, fusion, average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def overlap(a: Array, b: Array) -> Array:
    """Intersection over union of every box of `a` (N, 4) with every one of `b` (M, 4), corners: (N, M)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(v[:, 2:] - v[:, :2], 0, None).prod(-1) for v in (a, b)]
    return np.asarray(inter / np.maximum(areas[0][:, None] + areas[1][None] - inter, 1e-9))


def suppress(boxes: Array, scores: Array, classes: Array, iou: float = 0.6, most: int = 300) -> Array:
    """Non-maximum suppression within each class: indices kept, best first."""
    order = np.argsort(-scores, kind="stable")[:2000]
    apart = boxes[order] + classes[order, None] * 10_000.0
    keep = []
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if not alive[i]:
            continue
        keep.append(order[i])
        if len(keep) == most:
            break
        alive[i + 1 :] &= overlap(apart[i : i + 1], apart[i + 1 :])[0] <= iou
    return np.array(keep, np.int64)


def fuse(boxes: Array, scores: Array, classes: Array, view: Array, views: int, iou: float = 0.55) -> Array:
    """Weighted box fusion (Solovyev et al., 2021): merges the boxes of several views of a picture into one per object.

    Args:
        boxes: (N, 4) corners, scores: (N,), classes: (N,), view: (N,) which view each came from.
        views: how many looked; a thing that few saw scores less.
        iou: boxes that overlap more than this are one thing.

    Returns:
        (M, 6) rows x1 y1 x2 y2 score class, best first.
    """
    groups: list[list[int]] = []
    means: list[Array] = []
    for i in np.argsort(-scores, kind="stable"):
        same = [k for k, g in enumerate(groups) if classes[g[0]] == classes[i]]
        if same:
            found = overlap(boxes[i : i + 1], np.array([means[k] for k in same]))[0]
            if found.max() > iou:
                k = same[int(found.argmax())]
                groups[k].append(int(i))
                means[k] = np.average(boxes[groups[k]], axis=0, weights=scores[groups[k]])
                continue
        groups.append([int(i)])
        means.append(boxes[i])
    rows = []
    for group, mean in zip(groups, means, strict=True):
        best = np.zeros(views)
        np.maximum.at(best, view[group], scores[group])
        rows.append([*mean, best.mean(), classes[group[0]]])
    out = np.array(rows, np.float32).reshape(-1, 6)
    return out[np.argsort(-out[:, 4], kind="stable")]


def average_precision(found: Sequence[Array], truth: Sequence[Array], classes: int, iou: float = 0.5) -> Array:
    """Average precision of each class, 101 recall points as COCO has them; NaN for a class without boxes.

    Args:
        found: for each picture (N, 6) rows x1 y1 x2 y2 score class.
        truth: for each picture (M, 5) rows x1 y1 x2 y2 class.
        classes: how many there are.
        iou: what counts as found.
    """
    out = np.full(classes, np.nan)
    for c in range(classes):
        total, scores, right = 0, [], []
        for rows, labelled in zip(found, truth, strict=True):
            mine, theirs = rows[rows[:, 5] == c], labelled[labelled[:, 4] == c]
            total += len(theirs)
            free = np.ones(len(theirs), bool)
            for row in mine[np.argsort(-mine[:, 4], kind="stable")]:
                hit = overlap(row[None, :4], theirs[:, :4])[0] * free if len(theirs) else np.zeros(1)
                scores.append(row[4])
                right.append(hit.max() >= iou)
                if right[-1]:
                    free[hit.argmax()] = False
        if not total:
            continue
        order = np.argsort(-np.array(scores), kind="stable")
        hits = np.array(right, float)[order].cumsum()
        recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        index = np.searchsorted(recall, np.linspace(0, 1, 101))
        out[c] = np.append(precision, 0.0)[np.minimum(index, len(precision))].mean()
    return out
