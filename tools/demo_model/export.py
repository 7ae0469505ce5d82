"""Writes trained weights as ONNX: three raw heads of YOLOv5's layout, with the sidecar that streamd reads."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from demo_model import ANCHORS, CLASSES, SIZE, STRIDES
from demo_model.net import Detector

OPSET = 13
"""TensorRT 8.5 reads opsets up to 17; 13 has everything that quantisation needs."""


def load(weights: Path) -> Detector:
    """The trained network, ready to detect."""
    found = torch.load(weights, map_location="cpu", weights_only=True)
    model = Detector(found["meta"]["width"], found["meta"]["depth"])
    model.load_state_dict({k: v.float() if v.dtype.is_floating_point else v for k, v in found["state"].items()})
    model.eval()
    return model


def sidecar() -> dict[str, Any]:
    """Metadata that the ONNX file cannot hold."""
    return {
        "version": 1,
        "labels": list(CLASSES),
        "color": "RGB",
        "pad_value": 114,
        "head": {"kind": "yolov5_heads", "strides": list(STRIDES), "anchors": [[a, a] for a in ANCHORS]},
    }


def export(weights: Path, out: Path) -> None:
    """Writes `out` and `out`.json. Input `images` (batch, 3, SIZE, SIZE) RGB 0..1, outputs stride8, 16, 32."""
    import onnx

    model = load(weights)
    names = [f"stride{s}" for s in STRIDES]
    out.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # The exporter that writes old opsets is deprecated, and the one that replaces it writes 18 and up.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model, (torch.zeros(1, 3, SIZE, SIZE),), str(out), opset_version=OPSET, input_names=["images"],
            output_names=names, dynamic_axes={n: {0: "batch"} for n in ("images", *names)}, dynamo=False,
        )  # fmt: skip
    graph = onnx.load(out)
    for output, stride in zip(graph.graph.output, STRIDES, strict=True):
        for dimension, value in zip(
            output.type.tensor_type.shape.dim[1:], (1, SIZE // stride, SIZE // stride, 5 + len(CLASSES)), strict=True
        ):
            dimension.dim_value = value
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, out)
    Path(f"{out}.json").write_text(json.dumps(sidecar(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, opset {OPSET}, IR {graph.ir_version}")
