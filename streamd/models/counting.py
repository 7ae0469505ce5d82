"""What an ONNX graph contains and costs, counted without running it."""

from __future__ import annotations

import math
from typing import Any

from streamd.models.graph import Graph, vendor


def parameters(model: Any, graph: Graph) -> int:
    """Number of elements in all float constants: weights and biases. Q/DQ scales are not parameters."""
    onnx = vendor()
    scales = {name for n in graph.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear") for name in n.input[1:]}
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8)
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type in kinds and t.name not in scales)


def shapes(model: Any, size: tuple[int, int]) -> dict[str, list[int]]:
    """Shapes of all tensors at batch 1 and the given input size, as far as ONNX can infer them."""
    import copy

    onnx = vendor()
    fixed = copy.deepcopy(model)
    constants = {t.name for t in fixed.graph.initializer}
    for value in fixed.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and len(dims) == 4:
            for i, dim in enumerate(dims):
                if not dim.dim_value:
                    dim.dim_value = 1 if i == 0 else size[0] if i == 2 else size[1]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    try:
        fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except Exception:  # noqa: BLE001 - shape inference is optional; without it the cost is unknown
        return {}
    return {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*fixed.graph.value_info, *fixed.graph.input, *fixed.graph.output)
    }


def gflops(graph: Graph, shapes: dict[str, list[int]]) -> float | None:
    """10^9 operations in convolutions and matrix products, two per multiply-add; None if a shape is unknown."""
    total = 0
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        out, weight = shapes.get(node.output[0]), _weight_shape(graph, node.input[1], shapes)
        if not out or not weight or 0 in out:
            return None
        if node.op_type == "Conv":
            each = math.prod(weight[1:])
        elif node.op_type == "ConvTranspose":
            into = shapes.get(node.input[0])
            if not into or 0 in into:
                return None
            total += 2 * math.prod(into) * math.prod(weight[1:])
            continue
        else:
            transposed = node.op_type == "Gemm" and graph.attribute(node, "transB", 0)
            each = weight[-1] if transposed else weight[-2]
        total += 2 * math.prod(out) * each
    return total / 1e9


def _weight_shape(graph: Graph, name: str, shapes: dict[str, list[int]]) -> list[int] | None:
    node = graph.producer.get(name)
    # Look through the Q/DQ pair of a quantized weight.
    while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        name = node.input[0]
        node = graph.producer.get(name)
    return list(graph.constant(name).shape) if graph.is_constant(name) else shapes.get(name)


def int8_convolutions(graph: Graph) -> tuple[int, int]:
    """(convolutions with quantized inputs and weights, all convolutions)."""
    convolutions = [n for n in graph.nodes if n.op_type in ("Conv", "QLinearConv", "ConvInteger")]
    int8 = 0
    for node in convolutions:
        made = [graph.producer.get(name) for name in node.input[:2]]
        pairs = all(p is not None and p.op_type == "DequantizeLinear" for p in made)
        int8 += pairs or node.op_type != "Conv"
    return int8, len(convolutions)


def silus(graph: Graph) -> int:
    """Number of multiplications of a tensor by its own sigmoid."""
    return sum(
        any(
            (maker := graph.producer.get(name)) is not None
            and maker.op_type == "Sigmoid"
            and maker.input[0] in node.input
            for name in node.input
        )
        for node in graph.nodes
        if node.op_type == "Mul"
    )


def asymmetric(graph: Graph) -> bool:
    """True if a pair is not symmetric INT8, which TensorRT rejects."""
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            if len(node.input) < 3:
                # Without a zero point, the type is uint8.
                return True
            if graph.is_constant(node.input[2]):
                zero = graph.constant(node.input[2])
                if zero.dtype.name != "int8" or zero.any():
                    return True
    return False
