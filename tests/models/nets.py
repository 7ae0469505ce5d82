"""Small real networks, made with onnx.helper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng


class Net:
    """Collects nodes and constants. Every method returns the name of its result."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.random = rng(seed)

    def constant(self, value: Any, name: str = "") -> str:
        name = name or f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], name: str = "", outputs: int = 1, **attributes: Any) -> str:
        name = name or f"{kind}_{len(self.nodes)}"
        out = [f"{name}_o{i or ''}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, out, name, **attributes))
        return out[0]

    def conv(self, x: str, into: int, out: int, *, name: str = "", kernel: int = 3, stride: int = 1) -> str:
        name = name or f"conv{len(self.nodes)}"
        scale = 1 / np.sqrt(into * kernel * kernel)
        w = self.random.normal(0, scale, (out, into, kernel, kernel)).astype(np.float32)
        b = self.random.normal(0, 0.1, out).astype(np.float32)
        inputs = [x, self.constant(w, f"{name}.w"), self.constant(b, f"{name}.b")]
        pads = [kernel // 2] * 4
        return self.op("Conv", inputs, name, kernel_shape=[kernel] * 2, pads=pads, strides=[stride] * 2)

    def silu(self, x: str) -> str:
        return self.op("Mul", [x, self.op("Sigmoid", [x])])

    def relu(self, x: str) -> str:
        return self.op("Relu", [x])

    def model(self, outputs: dict[str, list[Any]], shape: list[Any], opset: int = 17) -> Any:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
            self.constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        return made


def branches(*, act: str = "silu", opset: int = 17) -> Any:
    """stem → (a, b) → Concat → c → + skip → MaxPool, Resize → Concat → d → output convolution."""
    net = Net()
    act_of = net.silu if act == "silu" else net.relu
    stem = act_of(net.conv("images", 3, 8, name="stem", stride=2))
    a = act_of(net.conv(stem, 8, 8, name="a", kernel=1))
    b = act_of(net.conv(stem, 8, 8, name="b"))
    c = act_of(net.conv(net.op("Concat", [a, b], "cat1", axis=1), 16, 8, name="c", kernel=1))
    added = net.op("Add", [stem, c], "skip")
    pooled = net.op("MaxPool", [added], "pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    d = act_of(net.conv(net.op("Concat", [added, pooled], "cat2", axis=1), 16, 8, name="d"))
    out = net.conv(d, 8, 6, name="out", kernel=1)
    net.op("Sigmoid", [out], "decode")
    return net.model({"decode_o": [1, 6, 32, 32]}, [1, 3, 64, 64], opset)


def detector(path: Path, *, batch: Any = "batch", act: str = "silu", size: int = 64) -> Path:
    """A YOLOv5-shaped detector with three raw heads and one class; its objectness is high, so it always sees boxes."""
    net = Net(3)
    act_of = net.silu if act == "silu" else net.relu
    x = "images"
    outputs: dict[str, list[Any]] = {}
    channels = 3
    for level, stride in enumerate((2, 4, 8, 16, 32)):
        x = act_of(net.conv(x, channels, 16, name=f"body{level}", stride=2))
        x = act_of(net.conv(x, 16, 16, name=f"mix{level}"))
        channels = 16
        if stride >= 8:
            grid = size // stride
            head = net.conv(x, 16, 18, name=f"head{stride}", kernel=1)
            split = net.op(
                "Reshape", [head, net.constant(np.array([-1 if batch == "batch" else batch, 3, 6, grid, grid]))]
            )
            net.nodes.append(helper.make_node("Transpose", [split], [f"s{stride}"], f"t{stride}", perm=[0, 1, 3, 4, 2]))
            outputs[f"s{stride}"] = [batch, 3, grid, grid, 6]
    for t in net.constants:
        if t.name.startswith("head") and t.name.endswith(".b"):
            bias = numpy_helper.to_array(t).copy().reshape(3, 6)
            bias[:, 4:] += 2
            t.CopyFrom(numpy_helper.from_array(bias.reshape(-1), t.name))
    onnx.save(net.model(outputs, [batch, 3, size, size]), str(path))
    return path


def joined_sigmoid(source: Path, out: Path) -> Path:
    """`detector`'s heads as one output, through a sigmoid, not decoded: the shape of decoded rows."""
    model = onnx.load(str(source))
    rows = []
    for head in ("s8", "s16", "s32"):
        model.graph.initializer.append(numpy_helper.from_array(np.array([0, -1, 6]), f"{head}_shape"))
        model.graph.node.append(helper.make_node("Reshape", [head, f"{head}_shape"], [f"{head}_rows"]))
        rows.append(f"{head}_rows")
    model.graph.node.append(helper.make_node("Concat", rows, ["all_rows"], axis=1))
    model.graph.node.append(helper.make_node("Sigmoid", ["all_rows"], ["shares"]))
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("shares", TensorProto.FLOAT, [batch, 252, 6]))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(out))
    return out


def pictures(folder: Path, count: int = 6, *, width: int = 96, height: int = 64, seed: int = 7) -> Path:
    """PNG files of smooth noise."""
    import cv2

    folder.mkdir()
    random = rng(seed)
    for i in range(count):
        small = random.integers(0, 255, (8, 12, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"p{i}.png"), cv2.resize(small, (width, height)))
    return folder
