"""Removes the Q/DQ pairs of a quantized model and keeps what they say about ranges.

TensorRT up to 10 takes pairs literally: a convolution between them runs in INT8, even where half precision would be
faster. With ranges instead of pairs the builder is free: it times both precisions for every layer, together with the
conversions between them, and takes the faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamd.engine.onnx.protobuf import field, fields, spans, text
from streamd.engine.onnx.reader import OnnxNode, change_graph, read_node
from streamd.engine.onnx.weights import read_tensor

# Numbers of onnx.proto. GraphProto: node 1, initializer 5, output 12, value_info 13. NodeProto: input 1.
_NODE, _WEIGHT, _OUTPUT, _VALUE_INFO = 1, 5, 12, 13
_NODE_INPUT = 1
_STEPS = 127
"""Of symmetric INT8, on either side of zero."""
_BOUNDED = {"Relu": 0.0, "Clip": 0.0, "HardSwish": 3.0}
"""Activations, and how far below zero their input matters: no larger range than their output's is needed otherwise."""
_MOVERS = ("MaxPool", "Resize", "Reshape", "Transpose", "Slice", "Split", "Concat")
"""Operators that invent no value: they keep their inputs' range."""
_CENTRED = "_centred"
"""What `quantize` adds to the name of an activation that it moved to the middle of its range."""
_SILU_DEPTH = 8.0
"""x·sigmoid(x) is closer to zero than 0.003 below -8."""


@dataclass(frozen=True)
class Unpaired:
    """A model without pairs.

    Attributes:
        model: the file's bytes.
        ranges: largest absolute value by tensor, for those that were quantized and those that follow from them.
        float_ranges: the same by the names of the float model that `streamd quantize` started from.
    """

    model: bytes
    ranges: Mapping[str, float]
    float_ranges: Mapping[str, float]


class _Graph:
    """The parts of a GraphProto that matter here."""

    def __init__(self, data: memoryview) -> None:
        self.parts = list(spans(data))
        self.nodes = {i: read_node(body) for i, (tag, _, _, body) in enumerate(self.parts) if tag == _NODE}
        self.tensors: dict[str, npt.NDArray[np.generic] | None] = dict(
            read_tensor(body) for tag, _, _, body in self.parts if tag == _WEIGHT
        )
        self.outputs = [
            text(name) for tag, _, _, body in self.parts if tag == _OUTPUT for t, _, name in fields(body) if t == 1
        ]
        self.pairs = {
            i: node
            for i, node in self.nodes.items()
            if node.operator in ("QuantizeLinear", "DequantizeLinear") and node.inputs and node.outputs
        }
        self.alias = {node.outputs[0]: node.inputs[0] for node in self.pairs.values()}

    def root(self, name: str) -> str:
        """The tensor that `name` is a quantized or dequantized copy of."""
        while name in self.alias:
            name = self.alias[name]
        return name

    def range(self, node: OnnxNode) -> float | None:
        """The largest absolute value that half a pair lets through; None if it is not symmetric INT8 with one scale."""
        scale = self.tensors.get(node.inputs[1]) if len(node.inputs) == 3 else None
        zero = self.tensors.get(node.inputs[2]) if len(node.inputs) == 3 else None
        if scale is None or zero is None or scale.size != 1 or scale.dtype != np.float32:
            return None
        if zero.dtype != np.int8 or zero.any():
            return None
        value = float(scale.reshape(-1)[0]) * _STEPS
        return value if 0 < value < float("inf") else None


def _ranges(graph: _Graph) -> dict[str, float] | None:
    """By tensor; None if a pair is not what `quantize` writes."""
    found: dict[str, float] = {}
    for node in graph.pairs.values():
        root = graph.root(node.outputs[0])
        if root in graph.tensors:
            weight = graph.tensors[root]
            if weight is None or weight.dtype != np.float32:
                return None  # stored in INT8: see `weights.in_float`
            continue
        value = graph.range(node)
        if value is None:
            return None
        found[root] = max(found.get(root, 0.0), value)
    return found


def _follow(graph: _Graph, ranges: dict[str, float]) -> None:
    """Adds the ranges of tensors that have none, where they follow from the operator that reads them."""
    readers = Counter(graph.root(name) for i, n in graph.nodes.items() if i not in graph.pairs for name in n.inputs)
    makers = {name: node for node in graph.nodes.values() for name in node.outputs}
    for _, node in sorted(graph.nodes.items()):
        known = [ranges.get(graph.root(name)) for name in node.inputs] if node.operator in _MOVERS else []
        first = known if node.operator == "Concat" else known[:1]
        if first and None not in first:
            for name in node.outputs:
                ranges.setdefault(name, max(value for value in first if value is not None))
    for i, node in sorted(graph.nodes.items(), reverse=True):
        value = ranges.get(node.outputs[0]) if node.outputs and i not in graph.pairs else None
        if value is None:
            continue
        inputs = [graph.root(name) for name in node.inputs]
        if node.operator in _BOUNDED:
            wanted = {inputs[0]: max(value, _BOUNDED[node.operator])}
        elif node.operator == "Add":
            # A summand is hardly larger than the sum: what follows an activation is bounded below. It may be by the
            # constant that `quantize` subtracts from one-sided activations.
            moved = sum(
                abs(float(t.item())) for name in inputs if (t := graph.tensors.get(name)) is not None and t.size == 1
            )
            wanted = {name: value + moved for name in inputs if readers[name] == 1 or moved}
        else:
            wanted = _silu(graph, node, inputs, makers, value)
        for name, most in wanted.items():
            if name not in graph.tensors:
                ranges.setdefault(name, most)


def _silu(
    graph: _Graph, node: OnnxNode, inputs: list[str], makers: Mapping[str, OnnxNode], value: float
) -> dict[str, float]:
    """The ranges inside x·sigmoid(x), if `node` is the product."""
    if node.operator == "Mul" and len(inputs) == 2:
        for x, gate in (inputs, inputs[::-1]):
            maker = makers.get(gate)
            if maker is not None and maker.operator == "Sigmoid" and graph.root(maker.inputs[0]) == x:
                return {x: max(value, _SILU_DEPTH), gate: 1.0}
    return {}


def _node(body: memoryview, graph: _Graph) -> bytes:
    """A NodeProto that reads the float tensors."""
    return b"".join(
        field(_NODE_INPUT, graph.root(text(part)).encode()) if tag == _NODE_INPUT else bytes(whole)
        for tag, whole, _, part in spans(body)
    )


def _identity(source: str, name: str) -> bytes:
    return (
        field(1, source.encode()) + field(2, name.encode()) + field(3, f"{name}_same".encode()) + field(4, b"Identity")
    )


def without_pairs(model: bytes) -> Unpaired | None:
    """Removes every pair; weights stay as they were rounded.

    Args:
        model: the file's bytes, with float32 weights (see `weights.in_float`).

    Returns:
        None if there are no pairs, or not only pairs of symmetric INT8 with float weights.
    """
    found: list[tuple[dict[str, float], dict[str, float]]] = []

    def change(data: memoryview) -> bytes | None:
        graph = _Graph(data)
        ranges = _ranges(graph) if graph.pairs else None
        if ranges is None:
            return None
        _follow(graph, ranges)
        out = []
        for i, (tag, whole, _, body) in enumerate(graph.parts):
            if i in graph.pairs or tag == _VALUE_INFO:  # the latter still speaks of INT8
                continue
            out.append(field(_NODE, _node(body, graph)) if tag == _NODE else whole)
        out += [field(_NODE, _identity(graph.root(name), name)) for name in graph.outputs if name in graph.alias]
        # What an operator computes in INT8 is called X_q, and its dequantized copy X, as in the float model.
        copies = {name: ranges[root] for name in graph.alias if (root := graph.root(name)) in ranges}
        # X_centred is the float model's X without its middle, which is as large as what remains.
        for name in [name for name in (*copies, *ranges) if name.endswith(_CENTRED)]:
            copies.setdefault(name.removesuffix(_CENTRED), 2 * (copies | ranges)[name])
        found.append((ranges, copies | ranges))
        return b"".join(out)

    changed = change_graph(model, change)
    return Unpaired(changed, *found[0]) if found else None
