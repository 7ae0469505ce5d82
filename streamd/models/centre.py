"""One-sided activations moved to the middle of INT8's range.

SiLU never falls below −0.28 and ReLU not below 0, so that a symmetric scale uses little more than half of its steps.
With a zero point they would be half as large, but TensorRT has none. The same is had by subtracting a constant before
the rounding, and adding its product with the weights to the biases behind: exactly the same network with half the
rounding error. That holds where only convolutions without padding read the activation, through concatenations and the
like; padding would put the constant where zeros belong.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from streamd.models.calibrate import Histogram, Peaks
from streamd.models.graph import Graph, constant_weight, vendor
from streamd.models.qdq import Layer, Sites, find_sites
from streamd.models.weights import QMAX, Int8Weights

Ranges = Literal["centred", "symmetric"]
RANGES: tuple[str, ...] = get_args(Ranges)
SILU = -0.27847
"""The least value of x·σ(x)."""
HARD_SWISH = -0.375
"""That of x·clip(x + 3, 0, 6)/6."""
STEPS = 2 * QMAX
"""Between the ends of the range."""
LARGE = 2
"""Ranges are moved that are so many times as large above zero as below: steps are then three quarters or less."""


@dataclass(frozen=True)
class Centred:
    """A model whose one-sided activations are in the middle of their ranges, and what calibration says of it."""

    model: Any
    sites: Sites
    thresholds: dict[str, float]
    peaks: Peaks
    moved: dict[str, float]
    """By weight tensor of a layer that reads moved activations, by how much they were."""

    direct: dict[str, tuple[str, ...]]
    """By name of a convolution that reads a moved activation itself, its inputs before."""

    def in_float(self, model: Any, float_layers: Collection[str]) -> Any:
        """The model with these layers reading what is not moved: in bfloat16, the constant would cost accuracy.

        Args:
            model: this one or one made of it; left alone.
            float_layers: names.
        """
        if not any(name in self.direct for name in float_layers):
            return model
        made = copy.deepcopy(model)
        for node in made.graph.node:
            if node.name in float_layers and node.name in self.direct:
                del node.input[:]
                node.input.extend(self.direct[node.name])
        return made

    def corrected(self, weights: Mapping[str, Int8Weights]) -> dict[str, Int8Weights]:
        """The weights, with biases that make good for what these rounded weights make of the constant."""
        graph, out = Graph(self.model), dict(weights)
        for node in graph.nodes:
            if node.op_type == "Conv" and node.input[1] in self.moved and node.input[1] in weights:
                made = weights[node.input[1]]
                wrong = graph.constant(node.input[1]).astype(np.float64) - made.values()
                added = self.moved[node.input[1]] * wrong.reshape(len(wrong), -1).sum(1)
                bias = graph.constant(node.input[2]) - added
                out[node.input[1]] = replace(made, bias=bias.astype(np.float32))
        return out


class _Bounds:
    """The least values that tensors can have."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def least(self, tensor: str, depth: int = 32) -> float | None:
        """None if that is not known."""
        graph, node = self._graph, self._graph.producer.get(tensor)
        if node is None or depth == 0:
            return None
        kind = node.op_type
        if kind in ("Relu", "Sigmoid", "HardSigmoid"):
            return 0.0
        if kind == "HardSwish":
            return HARD_SWISH
        if kind == "Mul" and len(node.input) == 2:
            return self._product(node.input[0], node.input[1], depth)
        if kind == "Clip":
            return self._clipped(node)
        if kind == "Div" and graph.is_constant(node.input[1]):
            least, by = self.least(node.input[0], depth - 1), graph.constant(node.input[1])
            return None if least is None or by.size != 1 or by.item() <= 0 else least / float(by.item())
        if kind == "Add":
            known = self._all([*node.input], depth)
            return None if known is None else sum(known)
        known = self._all(graph.data_inputs(node), depth) if graph.passes(node) else None
        return min(known) if known else None

    def _all(self, names: list[str], depth: int) -> list[float] | None:
        found = [self.least(name, depth - 1) for name in names]
        known = [value for value in found if value is not None]
        return known if len(known) == len(found) else None

    def _clipped(self, node: Any) -> float | None:
        graph = self._graph
        if len(node.input) < 2 or not node.input[1]:
            low = graph.attribute(node, "min")
            return None if low is None else float(low)
        return float(graph.constant(node.input[1]).item()) if graph.is_constant(node.input[1]) else None

    def _product(self, first: str, second: str, depth: int) -> float | None:
        graph = self._graph
        for x, gate in ((first, second), (second, first)):
            node = graph.producer.get(gate)
            if node is None or node.op_type not in ("Sigmoid", "HardSigmoid", "Clip"):
                continue
            if node.op_type == "Clip":
                if self._is_hard_swish(x, node):
                    return 6 * HARD_SWISH
            elif node.input[0] == x:
                steep = float(graph.attribute(node, "alpha", 0.2)) if node.op_type == "HardSigmoid" else 0.0
                offset = float(graph.attribute(node, "beta", 0.5))
                # The least of x·(αx + β) lies at −β/2α.
                return -(offset**2) / (4 * steep) if steep > 0 else SILU if node.op_type == "Sigmoid" else None
            elif (least := self.least(x, depth - 1)) is not None:
                # A share of x.
                return min(least, 0.0)
        return None

    def _is_hard_swish(self, x: str, clip: Any) -> bool:
        """x·clip(x + 3, 0, 6)."""
        graph, added = self._graph, self._graph.producer.get(clip.input[0])
        if added is None or added.op_type != "Add" or x not in added.input or self._clipped(clip) != 0.0:
            return False
        other = next((name for name in added.input if name != x), "")
        return graph.is_constant(other) and graph.constant(other).size == 1 and graph.constant(other).item() == 3


def _range(histogram: Histogram, least: float) -> float:
    """The largest value to represent, with the least squared error, if the steps reach from `least` to it."""
    used = int(np.flatnonzero(histogram.counts)[-1]) + 1
    centres = (np.arange(used) + 0.5) * histogram.width
    counts = histogram.counts[:used].astype(np.float64)
    best, error = histogram.peak, np.inf
    for part in range(100, 9, -1):
        most = histogram.peak * part / 100
        step = (most - least) / STEPS
        found = float((counts * (centres - np.minimum(np.rint(centres / step) * step, most)) ** 2).sum())
        if found < error:
            best, error = most, found
    return best


def _movable(graph: Graph, sites: Sites, layers: Mapping[str, Layer]) -> dict[int, list[Any]]:
    """By group whose values may be moved, the convolutions whose biases then change."""
    out: dict[int, list[Any]] = {}
    for group, sources in sites.sources.items():
        tensors = {name for name, g in sites.group.items() if g == group}
        fits = not tensors.intersection(graph.outputs) and not tensors.intersection(graph.inputs)
        readers = []
        for name in tensors:
            for node in graph.consumers.get(name, []):
                if node.op_type == "Shape" or (name in sources and _stays(node, layers)):
                    continue
                if node.op_type == "Conv" and node.input[0] == name:
                    fits &= _unpadded(graph, node)
                    readers.append(node)
                else:
                    fits &= graph.passes(node) and all(name in tensors for name in node.output if name)
        if fits and any(node.name in layers for node in readers):
            out[group] = readers
    return out


def _stays(node: Any, layers: Mapping[str, Layer]) -> bool:
    """Whether it may go on reading what is not moved: a convolution in float."""
    return node.op_type == "Conv" and node.name not in layers


def _unpadded(graph: Graph, node: Any) -> bool:
    """Whether a convolution's bias can make good for a constant in all its inputs."""
    plain = str(graph.attribute(node, "auto_pad", "NOTSET")) in ("NOTSET", "VALID")
    biased = len(node.input) > 2 and bool(node.input[2])
    return (
        constant_weight(graph, node) is not None
        and len(graph.consumers[node.input[1]]) == 1
        and plain
        and not any(graph.attribute(node, "pads", [0]))
        and (not biased or graph.is_constant(node.input[2]))
    )


def one_sided(model: Any) -> tuple[int, int]:
    """(activations that can be moved, those that have a least value): how much of a float model centring reaches.

    Counts what shares a range as one. Whether moving pays is only known with the largest values, from calibration.

    Args:
        model: the float model, with named nodes.
    """
    graph, sites = Graph(model), find_sites(model)
    bounds, movable = _Bounds(graph), _movable(graph, sites, {layer.name: layer for layer in sites.layers})
    known = [group for group, names in sites.sources.items() if all(bounds.least(name) is not None for name in names)]
    return sum(group in movable for group in known), len(known)


class _Mover:
    """Changes a copy of the model."""

    def __init__(self, graph: Graph, model: Any) -> None:
        self._graph, self._model = graph, model
        self._helper, self._numpy_helper = vendor().helper, vendor().numpy_helper
        self._after: dict[str, Any] = {}
        self.renamed: dict[str, str] = {}
        self.direct: dict[str, tuple[str, ...]] = {}

    def _store(self, name: str, value: npt.NDArray[np.float32]) -> str:
        self._model.graph.initializer.append(self._numpy_helper.from_array(value, name))
        return name

    def move(self, name: str, centre: float, layers: Mapping[str, Layer]) -> None:
        """Subtracts `centre` from a tensor, for those who read it in INT8."""
        new = self.renamed[name] = f"{name}_centred"
        by = self._store(f"{name}_centre", np.array(-centre, np.float32))
        self._after[name] = self._helper.make_node("Add", [name, by], [new], f"{name}_centring")
        for node in self._graph.consumers[name]:
            if node.op_type != "Shape" and not _stays(node, layers):
                if node.op_type == "Conv":
                    self.direct[node.name] = tuple(node.input)
                for i, given in enumerate(node.input):
                    if given == name:
                        node.input[i] = new

    def rename(self, name: str) -> None:
        """Gives a moved tensor that no node was added behind a name of its own: it is not the float model's."""
        new = self.renamed[name] = f"{name}_centred"
        for node in [self._graph.producer[name], *self._graph.consumers.get(name, [])]:
            for names in (node.output, node.input):
                for i, given in enumerate(names):
                    if given == name:
                        names[i] = new

    def make_good(self, node: Any, centre: float) -> None:
        """Adds to a convolution's bias what its inputs lack."""
        weight = self._graph.constant(node.input[1]).astype(np.float64)
        bias = self._graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else 0.0
        moved = bias + centre * weight.reshape(len(weight), -1).sum(1)
        del node.input[2:]
        node.input.append(self._store(f"{node.name}_centred_bias", moved.astype(np.float32)))

    def finish(self) -> None:
        nodes = []
        for node in self._graph.nodes:
            nodes += [node, *(self._after[name] for name in node.output if name in self._after)]
        del self._model.graph.node[:]
        self._model.graph.node.extend(nodes)


def centred(
    model: Any,
    sites: Sites,
    histograms: Mapping[str, Histogram],
    thresholds: Mapping[str, float],
    peaks: Peaks,
    *,
    search: bool = True,
    float_layers: Collection[str] = (),
) -> Centred:
    """Moves all one-sided activations for which that is exact.

    Args:
        model: as `graph.prepare` returns it; left alone.
        sites: of it.
        histograms: of the activations that it watches.
        thresholds: of all groups.
        peaks: of the layers' inputs.
        search: look for the range with the least squared error; otherwise the thresholds are its upper ends.
        float_layers: layers that stay in float, and read what they did.
    """
    made = copy.deepcopy(model)
    graph = Graph(made)
    bounds, mover = _Bounds(graph), _Mover(graph, made)
    limits, highest, moved = dict(thresholds), dict(peaks), dict[str, float]()
    layers = {layer.name: layer for layer in sites.layers if layer.name not in float_layers}
    for group, readers in _movable(graph, sites, layers).items():
        names = sites.sources[group]
        least = [bounds.least(name) for name in names]
        first, *rest = (histograms[name] for name in names)
        whole = first.merged(rest)
        if whole.exponent is None or any(value is None for value in least):
            continue
        low = min(value for value in least if value is not None)
        most = _range(whole, low) if search else thresholds[names[0]]
        if most <= -low * LARGE or most <= 0:
            continue
        step = (most - low) / STEPS
        # A whole number of steps, so that zeros stay exact.
        centre = step * round((most + low) / 2 / step)
        for name in names:
            mover.move(name, centre, layers)
        for name, g in sites.group.items():
            if g == group and name not in names:
                mover.rename(name)
        for node in readers:
            mover.make_good(node, centre)
            moved[node.input[1]] = centre
        limits[mover.renamed[names[0]]] = step * QMAX
        del limits[names[0]]
        for name, g in sites.group.items():
            if g == group and name in peaks:
                highest[mover.renamed.get(name, name)] = peaks[name] - np.float32(centre)
    mover.finish()
    found = find_sites(made)
    for name, *_ in found.sources.values():
        if name not in limits:
            # What a layer in float reads as it was, beside others that read it moved.
            limits[name] = thresholds[sites.sources[sites.group[name]][0]]
    return Centred(made, found, limits, highest, moved, mover.direct)
