"""Small ONNX models, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save(
    path: Path,
    nodes: list[Any],
    weights: dict[str, Any],
    *,
    batch: int | str = "batch",
    size: int = 32,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A model `images` (batch, 3, size, size) -> `out`, of these nodes."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    path.write_bytes(model.SerializeToString())
    return path


def weight(seed: int = 0, shape: tuple[int, ...] = (8, 3, 3, 3)) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 4


def conv_relu(path: Path, *, seed: int = 0, batch: int | str = "batch", **metadata: str) -> Path:
    """A convolution and a ReLU."""
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["out"], name="relu"),
    ]
    return save(path, nodes, {"w": weight(seed)}, batch=batch, metadata=metadata or None)


def qdq(path: Path) -> Path:
    """The same with explicit INT8: symmetric, per-channel weights."""
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "sx", "zx"], ["xq"], name="qx"),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"], name="dqx"),
        helper.make_node("DequantizeLinear", ["wq", "sw", "zw"], ["wd"], name="dqw", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], name="conv", pads=[1] * 4, kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["out"], name="relu"),
    ]
    weights = {
        "sx": np.float32(1 / 127),
        "zx": np.int8(0),
        "wq": np.random.default_rng(0).integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "sw": np.full(8, 0.01, np.float32),
        "zw": np.zeros(8, np.int8),
    }
    return save(path, nodes, {k: np.asarray(v) for k, v in weights.items()})


def unsupported(path: Path) -> Path:
    """Two operators no TensorRT has, with names."""
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Det", ["c"], ["d"], name="first_bad"),
        helper.make_node("Det", ["d"], ["out"], name="second_bad"),
    ]
    return save(path, nodes, {"w": weight()})


def two_stage(path: Path) -> Path:
    """Convolution, Resize by a constant, convolution, and arithmetic behind it that must not lose precision."""
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["a"], name="conv0", pads=[1] * 4),
        helper.make_node(
            "Constant", [], ["scales"], name="k", value=numpy_helper.from_array(np.array([1, 1, 2, 2], "f4"))
        ),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], name="resize", mode="nearest"),
        helper.make_node("Conv", ["b", "v"], ["c"], name="conv1"),
        helper.make_node("Sigmoid", ["c"], ["d"], name="sigmoid"),
        helper.make_node("Mul", ["d", "big"], ["out"], name="decode"),
    ]
    weights = {"w": weight(), "v": weight(1, (4, 8, 1, 1)), "big": np.float32(1000.3)}
    return save(path, nodes, {k: np.asarray(v) for k, v in weights.items()})


def outside_weights(path: Path) -> Path:
    """`conv_relu` with its weights in a file of their own."""
    model = onnx.load(str(conv_relu(path)))
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    return path


def detr_final(path: Path, *, batch: int | str = "N", size: tuple[int, int] = (64, 96), queries: int = 3) -> Path:
    """What RT-DETR's and D-FINE's `export_onnx.py` write, less the network: (images, orig_target_sizes) -> the three.

    Query i has class i, score 0.9 - 0.2·i and a box of shares (0.1·i, 0.2, 0.1·i + 0.5, 0.7), for every picture.
    """
    node = helper.make_node
    shares = np.array([[[0.1 * i, 0.2, 0.1 * i + 0.5, 0.7] for i in range(queries)]], np.float32)
    weights = {
        "shares": shares, "none": np.float32(0), "twice": np.array([1, 2]), "middle": np.array([1]),
        "scored": np.array([[0.9 - 0.2 * i for i in range(queries)]], np.float32),
        "numbers": np.arange(queries)[None].astype(np.float32),
    }  # fmt: skip
    nodes = [
        # What depends on the picture only to have its batch.
        node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        node("Mul", ["mean", "none"], ["zero"]),
        node("Unsqueeze", ["zero", "middle"], ["zero2"]),
        node("Unsqueeze", ["zero2", "middle"], ["zero3"]),
        node("Add", ["zero3", "shares"], ["relative"]),
        node("Cast", ["orig_target_sizes"], ["sizes"], to=TensorProto.FLOAT),
        node("Tile", ["sizes", "twice"], ["four"]),
        node("Unsqueeze", ["four", "middle"], ["factor"]),
        node("Mul", ["relative", "factor"], ["boxes"]),
        node("Add", ["zero2", "scored"], ["scores"]),
        node("Add", ["zero2", "numbers"], ["labelled"]),
        node("Cast", ["labelled"], ["labels"], to=TensorProto.INT64),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "detr",
        [
            info("images", TensorProto.FLOAT, [batch, 3, *size]),
            info("orig_target_sizes", TensorProto.INT64, [batch, 2]),
        ],
        [
            info("labels", TensorProto.INT64, [batch, queries]),
            info("boxes", TensorProto.FLOAT, [batch, queries, 4]),
            info("scores", TensorProto.FLOAT, [batch, queries]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def constant_output(path: Path, value: Any, metadata: dict[str, str], *, size: int = 64) -> Path:
    """A model whose output is `value` (1, …) for every picture."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "none"], ["zero"]),
        helper.make_node("Add", ["zero", "value"], ["out"]),
    ]
    weights = {"none": np.asarray(np.float32(0)), "value": np.asarray(value, np.float32)}
    return save(path, nodes, weights, batch=1, size=size, metadata=metadata)


def best_rows(path: Path, *, batch: int | str = 1) -> Path:
    """The end of YOLO26's end-to-end heads for other tasks: rows of 4, 3 and 1 values, the best of which are kept.

    Output (B, 6, 5): of the six rows with the highest of the 3 values, the 4 and the 1.
    """
    node = helper.make_node
    weights = {
        "shape": np.array([-1, 8, 384]), "from0": np.array([0]), "from4": np.array([4]), "from7": np.array([7]),
        "to": np.array([2**63 - 1]), "axis": np.array([-1]), "step": np.array([1]), "six": np.array([6]),
        "last": np.array([2]), "four": np.array([1, 1, 4]), "one": np.array([1, 1, 1]),
    }  # fmt: skip
    nodes = [
        node("Reshape", ["images", "shape"], ["columns"]),
        node("Transpose", ["columns"], ["rows"], perm=[0, 2, 1]),
        node("Slice", ["rows", "from0", "from4", "axis", "step"], ["boxes"]),
        node("Slice", ["rows", "from4", "from7", "axis", "step"], ["scores"]),
        node("Slice", ["rows", "from7", "to", "axis", "step"], ["extra"]),
        node("ReduceMax", ["scores"], ["best"], axes=[2], keepdims=0),
        node("TopK", ["best", "six"], ["values", "index"], axis=1),
        node("Unsqueeze", ["index", "last"], ["index3"]),
        node("Tile", ["index3", "four"], ["index4"]),
        node("GatherElements", ["boxes", "index4"], ["kept"], axis=1),
        node("GatherElements", ["extra", "index3"], ["more"], axis=1),
        node("Concat", ["kept", "more"], ["out"], axis=2),
    ]
    return save(path, nodes, {k: np.asarray(v) for k, v in weights.items()}, batch=batch)


def colours(
    path: Path, *, batch: int | str = "batch", size: int = 32, softmax: bool = False, labels: str = "red,green,blue"
) -> Path:
    """A classifier that tells red, green and blue apart: output (B, 3), 20 times the mean of each input channel."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits" if softmax else "out"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["out"], axis=1))
    names = {"names": str(labels.split(","))} if labels else None
    return save(path, nodes, {"w": np.eye(3, dtype=np.float32) * 20}, batch=batch, size=size, metadata=names)
