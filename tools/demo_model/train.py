"""The training loop: as many steps as fit in the minutes given, with a checkpoint every minute."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from demo_model.augment import Augment, Store, Strength
from demo_model.boxes import Array
from demo_model.distill import Pupil, cell_targets, feature_loss, kinds_loss, surer
from demo_model.loss import Targets, assign, loss, one_hot
from demo_model.net import Detector, Grid
from demo_model.pack import FULL_SOURCES, Pack, read
from demo_model.plan import Ema, Plan, learn_reliability, measure
from demo_model.speed import Recorder, attempt, profile
from demo_model.teacher import Teacher
from demo_model.warm import warm_start

LOG_EVERY = 50
"""Steps between looks at the device: each is one wait."""


class Trainer:
    """One training run.

    Args:
        plan: what to do.
        started: `time.monotonic()` from which the minutes count.
        pack: what to train on, where it is not read from the plan's file.
    """

    def __init__(self, plan: Plan, started: float, pack: Pack | None = None) -> None:
        self.plan, self._started = plan, started
        if plan.device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            # Trying every algorithm takes half a minute.
            torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 4
            share = plan.memory * 1e9 / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, share))
            if plan.cache is not None and plan.cache.exists():
                attempt(functools.partial(torch.compiler.load_cache_artifacts, plan.cache.read_bytes()))
        pack = pack or read(plan.pack, plan.limit or None, threads=6)
        whole = [i for i, source in enumerate(pack.sources) if source in FULL_SOURCES]
        labelled = [i for i, rows in enumerate(pack.rows) if pack.sources[i] in FULL_SOURCES or len(rows)]
        self.held = labelled[:: plan.holdout] if plan.holdout else []
        self.known = whole[:96]
        self.store = Store(pack, plan.device, plan.rare, plan.seed, leave=self.held)
        self.augment = Augment(self.store)
        self.model = Detector(plan.width, plan.depth).to(plan.device).to(memory_format=torch.channels_last)
        self.grid = Grid(plan.device)
        count = sum(p.numel() for p in self.model.parameters())
        self.say(f"{len(pack.rows)} pictures ({len(self.held)} held out), {count / 1e6:.2f} M parameters")
        half = torch.float16 if plan.device == "cuda" else torch.float32
        self.teachers = [Teacher(path, plan.device, half, features=True) for path in plan.teachers]
        self._trust = [learn_reliability(t, self.augment, pack, max(1, plan.batch // 2)) for t in self.teachers]
        for path, (a, b) in zip(plan.teachers, self._trust, strict=True):
            self.say(f"{path.name}: right with chance σ({a:.2f}·logit(score) {b:+.2f})")
        self._turns = 1 if plan.both else max(1, len(self.teachers))
        if plan.init is not None:
            batches = [self.augment(32, Strength.mild())[0] for _ in range(16 if plan.device == "cuda" else 4)]
            warm_start(self.model, plan.init, batches)
        self.pupil = Pupil(self.model, [t.channels for t in self.teachers], self._turns)
        self.pupil = self.pupil.to(plan.device).to(memory_format=torch.channels_last)
        weights = [p for p in self.pupil.parameters() if p.ndim > 1]
        others = [p for p in self.pupil.parameters() if p.ndim <= 1]
        self._lr = torch.tensor(plan.lr, device=plan.device)
        groups = [
            {"params": weights, "weight_decay": plan.decay, "lr": self._lr},
            {"params": others, "weight_decay": 0.0, "lr": self._lr},
        ]
        cuda = plan.device == "cuda"
        self.optimizer = torch.optim.AdamW(groups, self._lr, betas=(0.9, 0.99), fused=cuda, capturable=cuda)
        self.ema = Ema(self.model, plan.ema)
        self.step, self.before = 0, 0.0
        if plan.resume is not None:
            self._resume(plan.resume)
        self._feature = torch.tensor(plan.feature, device=plan.device)
        self._sums = torch.zeros(5, device=plan.device)
        self._forward: Any = self.pupil
        self._score: Any = self.score
        self._recorder: Recorder | None = None

    def _half(self) -> Any:
        return (
            torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if self.plan.device == "cuda" else nullcontext()
        )

    def say(self, text: str) -> None:
        """Prints a message with the time since the start."""
        print(f"[{self.plan.name} {time.monotonic() - self._started:6.1f} s] {text}", flush=True)

    def draw(self) -> tuple[Any, Any]:
        """A batch of pictures (B, 3, SIZE, SIZE) and their rows, of the strength in use."""
        with torch.no_grad():
            pictures, rows = self.augment.draw(self.plan.batch, int(self.plan.batch * self.plan.mixup))
            return pictures.contiguous(memory_format=torch.channels_last), rows

    def ask(self, pictures: Any, rows: Any) -> tuple[Targets, list[Any], list[Any]]:
        """Targets of a batch; and, by teacher, its scores of 80 classes and its features."""
        with torch.no_grad():
            given = assign(rows[..., :4], one_hot(rows), rows[..., 4] > 0.999)
            told, kinds, features = [], [], []
            for i, (teacher, trust) in enumerate(zip(self.teachers, self._trust, strict=True)):
                seen = teacher.look(pictures[i % self._turns :: self._turns])
                told.append(cell_targets(seen, self.grid, *trust))
                kinds.append(seen.all[:, : given.boxes.shape[1]])
                features.append(seen.features)
            if not told:
                return given, kinds, features
            if self._turns == 1:
                cells = told[0]
                for other in told[1:]:
                    cells = surer(cells, other)
                cells.scores = sum(t.scores for t in told) / len(told)
            else:
                cells = Targets(
                    *(torch.stack(v, 1).flatten(0, 1) for v in zip(*map(Targets.values, told), strict=True))
                )
            return surer(given, cells), kinds, features

    def score(
        self, rows: Any, own: list[Any], adapted: Any, targets: Any, kinds: Any, features: Any
    ) -> tuple[Any, Any]:
        """The loss, and its parts detached: box, objectness, class, all classes, features."""
        plan = self.plan
        total, parts = loss(rows, Targets(*targets), self.grid, box=plan.box, iou_share=plan.iou_share)
        every = sum((kinds_loss(o, k) for o, k in zip(own, kinds, strict=True)), total.new_zeros(()))
        alike = sum((feature_loss(o, f) for o, f in zip(adapted, features, strict=True)), total.new_zeros(()))
        total = total + (plan.kinds * every + self._feature * alike) / max(1, len(own))
        return total, torch.cat([parts, torch.stack([every, alike]).detach()])

    def learn(self, pictures: Any, targets: Targets, kinds: list[Any], features: list[Any]) -> Any:
        """Forward and backward; returns the loss's parts."""
        with self._half():
            rows, own, adapted = self._forward(pictures)
        total, parts = self._score(rows, own, adapted, targets.values(), kinds, features)
        total.backward()
        return parts

    def apply(self) -> None:
        """Changes the weights, and drops the gradients."""
        nn.utils.clip_grad_norm_(self.pupil.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()

    def work(self) -> None:
        """All of a step that the device does: nothing of it waits for the host, so that it can be recorded."""
        pictures, rows = self.draw()
        self._sums += self.learn(pictures, *self.ask(pictures, rows))
        self.apply()

    def advance(self, lr: float, feature: float = 1.0) -> None:
        """One step."""
        self._lr.fill_(lr)
        self._feature.fill_(self.plan.feature * feature)
        self.ema.next()
        self.augment.shake(self.plan.batch)
        if self._recorder is None:
            self.work()
        else:
            self._recorder()
        self.step += 1

    def parts(self, steps: int) -> list[float]:
        """Means of the loss's parts over the last so many steps: waits for the device."""
        values: list[float] = (self._sums / steps).tolist()
        self._sums.zero_()
        return values

    def prepare(self) -> None:
        """Compiles and records what can be, and says how long each part of a step takes."""
        plan = self.plan
        self.augment.use(plan.strength())
        self.augment.shake(plan.batch)
        self.ema.next()
        self._lr.fill_(1e-6)
        if plan.compile:
            self._compile()
        self.times()
        if plan.graph and plan.device == "cuda":
            fault = attempt(self._record)
            if fault is not None:
                self._recorder = None
                self.pupil.zero_grad(set_to_none=True)  # what was recorded of them was never calculated
                self.say(f"not recorded: {fault}")
        self._sums.zero_()

    def _record(self) -> None:
        """Records a step, and checks that its replay says what the step itself says.

        Raises:
            RuntimeError: it says something else.
        """
        plan, recorder = self.plan, Recorder(self.work)
        losses = []
        for step in (self.work, recorder):
            self._sums.zero_()
            step()
            losses.append(self._sums.tolist())
        if not np.allclose(losses[0], losses[1], rtol=0.05, atol=0.01):
            raise RuntimeError(f"replayed, a step says {losses[1]} instead of {losses[0]}")
        seconds = profile(recorder, 5)
        self._recorder = recorder
        self.say(f"recorded: {1000 * seconds:.1f} ms a step, {plan.batch / seconds:.0f} pictures/s")

    def times(self) -> None:
        """Prints how long each part of a step takes, with the host's time to launch it."""
        pictures, rows = self.draw()
        answers = self.ask(pictures, rows)

        def learn() -> None:
            self.learn(pictures, *answers)
            self.pupil.zero_grad(set_to_none=True)

        parts: dict[str, Callable[[], Any]] = {
            "draw": self.draw,
            "ask": functools.partial(self.ask, pictures, rows),
            "learn": learn,
            "all": self.work,
        }
        told = ", ".join(f"{k} {1000 * profile(v):.1f}" for k, v in parts.items())
        self.say(f"ms a step of {self.plan.batch}: {told}")

    def _compile(self) -> None:
        """Compiles the pixels' arithmetic, the network and the loss, where this machine can."""
        pictures, rows = self.draw()
        answers = self.ask(pictures, rows)

        def learn() -> None:
            self.learn(pictures, *answers)

        self._forward, self._score = torch.compile(self.pupil), torch.compile(self.score)
        fault = attempt(learn)
        if fault is not None:
            self._forward, self._score = self.pupil, self.score
        self.pupil.zero_grad(set_to_none=True)
        self.say(f"network: {fault or 'compiled'}")
        usual = self.augment.look_up
        self.augment.look_up = torch.compile(usual)
        fault = attempt(self.draw)
        if fault is not None:
            self.augment.look_up = usual
        self.say(f"pictures: {fault or 'compiled'}")
        if self.plan.cache is not None and self.plan.device == "cuda":
            attempt(functools.partial(self._keep, self.plan.cache))

    @staticmethod
    def _keep(cache: Path) -> None:
        """Writes the compiled code."""
        made = torch.compiler.save_cache_artifacts()
        if made is not None:
            cache.write_bytes(made[0])

    def run(self) -> Path:
        """Trains to the end of the time; returns the file of the weights."""
        plan = self.plan
        self.prepare()
        total = 60 * (plan.total or plan.minutes)
        # The last seconds are for writing.
        mine = 60 * plan.minutes - 8
        logged, saved, at = time.monotonic(), time.monotonic(), self.step
        begun, mild = self.step, False
        while True:
            spent = time.monotonic() - self._started
            share = self.step / plan.steps if plan.steps else min(1.0, (self.before + spent) / (total - 8))
            if (self.step >= plan.steps) if plan.steps else spent >= mine:
                break
            warm = min(1.0, (self.step - begun + 1) / plan.warmup)
            lr = plan.lr * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
            if not mild and share > 1 - plan.close:
                mild = True
                self.augment.use(Strength.mild(), mix=False)
            self.advance(lr, 1 - share)
            if self.step % LOG_EVERY == 0:
                parts = self.parts(LOG_EVERY)
                now = time.monotonic()
                speed = (self.step - at) * plan.batch / (now - logged)
                if now - logged > 10 or not math.isfinite(sum(parts)):
                    epochs = self.step * plan.batch / self.store.count
                    told = " ".join(
                        f"{n} {v:.3f}" for n, v in zip(("box", "obj", "cls", "all", "feat"), parts, strict=True)
                    )
                    self.say(
                        f"step {self.step} ({epochs:.0f} epochs, {share:.0%}) {told} lr {lr:.5f} {speed:.0f} pictures/s"
                    )
                    logged, at = now, self.step
                if not math.isfinite(sum(parts)):
                    raise SystemExit(f"{plan.name}: the loss is no number at step {self.step}; lower --lr")
                if now - saved > 60:
                    saved = now
                    self.save()
        path = self.save()
        for name, chosen in (("held out", self.held), ("at the end, labelled training pictures", self.known)):
            if chosen:
                self._tell(name, chosen)
        return path

    def _tell(self, name: str, chosen: list[int]) -> None:
        ap = self.measure(chosen)
        self.say(f"{name}: AP50 {np.round(ap, 3).tolist()}, mean {np.nanmean(ap):.3f}")

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
        spent = self.before + time.monotonic() - self._started
        meta = {"width": plan.width, "depth": plan.depth, "step": self.step, "spent": spent}
        temporary = path.with_name(f".{path.name}.tmp")
        torch.save({"state": self.ema.state, "meta": meta}, temporary)
        os.replace(temporary, path)
        return path

    def _resume(self, path: Path) -> None:
        found = torch.load(path, map_location=self.plan.device, weights_only=True)
        state = {k: v.float() if v.dtype.is_floating_point else v for k, v in found["state"].items()}
        self.model.load_state_dict(state)
        self.step, self.before = found["meta"]["step"], found["meta"]["spent"]
        self.ema = Ema(self.model, self.plan.ema, self.step)
        self.say(f"resumed at step {self.step}, {self.before:.0f} s in")
