"""Converts INT8 weights for builders that accept float weights only.

A compact Q/DQ model (`streamd quantize --compact`, and the bundled one) stores weights as INT8 with only the
dequantizing half of their pair. TensorRT 8.5.3 parses that, but then fails an assertion while building; it needs float
weights and the complete pair, and so does `stem`. A multiple of the scale divided by the scale is that multiple again,
so both forms are identical in value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from streamd.engine.onnx.protobuf import field, fields, spans, text
from streamd.engine.onnx.reader import OnnxNode, change_graph, read_node, tensor_shape

# Numbers of onnx.proto. GraphProto: node 1, initializer 5, input 11. NodeProto: see `read_node`, and attribute 5.
# AttributeProto: name 1, i 3, type 20. TensorProto: type 2, float_data 4, name 8, raw_data 9.
_NODE, _WEIGHT, _INPUT, _ATTRIBUTE = 1, 5, 11, 5
_FLOAT, _INT8 = 1, 3
_NUMPY: Mapping[int, str] = {_FLOAT: "<f4", _INT8: "i1"}


def _axis(node: memoryview) -> int | None:
    """The axis of a DequantizeLinear node; None if it has other attributes."""
    axis = 1
    for attribute in (body for tag, _, body in fields(node) if tag == _ATTRIBUTE):
        if [text(body) for tag, _, body in fields(attribute) if tag == 1] != ["axis"]:
            return None
        axis = next((value for tag, value, _ in fields(attribute) if tag == 3), 0)
        axis -= axis >> 63 << 64  # negative axes count from the end
    return axis


def read_tensor(data: memoryview) -> tuple[str, npt.NDArray[np.generic] | None]:
    """Name and values of a TensorProto; None if they are neither float32 nor INT8, or stored externally."""
    shape = tensor_shape(data)
    kind, name, raw = 0, "", None
    for tag, value, body in fields(data):
        if tag == 2:
            kind = value
        elif tag == 8:
            name = text(body)
        elif tag == 9 or (tag == 4 and len(body)):
            raw = body
    if kind not in _NUMPY or raw is None or len(raw) != math.prod(shape) * np.dtype(_NUMPY[kind]).itemsize:
        return name, None
    return name, np.frombuffer(raw, _NUMPY[kind]).reshape(shape)


def _in_float(
    weight: npt.NDArray[np.generic], scale: npt.NDArray[np.generic], axis: int
) -> npt.NDArray[np.float32] | None:
    """The weights in float, if quantizing them by `scale` gives the same numbers again."""
    step = scale.astype(np.float32)
    if scale.dtype != np.float32 or scale.ndim > 1:
        return None
    if scale.ndim:
        if not -weight.ndim <= axis < weight.ndim or weight.shape[axis] != scale.size:
            return None
        step = step.reshape([-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim)])
    with np.errstate(all="ignore"):
        values = weight.astype(np.float32) * step
        return values if np.array_equal(np.rint(values / step), weight) else None


def _tensor_field(name: str, values: npt.NDArray[np.float32]) -> bytes:
    body = b"".join(field(1, size) for size in values.shape)
    return body + field(2, _FLOAT) + field(8, name.encode()) + field(9, values.astype("<f4").tobytes())


def _quantize(node: OnnxNode, axis: int, source: str) -> bytes:
    """The other half of a DequantizeLinear's pair, as a NodeProto."""
    out = node.inputs[0]
    body = b"".join(field(1, name.encode()) for name in (source, *node.inputs[1:]))
    body += field(2, out.encode()) + field(3, f"{out}_again".encode()) + field(4, b"QuantizeLinear")
    # As ONNX writes it: negative numbers as 64-bit two's complement.
    return body + field(_ATTRIBUTE, field(1, b"axis") + field(3, axis % (1 << 64)) + field(20, 2))


def _graph(data: memoryview) -> bytes | None:
    """The graph with float weights; None if it has no INT8 weights that can be converted."""
    parts = list(spans(data))
    weights = {i: read_tensor(body) for i, (tag, _, _, body) in enumerate(parts) if tag == _WEIGHT}
    tensors = dict(weights.values())
    nodes = [(read_node(body), body) for tag, _, _, body in parts if tag == _NODE]
    taken = tensors.keys() | {name for node, _ in nodes for name in node.outputs}
    floats: dict[str, bytes] = {}
    pairs: list[bytes] = []
    for node, body in nodes:
        if node.operator != "DequantizeLinear" or len(node.inputs) != 3 or node.inputs[0] in floats:
            continue
        weight, scale, zero = (tensors.get(name) for name in node.inputs)
        if weight is None or weight.dtype != np.int8 or scale is None or zero is None or zero.any():
            continue
        axis = _axis(body)
        values = _in_float(weight, scale, axis) if axis is not None else None
        if axis is None or values is None:
            continue
        name = node.inputs[0]
        source = next(n for n in (f"{name}_float" + "_" * i for i in range(len(taken) + 1)) if n not in taken)
        floats[name] = field(_WEIGHT, _tensor_field(source, values))
        pairs.append(field(_NODE, _quantize(node, axis, source)))
    if not floats:
        return None
    out: list[bytes | memoryview] = list(pairs)  # before every node that reads them
    for i, (tag, whole, _, body) in enumerate(parts):
        name = weights[i][0] if i in weights else ""
        if name in floats:
            out.append(floats[name])
        elif tag != _INPUT or not any(t == 1 and text(b) in floats for t, _, b in fields(body)):
            out.append(whole)
    return b"".join(out)


def in_float(model: bytes) -> bytes:
    """Converts every INT8 weight to float32 with a QuantizeLinear before its DequantizeLinear: identical in value.

    Unsupported cases (external weights, zero points other than 0, blocks) are left unchanged; so is a file that is not
    ONNX, which the parser will report.

    Args:
        model: the file's bytes.

    Returns:
        The modified file, or the same bytes if there is nothing to do.
    """
    return change_graph(model, _graph)
