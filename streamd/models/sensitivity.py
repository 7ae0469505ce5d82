"""Which layers suffer from INT8: each quantized alone, and the fewest that must stay in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamd.models.calibrate import Observer
from streamd.models.gate import Verdict
from streamd.models.qdq import Sites, quantized
from streamd.models.weights import Int8Weights
from streamd.types import Float32Array

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LayerHarm:
    """The effect of quantizing one layer alone."""

    layer: str
    sqnr_db: float | None
    """Signal-to-quantization-noise ratio in dB at the worst output convolution: low is bad."""
    drop: float | None = None
    """Loss in the gate's measure (mAP, or share of agreeing boxes)."""


def sqnr_db(signal: Float32Array, other: Float32Array) -> float:
    """10·log10 of the power of `signal` over that of its difference from `other`; inf if they are equal."""
    noise = float(np.square(signal - other, dtype=np.float64).sum())
    return math.inf if noise == 0 else 10 * math.log10(float(np.square(signal, dtype=np.float64).sum()) / noise)


def by_noise(
    model: Any,
    sites: Sites,
    thresholds: Mapping[str, float],
    samples: Sequence[Float32Array],
    report: Report,
    weights: Mapping[str, Int8Weights] | None = None,
) -> list[LayerHarm]:
    """Layers in order of decreasing harm, measured as noise at the output convolutions."""
    names = [layer.name for layer in sites.layers]

    def outputs(of: Any) -> dict[str, Float32Array]:
        observer = Observer(of, sites.outputs)
        runs = [observer.run(sample) for sample in samples]
        return {name: np.stack([run[name] for run in runs]) for name in sites.outputs}

    clean = outputs(model)
    harms = []
    for i, name in enumerate(names):
        noisy = outputs(
            quantized(
                model, sites, thresholds, float_layers=[n for n in names if n != name], residuals=False, weights=weights
            )
        )
        ratios = [sqnr_db(clean[o], noisy[o]) for o in sites.outputs]
        finite = [r for r in ratios if math.isfinite(r)]
        harms.append(LayerHarm(name, round(min(finite), 2) if finite else None))
        report("sensitivity", i + 1, len(names))
    return sorted(harms, key=lambda h: math.inf if h.sqnr_db is None else h.sqnr_db)


def by_accuracy(names: Sequence[str], loss: Callable[[Collection[str]], float], report: Report) -> list[LayerHarm]:
    """Layers in order of decreasing harm, measured as the gate measures.

    Args:
        names: layers.
        loss: returns the loss with the given layers in float.
        report: is told about progress.
    """
    harms = []
    for i, name in enumerate(names):
        harms.append(LayerHarm(name, None, round(loss([n for n in names if n != name]), 5)))
        report("sensitivity", i + 1, len(names))
    return sorted(harms, key=lambda h: -(h.drop or 0.0))


def fewest(
    order: Sequence[str],
    always: Sequence[str],
    measure: Callable[[Collection[str]], Verdict],
    report: Report,
) -> tuple[list[str], Verdict]:
    """The fewest layers to keep in float so that the gate passes.

    The most harmful layers are kept in float: their number is doubled until the gate passes, then the gap is bisected;
    finally each remaining layer is tried in INT8 again. This takes few measurements instead of trying all subsets.

    Args:
        order: layers in order of decreasing harm.
        always: layers that always stay in float.
        measure: judges a choice of float layers.
        report: is told about progress.
    """
    tried = 0
    candidates = [name for name in order if name not in always]

    def judged(count: int) -> Verdict:
        nonlocal tried
        tried += 1
        report("auto", tried, 0)
        return measure([*always, *candidates[:count]])

    verdict = judged(0)
    if verdict.passed:
        return list(always), verdict
    low, high = 0, 1
    while high < len(candidates) and not (verdict := judged(high)).passed:
        low, high = high, high * 2
    if high >= len(candidates):
        high = len(candidates)
        verdict = judged(high)
        if not verdict.passed:
            return [*always, *candidates], verdict
    while high - low > 1:
        middle = (low + high) // 2
        attempt = judged(middle)
        if attempt.passed:
            high, verdict = middle, attempt
        else:
            low = middle
    kept = candidates[:high]
    # The last one was needed, or the search would have stopped before it; the others may not be needed.
    for name in list(reversed(kept[:-1]))[:16]:
        fewer = [k for k in kept if k != name]
        tried += 1
        report("auto", tried, 0)
        attempt = measure([*always, *fewer])
        if attempt.passed:
            kept, verdict = fewer, attempt
    return [*always, *kept], verdict
