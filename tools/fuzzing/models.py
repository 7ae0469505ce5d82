"""Models: the file, its sidecar, and the network's outputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.target import Target, as_json
from streamd.errors import ConfigError


class Sidecar(Target):
    """The sidecar of a model, and the specification read from it."""

    name = "sidecar"
    what = "sidecar JSON, plan provenance, class names"
    text = True
    tokens = (b"null", b"[]", b"{}", b"NaN", b'"RTX "', b'"8.5.3.1"', b'"8.5.x+vc"', b"[" * 2000, b"\\ud800", b'"", ')

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        from streamd.engine.tensorrt.plans import VERSION_COMPATIBLE

        provenance = {
            "source": "m.onnx",
            "source_sha256": "0" * 64,
            "method": "entropy",
            "accuracy": {"map": 0.31},
            "precision": "int8",
            "tensorrt": "8.5.3.1",
            "gpu": "NVIDIA H200 (compute capability 9.0)",
            "profile": [1, 8, 16],
            "tools": {"onnx": "1.16"},
            "key": "k",
        }
        head = {"kind": "yolov5_cat"}
        plan = hashlib.sha256(b"plan").hexdigest()
        portable = {"tensorrt": f"8.5{VERSION_COMPATIBLE}", "key": "k", "source": "m.onnx"}
        return [
            as_json(
                {
                    "version": 1,
                    "labels": ["a", "b"],
                    "color": "BGR",
                    "scale": 1.0,
                    "pad_value": 114,
                    "head": head,
                    "sha256": plan,
                    "provenance": provenance,
                }
            ),
            as_json({"version": 1, "sha256": plan, "provenance": portable}),
        ]

    def run(self, data: bytes) -> None:
        from streamd.engine import ModelSettings
        from streamd.engine.model import settle_spec
        from streamd.engine.sidecar import read_sidecar, write_sidecar
        from streamd.engine.tensorrt.driver import Gpu
        from streamd.engine.tensorrt.plans import check_plan
        from streamd.engine.tensorrt.version import Trt
        from streamd.heads.select import open_head, resolve_labels
        from streamd.types import TensorSpec

        plan = self.file("m.engine", b"plan")
        self.file("m.engine.json", data)
        sidecar = read_sidecar(plan)
        write_sidecar(self.folder / "again.engine", sidecar)
        assert read_sidecar(self.folder / "again.engine") == sidecar
        images = TensorSpec("images", (-1, 3, 640, 640), "float32")
        outputs = [TensorSpec("output", (-1, 25200, 7), "float32")]
        spec = settle_spec(
            ModelSettings(path=str(plan)), plan, hashlib.sha256(b"plan").hexdigest(), [images], outputs, {}, 8
        )
        from dataclasses import replace

        from streamd.heads import DetectSettings

        head = open_head(None, replace(spec, outputs=tuple(outputs)), DetectSettings())
        resolve_labels(spec, head.classes)
        check_plan(plan, Trt(None, "tensorrt", (8, 5, 3, 1)), Gpu(0, "NVIDIA H200", (9, 0), "580"))


class Heads(Target):
    """Outputs of a model and their meaning according to its sidecar, for every registered kind of head."""

    name = "heads"
    what = "outputs of a model: shapes, values, declared or recognised head"
    tokens = (
        b"null",
        b"[]",
        b"{}",
        b'"kind"',
        b'"strides": [8, 16, 0]',
        b'"anchors": [[1, 2]]',
        b"\x00\x00\xc0\x7f",
        b"\x00\x00\x80\x7f",
        b"\x00\x00\x80\xff",
        b"\xff\xff\x7f\x7f",
    )
    _most = 1 << 20
    """Output values of one frame."""

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        from streamd.heads import HEADS

        rng = np.random.default_rng(1)
        made = []
        for name, kind in HEADS.builtin().items():
            shapes = kind.shapes(64, 96, 2)
            arrays = [rng.uniform(0, 1, shape).astype("<f4") for shape in shapes]
            for array in arrays:
                for axis, size in enumerate(array.shape):
                    if axis and size in (6, 7):  # 4+C and 5+C values of a box
                        np.moveaxis(array, axis, 0)[:4] *= 60
            values = b"".join(array.tobytes() for array in arrays)
            for head in ({"kind": name}, None):
                body = {"head": head, "shapes": shapes, "size": [64, 96], "labels": 2, "conf": 0.25}
                made.append(json.dumps(body).encode() + b"\n" + values)
        return made

    def run(self, data: bytes) -> None:
        from streamd.heads import DetectSettings
        from streamd.heads.detector import open_detector
        from streamd.types import Box, Letterbox, ModelSpec, TensorSpec

        header, _, values = data.partition(b"\n")
        try:
            body = json.loads(header)
            shapes = [tuple(int(d) for d in shape) for shape in body["shapes"]]
            height, width = (min(max(int(v), 32), 4096) for v in body["size"])
            labels = tuple(f"c{i}" for i in range(min(int(body["labels"]), 1000)))
            head = dict(body["head"]) if body.get("head") else None
            detect = DetectSettings(conf=body["conf"], multi_label=bool(body.get("multi_label")))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ConfigError(str(error)) from error
        if not shapes or any(min(s, default=0) < 1 or np.prod(s, dtype=float) > self._most for s in shapes):
            raise ConfigError("no such outputs")
        outputs = tuple(TensorSpec(f"o{i}", shape, "float32") for i, shape in enumerate(shapes))
        image = TensorSpec("images", (1, 3, height, width), "float32")
        spec = ModelSpec("m.onnx", "0" * 64, "m", image, outputs, labels, head=head)
        detector = open_detector(spec, None, detect)
        numbers = np.frombuffer(values[: len(values) // 4 * 4], "<f4")
        numbers = numbers if len(numbers) else np.zeros(1, np.float32)
        arrays, at = [], 0
        for shape in shapes:
            size = math.prod(shape)
            arrays.append(np.take(numbers, np.arange(at, at + size), mode="wrap").reshape(shape))
            at += size
        with np.errstate(all="ignore"):
            xyxy, score, class_id = detector.postprocess(arrays, 0, Letterbox.fit(Box(0, 0, 640, 480), width, height))
        assert xyxy.shape == (len(score), 4)
        assert len(score) == len(class_id) <= detect.max_det
        assert ((class_id >= 0) & (class_id < len(detector.labels))).all()
        assert ((score >= 0) & (score <= 1)).all()
        assert (xyxy[:, 2:] > xyxy[:, :2]).all()
        assert ((xyxy >= 0) & (xyxy <= [640, 480, 640, 480])).all()


def onnx_model() -> Any:
    """A small network with the parts that streamd recognises: convolution, Q/DQ, SiLU, an output that a head knows."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(rng.standard_normal((7, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(np.float32(0.02), "s"),
        numpy_helper.from_array(np.int8(0), "z"),
        numpy_helper.from_array(np.array([0, 0, -1], np.int64), "shape"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        helper.make_node("Conv", ["d", "w"], ["c"], "conv", pads=[1, 1, 1, 1], strides=[8, 8]),
        helper.make_node("Sigmoid", ["c"], ["g"], "sigmoid"),
        helper.make_node("Mul", ["c", "g"], ["m"], "silu"),
        helper.make_node("Reshape", ["m", "shape"], ["r"], "reshape"),
        helper.make_node("Transpose", ["r"], ["output"], "transpose", perm=[0, 2, 1]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 64, 64])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 64, 7])
    graph = helper.make_graph(nodes, "g", [images], [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {"names": "{0: 'person', 1: 'car'}", "stride": "32"})
    return model


class Onnx(Target):
    """A model file: streamd's ONNX reader, `streamd inspect`, and the graph to be quantised."""

    name = "onnx"
    what = "ONNX: onnxfile, weights, graph, inspect (with OpenVINO), prepare"
    limit_s = 30.0
    tokens = (
        b"Conv",
        b"QuantizeLinear",
        b"Sigmoid",
        b"location",
        b"../x",
        b"/dev/zero\0\0",
        b"\x08\xff\xff\xff\xff\x0f",
        b"Reshape",
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        from onnx import helper, numpy_helper

        model = onnx_model()
        whole = model.SerializeToString()
        plain = onnx_model()
        del plain.graph.node[:2]
        plain.graph.node[0].input[0] = "images"
        plain = plain.SerializeToString()
        compact = onnx_model()
        compact.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((7, 3, 3, 3), np.int8), "w"))
        compact.graph.node.insert(2, helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], "weights", axis=0))
        compact.graph.node[3].input[1] = "v"
        for weight in model.graph.initializer:
            if weight.name == "w":
                weight.ClearField("raw_data")
                weight.data_location = 1
                entry = weight.external_data.add()
                entry.key, entry.value = "location", "weights.bin"
        return [whole, plain, compact.SerializeToString(), model.SerializeToString()]

    def open(self) -> None:
        self.file("weights.bin", bytes(7 * 27 * 4))

    def run(self, data: bytes) -> None:
        from streamd.engine.onnx.reader import read_onnx
        from streamd.engine.onnx.stem import float_stem
        from streamd.engine.onnx.weights import in_float
        from streamd.errors import StreamdError
        from streamd.models.graph import prepare
        from streamd.models.inspect import inspect

        path = self.file("m.onnx", data)
        float_stem(in_float(data))
        float_stem(data)
        with contextlib.suppress(StreamdError):
            prepare(str(path))  # takes float models only
        try:
            json.dumps(inspect(str(path)).as_json(), default=str)
        finally:
            read_onnx(path)


TARGETS: tuple[type[Target], ...] = (Sidecar, Heads, Onnx)
