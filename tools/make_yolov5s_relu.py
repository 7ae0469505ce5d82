#!/usr/bin/env python3
"""Writes YOLOv5s with ReLU and three raw heads as ONNX, with random weights: a realistic load, not a detector.

    python tools/make_yolov5s_relu.py OUT.onnx [--size 640] [--width 0.5] [--depth 0.33]

The layers are those of YOLOv5 release 6 (models/yolov5s.yaml: 7.2 M parameters, 16.5 GFLOPs at 640×640), batch
normalisation folded, SiLU replaced by ReLU as the INT8 tutorials do. Weights are drawn with a fixed seed and scaled so
that activations keep their size from layer to layer (He initialisation): timings with zeros or overflows would be
meaningless."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import numpy as np


class Graph:
    """Collects nodes and weights."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.channels: dict[str, int] = {}
        self._random = np.random.default_rng(seed)

    def add(self, op: str, inputs: list[str], channels: int, **attributes: Any) -> str:
        """Adds a node and returns its output's name."""
        from onnx import helper

        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.channels[name] = channels
        return name

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        """Adds an initializer."""
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def head(self, x: str, anchors: int, classes: int, stride: int) -> str:
        """The last convolution of a stride. Its biases are those that YOLOv5 starts its training with, and its weights
        are small: an untrained network should find nothing, or NMS would dominate the measurement."""
        values = 5 + classes
        weight = self._random.normal(0, 0.01, (anchors * values, self.channels[x], 1, 1)).astype(np.float32)
        bias = np.zeros((anchors, values), np.float32)
        bias[:, 4] = math.log(8 / (640 / stride) ** 2)
        bias[:, 5:] = math.log(0.6 / (classes - 0.99))
        index = len(self.weights)
        names = [x, self.constant(f"w{index}", weight), self.constant(f"b{index}", bias.reshape(-1))]
        return self.add("Conv", names, anchors * values, kernel_shape=[1, 1], strides=[1, 1], pads=[0] * 4)

    def conv(self, x: str, out: int, kernel: int = 1, stride: int = 1, *, pad: int = -1) -> str:
        """Convolution, bias and ReLU."""
        fan_in = self.channels[x] * kernel * kernel
        shape = (out, self.channels[x], kernel, kernel)
        weight = self._random.normal(0, math.sqrt(2 / fan_in), shape).astype(np.float32)
        index = len(self.weights)
        names = [x, self.constant(f"w{index}", weight), self.constant(f"b{index}", np.zeros(out, np.float32))]
        pad = kernel // 2 if pad < 0 else pad
        y = self.add(
            "Conv", names, out, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
        )  # fmt: skip
        return self.add("Relu", [y], out)

    def concat(self, *inputs: str) -> str:
        """Along the channels."""
        return self.add("Concat", list(inputs), sum(self.channels[i] for i in inputs), axis=1)

    def c3(self, x: str, out: int, repeats: int, *, shortcut: bool = True) -> str:
        """CSP bottleneck with three convolutions."""
        half = out // 2
        y = self.conv(x, half)
        for _ in range(repeats):
            z = self.conv(self.conv(y, half), half, 3)
            y = self.add("Add", [y, z], half) if shortcut else z
        return self.conv(self.concat(y, self.conv(x, half)), out)

    def sppf(self, x: str, out: int) -> str:
        """Spatial pyramid pooling, three 5×5 pools in a row."""
        half = out // 2
        y = [self.conv(x, half)]
        for _ in range(3):
            y.append(self.add("MaxPool", [y[-1]], half, kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1]))
        return self.conv(self.concat(*y), out)

    def upsample(self, x: str) -> str:
        """Nearest neighbour, twice."""
        if not any(w.name == "scales" for w in self.weights):
            self.constant("scales", np.array([1, 1, 2, 2], np.float32))
        return self.add(
            "Resize", [x, "", "scales"], self.channels[x], mode="nearest", nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )  # fmt: skip


def build(size: int, width: float, depth: float, classes: int = 80) -> Any:
    """The ONNX model."""
    from onnx import TensorProto, helper

    g = Graph()
    g.channels["images"] = 3

    def wide(channels: int) -> int:
        return math.ceil(channels * width / 8) * 8

    def deep(repeats: int) -> int:
        return max(1, round(repeats * depth))

    x = g.conv("images", wide(64), 6, 2, pad=2)
    x = g.c3(g.conv(x, wide(128), 3, 2), wide(128), deep(3))
    p3 = g.c3(g.conv(x, wide(256), 3, 2), wide(256), deep(6))
    p4 = g.c3(g.conv(p3, wide(512), 3, 2), wide(512), deep(9))
    x = g.c3(g.conv(p4, wide(1024), 3, 2), wide(1024), deep(3))
    h10 = g.conv(g.sppf(x, wide(1024)), wide(512))
    x = g.c3(g.concat(g.upsample(h10), p4), wide(512), deep(3), shortcut=False)
    h14 = g.conv(x, wide(256))
    n3 = g.c3(g.concat(g.upsample(h14), p3), wide(256), deep(3), shortcut=False)
    n4 = g.c3(g.concat(g.conv(n3, wide(256), 3, 2), h14), wide(512), deep(3), shortcut=False)
    n5 = g.c3(g.concat(g.conv(n4, wide(512), 3, 2), h10), wide(1024), deep(3), shortcut=False)
    outputs = []
    for stride, level in ((8, n3), (16, n4), (32, n5)):
        y = g.head(level, 3, classes, stride)
        cells = size // stride
        shape = g.constant(f"shape{stride}", np.array([0, 3, 5 + classes, cells, cells], np.int64))
        y = g.add("Reshape", [y, shape], 0)
        name = f"stride{stride}"
        g.nodes.append(helper.make_node("Transpose", [y], [name], name=name, perm=[0, 1, 3, 4, 2]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, cells, cells, 5 + classes]))
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size, size])
    graph = helper.make_graph(g.nodes, "yolov5_relu", [image], outputs, g.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="streamd")


def main() -> int:
    """Writes the file."""
    import onnx

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("--size", type=int, default=640, help="input height and width, a multiple of 32 (default 640)")
    p.add_argument("--width", type=float, default=0.5, help="channel multiple: 0.25 is n, 0.5 is s (default)")
    p.add_argument("--depth", type=float, default=0.33, help="repeat multiple (default 0.33: n and s)")
    args = p.parse_args()
    model = build(args.size, args.width, args.depth)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, args.out)
    count = sum(int(np.prod(w.dims)) for w in model.graph.initializer if w.name[0] in "wb")
    print(f"{args.out}: {count / 1e6:.2f} M parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
