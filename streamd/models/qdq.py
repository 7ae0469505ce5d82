"""Where a graph is quantized: which convolutions, which tensors, and which tensors share a scale.

Explicit quantization as TensorRT defines it: QuantizeLinear/DequantizeLinear pairs, symmetric (zero point 0), weights
per output channel, activations per tensor. From TensorRT 11 on it is the only kind, and OpenVINO reads the same file.
A convolution with a pair on its input and one on its weights runs in INT8; operators between two pairs are fused into
it or run in float. Output convolutions and the decoding after them stay in float, where a quantization step would
directly shift the box.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.models.graph import Graph, constant_weight, vendor
from streamd.models.weights import QMAX, TINY, Int8Weights, nearest, weight_scales


@dataclass(frozen=True)
class Layer:
    """A convolution that can be quantized."""

    name: str
    input: str
    weight: str
    output: str


@dataclass(frozen=True)
class Sites:
    """What can be quantized in a model. Tensors whose values mix (by concatenation, pooling, …) share a group."""

    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    """Results of the output convolutions, in float; noise caused by other layers is measured here."""
    group: dict[str, int]
    """Group of every tensor that may get a pair."""
    sources: dict[int, tuple[str, ...]]
    """By group, the tensors that contribute its values, which calibration has to record."""

    @property
    def watched(self) -> tuple[str, ...]:
        """Every tensor that calibration has to record, in order."""
        return tuple(name for group in sorted(self.sources) for name in self.sources[group])


class _Groups:
    """Union-find over tensor names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        self._parent.setdefault(name, name)
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        a, b = self.root(a), self.root(b)
        if a != b:
            self._parent[b] = a

    def names(self) -> list[str]:
        return list(self._parent)


def find_sites(model: Any) -> Sites:
    """Finds the convolutions to quantize and the tensors that share scales."""
    graph = Graph(model)
    layers: list[Layer] = []
    outputs: list[str] = []
    for node in graph.nodes:
        if node.op_type != "Conv":
            continue
        if graph.reaches_output_without(node, ("Conv",)):
            outputs.append(node.output[0])
        elif constant_weight(graph, node) is not None and not graph.is_constant(node.input[0]):
            layers.append(Layer(node.name, node.input[0], node.input[1], node.output[0]))
    groups = _Groups()
    watched: dict[str, None] = {}
    for layer in layers:
        for source in graph.sources(layer.input):
            groups.join(layer.input, source)
            watched[source] = None
        for passed in graph.passed(layer.input):
            groups.join(layer.input, passed)
    names = groups.names()
    number: dict[str, int] = {}
    group = {name: number.setdefault(groups.root(name), len(number)) for name in names}
    sources: dict[int, list[str]] = {}
    for name in watched:
        sources.setdefault(group[name], []).append(name)
    return Sites(tuple(layers), tuple(outputs), group, {g: tuple(s) for g, s in sources.items()})


INT8_MOVES = frozenset(
    {"Concat", "MaxPool", "Resize", "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Flatten"}
)  # fmt: skip
"""Pass-through nodes that operate on INT8 tensors, between the two halves of a pair.

The alternative, a pair on either side of the node, is numerically equal, but OpenVINO 2026.4 miscomputes a
concatenation of signed pairs, and TensorRT would have to move the halves through the node by itself.
"""


class _Writer:
    """Adds pairs to a copy of the graph."""

    def __init__(
        self,
        model: Any,
        scale_of: Mapping[str, np.float32],
        weights: Mapping[str, Int8Weights],
        *,
        compact: bool = False,
    ) -> None:
        self.onnx = vendor()
        self.compact = compact
        self.given = weights
        self.model = copy.deepcopy(model)
        self.graph = Graph(self.model)
        self.scale_of = scale_of
        """By tensor."""
        self._after: dict[int, list[Any]] = {}
        """Nodes to insert after node number n; -1 for the beginning of the graph."""
        self._position = {id(node): i for i, node in enumerate(self.graph.nodes)}
        self._int8: dict[str, str] = {}
        self._float: dict[str, str] = {}

    def constants(self, label: str, scale: npt.NDArray[np.float32]) -> list[str]:
        names = [f"{label}_scale", f"{label}_zero_point"]
        self.store(names[0], scale)
        self.store(names[1], np.zeros(scale.shape, np.int8))
        return names

    def _node(self, kind: str, tensor: str, label: str, out: str, at: int, **options: int) -> str:
        inputs = [tensor, f"{label}_scale", f"{label}_zero_point"]
        node = self.onnx.helper.make_node(kind, inputs, [out], f"{label}_{kind}", **options)
        self._after.setdefault(at, []).append(node)
        return out

    def _at(self, tensor: str) -> int:
        producer = self.graph.producer.get(tensor)
        return -1 if producer is None else self._position[id(producer)]

    def int8(self, tensor: str) -> str:
        """The INT8 form of an activation."""
        if tensor not in self._int8:
            self.constants(tensor, np.array(self.scale_of[tensor], np.float32))
            self._int8[tensor] = self._node("QuantizeLinear", tensor, tensor, f"{tensor}_q", self._at(tensor))
        return self._int8[tensor]

    def rounded(self, tensor: str) -> str:
        """An activation after its round trip through INT8."""
        if tensor not in self._float:
            int8 = self.int8(tensor)
            self._float[tensor] = self._node("DequantizeLinear", int8, tensor, f"{tensor}_dq", self._at(tensor))
        return self._float[tensor]

    def has_int8(self, tensor: str) -> bool:
        return tensor in self._int8

    def move(self, node: Any) -> None:
        """Makes a pass-through node operate on INT8 tensors; its output is dequantized under its old name."""
        for name in self.graph.data_inputs(node):
            _rewire(node, name, self.int8(name))
        at = self._position[id(node)]
        for i, name in enumerate(list(node.output)):
            if not name:
                continue
            node.output[i] = self._int8[name] = f"{name}_q"
            self.constants(name, np.array(self.scale_of[name], np.float32))
            self._float[name] = self._node("DequantizeLinear", f"{name}_q", name, name, at)

    def weights(self, tensor: str, at: int) -> str:
        if tensor not in self._float:
            weight = self.graph.constant(tensor)
            made = self.given.get(tensor) or nearest(weight, weight_scales(weight))
            self.constants(tensor, made.scales)
            q = f"{tensor}_q"
            if self.compact:
                self.store(q, made.steps)
            else:
                # Stored as multiples of the scale, so that every reader rounds them to the same steps. OpenVINO rounds
                # some weights half way between two steps to the other one, and a single such step changes the
                # rounding of all activations behind it.
                self.store(f"{tensor}_grid", made.values())
                self._node("QuantizeLinear", f"{tensor}_grid", tensor, q, at - 1, axis=0)
            self._float[tensor] = self._node("DequantizeLinear", q, tensor, f"{tensor}_dq", at - 1, axis=0)
        return self._float[tensor]

    def store(self, name: str, value: npt.NDArray[Any]) -> None:
        self.model.graph.initializer.append(self.onnx.numpy_helper.from_array(value, name))

    def kernel_shape(self, node: Any, weight: str) -> None:
        """States the size of a convolution's kernel. ONNX infers it from the weights; TensorRT 8.5 does not where they
        come from a DequantizeLinear, and refuses the model."""
        if not any(attribute.name == "kernel_shape" for attribute in node.attribute):
            shape = self.graph.constant(weight).shape[2:]
            node.attribute.append(self.onnx.helper.make_attribute("kernel_shape", list(shape)))

    def bias(self, node: Any, weight: str) -> None:
        """Gives a convolution the bias that belongs to its rounded weights."""
        made = self.given.get(weight)
        if made is None or made.bias is None:
            return
        name = f"{weight}_bias"
        self.store(name, made.bias)
        del node.input[2:]
        node.input.append(name)

    def finish(self) -> Any:
        """The model, without unused halves of pairs."""
        nodes = list(self._after.get(-1, []))
        for i, node in enumerate(self.graph.nodes):
            nodes.append(node)
            nodes += self._after.get(i, [])
        read = {name for node in nodes for name in node.input} | set(self.graph.outputs)
        kept = [n for n in nodes if n.op_type != "DequantizeLinear" or n.output[0] in read]
        read = {name for node in kept for name in node.input}
        del self.model.graph.node[:]
        self.model.graph.node.extend(kept)
        used = [t for t in self.model.graph.initializer if t.name in read]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(used)
        return self.model


def _rewire(node: Any, old: str, new: str) -> None:
    for i, name in enumerate(node.input):
        if name == old:
            node.input[i] = new


def quantized(
    model: Any,
    sites: Sites,
    thresholds: Mapping[str, float],
    *,
    float_layers: Collection[str] = (),
    moves: Collection[str] = INT8_MOVES,
    residuals: bool = True,
    compact: bool = False,
    weights: Mapping[str, Int8Weights] | None = None,
) -> Any:
    """A copy of `model` with pairs on the inputs and weights of its layers.

    Args:
        model: as `graph.prepare` returns it; left alone.
        sites: `find_sites` of it.
        thresholds: by name of the first watched tensor of each group, the magnitude that maps to 127.
        float_layers: names of layers to keep in float.
        moves: operators that move values in INT8; others get a pair on either side.
        residuals: let additions read the quantized value of an operand if it has one anyway, so that a skip
            connection is kept in INT8 only.
        compact: store weights as INT8 with a DequantizeLinear only: a quarter of the size, numerically equal.
        weights: by name of the weight tensor, its INT8 form. Default: the nearest steps.
    """
    scale = {g: np.float32(max(thresholds[names[0]], TINY) / QMAX) for g, names in sites.sources.items()}
    writer = _Writer(model, {name: scale[g] for name, g in sites.group.items()}, weights or {}, compact=compact)
    graph = writer.graph
    active = {layer.name: layer for layer in sites.layers if layer.name not in float_layers}
    # Every pass-through node between a source and a quantized layer.
    passing: set[int] = set()
    stack = [layer.input for layer in active.values()]
    while stack:
        node = graph.producer.get(stack.pop())
        if node is not None and graph.passes(node) and id(node) not in passing:
            passing.add(id(node))
            stack += graph.data_inputs(node)
    for i, node in enumerate(graph.nodes):
        if id(node) in passing:
            whole = len(graph.data_inputs(node)) == (len(node.input) if node.op_type == "Concat" else 1)
            if node.op_type in moves and whole:
                writer.move(node)
            else:
                for name in graph.data_inputs(node):
                    _rewire(node, name, writer.rounded(name))
        elif node.name in active:
            layer = active[node.name]
            writer.kernel_shape(node, layer.weight)
            node.input[0] = writer.rounded(layer.input)
            node.input[1] = writer.weights(layer.weight, i)
            writer.bias(node, layer.weight)
    if residuals:
        for node in graph.nodes:
            if node.op_type == "Add":
                for name in list(node.input):
                    if writer.has_int8(name):
                        _rewire(node, name, writer.rounded(name))
    return writer.finish()
