"""Files that people or other programs write: configuration, sidecar, labels, models, caches."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.target import Target, as_json
from streamd.errors import ConfigError, ModelError

_CONFIG = b"""# a comment
model:
  path: model.onnx
  labels: [person, car]
  detect: {conf: 0.25, iou: 0.45, classes: [person], class_conf: {person: 0.5}}
  head: {kind: yolov5_cat}
engine: {kind: openvino, threads: 2, requests: 4}
batch: {max: 8, age_ms: 5}
streams:
  - {id: gate, url: "rtsp://u:p@10.0.0.7:554/x?a=${TOKEN}", max_fps: 10, objective: {latency_ms: 200, share: 0.99}}
  - {id: clip, url: clip.mp4, loop: true, crop: {x: 0, y: 0, width: 64, height: 64}}
  - {id: test, kind: synthetic, fps: 30, width: 640, height: 360}
sinks:
  - {kind: zmq, bind: "tcp://127.0.0.1:5555", encoding: msgpack, hwm: 10}
  - {kind: jsonl, path: out.jsonl, rotate_mb: 10}
metrics: {listen: "127.0.0.1:9188", page: true}
logging: {level: debug, format: json}
recorder: {folder: bundles, seconds: 60, keep: 3}
drain_s: 5
stall_s: 15
"""
_SMALL_CONFIG = b"""model: {path: "${file:labels}"}
engine: {kind: "null", latency_ms: 3}
streams: [{id: a, kind: synthetic, crop: &c {x: 1, y: 1, width: 64, height: 64}}, {id: b, url: x, crop: *c}]
"""


class Config(Target):
    """`streamd check`."""

    name = "config"
    what = "configuration: load, cross-check, reload's difference"
    text = True
    share = 1.6
    tokens = (
        b"${TOKEN}",
        b"${file:/dev/zero}",
        b"${file:secret}",
        b"${file:}",
        b"${:-x}",
        b"${NONE:-x}",
        b"$$",
        b"*a",
        b"&a ",
        b"<<: ",
        b"!!python/object:os.system ",
        b"!!binary ",
        b"!!timestamp ",
        b"2026-13-45",
        b"~",
        b"null",
        b"true",
        b"on",
        b"? ",
        b"- ",
        b"{",
        b"}",
        b"[",
        b"]",
        b"|\n",
        b">\n",
        b"\t",
        b"---\n",
        b"...\n",
        b"%YAML 9.9\n",
        b'"',
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"kind: ",
        b"id: ",
        b"url: ",
        b"path: ",
        b"=",
        b"0o7",
        b"0x1F",
        b"1:30",
        b".inf",
        b"[" * 40,
        b"{a: " * 40,
        b"rtsp://[::1",
        b"http://u:p@h@h/",
        b"file:",
        b"\\u0000",
        b'"\\x00"',
        b'"\\ud800"',
        b'"\\ud800": 1, ',
        b"tcp://*:0",
        b"~nobody-here/",
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        return [_CONFIG, _SMALL_CONFIG]

    def open(self) -> None:
        from streamd.config.loader import load

        self.file("labels", b"x\n")
        self._good = load(self.file("good.yaml", _CONFIG), {"TOKEN": "tokentoken"}).config

    def run(self, data: bytes) -> None:
        from streamd.cli.check import problems
        from streamd.config.loader import load
        from streamd.runtime.reload import difference

        loaded = load(self.file("c.yaml", data), {"TOKEN": "tokentoken"})
        for error in problems(loaded.config, model=False):
            str(error)
        difference(self._good, loaded.config)
        loaded.config.model_dump(mode="json")


class Sidecar(Target):
    """The JSON beside a model, and what is made of it."""

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
    """What a model puts out, and what its sidecar says that this means; every registered kind of head."""

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
    """Values of a frame."""

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


class Labels(Target):
    """Class names, one a line, and the metadata entry that exporters write; listed keys, too."""

    name = "labels"
    what = "class names (text file, ONNX metadata), list of CURVE keys"
    text = True
    share = 0.5
    tokens = (
        b"{0: 'a', 1: 'b'}",
        b"{[]: 1}",
        b"(" * 200,
        b"1j",
        b"b'x'",
        b"\0",
        b"\xff",
        b"-" * 3000,
        b"{**{}}",
        b"...",
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        keys = b"# clients\n" + b"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7 watch\n"
        return [keys, b"person\nbicycle\ncar\n", b"{0: 'person', 1: 'bicycle'}", b"['person', 'bicycle']"]

    def run(self, data: bytes) -> None:
        from streamd.engine.model import _metadata_labels, read_labels
        from streamd.sinks.curve import read_keys

        with contextlib.suppress(ModelError):
            _metadata_labels({"names": data.decode("utf-8", "replace")}, Path("model.onnx"))
        with contextlib.suppress(ConfigError):
            read_keys(self.file("keys.txt", data), "curve.clients")
        read_labels(str(self.file("labels.txt", data)))


class Dataset(Target):
    """Labelled images: YOLO text and COCO JSON."""

    name = "dataset"
    what = "labels of images: YOLO text, COCO JSON"
    text = True
    tokens = (
        b"nan",
        b"inf",
        b"1e400",
        b"null",
        b"[]",
        b"{}",
        b'"id"',
        b'"bbox"',
        b"-0.0",
        b"[" * 3000,
        b"\xff",
        b"1_0",
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        coco = {
            "images": [{"id": 1, "file_name": "a.jpg"}],
            "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
            "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3.5, 4], "iscrowd": 0, "area": 14.0}],
        }
        return [b"0 0.5 0.5 0.2 0.3\n1 0.1 0.1 0.05 0.05\n", as_json(coco)]

    def open(self) -> None:
        (self.folder / "images").mkdir()
        (self.folder / "images" / "a.jpg").write_bytes(b"")
        (self.folder / "labels").mkdir()

    def run(self, data: bytes) -> None:
        from streamd.models.dataset import open_dataset

        self.file("labels/a.txt", data)
        self.file("coco.json", data)
        try:
            open_dataset(self.folder / "images", self.folder / "labels", ["person", "car"], ["car", "person"])
        except ConfigError:
            for truth in open_dataset(
                self.folder / "images", self.folder / "coco.json", ["person", "car"]
            ).truth.values():
                truth.pixels(64, 48)


def onnx_model() -> Any:
    """A small network of the kinds that are looked for: convolution, Q/DQ, SiLU, an output that a head knows."""
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
    """A model: our own reader, `streamd inspect`, the graph that is quantised."""

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


class Caches(Target):
    """What streamd itself wrote, damaged."""

    name = "caches"
    what = "calibration caches, plan cache, flight recorder's memory"
    tokens = (b"null", b"NaN", b"[]", b"{}", b"-1", b"[" * 3000, b'"counts"', b"1e400", b"\xff")

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        from streamd.models.calibrate import Histogram
        from streamd.runtime.recorder.memory import LOG, Memory

        histogram = Histogram()
        histogram.add(np.linspace(-3, 9, 4000, dtype=np.float32))
        body = {"version": 2, "key": "k", "histograms": {"x": histogram.as_json()}, "peaks": {"x": [9.0, -0.25]}}
        memory = Memory({"pid": 1, "boot_id": "b", "started": 1.0}, 1)
        memory.stream("a", 5, (1, 1, 0, 0, 0), 1, 0, 0)
        memory.note(LOG, {"event": "x", "level": "warning"})
        block = bytes(memory._map)
        begin = memory._at[2]
        # The bulk of it is empty: only its beginning and the first rows are kept, the target puts the rest back.
        kept = block[:4400] + block[begin : begin + 256] + block[memory._at[3] : memory._at[3] + 4096]
        return [json.dumps(body).encode(), b'{"key": "k"}', b"M" + kept]

    def open(self) -> None:
        from streamd.runtime.recorder.memory import Memory

        memory = Memory({}, 1)
        self._at = memory._at

    def _block(self, data: bytes) -> bytes:
        head, rows, notes = data[1:4401], data[4401:4657], data[4657:]
        block = bytearray(self._at[-1])
        block[: len(head)] = head
        block[self._at[2] : self._at[2] + len(rows)] = rows
        block[self._at[3] : self._at[3] + len(notes)] = notes
        return bytes(block[: self._at[-1]])

    def run(self, data: bytes) -> None:
        from streamd.engine.tensorrt.calibrator import _key_of
        from streamd.models.cache import load
        from streamd.models.calibrate import threshold

        if data[:1] == b"M":
            self._recorder(data)
            return
        found = load(self.file("c.json", data), "k")
        self.file("cache.json", data)
        _key_of(self.folder / "cache")
        for histogram in (found[0] if found is not None else {}).values():
            for method in ("minmax", "percentile", "mse", "entropy"):
                threshold(histogram, method)

    def _recorder(self, data: bytes) -> None:
        from streamd.runtime.recorder.memory import read_left_behind
        from streamd.runtime.recorder.summary import summary

        path = self.file("flight-1", self._block(data))
        try:
            record = read_left_behind(path)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        breach: dict[str, Any] = dict.fromkeys(
            ("reason", "detail", "at", "version", "pid", "host", "config", "boot_id", "traceback"), "x"
        )
        summary(record, {**breach, "frames_held_s": 0.0, "seconds_held_s": 0.0, "seconds": 5.0})


class Messages(Target):
    """What a subscriber is sent: `streamd watch`."""

    name = "messages"
    what = "messages on the subscriber's side: decode, watch's table"
    share = 1.5
    tokens = (
        b"null",
        b"NaN",
        b"1e400",
        b"[]",
        b"{}",
        b"\x91" * 40,
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",
        b"streamd/1/",
        b"\xff",
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        from streamd.sinks.envelope import DETECTIONS, STATUS
        from streamd.sinks.message import detections_message, encoder, status_message
        from streamd.types import Detections, ModelInfo, StageTimes, StreamCounts, StreamStatus

        seen = Detections(
            "gate",
            0,
            7,
            280_000_000,
            1_700_000_000_000_000_000,
            1920,
            1080,
            StageTimes(1, 2, 3, 4, 5, 6),
            ModelInfo("yolov5n", "0" * 64, ("person",)),
            np.array([[1, 2, 3, 4]], np.float32),
            np.array([0.9], np.float32),
            np.array([0], np.int32),
        )
        status = StreamStatus("gate", "BACKOFF", "refused", "nothing listens", 1, 1_700_000_000_000_000_000, 0.5)
        made = []
        for encoding in ("json", "msgpack"):
            encode = encoder(encoding)
            made.append(DETECTIONS.topic("gate") + b"\n" + encode(detections_message(seen, "b", 0)))
            made.append(STATUS.topic("gate") + b"\n" + encode(status_message(status, StreamCounts(), "b")))
        return made

    def open(self) -> None:
        from streamd.cli.board import Board

        self._board = Board()

    def run(self, data: bytes) -> None:
        from streamd.sinks.message import decode

        message = decode(data.split(b"\n", 1))
        self._board.add(message, 1.0)
        self._board.rows[message.stream].view(1.5)
        if len(self._board.rows) > 50:
            self.open()


TARGETS: tuple[type[Target], ...] = (Config, Sidecar, Heads, Labels, Dataset, Onnx, Caches, Messages)
