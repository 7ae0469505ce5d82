"""Labels of a training picture: its annotations, and the teachers' boxes for unannotated objects.

A row is x1 y1 x2 y2 (shares of the picture), score, class. Labelled boxes score 1; a teacher's box scores how likely it
is right, and is trained as just that: an uncertain box asks for an uncertain answer.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from demo_model import COCO_IDS
from demo_model.boxes import Array, fuse, overlap

_ALIKE = ((2, 4, 5), (1, 3))
"""Groups of classes that are confused with each other: car, bus, truck; bicycle, motorcycle."""
_CAR, _TRUCK = 2, 5
SAME = 0.5
"""Overlap from which two boxes are the same object."""


def read_labels(path: Path) -> tuple[Array, Array]:
    """Reads YOLO text.

    Returns:
        Rows of the six classes (N, 6), and boxes of every other class (M, 4).
    """
    ours, others = [], []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        number, x, y, w, h = (float(v) for v in line.split()[:5])
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        if int(number) in COCO_IDS:
            ours.append([*box, 1.0, COCO_IDS.index(int(number))])
        else:
            others.append(box)
    return np.array(ours, np.float32).reshape(-1, 6), np.array(others, np.float32).reshape(-1, 4)


def one_class_each(rows: Array) -> Array:
    """Of boxes that name one thing with classes often confused, the likeliest. Rows must come best first."""
    keep = np.ones(len(rows), bool)
    for group in _ALIKE:
        index = np.flatnonzero(np.isin(rows[:, 5], group))
        for k, i in enumerate(index):
            if keep[i]:
                rest = index[k + 1 :]
                keep[rest[overlap(rows[i : i + 1, :4], rows[rest, :4])[0] > 0.7]] = False
    return rows[keep]


def merge(labelled: Array, others: Array, seen: Array, known: Collection[int], least: float) -> Array:
    """Labelled boxes and what the teachers add to them.

    Args:
        labelled: (N, 6) rows that a person drew.
        others: (M, 4) labelled boxes of classes that are not ours.
        seen: (K, 6) the teachers' rows, best first.
        known: classes that are labelled here. Teachers may add missed ones of them (data sets leave out the difficult).
        least: the teachers' rows below this score are dropped.
    """
    labelled = labelled.copy()
    seen = one_class_each(seen[seen[:, 4] >= least])
    # Some data sets call a lorry a car: where the teachers are surer of the truck, it is one.
    if len(labelled) and len(seen) and _TRUCK not in known:
        trucks = seen[(seen[:, 5] == _TRUCK) & (seen[:, 4] > 0.5)]
        if len(trucks):
            hit = (overlap(labelled[:, :4], trucks[:, :4]).max(1) > 0.7) & np.isin(labelled[:, 5], (_CAR,))
            labelled[hit, 5] = _TRUCK
    keep = np.ones(len(seen), bool)
    if len(others):
        keep &= overlap(seen[:, :4], others).max(1, initial=0) < 0.6
    for group in ((0,), *_ALIKE):
        mine = labelled[np.isin(labelled[:, 5], group)]
        if len(mine):
            keep &= ~(np.isin(seen[:, 5], group) & (overlap(seen[:, :4], mine[:, :4]).max(1, initial=0) > SAME))
    return np.concatenate([labelled, seen[keep]]).astype(np.float32)


class Observer:
    """The teachers' merged detections in whole pictures, each also run on the mirrored picture."""

    def __init__(self, paths: list[Path], floor: float = 0.05) -> None:
        from demo_model.teacher import Teacher

        self._teachers, self._floor = [Teacher(p) for p in paths], floor

    def __call__(self, picture: Any) -> Array:
        """Detections in a picture (H, W, 3) uint8 RGB, longest side SIZE: (K, 6) rows in shares, best first."""
        import torch

        from demo_model import PAD, SIZE
        from demo_model.boxes import suppress

        height, width = picture.shape[:2]
        canvas = np.full((SIZE, SIZE, 3), PAD, np.uint8)
        canvas[:height, :width] = picture
        both = np.stack([canvas, canvas[:, ::-1]]).transpose(0, 3, 1, 2) / np.float32(255)
        parts: list[tuple[Array, Array, Array, int]] = []
        with torch.inference_mode():
            for t, teacher in enumerate(self._teachers):
                for mirrored, (boxes, scores) in enumerate(
                    zip(*(v.numpy() for v in teacher(torch.from_numpy(both))), strict=True)
                ):
                    cell, number = np.nonzero(scores > self._floor)
                    found, score = boxes[cell], scores[cell, number]
                    if mirrored:
                        found = np.stack([SIZE - found[:, 2], found[:, 1], SIZE - found[:, 0], found[:, 3]], 1)
                    kept = suppress(found, score, number)
                    parts.append((found[kept], score[kept], number[kept], 2 * t + mirrored))
        rows = fuse(
            np.concatenate([p[0] for p in parts]),
            np.concatenate([p[1] for p in parts]),
            np.concatenate([p[2] for p in parts]),
            np.concatenate([np.full(len(p[1]), p[3]) for p in parts]),
            2 * len(self._teachers),
        )
        rows[:, :4] = np.clip(rows[:, :4] / np.array([width, height, width, height], np.float32), 0, 1)
        return rows[(rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]


def reliability(seen: list[Array], truth: list[Array]) -> tuple[float, float]:
    """How a teacher's score becomes the chance that it is right: a, b of σ(a · logit(score) + b), fitted (Platt).

    Args:
        seen: teachers' rows of pictures that are labelled in full.
        truth: their labelled rows.
    """
    x, y = [], []
    for rows, labelled in zip(seen, truth, strict=True):
        for row in rows:
            same = labelled[labelled[:, 5] == row[5]]
            x.append(float(row[4]))
            y.append(float(len(same) > 0 and overlap(row[None, :4], same[:, :4]).max() > SAME))
    z, t = np.array(x).clip(1e-4, 1 - 1e-4), np.array(y)
    z = np.log(z / (1 - z))
    a, b = 1.0, 0.0
    for _ in range(30):  # Newton
        p = 1 / (1 + np.exp(-(a * z + b)))
        w = np.maximum(p * (1 - p), 1e-6)
        # A little pull towards a = 1, b = 0, for when there is little to fit to.
        gradient = np.array([((p - t) * z).sum() + (a - 1), (p - t).sum() + b])
        hessian = np.array([[(w * z * z).sum() + 1, (w * z).sum()], [(w * z).sum(), w.sum() + 1]])
        a, b = np.array([a, b]) - np.linalg.solve(hessian, gradient)
    return float(a), float(b)


def calibrated(score: Array, a: float, b: float) -> Array:
    """The chance that a teacher's box of this score is right."""
    z = np.clip(score, 1e-4, 1 - 1e-4)
    return np.asarray(1 / (1 + np.exp(-(a * np.log(z / (1 - z)) + b))))
