"""Published detectors as PyTorch functions, so that a GPU can ask them about every augmented picture.

YOLOX-Nano (Megvii, Apache-2.0) and PicoDet-S 416 (PaddleDetection, Apache-2.0), read from ONNX node by node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from demo_model import COCO_IDS, SIZE

# PaddleDetection normalises RGB by ImageNet's mean and deviation.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PICODET_BINS = 8
FEATURES = {
    True: (("input.471", 64), ("input.531", 128), ("input.591", 256)),
    False: (("hardswish_14.tmp_0", 96), ("hardswish_22.tmp_0", 96), ("hardswish_30.tmp_0", 96)),
}
"""Of YOLOX-Nano (True) and PicoDet-S: the tensors of stride 8, 16 and 32 that their heads read, and their channels."""
SHARED_CELLS = sum((SIZE // s) ** 2 for s in (8, 16, 32))
"""Cells of stride 8, 16 and 32: the student has the same, in the same order."""


def _scales(values: Any) -> float:
    return float(values[2])


class OnnxNet:
    """An ONNX graph of the few operators these detectors use, for any batch size.

    Args:
        path: the model.
        device: where it runs.
        dtype: of the arithmetic.
        extra: names of inner tensors that are returned after the outputs.
    """

    def __init__(self, path: Path, device: str = "cpu", dtype: Any = torch.float32, extra: Sequence[str] = ()) -> None:
        import onnx
        from onnx import helper, numpy_helper

        graph = onnx.load(path).graph
        self._constants: dict[str, Any] = {}
        for tensor in graph.initializer:
            self._constants[tensor.name] = numpy_helper.to_array(tensor)
        for node in graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self._input = next(i.name for i in graph.input if i.name not in self._constants)
        self._outputs = [*(o.name for o in graph.output), *extra]
        self._nodes = _fused(
            [
                (
                    n.op_type,
                    list(n.input),
                    list(n.output),
                    {a.name: helper.get_attribute_value(a) for a in n.attribute},
                )
                for n in graph.node
                if n.op_type != "Constant"
            ],
            self._constants,
        )
        self._weights: dict[str, Any] = {}
        for op, inputs, _, _ in self._nodes:
            if op == "Conv":
                for name in inputs[1:]:
                    weight = torch.tensor(self._constants[name]).to(device, dtype)
                    if weight.ndim == 4:
                        weight = weight.contiguous(memory_format=torch.channels_last)
                    self._weights[name] = weight
            elif op in ("Add", "Mul", "Div"):
                for name in inputs:
                    if name in self._constants:
                        self._weights[name] = torch.tensor(self._constants[name]).to(device, dtype)
        self._last = {name: i for i, (_, inputs, _, _) in enumerate(self._nodes) for name in inputs}

    def __call__(self, x: Any) -> list[Any]:
        """The outputs, in the graph's order, and the extra tensors."""
        values: dict[str, Any] = {self._input: x, **self._weights}
        for i, (op, inputs, outputs, attributes) in enumerate(self._nodes):
            found = self._run(op, [values.get(n) for n in inputs], inputs, attributes)
            values.update(zip(outputs, found if isinstance(found, (list, tuple)) else [found], strict=True))
            for name in inputs:
                if self._last[name] == i and name not in self._outputs:
                    values.pop(name, None)
        return [values[n] for n in self._outputs]

    def _run(self, op: str, x: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        if op == "Conv":
            top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
            if (top, left) != (bottom, right):
                x[0], (top, left) = F.pad(x[0], (left, right, top, bottom)), (0, 0)
            bias = x[2] if len(x) > 2 else None
            return F.conv2d(x[0], x[1], bias, a["strides"], (top, left), a.get("dilations", 1), a.get("group", 1))
        if op == "MaxPool":
            return F.max_pool2d(x[0], a["kernel_shape"], a["strides"], a["pads"][:2])
        if op == "Resize":
            return F.interpolate(x[0], scale_factor=_scales(self._constants[names[2]]), mode="nearest")
        if op == "Slice":
            start, end, axis, step = (int(self._constants[n][0]) for n in names[1:])
            return x[0][(slice(None),) * axis + (slice(start, min(end, x[0].shape[axis]), step),)]
        if op == "Reshape":
            return x[0].reshape(x[0].shape[0], *self._constants[names[1]].tolist()[1:])
        simple: dict[str, Any] = {
            "Silu": lambda: F.silu(x[0]),
            "Hardswish": lambda: F.hardswish(x[0]),
            "Sigmoid": lambda: torch.sigmoid(x[0]),
            "Relu": lambda: F.relu(x[0]),
            "HardSigmoid": lambda: F.hardsigmoid(x[0]),
            "Mul": lambda: x[0] * x[1],
            "Add": lambda: x[0] + x[1],
            "Concat": lambda: torch.cat(x, a["axis"]),
            "Split": lambda: torch.split(x[0], a["split"], a["axis"]),
            "Transpose": lambda: x[0].permute(a["perm"]),
            "GlobalAveragePool": lambda: x[0].mean((2, 3), keepdim=True),
        }
        return simple[op]()


class CpuNet:
    """An ONNX model through OpenVINO, a picture at a time: on a CPU some ten times faster than `OnnxNet`.

    Args:
        path: the model, exported for one picture.
    """

    def __init__(self, path: Path) -> None:
        import openvino

        # Labels are made once: in float32, whatever the CPU would rather do.
        self._request = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def __call__(self, x: Any) -> list[Any]:
        """The outputs, in the graph's order."""
        found = [[v.copy() for v in self._request([p[None]]).values()] for p in x.contiguous().numpy()]
        return [torch.from_numpy(np.concatenate(parts)) for parts in zip(*found, strict=True)]


def _fused(nodes: list[Any], constants: dict[str, Any]) -> list[Any]:
    """x·σ(x) and x·clip(x+3, 0, 6)/6 as one operator each: a quarter of the memory traffic."""
    users: dict[str, int] = {}
    for _, inputs, _, _ in nodes:
        for name in inputs:
            users[name] = users.get(name, 0) + 1
    out: list[Any] = []
    for node in nodes:
        op, inputs, outputs, _ = node
        ops = [n[0] for n in out[-3:]]
        if op == "Mul" and ops[-1:] == ["Sigmoid"] and inputs == [out[-1][1][0], out[-1][2][0]]:
            out[-1:] = [("Silu", [inputs[0]], outputs, {})]
        elif op == "Div" and ops == ["Add", "Clip", "Mul"] and out[-1][1][0] == out[-3][1][0]:
            out[-3:] = [("Hardswish", [out[-3][1][0]], outputs, {})]
        else:
            out.append(node)
    return out


@dataclass(frozen=True)
class Seen:
    """What a teacher says about a batch, by cell."""

    boxes: Any
    """(B, N, 4) corners in pixels, float32."""
    scores: Any
    """(B, N, 6) of our classes, float32."""
    all: Any
    """(B, N, 80) of all COCO classes."""
    features: tuple[Any, ...]
    """What the heads read at stride 8, 16 and 32 (B, C, H, W), where it was asked for."""


class Teacher:
    """One detector: pictures in, per cell a box and the six classes' scores out.

    Args:
        path: `yolox_nano.onnx` or `picodet_s_416_coco.onnx`; the name says which.
        device: where it runs.
        dtype: of the convolutions.
        features: also return what its heads read.
    """

    def __init__(self, path: Path, device: str = "cpu", dtype: Any = torch.float32, *, features: bool = False) -> None:
        self.yolox = "yolox" in path.name
        self.channels = tuple(c for _, c in FEATURES[self.yolox]) if features else ()
        if device == "cpu" and not features:
            self._net: Any = CpuNet(path)
        else:
            names = [n for n, _ in FEATURES[self.yolox]] if features else []
            self._net = OnnxNet(path, device, dtype, names)
        self._dtype = dtype
        strides = (8, 16, 32) if self.yolox else (8, 16, 32, 64)
        cells, steps = [], []
        for stride in strides:
            n = -(-SIZE // stride)
            y, x = np.mgrid[:n, :n]
            cells.append(np.stack([x.ravel(), y.ravel()], 1))
            steps.append(np.full(n * n, stride))
        self._cell = torch.tensor(np.concatenate(cells), dtype=torch.float32, device=device)
        self._stride = torch.tensor(np.concatenate(steps), dtype=torch.float32, device=device)[:, None]
        self._mean = torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)
        self._deviation = torch.tensor(_DEVIATION, device=device).view(1, 3, 1, 1)
        self._ids = torch.tensor(COCO_IDS, device=device)
        self._bins = torch.arange(_PICODET_BINS, dtype=torch.float32, device=device)

    def __call__(self, pictures: Any) -> tuple[Any, Any]:
        """As `look`, but boxes and our classes' scores alone."""
        seen = self.look(pictures)
        return seen.boxes, seen.scores

    def look(self, pictures: Any) -> Seen:
        """Asks about a batch of pictures (B, 3, 416, 416) RGB, 0..1."""
        x = pictures.flip(1) * 255 if self.yolox else (pictures - self._mean) / self._deviation
        x = x.to(self._dtype).contiguous(memory_format=torch.channels_last)
        found = self._net(x)
        outputs, features = (found, ()) if not self.channels else (found[:-3], tuple(found[-3:]))
        if self.yolox:
            rows = outputs[0]
            every = rows[..., 4:5].float() * rows[..., 5:].float()
            place = rows[..., :4].float()
            centre = (place[..., :2] + self._cell) * self._stride
            half = place[..., 2:].clamp(max=6).exp() * self._stride / 2
            boxes = torch.cat([centre - half, centre + half], -1)
        else:
            every = torch.cat(outputs[:4], 1).float()
            sides = torch.cat(outputs[4:], 1).float()
            sides = (sides.unflatten(-1, (4, _PICODET_BINS)).softmax(-1) * self._bins).sum(-1) * self._stride
            centre = (self._cell + 0.5) * self._stride
            boxes = torch.cat([centre - sides[..., :2], centre + sides[..., 2:]], -1)
        return Seen(boxes, every[..., self._ids], every, features)


def best_cells(teacher: Teacher, pictures: Any, count: int) -> tuple[Any, Any]:
    """The `count` cells of each picture with the highest score: boxes (B, count, 4), scores (B, count, 6)."""
    boxes, scores = teacher(pictures)
    index = scores.amax(-1).topk(count, 1).indices
    return (
        boxes.gather(1, index[..., None].expand(-1, -1, 4)),
        scores.gather(1, index[..., None].expand(-1, -1, scores.shape[-1])),
    )
