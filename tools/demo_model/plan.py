"""What is trained and how a run is described: the plan, the running mean of the weights, measures."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from demo_model.augment import Augment, Strength
from demo_model.boxes import Array, average_precision, suppress
from demo_model.labels import reliability
from demo_model.net import Grid, flat
from demo_model.pack import FULL_SOURCES, Pack
from demo_model.teacher import Teacher, best_cells


@dataclass(frozen=True)
class Plan:
    """All training parameters. The defaults are the recipe used."""

    pack: Path
    out: Path
    name: str = "demo"
    device: str = "cuda"
    minutes: float = 8.0
    """Duration of this run in minutes, including startup."""
    total: float = 0.0
    """Of all runs together, where a later one resumes. 0: as `minutes`."""
    steps: int = 0
    """Number of steps after which to stop, for a trial. 0: stop by time."""
    batch: int = 128
    """A multiple of the number of teachers."""
    lr: float = 1.5e-3
    decay: float = 0.05
    """Weight decay (AdamW)."""
    warmup: int = 300
    """Steps."""
    ema: float = 0.999
    width: float = 0.25
    depth: float = 0.33
    box: float = 4.0
    """Weight of the box loss."""
    iou_share: float = 0.5
    teachers: tuple[Path, ...] = ()
    """Asked about training pictures. None: labels only."""
    both: bool = False
    """Ask every teacher about every picture, and train on their mean. Else they take turns, picture by picture, which
    is the same in the mean and much faster."""
    kinds: float = 0.5
    """Weight of the loss of all 80 classes."""
    feature: float = 1.0
    """Weight of the features' loss; it falls evenly to nothing."""
    close: float = 0.15
    """Share of the time at the end with mild changes only."""
    rare: float = 0.5
    mosaic: float = 0.6
    mixup: float = 0.15
    scale_low: float = 0.5
    scale_high: float = 1.8
    colour: float = 1.0
    """Multiplies every change of colour."""
    holdout: int = 0
    """Leave every n-th labelled picture out, and measure on those. 0: none."""
    limit: int = 0
    """Train on so many pictures, evenly taken. 0: all."""
    compile: bool = True
    graph: bool = True
    """Record a step once and replay it: the host then launches one thing a step."""
    cache: Path | None = None
    """File of compiled code: read if it is there, written after compiling."""
    init: Path | None = None
    """Exported detector to start from."""
    resume: Path | None = None
    """Weights of an earlier run to go on from; the optimiser starts afresh, with a warm-up."""
    memory: float = 60.0
    """GB of the device's memory that may be used."""
    seed: int = 0

    def strength(self) -> Strength:
        """Of the changes to pictures."""
        s = Strength()
        return dataclasses.replace(
            s, mosaic=self.mosaic, mixup=self.mixup, scale=(self.scale_low, self.scale_high), hue=s.hue * self.colour,
            saturation=s.saturation * self.colour, brightness=s.brightness * self.colour,
            contrast=s.contrast * self.colour,
        )  # fmt: skip


class Ema:
    """Exponential moving average of the weights, which is more accurate than the weights of a single step."""

    def __init__(self, model: nn.Module, decay: float, steps: int = 0) -> None:
        self._decay, self._steps = decay, steps
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}
        names = [k for k, v in self.state.items() if v.dtype.is_floating_point]
        now = model.state_dict()
        self._mean, self._now = [self.state[k] for k in names], [now[k].detach() for k in names]
        self._share = torch.zeros((), device=self._mean[0].device)

    def next(self) -> None:
        """Before a step. Early on the mean is short, so that the start is forgotten."""
        self._steps += 1
        self._share.fill_(1 - self._decay * (1 - math.exp(-self._steps / 1000)))

    def update(self) -> None:
        """After a step; can be captured."""
        difference = torch._foreach_sub(self._now, self._mean)
        torch._foreach_mul_(difference, self._share)
        torch._foreach_add_(self._mean, difference)


def learn_reliability(teacher: Teacher, augment: Augment, pack: Pack, batch: int) -> tuple[float, float]:
    """How one teacher's scores become chances, from the pictures whose labels are complete."""
    whole = [i for i, source in enumerate(pack.sources) if source in FULL_SOURCES][:128]
    # The size of the batches is that of training, for which the fastest convolutions are known already.
    whole = whole[: len(whole) // batch * batch] or whole
    seen: list[Array] = []
    truth: list[Array] = []
    with torch.no_grad():
        for part in torch.tensor(whole, device=augment.device).split(batch):
            pictures, rows = augment.plain(part)
            boxes, scores = best_cells(teacher, pictures, 160)
            seen += decoded(boxes, scores, floor=0.02)
            truth += [r[r[:, 4] > 0] for r in rows.cpu().numpy()]
    return reliability(seen, truth)


def decoded(boxes: Any, scores: Any, floor: float = 0.01) -> list[Array]:
    """Boxes (B, N, 4) and scores (B, N, 6) suppressed, as rows x1 y1 x2 y2 score class a picture."""
    out = []
    for box, score in zip(boxes.float().cpu().numpy(), scores.float().cpu().numpy(), strict=True):
        cell, number = np.nonzero(score > floor)
        values = score[cell, number]
        kept = suppress(box[cell], values, number)
        out.append(np.column_stack([box[cell][kept], values[kept], number[kept]]).astype(np.float32))
    return out


def measure(model: nn.Module, augment: Augment, chosen: list[int]) -> Array:
    """AP50 by class on pictures of the store, letterboxed; soft labels that are likelier than not count as labels."""
    grid = Grid(augment.device)
    found: list[Array] = []
    truth: list[Array] = []
    model.eval()
    searched, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    with torch.no_grad():
        for part in torch.tensor(chosen, device=augment.device).split(48):
            pictures, rows = augment.plain(part)
            logits = flat(model(pictures))
            found += decoded(grid.boxes(logits), logits[..., 4:5].sigmoid() * logits[..., 5:].sigmoid(), 0.05)
            truth += [r[r[:, 4] > 0.5][:, [0, 1, 2, 3, 5]] for r in rows.cpu().numpy()]
    torch.backends.cudnn.benchmark = searched
    model.train()
    return average_precision(found, truth, 6)
