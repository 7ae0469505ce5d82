"""Which layers suffer from INT8: each quantized alone, those that do most of the harm, and the fewest that must stay in
float for the gate to pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamd.models.behind import Behind, Edges, behind, contains_graphs, extracted
from streamd.models.calibrate import Observer, exposing
from streamd.models.gate import Verdict
from streamd.models.graph import Graph
from streamd.models.qdq import Sites, quantized
from streamd.models.weights import Int8Weights
from streamd.types import Float32Array

Report = Callable[[str, int, int], None]
STANDS_OUT = 0.1
"""Where one cheap layer makes this share of the sum of what all layers make alone at an output, or more, cheap layers
are kept in float. Measured: 0.15 and 0.19 in YOLOv5n, about 0.2 in YOLOv5-Lite-e and 0.5 in PicoDet-S."""
DOMINANT = 0.05
"""Those are then kept that make this share of the sum of those that are still in INT8, or more."""
QUIET = 3e-5
"""Noise over signal at every output below which no layer is kept in float: 45 dB, which is that of bfloat16 itself."""
FLOAT_SHARE = 0.05
"""What was measured: the share of a model's multiplications that `dominant` may leave in float."""


@dataclass(frozen=True)
class LayerHarm:
    """The effect of quantizing one layer alone."""

    layer: str
    sqnr_db: float | None
    """Signal-to-quantization-noise ratio in dB at the worst output convolution: low is bad."""
    drop: float | None = None
    """Loss in the gate's measure (mAP, or share of agreeing boxes)."""


class Noise:
    """The noise that quantizing some layers causes at the output convolutions of one model.

    Args:
        model: the float model.
        sites: of it.
        thresholds: of its activations.
        samples: network inputs to measure on.
        weights: by name of the weight tensor, its INT8 form.
    """

    def __init__(
        self,
        model: Any,
        sites: Sites,
        thresholds: Mapping[str, float],
        samples: Sequence[Float32Array],
        weights: Mapping[str, Int8Weights] | None = None,
    ) -> None:
        self._model, self._sites, self._thresholds = model, sites, thresholds
        self._samples, self._weights = samples, weights
        self.names = [layer.name for layer in sites.layers]
        self._clean = list(self._outputs(model))
        self._signal = {
            name: max(sum(float(np.square(seen[name].astype(np.float64)).sum()) for seen in self._clean), 1e-30)
            for name in sites.outputs
        }
        self._alone: dict[str, dict[str, float]] = {}
        self._parts: dict[str, Behind] = {}
        self._edges: Edges | None = None
        self._costs: dict[str, float] = {}

    @property
    def costs(self) -> dict[str, float]:
        """By layer, its share of the multiplications."""
        if not self._costs:
            self._costs = multiplications(self._model, self._sites, self._samples[0])
        return self._costs

    def alone(self, name: str) -> dict[str, float]:
        """As `of`, with nothing but this layer in INT8; measured once, by running what lies behind the layer."""
        if name not in self._alone:
            self._alone[name] = self.of([name]) if contains_graphs(self._model) else self._from_its_edge(name)
        return self._alone[name]

    def _from_its_edge(self, name: str) -> dict[str, float]:
        if self._edges is None:
            graph, outputs = Graph(self._model), self._sites.outputs
            self._parts = {layer.name: behind(graph, layer, outputs) for layer in self._sites.layers}
            self._edges = Edges(self._model, self._parts, self._samples)
        part = self._parts[name]
        if not part.outputs:
            return dict.fromkeys(self._sites.outputs, 0.0)
        values = self._edges.of(name)
        session = exposing(self._int8(extracted(self._model, part, values), [name]), part.outputs)
        return self._powers(dict(zip(part.outputs, session.run(part.outputs, v), strict=True)) for v in values)

    def _int8(self, model: Any, names: Collection[str]) -> Any:
        """The model, or a part of it, with these layers in INT8."""
        return quantized(
            model, self._sites, self._thresholds, float_layers=[n for n in self.names if n not in names],
            residuals=False, weights=self._weights,
        )  # fmt: skip

    def _outputs(self, of: Any) -> Iterator[dict[str, Float32Array]]:
        observer = Observer(of, self._sites.outputs)
        return (observer.run(sample) for sample in self._samples)

    def _powers(self, noisy: Iterable[Mapping[str, Float32Array]]) -> dict[str, float]:
        """By output, the power of the noise over that of the signal; of outputs that are not given, 0."""
        out = dict.fromkeys(self._sites.outputs, 0.0)
        for clean, found in zip(self._clean, noisy, strict=True):
            for name, values in found.items():
                error = np.subtract(clean[name], values, dtype=np.float64)
                out[name] += float(np.square(error, out=error).sum())
        return {name: power / self._signal[name] for name, power in out.items()}

    def of(self, int8: Collection[str]) -> dict[str, float]:
        """By output, the power of the noise over that of the signal with these layers in INT8."""
        return self._powers(self._outputs(self._int8(self._model, int8)))


def by_noise(noise: Noise, report: Report) -> list[LayerHarm]:
    """Layers in order of decreasing harm, measured as noise at the output convolutions."""
    harms = []
    for i, name in enumerate(noise.names):
        worst = max(noise.alone(name).values(), default=0.0)
        harms.append(LayerHarm(name, round(-10 * math.log10(worst), 2) if worst > 0 else None))
        report("sensitivity", i + 1, len(noise.names))
    return sorted(harms, key=lambda h: math.inf if h.sqnr_db is None else h.sqnr_db)


def multiplications(model: Any, sites: Sites, sample: Float32Array) -> dict[str, float]:
    """By layer, its share of the multiplications of all convolutions."""
    graph = Graph(model)
    nodes = [n for n in graph.nodes if n.op_type == "Conv" and graph.is_constant(n.input[1])]
    seen = Observer(model, [n.output[0] for n in nodes]).run(sample)
    counts = {
        n.name: float(np.prod(graph.constant(n.input[1]).shape[1:])) * float(np.prod(seen[n.output[0]].shape))
        for n in nodes
    }
    total = sum(counts.values())
    return {layer.name: counts[layer.name] / total for layer in sites.layers}


def dominant(noise: Noise, report: Report, *, always: Collection[str] = (), share: float = FLOAT_SHARE) -> list[str]:
    """The layers that cause most of the noise at the outputs and cost little in float, worst first; none where none
    stands out.

    A layer is weighed against the sum of what the layers still in INT8 make alone, not against what they make together:
    whether the noise of two layers adds or cancels on a few pictures is chance, and changes with the processor that
    rounded the weights. A choice by what is left together changes with it.

    Args:
        noise: of the model.
        report: is told about progress.
        always: layers that stay in float anyway.
        share: of the multiplications that may stay in float, besides those of `always`.
    """
    cost = noise.costs
    rest = [name for name in noise.names if name not in always]
    if not any(cost[name] <= share for name in rest):
        return []
    if max(noise.of(rest).values(), default=0.0) <= QUIET:
        return []
    alone: dict[str, dict[str, float]] = {}
    for i, name in enumerate(rest):
        alone[name] = noise.alone(name)
        report("find float layers", i + 1, len(rest))

    def most(of: Mapping[str, float], spare: float) -> tuple[float, str]:
        """The largest share of these powers that a layer makes alone which there is room for, and the layer."""
        shares = {
            name: max(made[output] / max(of[output], QUIET) for output in of)
            for name, made in alone.items()
            if cost[name] <= spare
        }
        worst = max(shares, key=lambda name: shares[name], default="")
        return shares.get(worst, 0.0), worst

    kept: list[str] = []
    left = share
    while alone:
        total = {output: sum(made[output] for made in alone.values()) for output in next(iter(alone.values()))}
        harm, worst = most(total, left)
        if harm < (DOMINANT if kept else STANDS_OUT) or max(total.values()) <= QUIET:
            break
        del alone[worst]
        kept.append(worst)
        left -= cost[worst]
    return kept


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
