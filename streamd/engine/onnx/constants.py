"""Gives an input a constant value: the input becomes an initializer, which parsers fold like any weight."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamd.engine.onnx.protobuf import field, fields, spans, text
from streamd.engine.onnx.reader import change_graph

# Numbers of onnx.proto. GraphProto: initializer 5, input 11. ValueInfoProto: name 1. TensorProto: dims 1, data_type 2,
# name 8, raw_data 9.
_WEIGHT, _INPUT = 5, 11
_TYPES = {"float32": 1, "int32": 6, "int64": 7}


def _tensor(name: str, value: npt.NDArray[np.generic]) -> bytes:
    """A TensorProto. Raw data is little-endian."""
    dims = b"".join(field(1, size) for size in value.shape)
    raw = value.astype(value.dtype.newbyteorder("<")).tobytes()
    return dims + field(2, _TYPES[value.dtype.name]) + field(8, name.encode()) + field(9, raw)


def with_constant(model: bytes, name: str, value: npt.NDArray[np.generic]) -> bytes:
    """The model with its input `name` replaced by `value`.

    Args:
        model: the file's bytes.
        name: of the input.
        value: float32, int32 or int64.

    Returns:
        The modified file, or the same bytes if it has no such input or is not ONNX.
    """

    def change(graph: memoryview) -> bytes | None:
        parts = list(spans(graph))
        kept = [
            whole
            for tag, whole, _, body in parts
            if not (tag == _INPUT and any(n == 1 and text(b) == name for n, _, b in fields(body)))
        ]
        return None if len(kept) == len(parts) else b"".join((*kept, field(_WEIGHT, _tensor(name, value))))

    return change_graph(model, change)
