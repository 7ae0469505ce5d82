"""The training loop: as many steps as fit in the minutes given, with a checkpoint every minute."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from demo_model import SIZE
from demo_model.augment import Augment, Store, Strength
from demo_model.boxes import Array, average_precision, suppress
from demo_model.labels import reliability
from demo_model.loss import assign, loss, one_hot
from demo_model.net import Detector, Grid, flat
from demo_model.pack import FULL_SOURCES, Pack, read
from demo_model.teacher import Teacher, best_cells

LOG_EVERY = 50
"""Steps between looks at the device: each is one wait."""


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
    lr: float = 2e-3
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
    """Asked about every training picture. None: labels only."""
    distill: float = 1.0
    """What the teachers' chances of being right are multiplied by."""
    cells: int = 160
    """Best cells of each teacher that count."""
    close: float = 0.15
    """Share of the time at the end with mild changes only."""
    rare: float = 0.5
    mosaic: float = 0.6
    mixup: float = 0.1
    scale_low: float = 0.6
    scale_high: float = 1.7
    colour: float = 1.0
    """Multiplies every change of colour."""
    holdout: int = 0
    """Leave every n-th labelled picture out, and measure on those. 0: none."""
    limit: int = 0
    """Train on so many pictures, evenly taken. 0: all."""
    compile: bool = True
    resume: Path | None = None
    """Weights of an earlier run to go on from; the optimiser starts afresh, with a warm-up."""
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
        self._pairs = [k for k, v in self.state.items() if v.dtype.is_floating_point]

    def update(self, model: nn.Module) -> None:
        """After a step. Early on the mean is short, so that the random start is forgotten."""
        self._steps += 1
        d = self._decay * (1 - math.exp(-self._steps / 1000))
        new = model.state_dict()
        torch._foreach_lerp_([self.state[k] for k in self._pairs], [new[k].detach() for k in self._pairs], 1 - d)


def learn_reliability(teacher: Teacher, augment: Augment, pack: Pack, cells: int) -> tuple[float, float]:
    """How one teacher's scores become chances, from the pictures whose labels are complete."""
    whole = [i for i, source in enumerate(pack.sources) if source in FULL_SOURCES][:256]
    seen: list[Array] = []
    truth: list[Array] = []
    with torch.no_grad():
        for part in torch.tensor(whole, device=augment.device).split(32):
            pictures, rows = augment.plain(part)
            boxes, scores = best_cells(teacher, pictures, cells)
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
    with torch.no_grad():
        for part in torch.tensor(chosen, device=augment.device).split(64):
            pictures, rows = augment.plain(part)
            logits = flat(model(pictures))
            found += decoded(grid.boxes(logits), logits[..., 4:5].sigmoid() * logits[..., 5:].sigmoid())
            truth += [r[r[:, 4] > 0.5][:, [0, 1, 2, 3, 5]] for r in rows.cpu().numpy()]
    model.train()
    return average_precision(found, truth, 6)


class Trainer:
    """One training run.

    Args:
        plan: what to do.
        started: `time.monotonic()` from which the minutes count.
        pack: what to train on, where it is not read from the plan's file.
    """

    def __init__(self, plan: Plan, started: float, pack: Pack | None = None) -> None:
        self.plan, self._started = plan, started
        torch.manual_seed(plan.seed)
        if plan.device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        pack = pack or read(plan.pack, plan.limit or None)
        labelled = [i for i, rows in enumerate(pack.rows) if pack.sources[i] in FULL_SOURCES or len(rows)]
        self.held = labelled[:: plan.holdout] if plan.holdout else []
        self.store = Store(pack, plan.device, plan.rare, plan.seed, leave=self.held)
        self.augment = Augment(self.store)
        self.model = Detector(plan.width, plan.depth).to(plan.device).to(memory_format=torch.channels_last)
        self.grid = Grid(plan.device)
        count = sum(p.numel() for p in self.model.parameters())
        self.say(f"{len(pack.rows)} pictures ({len(self.held)} held out), {count / 1e6:.2f} M parameters")
        half = torch.float16 if plan.device == "cuda" else torch.float32
        self.teachers = []
        for path in plan.teachers if plan.distill > 0 else ():
            teacher = Teacher(path, plan.device, half)
            a, b = learn_reliability(teacher, self.augment, pack, plan.cells)
            self.say(f"{path.name}: right with chance σ({a:.2f}·logit(score) {b:+.2f})")
            self.teachers.append((teacher, a, b))
        weights = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, plan.lr, betas=(0.9, 0.99), fused=plan.device == "cuda")
        self.ema = Ema(self.model, plan.ema)
        self.step, self.before = 0, 0.0
        if plan.resume is not None:
            self._resume(plan.resume)
        self._forward: Any = self._compiled() if plan.compile else self.model

    def _half(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16) if self.plan.device == "cuda" else nullcontext()

    def _compiled(self) -> Any:
        """The compiled network, or the plain one where this machine cannot compile it."""
        import copy

        state = copy.deepcopy(self.model.state_dict())
        shape = (self.plan.batch, 3, SIZE, SIZE)
        forward = torch.compile(self.model)
        try:
            with self._half():
                heads = forward(torch.rand(shape, device=self.plan.device).to(memory_format=torch.channels_last))
            flat(heads).sum().backward()
        except Exception as error:  # noqa: BLE001 - a compiler has many ways to fail, and training needs none of it
            self.say(f"not compiled: {str(error).splitlines()[0] if str(error) else error!r}")
            forward = self.model
        self.model.zero_grad(set_to_none=True)
        self.model.load_state_dict(state)  # normalisation has seen noise
        self.say("compiled" if forward is not self.model else "runs as it is")
        return forward

    def say(self, text: str) -> None:
        """Prints a message with the time since the start."""
        print(f"[{self.plan.name} {time.monotonic() - self._started:6.1f} s] {text}", flush=True)

    def batch(self, strength: Strength) -> tuple[Any, Any]:
        """One batch of pictures (B, 3, SIZE, SIZE) and its targets."""
        with torch.no_grad():
            pictures, rows = self.augment(self.plan.batch, strength)
            boxes, scores, drawn = [rows[..., :4]], [one_hot(rows)], [rows[..., 4] > 0.999]
            for teacher, a, b in self.teachers:
                found, score = best_cells(teacher, pictures, self.plan.cells)
                chance = torch.sigmoid(a * torch.logit(score, 1e-4) + b) * self.plan.distill
                boxes.append(found)
                scores.append(chance)
                drawn.append(torch.zeros_like(chance[..., 0], dtype=torch.bool))
            return pictures, assign(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(drawn, 1))

    def advance(self, strength: Strength, lr: float) -> Any:
        """One step; returns the loss's parts, still on the device."""
        plan = self.plan
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        pictures, targets = self.batch(strength)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with self._half():
            heads = self._forward(pictures)
        total, parts = loss(flat(heads), targets, self.grid, box=plan.box, iou_share=plan.iou_share)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self.ema.update(self.model)
        self.step += 1
        return parts

    def run(self) -> Path:
        """Trains to the end of the time; returns the file of the weights."""
        plan = self.plan
        total = 60 * (plan.total or plan.minutes)
        # The last seconds are for writing.
        mine = 60 * plan.minutes - 8
        strong, mild = plan.strength(), Strength.mild()
        logged, saved, at = time.monotonic(), time.monotonic(), self.step
        begun = self.step
        sums = torch.zeros(3, device=plan.device)
        share = 0.0
        while True:
            spent = time.monotonic() - self._started
            share = self.step / plan.steps if plan.steps else min(1.0, (self.before + spent) / (total - 8))
            if (self.step >= plan.steps) if plan.steps else spent >= mine:
                break
            warm = min(1.0, (self.step - begun + 1) / plan.warmup)
            lr = plan.lr * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
            sums += self.advance(mild if share > 1 - plan.close else strong, lr)
            if self.step % LOG_EVERY == 0:
                box, objectness, kinds = (sums / LOG_EVERY).tolist()
                sums.zero_()
                now = time.monotonic()
                speed = (self.step - at) * plan.batch / (now - logged)
                logged, at = now, self.step
                epochs = self.step * plan.batch / self.store.count
                self.say(
                    f"step {self.step} ({epochs:.0f} epochs, {share:.0%}) box {box:.3f} obj {objectness:.3f} "
                    f"cls {kinds:.3f} lr {lr:.5f} {speed:.0f} pictures/s"
                )
                if not math.isfinite(box + objectness + kinds):
                    raise SystemExit(f"{plan.name}: the loss is no number at step {self.step}; lower --lr")
                if now - saved > 60:
                    saved = now
                    self.save()
        path = self.save()
        if self.held:
            ap = self.measure(self.held)
            self.say(f"held out: AP50 {np.round(ap, 3).tolist()}, mean {np.nanmean(ap):.3f}")
        return path

    def measure(self, chosen: list[int]) -> Array:
        """AP50 by class of the running mean's weights on these pictures."""
        model = Detector(self.plan.width, self.plan.depth).to(self.plan.device)
        model.load_state_dict(self.ema.state)
        return measure(model, self.augment, chosen)

    def save(self) -> Path:
        """Writes the running mean's weights: the result, and enough to go on from."""
        plan = self.plan
        plan.out.mkdir(parents=True, exist_ok=True)
        path = plan.out / f"{plan.name}.pt"
        small = {k: v.half() if v.dtype.is_floating_point else v for k, v in self.ema.state.items()}
        spent = self.before + time.monotonic() - self._started
        meta = {"width": plan.width, "depth": plan.depth, "step": self.step, "spent": spent}
        temporary = path.with_name(f".{path.name}.tmp")
        torch.save({"state": small, "meta": meta}, temporary)
        os.replace(temporary, path)
        return path

    def _resume(self, path: Path) -> None:
        found = torch.load(path, map_location=self.plan.device, weights_only=True)
        state = {k: v.float() if v.dtype.is_floating_point else v for k, v in found["state"].items()}
        self.model.load_state_dict(state)
        self.step, self.before = found["meta"]["step"], found["meta"]["spent"]
        self.ema = Ema(self.model, self.plan.ema, self.step)
        self.say(f"resumed at step {self.step}, {self.before:.0f} s in")
