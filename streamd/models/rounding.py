"""Rounding weights so that each convolution's output stays what it was, rather than each weight.

For every convolution, or each group of a grouped one, the calibration pictures give two matrices: of its inputs in INT8
with themselves, and of these with its outputs in float. They say all that matters about the squared error of the
layer's output. The best real-valued weights for the inputs as they are in INT8 follow by least squares, drawn towards
the float weights; then they are rounded one input after the other, and what rounding one costs is made good by those
that are still to come (E. Frantar et al., "Optimal Brain Compression", 2022, in the order of "GPTQ", 2023). The bias is
fitted last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.models.calibrate import Observer
from streamd.models.graph import Graph
from streamd.models.qdq import Layer
from streamd.models.weights import QMAX, SUM_MAX, Int8Weights
from streamd.types import Float32Array

POSITIONS = 256
"""Output positions looked at in each picture; neighbours say the same thing twice."""
RIDGE = 0.01
"""How strongly weights are drawn towards the float ones, as a share of the inputs' mean power."""
MAX_INPUTS = 4608
"""Inputs of one output value (channels × kernel) beyond which a layer is rounded to the nearest: the matrix would
take 170 MB."""
MEMORY = 512 << 20
"""Bytes of matrices held at a time; more layers than fit are taken in turns."""
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Convolution:
    """What has to be known of a layer to take the inputs of one output position."""

    layer: Layer
    weight: Float32Array
    """(O, C/G, kh, kw)"""
    bias: Float32Array
    """(O,)"""
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    """Above, left, below, right."""
    dilations: tuple[int, int]
    groups: int = 1

    @property
    def inputs(self) -> int:
        """Of one output value."""
        return int(np.prod(self.weight.shape[1:]))


def convolutions(model: Any, layers: Sequence[Layer]) -> list[Convolution]:
    """Those of `layers` that can be rounded together: two dimensions, weights of their own."""
    graph = Graph(model)
    nodes = {node.name: node for node in graph.nodes}
    found = []
    for layer in layers:
        node = nodes[layer.name]
        weight = graph.constant(layer.weight)
        biased = len(node.input) > 2 and bool(node.input[2])
        if (
            weight.ndim != 4
            or str(graph.attribute(node, "auto_pad", "NOTSET")) != "NOTSET"
            or len(graph.consumers[layer.weight]) != 1
            or (biased and not graph.is_constant(node.input[2]))
        ):
            continue
        bias = graph.constant(node.input[2]) if biased else np.zeros(len(weight), np.float32)
        vertical, horizontal = graph.attribute(node, "strides", [1, 1])
        top, left, bottom, right = graph.attribute(node, "pads", [0, 0, 0, 0])
        down, across = graph.attribute(node, "dilations", [1, 1])
        convolution = Convolution(
            layer, weight, bias, (vertical, horizontal), (top, left, bottom, right), (down, across),
            int(graph.attribute(node, "group", 1)),
        )  # fmt: skip
        if convolution.inputs <= MAX_INPUTS:
            found.append(convolution)
    return found


def patches(c: Convolution, image: Float32Array, rows: npt.NDArray[Any], columns: npt.NDArray[Any]) -> Float32Array:
    """(P, C·kh·kw) what the convolution multiplies at P output positions of one (C, H, W) input."""
    top, left, bottom, right = c.pads
    padded = np.pad(image, ((0, 0), (top, bottom), (left, right)))
    high, wide = c.weight.shape[2:]
    y = rows[:, None] * c.strides[0] + np.arange(high) * c.dilations[0]
    x = columns[:, None] * c.strides[1] + np.arange(wide) * c.dilations[1]
    taken: Float32Array = padded[:, y[:, :, None], x[:, None, :]].transpose(1, 0, 2, 3).reshape(len(rows), -1)
    return taken


@dataclass
class Moments:
    """Second moments of a layer's inputs, with a constant 1 as the last of them, and of these with its outputs."""

    inputs: Float64Array
    """(G, K+1, K+1) for each group of channels."""
    outputs: Float64Array
    """(G, K+1, O/G)"""
    count: int = 0

    @classmethod
    def of(cls, c: Convolution) -> Moments:
        """Empty ones."""
        size = c.inputs + 1
        return cls(np.zeros((c.groups, size, size)), np.zeros((c.groups, size, len(c.weight) // c.groups)))

    def add(self, x: Float32Array, y: Float32Array) -> None:
        """Counts (P, G·K) inputs and (P, O) outputs."""
        groups, positions = len(self.inputs), len(x)
        x = x.reshape(positions, groups, -1).transpose(1, 0, 2)
        x = np.concatenate([x, np.ones((groups, positions, 1), np.float32)], axis=2)
        transposed = x.transpose(0, 2, 1)
        self.inputs += transposed @ x
        self.outputs += transposed @ y.reshape(positions, groups, -1).transpose(1, 0, 2)
        self.count += positions


def turns(found: Sequence[Convolution]) -> Iterable[list[Convolution]]:
    """The layers in parts whose matrices fit into `MEMORY`."""
    part: list[Convolution] = []
    used = 0
    for c in found:
        size = 8 * (c.inputs + 1) * (c.groups * (c.inputs + 1) + len(c.weight))
        if part and used + size > MEMORY:
            yield part
            part, used = [], 0
        part.append(c)
        used += size
    if part:
        yield part


def moments(
    model: Any,
    found: Sequence[Convolution],
    steps: Mapping[str, float],
    pictures: Iterable[Float32Array],
) -> dict[str, Moments]:
    """By layer, of its inputs in INT8 with its outputs in float.

    The inputs are the float model's, rounded. Those of the INT8 model would carry the errors of all layers before,
    and to make good for these in every layer at once overcorrects: YOLOv5n's outputs then have a signal-to-noise
    ratio of 9 dB instead of 24.

    Args:
        model: the float model.
        found: the layers.
        steps: by layer, what one step of its input is worth.
        pictures: network inputs, (B, …) each.
    """
    random = np.random.default_rng(0)
    watched = dict.fromkeys(name for c in found for name in (c.layer.input, c.layer.output))
    observer = Observer(model, list(watched))
    out = {c.layer.name: Moments.of(c) for c in found}
    for batch in pictures:
        seen = observer.run(batch)
        for c in found:
            y, step = seen[c.layer.output], np.float32(steps[c.layer.name])
            height, width = y.shape[2:]
            for i in range(len(y)):
                at = random.choice(height * width, min(POSITIONS, height * width), replace=False)
                rows, columns = at // width, at % width
                x = patches(c, seen[c.layer.input][i], rows, columns)
                x = np.clip(np.rint(x / step), -QMAX - 1, QMAX) * step
                out[c.layer.name].add(x, y[i][:, rows, columns].T)
    return out


def solve(
    c: Convolution,
    m: Moments,
    scales: Float32Array,
    unsigned: npt.NDArray[np.int64] | None = None,
) -> Int8Weights:
    """The steps and the bias with a small squared error of the layer's output.

    Args:
        c: the layer.
        m: its moments.
        scales: (O,) of the steps.
        unsigned: (C,) by `weights.unsigned_peaks`: no two neighbours may overflow with these. None does not care, as
            in a layer of several groups, which is computed otherwise.
    """
    size, groups = c.inputs, c.groups
    gram, cross = m.inputs / m.count, m.outputs / m.count
    flat = c.weight.reshape(groups, -1, size).astype(np.float64)
    # Without the means, which the bias takes care of.
    mean, wanted = gram[:, :size, size], cross[:, size]
    covariance = gram[:, :size, :size] - mean[:, :, None] * mean[:, None]
    ridge = (RIDGE * np.trace(covariance, axis1=1, axis2=2) / size + 1e-12)[:, None, None]
    covariance += ridge * np.eye(size)
    moment = cross[:, :size] - mean[:, :, None] * wanted[:, None]
    best = np.linalg.solve(covariance, moment + ridge * flat.transpose(0, 2, 1)).transpose(0, 2, 1).copy()
    # Row j of the inverse's triangle is how the rest makes good for an error of input j.
    factor = np.linalg.cholesky(np.linalg.inv(covariance)).transpose(0, 2, 1)
    steps = np.zeros(best.shape)
    scale, taps = scales.astype(np.float64).reshape(groups, -1), int(np.prod(c.weight.shape[2:]))
    for j in range(size):
        value = best[:, :, j]
        step = np.clip(np.rint(value / scale), -QMAX, QMAX)
        channel = j // taps
        if unsigned is not None and channel % 2:
            # The first of the pair is settled; this one has what is left of 16 bits.
            taken = unsigned[channel - 1] * steps[:, :, j - taps]
            most = np.floor((SUM_MAX - np.maximum(taken, 0)) / unsigned[channel])
            least = -np.floor((SUM_MAX - np.maximum(-taken, 0)) / unsigned[channel])
            step = np.clip(step, np.minimum(least, 0), np.maximum(most, 0))
        steps[:, :, j] = step
        error = (value - step * scale) / factor[:, None, j, j]
        best[:, :, j + 1 :] -= error[:, :, None] * factor[:, None, j, j + 1 :]
    bias = wanted - ((steps * scale[:, :, None]) @ mean[:, :, None])[:, :, 0]
    return Int8Weights(steps.reshape(c.weight.shape).astype(np.int8), scales, bias.reshape(-1).astype(np.float32))


def error(c: Convolution, m: Moments, weights: Int8Weights) -> float:
    """The mean squared error of the layer's output, up to what no weights can change."""
    bias = c.bias if weights.bias is None else weights.bias
    flat = np.concatenate([weights.values().reshape(len(bias), -1), bias[:, None]], axis=1).astype(np.float64)
    flat = flat.reshape(c.groups, -1, c.inputs + 1)
    return float((flat @ m.inputs * flat).sum() - 2 * (flat * m.outputs.transpose(0, 2, 1)).sum()) / m.count
