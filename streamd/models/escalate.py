"""Where the gate refuses a model: the layers that have to stay in float, and what they cost.

First come those that make most of the noise with little of the work (`sensitivity.dominant`), then the fewest more, in
the order of their noise, until the model finds the float model's boxes again on pictures of its own: neither those that
weights were rounded on nor those that the gate judges on. The gate sees only what this search ends with, and if it
refuses that, too, the search goes on to half of the disagreement: a verdict is worth little if it chose the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from streamd.models.gate import MAX_DROP, MIN_AGREEMENT, Verdict
from streamd.models.sensitivity import Noise, Report, by_noise, dominant, fewest

AIM = 0.6
"""Share of the gate's limit that is aimed at. Of several models that are judged on the same pictures, the first that
passes looks better than it is."""
MOST = 0.5
"""Share of the multiplications in float beyond which an INT8 model is not worth having."""
LOOKS = 3
"""Models shown to the gate."""
CLOSEST = 0.998
"""Agreement that is not asked to be exceeded: arithmetic in bfloat16 alone may cost as much."""


@dataclass(frozen=True)
class Step:
    """One choice of float layers that the gate has judged."""

    float_layers: tuple[str, ...]
    share: float
    """Of the multiplications."""
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "float_layers": len(self.float_layers),
            "share": round(self.share, 4),
            "score": round(self.verdict.score, 5),
            "refusal": self.verdict.refusal,
        }


def escalated(
    noise: Noise,
    before: Verdict,
    always: Sequence[str],
    agreement: Callable[[Collection[str]], float],
    judge: Callable[[Collection[str]], Verdict],
    report: Report,
) -> list[Step]:
    """What was tried, in order.

    Args:
        noise: of the model.
        before: what the gate said of it with only `always` in float.
        always: layers that stay in float anyway.
        agreement: share of boxes that a choice of float layers has in common with the float model, on pictures for this
            search.
        judge: the gate's verdict on a choice.
        report: is told about progress.
    """
    asked: dict[frozenset[str], float] = {}
    bar = 1 - AIM * before.allowed * ((1 - MIN_AGREEMENT) / MAX_DROP if before.accuracy else 1)

    def agrees(layers: Collection[str]) -> Verdict:
        key = frozenset(layers)
        if key not in asked:
            asked[key] = agreement(layers)
        return Verdict(refusal=None if asked[key] >= min(bar, CLOSEST) else "not near enough")

    kept = [*always, *dominant(noise, report, always=always)]
    left = MOST - sum(noise.costs[name] for name in kept)
    order = []
    for harm in by_noise(noise, report):
        if harm.layer not in kept and noise.costs[harm.layer] <= left:
            order.append(harm.layer)
            left -= noise.costs[harm.layer]
    steps: list[Step] = []
    for _ in range(LOOKS):
        kept, found = fewest([name for name in order if name not in kept], kept, agrees, report)
        if not steps or len(kept) > len(steps[-1].float_layers):
            verdict = judge(kept) if len(kept) > len(always) else before
            steps.append(Step(tuple(kept), sum(noise.costs[name] for name in kept), verdict))
        if within_aim(steps[-1].verdict) or not found.passed:
            break
        bar = 1 - (1 - bar) / 2
    return steps


def within_aim(verdict: Verdict) -> bool:
    """Whether nothing better needs to be looked for."""
    return verdict.passed and verdict.score <= AIM * verdict.allowed


def best(steps: Sequence[Step]) -> Step | None:
    """The one that lost least of those that the gate let pass."""
    return min((step for step in steps if step.verdict.passed), key=lambda step: step.verdict.score, default=None)
