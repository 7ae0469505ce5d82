"""What the teachers say, cell by cell, as targets of the student's cells; and what only training needs of the network.

The same augmented picture is shown to teacher and student, which answers as the teacher does (Beyer et al., *Knowledge
distillation: a good teacher is patient and consistent*, 2022). YOLOX-Nano and PicoDet have a cell where the student has
one, so every cell is a target, also those where the teacher is unsure. Two more lessons are for training alone: the
scores of all 80 COCO classes, and the features that the teacher's heads read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from demo_model import SIZE, STRIDES
from demo_model.loss import Targets
from demo_model.net import ROW, Detector, Grid
from demo_model.teacher import SHARED_CELLS, Seen

ALL = 80
"""COCO's classes."""
_COARSE = SIZE // STRIDES[-1]


def reachable(boxes: Any, grid: Grid) -> Any:
    """Which boxes (B, N, 4) the student can give in their cells, as its decoding limits centre and size: (B, N)."""
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 / grid.stride - grid.cell
    size = (boxes[..., 2:] - boxes[..., :2]) / grid.anchor
    return ((centre > -0.45) & (centre < 1.45) & (size > 0.01) & (size < 3.9)).all(-1)


def cell_targets(seen: Seen, grid: Grid, a: float, b: float) -> Targets:
    """What a teacher says about the student's cells.

    Args:
        seen: the teacher's cells; those of stride 64, which the student lacks, go to the four cells of stride 32 that
            they cover, where they are surer.
        grid: the student's cells.
        a, b: a score is right with chance σ(a · logit(score) + b).
    """
    chance = torch.sigmoid(a * torch.logit(seen.scores, 1e-4) + b) * (seen.scores > 1e-3)
    boxes, scores = seen.boxes[:, :SHARED_CELLS], chance[:, :SHARED_CELLS]
    scores = scores * reachable(boxes, grid)[..., None]
    if seen.boxes.shape[1] > SHARED_CELLS:
        n = -(-_COARSE // 2)
        wide = []
        for values in (seen.boxes, chance):
            square = values[:, SHARED_CELLS:].unflatten(1, (n, n))
            square = square[:, :, None, :, None].expand(-1, n, 2, n, 2, -1).flatten(3, 4).flatten(1, 2)
            wide.append(square[:, :_COARSE, :_COARSE].flatten(1, 2))
        first = SHARED_CELLS - _COARSE**2
        part = grid.part(first)
        theirs = wide[1] * reachable(wide[0], part)[..., None]
        better = (theirs.amax(-1) > scores[:, first:].amax(-1))[..., None]
        boxes = torch.cat([boxes[:, :first], torch.where(better, wide[0], boxes[:, first:])], 1)
        scores = torch.cat([scores[:, :first], torch.where(better, theirs, scores[:, first:])], 1)
    return Targets(boxes, scores, torch.zeros_like(scores[..., 0]))


def surer(one: Targets, other: Targets) -> Targets:
    """Of two targets of each cell the one with the higher score."""
    first = (one.scores.amax(-1) >= other.scores.amax(-1))[..., None]
    return Targets(
        torch.where(first, one.boxes, other.boxes),
        torch.where(first, one.scores, other.scores),
        torch.where(first[..., 0], one.placed, other.placed),
    )


class Pupil(nn.Module):  # type: ignore[misc]
    """The detector, and per teacher 80 classes and adapted features: what is not exported.

    Args:
        detector: what is trained.
        channels: for each teacher, the channels of its features at stride 8, 16 and 32.
        turns: 1 where each teacher saw every picture, or the number of teachers where they took turns.
    """

    def __init__(self, detector: Detector, channels: list[tuple[int, ...]], turns: int) -> None:
        super().__init__()
        self.detector, self._turns = detector, turns
        own = detector.channels
        self.kinds = nn.ModuleList(nn.ModuleList(nn.Conv2d(c, ALL, 1) for c in own) for _ in channels)
        self.adapters = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(c, t, 1) for c, t in zip(own, theirs, strict=True)) for theirs in channels
        )
        for head in self.kinds:
            for conv in head:
                nn.init.normal_(conv.weight, std=0.01)
                nn.init.constant_(conv.bias, -4.6)

    def forward(self, x: Any) -> tuple[Any, list[Any], list[list[Any]]]:
        """A batch of pictures; every `turns`-th was shown to the same teacher.

        Returns:
            Logits (B, N, ROW), and by teacher those of 80 classes (B / turns, N, 80) and the features.
        """
        neck = self.detector.neck(x)
        rows = torch.cat([_cells(h(n)) for h, n in zip(self.detector.heads, neck, strict=True)], 1)
        assert rows.shape[-1] == ROW
        kinds, features = [], []
        for t, (heads, adapters) in enumerate(zip(self.kinds, self.adapters, strict=True)):
            mine = [n[t % self._turns :: self._turns] for n in neck]
            kinds.append(torch.cat([_cells(conv(n)) for conv, n in zip(heads, mine, strict=True)], 1))
            features.append([conv(n) for conv, n in zip(adapters, mine, strict=True)])
        return rows.float(), kinds, features


def _cells(x: Any) -> Any:
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def kinds_loss(logits: Any, scores: Any) -> Any:
    """Quality focal loss (Li et al., 2020) of logits (B, N, 80) against a teacher's scores, per expected object."""
    logits = logits.float()
    weight = (logits.sigmoid() - scores).square()
    return (F.binary_cross_entropy_with_logits(logits, scores, reduction="none") * weight).sum() / scores.sum().clamp(1)


def _normal(x: Any) -> Any:
    x = x.float()
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) * (x - mean).square().mean((0, 2, 3), keepdim=True).add(1e-6).rsqrt()


def feature_loss(own: list[Any], theirs: tuple[Any, ...]) -> Any:
    """One less the correlation of features, by channel (PKD: Cao et al., 2022), mean over channels, sum over levels."""
    return sum((_normal(a) - _normal(b)).square().mean() / 2 for a, b in zip(own, theirs, strict=True))
