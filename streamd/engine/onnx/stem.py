"""Makes the first convolution of a Q/DQ model float.

A picture has three channels, but INT8 convolutions read 32 at a time: nine tenths of what a stem's INT8 kernel reads
and multiplies is padding. TensorRT computes it in INT8 because the file says so. Here the pairs around it are removed,
so that the builder is free to choose half precision.

Some stems read every second pixel of every second line (YOLOX, early YOLOv5: slices of the picture, joined to twelve
channels). TensorRT 8.5 builds no such slices in INT8, so that their pairs go, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from streamd.engine.onnx.protobuf import field, fields, spans, text
from streamd.engine.onnx.reader import QUANTIZERS, OnnxNode, change_graph, read_node, tensor_shape

# Numbers of onnx.proto. GraphProto: node 1, initializer 5, input 11, output 12. NodeProto: input 1. TensorProto:
# name 8. ValueInfoProto: name 1.
_NODE, _WEIGHT, _INPUT, _OUTPUT = 1, 5, 11, 12
_NODE_INPUT = 1
_BETWEEN = {"Slice", "Concat", *QUANTIZERS}
"""What may be between a picture and the convolution that reads slices of it."""
Makers = dict[str, tuple[int, OnnxNode]]
"""By tensor the number of the node that makes it, and the node."""
MOST_CHANNELS = 4
"""Channels of a picture: with more, INT8 kernels are no longer wasted."""
SLICED_CHANNELS = 16
"""The same of one that was sliced, half of what INT8 kernels read."""


def _weight(data: memoryview) -> tuple[str, list[int]]:
    """Name and shape of a TensorProto."""
    names = [text(body) for tag, _, body in fields(data) if tag == 8]
    return names[-1] if names else "", tensor_shape(data)


def _unpaired(name: str, makers: Makers) -> str | None:
    """The input of the Q/DQ pair that `name` comes out of, if it does."""
    for operator in ("DequantizeLinear", "QuantizeLinear"):
        _, node = makers.get(name, (0, None))
        if node is None or node.operator != operator or not node.inputs:
            return None
        name = node.inputs[0]
    return name


class _Graph:
    """What is to be known of the nodes of a graph."""

    def __init__(self, parts: Sequence[tuple[int, memoryview, int, memoryview]]) -> None:
        self.shapes = dict(_weight(body) for tag, _, _, body in parts if tag == _WEIGHT)
        inputs, self.outputs = (
            {text(b) for tag, _, _, body in parts if tag == kind for t, _, b in fields(body) if t == 1}
            for kind in (_INPUT, _OUTPUT)
        )
        self.pictures = inputs - self.shapes.keys()
        self.nodes = {i: read_node(body) for i, (tag, _, _, body) in enumerate(parts) if tag == _NODE}
        self.makers: Makers = {name: (i, node) for i, node in self.nodes.items() for name in node.outputs}
        self._uses = Counter(name for node in self.nodes.values() for name in node.inputs)
        self._uses.update(self.outputs)

    def stems(self) -> dict[int, tuple[str, ...]]:
        """The new inputs of the convolutions that read the picture, and of what slices and joins it for them."""
        found: dict[int, tuple[str, ...]] = {}
        for i, node in self.nodes.items():
            if node.operator != "Conv" or len(node.inputs) < 2:
                continue
            picture, weight = (_unpaired(name, self.makers) for name in node.inputs[:2])
            shape = self.shapes.get(weight or "", [])
            if weight is None or len(shape) != 4:
                continue
            if picture in self.pictures and shape[1] <= MOST_CHANNELS:
                found[i] = picture, weight, *node.inputs[2:]
            elif shape[1] <= SLICED_CHANNELS and (path := self._sliced(node.inputs[0])):
                found |= path
                found[i] = self._float_of(node.inputs[0]), weight, *node.inputs[2:]
        return found

    def _sliced(self, name: str) -> dict[int, tuple[str, ...]]:
        """The new inputs of the slices and joints between the picture and `name`; none if there is anything else
        between them, or if anything else reads what is between them."""
        found: dict[int, tuple[str, ...]] = {}
        waiting, read, quantized = [name], Counter([name]), False
        seen = {name}
        while waiting:
            tensor = waiting.pop()
            if tensor in self.pictures:
                continue
            i, node = self.makers.get(tensor, (0, None))
            if node is None or node.operator not in _BETWEEN or len(node.outputs) != 1:
                return {}
            data = node.inputs if node.operator == "Concat" else node.inputs[:1]
            if node.operator in QUANTIZERS:
                quantized = True
            else:
                found[i] = (*map(self._float_of, data), *node.inputs[len(data) :])
            read.update(data)
            waiting += set(data) - seen
            seen.update(data)
        own = all(read[tensor] == self._uses[tensor] for tensor in seen - self.pictures)
        return found if own and quantized else {}

    def _float_of(self, name: str) -> str:
        """What `name` is before pairs, or halves of pairs."""
        while name in self.makers and self.makers[name][1].operator in QUANTIZERS:
            name = self.makers[name][1].inputs[0]
        return name


def _graph(data: memoryview) -> bytes | None:
    """The graph with float stems; None if it has no others."""
    parts = list(spans(data))
    graph = _Graph(parts)
    nodes, changed = graph.nodes, graph.stems()
    if not changed:
        return None
    uses = Counter(name for i, node in nodes.items() for name in changed.get(i, node.inputs))
    uses.update(graph.outputs)
    unused: set[int] = set()
    # Remove pairs that nothing reads any more, last half first.
    for i, node in sorted(nodes.items(), reverse=True):
        if node.operator in QUANTIZERS and not any(uses[name] for name in node.outputs):
            unused.add(i)
            uses.subtract(node.inputs)
    return b"".join(
        field(_NODE, _reading(body, changed[i])) if i in changed else whole
        for i, (_, whole, _, body) in enumerate(parts)
        if i not in unused
    )


def _reading(node: memoryview, inputs: tuple[str, ...]) -> bytes:
    """A NodeProto with other inputs."""
    kept = b"".join(whole for tag, whole, _, _ in spans(node) if tag != _NODE_INPUT)
    return b"".join(field(_NODE_INPUT, name.encode()) for name in inputs) + kept


def float_stem(model: bytes) -> bytes:
    """Removes the Q/DQ pairs on picture and weights of the convolutions that read the picture itself, or slices of it.

    Args:
        model: the file's bytes, with float32 weights and complete pairs (see `weights.in_float`).

    Returns:
        The modified file, or the same bytes if there is nothing to do or the file is not ONNX.
    """
    return change_graph(model, _graph)
