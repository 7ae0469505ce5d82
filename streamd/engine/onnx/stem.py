"""Makes the first convolution of a Q/DQ model float.

A picture has three channels, but INT8 convolutions read 32 at a time: nine tenths of what a stem's INT8 kernel reads
and multiplies is padding. TensorRT computes it in INT8 because the file says so. Here the pairs around it are removed,
so that the builder is free to choose half precision.
"""

from __future__ import annotations

from collections import Counter

from streamd.engine.onnx.protobuf import field, fields, spans, text
from streamd.engine.onnx.reader import OnnxNode, change_graph, read_node, tensor_shape

# Numbers of onnx.proto. GraphProto: node 1, initializer 5, input 11, output 12. NodeProto: input 1. TensorProto:
# name 8. ValueInfoProto: name 1.
_NODE, _WEIGHT, _INPUT, _OUTPUT = 1, 5, 11, 12
_NODE_INPUT = 1
MOST_CHANNELS = 4
"""Channels of a picture: with more, INT8 kernels are no longer wasted."""


def _weight(data: memoryview) -> tuple[str, list[int]]:
    """Name and shape of a TensorProto."""
    names = [text(body) for tag, _, body in fields(data) if tag == 8]
    return names[-1] if names else "", tensor_shape(data)


def _unpaired(name: str, makers: dict[str, OnnxNode]) -> str | None:
    """The input of the Q/DQ pair that `name` comes out of, if it does."""
    for operator in ("DequantizeLinear", "QuantizeLinear"):
        node = makers.get(name)
        if node is None or node.operator != operator or not node.inputs:
            return None
        name = node.inputs[0]
    return name


def _graph(data: memoryview) -> bytes | None:
    """The graph with float stems; None if it has no others."""
    parts = list(spans(data))
    shapes = dict(_weight(body) for tag, _, _, body in parts if tag == _WEIGHT)
    named = [
        {text(b) for tag, _, _, body in parts if tag == kind for t, _, b in fields(body) if t == 1}
        for kind in (_INPUT, _OUTPUT)
    ]
    pictures, outputs = named[0] - shapes.keys(), named[1]
    nodes = {i: read_node(body) for i, (tag, _, _, body) in enumerate(parts) if tag == _NODE}
    makers = {name: node for node in nodes.values() for name in node.outputs}
    changed: dict[int, tuple[str, str]] = {}
    for i, node in nodes.items():
        if node.operator != "Conv" or len(node.inputs) < 2:
            continue
        picture, weight = (_unpaired(name, makers) for name in node.inputs[:2])
        shape = shapes.get(weight or "", [])
        if picture in pictures and weight is not None and len(shape) == 4 and shape[1] <= MOST_CHANNELS:
            changed[i] = picture, weight
    if not changed:
        return None
    uses = Counter(name for i, node in nodes.items() if i not in changed for name in node.inputs)
    uses.update(name for i in changed for name in (*changed[i], *nodes[i].inputs[2:]))
    uses.update(outputs)
    unused: set[int] = set()
    # Remove pairs that nothing reads any more, last half first.
    for i, node in sorted(nodes.items(), reverse=True):
        if node.operator in ("QuantizeLinear", "DequantizeLinear") and not any(uses[name] for name in node.outputs):
            unused.add(i)
            uses.subtract(node.inputs)
    return b"".join(
        field(_NODE, _reading(body, changed[i])) if i in changed else whole
        for i, (_, whole, _, body) in enumerate(parts)
        if i not in unused
    )


def _reading(node: memoryview, first: tuple[str, str]) -> bytes:
    """A NodeProto with its first inputs replaced."""
    rest = [text(body) for tag, _, body in fields(node) if tag == _NODE_INPUT][len(first) :]
    kept = b"".join(whole for tag, whole, _, _ in spans(node) if tag != _NODE_INPUT)
    return b"".join(field(_NODE_INPUT, name.encode()) for name in (*first, *rest)) + kept


def float_stem(model: bytes) -> bytes:
    """Removes the Q/DQ pairs on picture and weights of the convolutions that read the picture itself.

    Args:
        model: the file's bytes, with float32 weights and complete pairs (see `weights.in_float`).

    Returns:
        The modified file, or the same bytes if there is nothing to do or the file is not ONNX.
    """
    return change_graph(model, _graph)
