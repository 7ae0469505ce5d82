"""Changes to OpenVINO models before they are compiled."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np


def _constant(value: Any) -> list[int] | None:
    """The values of an input that is a constant."""
    node = value.get_node()
    return [int(v) for v in node.get_data().ravel()] if node.get_type_name() == "Constant" else None


def join_slices(model: Any) -> int:
    """Replaces slices that cut a whole tensor along one axis into neighbouring parts by one split.

    OpenVINO does so itself, but up to 2026.4 wrongly for three slices along an axis that is counted from the end: it
    then cannot compile YOLO26 exported end to end for poses, rotated boxes or masks.

    Args:
        model: openvino.Model; changed in place.

    Returns:
        How many groups of slices were replaced.
    """
    from openvino import opset13

    groups: dict[tuple[str, int, int], list[tuple[int, int, Any]]] = defaultdict(list)
    for node in model.get_ops():
        if node.get_type_name() != "Slice" or node.get_input_size() < 5:
            continue
        begin, axes = _constant(node.input_value(1)), _constant(node.input_value(4))
        shape = node.output(0).get_partial_shape()
        if begin is None or axes is None or len(axes) != 1 or begin[0] < 0 or shape.rank.is_dynamic:
            continue
        axis = axes[0] % len(shape)
        if shape[axis].is_static:
            source = node.input_value(0)
            key = (source.get_node().get_friendly_name(), source.get_index(), axis)
            groups[key].append((begin[0], shape[axis].get_length(), node))
    joined = 0
    for (_, _, axis), parts in groups.items():
        parts.sort(key=lambda part: part[0])
        source = parts[0][2].input_value(0)
        whole = source.get_partial_shape()[axis]
        ends = [begin + size for begin, size, _ in parts]
        if len(parts) < 3 or not whole.is_static or [0, *ends] != [*(p[0] for p in parts), whole.get_length()]:
            continue
        split = opset13.variadic_split(source, np.int64(axis), np.array([size for _, size, _ in parts], np.int64))
        for output, (_, _, node) in zip(split.outputs(), parts, strict=True):
            node.output(0).replace(output)
        joined += 1
    return joined
