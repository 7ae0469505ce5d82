#!/usr/bin/env python3
"""Measures PyTorch with the same network: FP16, channels-last, in a CUDA graph. For comparison in the GPU tables.

    python tools/torch_baseline.py MODEL.onnx [--batch 1 16 32] [--json out.json]

The graph is read from the ONNX file, so both run the same layers with the same weights. Needs PyTorch and onnx only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np


def load(path: str) -> Any:
    """A function from an input tensor to the list of outputs, half precision, channels last, on the GPU."""
    import onnx
    import torch
    import torch.nn.functional as F
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    weights: dict[str, Any] = {}
    for w in model.graph.initializer:
        value = torch.from_numpy(numpy_helper.to_array(w).copy())
        if value.is_floating_point() and value.ndim == 4:
            value = value.half().cuda().contiguous(memory_format=torch.channels_last)
        elif value.is_floating_point() and value.ndim:
            value = value.half().cuda() if "scale" not in w.name else value
        weights[w.name] = value
    outputs = [o.name for o in model.graph.output]
    attributes = [{a.name: helper.get_attribute_value(a) for a in n.attribute} for n in model.graph.node]

    def constant(value: Any) -> list[int]:
        return [int(v) for v in np.asarray(value.cpu()).reshape(-1)]

    def run(image: Any) -> list[Any]:
        values: dict[str, Any] = {**weights, model.graph.input[0].name: image}
        for node, attribute in zip(model.graph.node, attributes, strict=True):
            x: list[Any] = [values[i] if i else None for i in node.input]
            kind = node.op_type
            if kind == "Conv":
                pads = attribute.get("pads", [0] * 4)
                y = F.conv2d(x[0], x[1], x[2] if len(x) > 2 else None, attribute.get("strides", [1, 1]), pads[:2],
                             attribute.get("dilations", [1, 1]), attribute.get("group", 1))  # fmt: skip
            elif kind == "Relu":
                y = F.relu(x[0])
            elif kind == "Sigmoid":
                y = torch.sigmoid(x[0])
            elif kind == "Mul":
                y = x[0] * x[1]
            elif kind == "Add":
                y = x[0] + x[1]
            elif kind == "Concat":
                y = torch.cat(x, attribute["axis"])
            elif kind == "MaxPool":
                y = F.max_pool2d(x[0], attribute["kernel_shape"], attribute["strides"], attribute["pads"][:2])
            elif kind == "Resize":
                y = F.interpolate(x[0], scale_factor=2, mode="nearest")
            elif kind == "Reshape":
                shape = constant(x[1])
                y = x[0].reshape([x[0].shape[i] if n == 0 else n for i, n in enumerate(shape)])
            elif kind == "Transpose":
                y = x[0].permute(attribute["perm"]).contiguous()
            elif kind == "Constant":
                y = torch.from_numpy(numpy_helper.to_array(attribute["value"]).copy())
            else:
                raise SystemExit(f"torch_baseline: {node.name}: operator {kind} is not supported")
            values[node.output[0]] = y
        return [values[name] for name in outputs]

    return run


def measure(run: Any, batch: int, size: int, rounds: int = 200) -> float:
    """Median milliseconds of a graph replay, by events."""
    import torch

    image = torch.rand(batch, 3, size, size, device="cuda").half().contiguous(memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True
    side = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(5):
            run(image)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        run(image)
    times: list[float] = []
    for i in range(rounds + 20):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 20:
            times.append(begin.elapsed_time(end))
    return float(statistics.median(times))


def main() -> int:
    """Measures and prints."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("--size", type=int, default=640)
    p.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    p.add_argument("--json", metavar="FILE")
    args = p.parse_args()
    run = load(args.model)
    found = {batch: round(measure(run, batch, args.size), 4) for batch in args.batch}
    for batch, ms in found.items():
        print(f"torch fp16 {Path(args.model).name} batch {batch:>3}: {ms:8.3f} ms, {batch / ms * 1e3:9.0f} images/s")
    if args.json:
        Path(args.json).write_text(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
