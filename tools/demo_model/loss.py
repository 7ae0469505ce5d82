"""Targets of every cell, and the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from demo_model import CLASSES, SIZE, STRIDES
from demo_model.net import Grid

SIZES = ((0.0, 60.0), (36.0, 150.0), (100.0, 1e9))
"""Root of the area, in pixels, of boxes that each head answers for; they share the middling ones."""

FLOOR = 0.1
"""Boxes less likely than this are trained as background: there are many, and most are wrong."""


@dataclass
class Targets:
    """By cell, (B, N, …)."""

    boxes: Any
    """(B, N, 4) corners."""
    scores: Any
    """(B, N, 6): how likely each class is. All 0 where nothing is."""
    placed: Any
    """(B, N): 1 where the box was given to the cell for its place, 0 where a teacher speaks of this very cell."""

    def values(self) -> tuple[Any, Any, Any]:
        """All three."""
        return self.boxes, self.scores, self.placed


def assign(boxes: Any, scores: Any, drawn: Any) -> Targets:
    """Gives each box to the cell of its centre and the two nearest ones, as YOLOv5 does; the likeliest box has a cell.

    Args:
        boxes: (B, R, 4) corners in pixels.
        scores: (B, R, 6) 0..1; a row of zeros is none.
        drawn: (B, R) true where a person drew the box: it goes before what a teacher says.
    """
    batch, rows, _ = boxes.shape
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    root = size.prod(-1).sqrt()
    best = scores.amax(-1)
    inside = ((centre >= 0) & (centre < SIZE)).all(-1) & (best > FLOOR)
    indices, keys, first = [], [], 0
    for stride, (low, high) in zip(STRIDES, SIZES, strict=True):
        n = SIZE // stride
        at = centre / stride
        cell = at.floor()
        side = torch.where(at - cell < 0.5, -1.0, 1.0)
        zero = torch.zeros_like(side[..., 0])
        for dx, dy, weight in ((zero, zero, 1.2), (side[..., 0], zero, 1.0), (zero, side[..., 1], 1.0)):
            x, y = cell[..., 0] + dx, cell[..., 1] + dy
            valid = inside & (root >= low) & (root < high) & (x >= 0) & (y >= 0) & (x < n) & (y < n)
            indices.append(torch.where(valid, first + y * n + x, -1.0))
            keys.append((best + drawn) * weight)
        first += n * n
    index, key = torch.stack(indices, -1).long(), torch.stack(keys, -1)
    offset = torch.arange(batch, device=boxes.device)[:, None, None] * first
    nowhere = batch * first
    index = torch.where(index >= 0, index + offset, nowhere).flatten()
    key = key.flatten()
    top = torch.zeros(nowhere + 1, device=boxes.device).scatter_reduce_(0, index, key, "amax")
    row = torch.arange(batch * rows, device=boxes.device)[:, None].expand(-1, 3 * len(STRIDES)).flatten()
    owner = torch.zeros(nowhere + 1, dtype=torch.long, device=boxes.device)
    owner.scatter_(0, torch.where(key == top[index], index, nowhere), row)
    owner, top = owner[:-1], top[:-1]
    held = scores.flatten(0, 1)[owner] * (top > 0)[:, None]
    return Targets(
        boxes.flatten(0, 1)[owner].view(batch, first, 4),
        held.view(batch, first, -1),
        (top > 0).float().view(batch, first),
    )


def one_hot(rows: Any) -> Any:
    """Rows (B, R, 6) with score and class as scores by class (B, R, 6)."""
    return (rows[..., 5:6] == torch.arange(len(CLASSES), device=rows.device)) * rows[..., 4:5]


def _area(size: Any) -> Any:
    """Width times height. The gradient of `prod` asks the device whether a factor is 0, and waits for the answer."""
    return size[..., 0] * size[..., 1]


def complete_iou(a: Any, b: Any) -> tuple[Any, Any]:
    """Overlap of boxes pair by pair, and the same less what centre and shape are off (CIoU, Zheng et al., 2020)."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = _area((high - low).clamp(min=0))
    sa, sb = (a[..., 2:] - a[..., :2]).clamp(min=1e-3), (b[..., 2:] - b[..., :2]).clamp(min=1e-3)
    iou = inter / (_area(sa) + _area(sb) - inter + 1e-6)
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    apart = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(-1)
    shape = (4 / math.pi**2) * (torch.atan(sa[..., 0] / sa[..., 1]) - torch.atan(sb[..., 0] / sb[..., 1])).square()
    with torch.no_grad():
        weight = shape / (1 - iou + shape + 1e-6)
    return iou, iou - apart / (around.square().sum(-1) + 1e-6) - weight * shape


def loss(rows: Any, targets: Targets, grid: Grid, *, box: float, iou_share: float) -> tuple[Any, Any]:
    """The loss of a batch.

    Args:
        rows: logits (B, N, ROW), float32.
        targets: of the same cells.
        grid: the cells.
        box: weight of the boxes' part.
        iou_share: how far the objectness of a cell that a box was given to should tell how well the box fits: 0 not
            at all, 1 alone. A teacher's score of a cell tells it already.

    Returns:
        The loss, and its three parts (box, objectness, class) detached.
    """
    best = targets.scores.amax(-1)
    norm = best.sum().clamp(min=1.0)
    iou, complete = complete_iou(grid.boxes(rows), targets.boxes)
    box_loss = ((1 - complete) * best).sum() / norm
    fit = 1 - iou_share * targets.placed * (1 - iou.detach().clamp(0, 1))
    objectness = F.binary_cross_entropy_with_logits(rows[..., 4], best * fit, reduction="sum") / norm
    share = targets.scores / best.clamp(min=1e-6)[..., None]
    kinds = F.binary_cross_entropy_with_logits(rows[..., 5:], share, reduction="none").sum(-1)
    class_loss = (kinds * best).sum() / norm
    parts = torch.stack([box_loss, objectness, class_loss])
    return box * box_loss + objectness + class_loss, parts.detach()
