"""The weights of an INT8 model: scales that no processor overflows with, and rounding that is kept where it helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from streamd.models.calibrate import Observer, Peaks
from streamd.models.graph import Graph
from streamd.models.qdq import Layer, Sites, quantized
from streamd.models.rounding import convolutions, moments, solve, turns
from streamd.models.weights import QMAX, TINY, Int8Weights, nearest, safe_scales, unsigned_peaks, weight_scales
from streamd.types import Float32Array

Rounding = Literal["layer", "nearest"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)
PICTURES = 80
"""Calibration pictures looked at once more for rounding."""
HELD_OUT = 5
"""Of so many of these one is left out of rounding, to see whether it helped."""
Report = Callable[[str, int, int], None]


def _threshold(sites: Sites, thresholds: Mapping[str, float], layer: Layer) -> float:
    return thresholds[sites.sources[sites.group[layer.input]][0]]


def safe_weights(model: Any, sites: Sites, thresholds: Mapping[str, float], peaks: Peaks) -> dict[str, Int8Weights]:
    """By weight tensor, its nearest steps on scales that cannot overflow; see `weights.safe_scales`."""
    graph = Graph(model)
    groups = {node.name: int(graph.attribute(node, "group", 1)) for node in graph.nodes}
    scales: dict[str, Float32Array] = {}
    for layer in sites.layers:
        weight = graph.constant(layer.weight)
        if groups[layer.name] == 1:
            made = safe_scales(weight, unsigned_peaks(peaks[layer.input], _threshold(sites, thresholds, layer)))
        else:
            made = weight_scales(weight)
        # A tensor that several layers read has to suit all of them.
        scales[layer.weight] = np.maximum(made, scales[layer.weight]) if layer.weight in scales else made
    return {name: nearest(graph.constant(name), s) for name, s in scales.items()}


def output_noise(clean: Iterable[Mapping[str, Float32Array]], model: Any, inputs: Iterable[Float32Array]) -> float:
    """Power of the error at the output convolutions over that of their values, summed over the outputs."""
    noise: dict[str, float] = {}
    power: dict[str, float] = {}
    observer = None
    for wanted, batch in zip(clean, inputs, strict=True):
        observer = observer or Observer(model, list(wanted))
        for name, values in observer.run(batch).items():
            noise[name] = noise.get(name, 0.0) + float(np.square(values - wanted[name], dtype=np.float64).sum())
            power[name] = power.get(name, 0.0) + float(np.square(wanted[name], dtype=np.float64).sum())
    return sum(noise[name] / max(power[name], 1e-30) for name in noise)


def tuned(
    model: Any,
    sites: Sites,
    thresholds: Mapping[str, float],
    weights: Mapping[str, Int8Weights],
    peaks: Peaks,
    inputs: Callable[[int], Iterable[Float32Array]],
    report: Report,
    float_layers: Collection[str] = (),
) -> dict[str, Int8Weights]:
    """Weights rounded layer by layer, where that lowers the noise at the outputs on pictures left out of it.

    Args:
        model: the float model.
        sites: of it.
        thresholds: of its activations.
        weights: what `safe_weights` made, which is what it has to be better than.
        peaks: of the layers' inputs.
        inputs: gives so many network inputs of calibration pictures, the same at each call.
        report: is told about progress.
        float_layers: layers that stay in float.
    """
    layers = [layer for layer in sites.layers if layer.name not in float_layers]
    found = convolutions(model, layers)
    held_out = [x for i, x in enumerate(inputs(PICTURES)) if i % HELD_OUT == HELD_OUT - 1]
    if not found or not held_out:
        return dict(weights)

    def seen() -> Iterable[Float32Array]:
        total = PICTURES - PICTURES // HELD_OUT
        done = 0
        for i, x in enumerate(inputs(PICTURES)):
            if i % HELD_OUT != HELD_OUT - 1:
                yield x
                done += 1
                report("round weights", done, total)

    def int8(of: Mapping[str, Int8Weights]) -> Any:
        return quantized(model, sites, thresholds, float_layers=float_layers, weights=of)

    made = dict(weights)
    steps = {layer.name: max(_threshold(sites, thresholds, layer), TINY) / QMAX for layer in layers}
    for part in turns(found):
        moment = moments(model, part, steps, seen())
        for c in part:
            threshold = _threshold(sites, thresholds, c.layer)
            largest = unsigned_peaks(peaks[c.layer.input], threshold) if c.groups == 1 else None
            made[c.layer.weight] = solve(c, moment[c.layer.name], weights[c.layer.weight].scales, largest)
    observer = Observer(model, sites.outputs)
    clean = [observer.run(x) for x in held_out]
    before, after = (output_noise(clean, int8(of), held_out) for of in (weights, made))
    return made if math.isfinite(after) and after < before else dict(weights)
