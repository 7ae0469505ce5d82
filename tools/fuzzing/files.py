"""Files that users write: configuration, class names, keys, image labels."""

from __future__ import annotations

import contextlib
from pathlib import Path

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
        for problem in problems(loaded.config, model=False):
            problem.told("c.yaml", loaded.line)
        difference(self._good, loaded.config)
        loaded.config.model_dump(mode="json")


class Labels(Target):
    """Class names, one per line, the metadata entry that exporters write, and key lists."""

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


TARGETS: tuple[type[Target], ...] = (Config, Labels, Dataset)
