"""What the kernels must compute, whichever machine runs them: compiled C++ on the host, or a GPU."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamd.analysis.glance import COLUMNS, ROWS
from streamd.analysis.glance.picture import LAYOUTS, Glancer, Layout
from streamd.engine.tensorrt.decode import CANDIDATE
from streamd.engine.tensorrt.kernels import FORMATS
from streamd.heads import DetectSettings
from streamd.heads.anchors import COCO_ANCHORS
from streamd.heads.end_to_end import EndToEndSettings
from streamd.heads.nms import nms
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head
from streamd.heads.validate import LEAST_SIDE, which_can
from streamd.heads.yolov5_cat import Yolov5CatSettings
from streamd.heads.yolov5_heads import Yolov5HeadsSettings
from streamd.heads.yolov5_sigmoid import Yolov5SigmoidSettings
from streamd.heads.yolov8 import Yolov8Settings
from streamd.imaging.reference import preprocess as reference
from streamd.types import Box, Candidates, DecodePlan, Frame, Letterbox, ModelSpec, Picture, Placement, TensorSpec

CODE_VALUE_TOLERANCE = 0.002
"""Largest difference from the float64 reference, in code values 0..255, for a float32 input: single precision."""
REFERENCE_FORMATS = sorted(set(FORMATS) - {"p016le", "yuv422p10le"})
"""Those that reference.py reads; the other two differ from one of these in name or in subsampling only."""


class Machine(Protocol):
    """Runs the kernels somewhere."""

    def preprocess(self, frames: Sequence[Frame], spec: ModelSpec) -> tuple[npt.NDArray[Any], list[Letterbox]]:
        """The input tensor that the kernel makes for `spec`, and where the pictures are in it."""
        ...

    def decode(
        self, plan: DecodePlan, specs: Sequence[TensorSpec], outputs: Sequence[npt.NDArray[Any]], capacity: int
    ) -> tuple[list[Candidates], list[int]]:
        """Candidates and the count (which may exceed `capacity`) of each frame."""
        ...

    def suppress(self, plan: DecodePlan, records: npt.NDArray[np.void], counts: Sequence[int]) -> list[Candidates]:
        """What NMS leaves of each frame's (frames, capacity) records, of which `counts` were found."""
        ...

    def detect(
        self, plan: DecodePlan, specs: Sequence[TensorSpec], outputs: Sequence[npt.NDArray[Any]], capacity: int
    ) -> list[Candidates]:
        """Decoding, then NMS."""
        ...

    def glance(self, frames: Sequence[tuple[Frame, Layout]]) -> npt.NDArray[np.uint8]:
        """(frames, ROWS, COLUMNS): the small picture of each frame, all from one launch."""
        ...


def noise_frame(
    fmt: str,
    width: int = 322,
    height: int = 241,
    *,
    seed: int = 0,
    matrix: Any = "bt601",
    full_range: bool = False,
    rotation: Any = 0,
    mirrored: bool = False,
    pixel_aspect: float = 1.0,
    roi: Box | None = None,
) -> Frame:
    """A frame of random samples, every one of them legal: no smooth area hides a tap in the wrong place."""
    import av

    native = av.VideoFrame(width, height, fmt)
    random = np.random.default_rng(seed)
    for plane in native.planes:
        view = np.frombuffer(memoryview(plane), np.uint8)
        assert view.flags.writeable
        if fmt in ("p010le", "p016le"):
            view.view(np.uint16)[:] = random.integers(0, 1024, view.size // 2, np.uint16) << 6
        elif "10le" in fmt:
            view.view(np.uint16)[:] = random.integers(0, 1024, view.size // 2, np.uint16)
        else:
            view[:] = random.integers(0, 256, view.size, np.uint8)
    upright = (height, width) if rotation in (90, 270) else (width, height)
    picture = Picture(
        native, fmt, width, height, matrix, full_range or fmt.startswith("yuvj"), rotation, None, mirrored, pixel_aspect
    )
    return Frame("s", picture, *upright, 0, 0, 0, roi=roi)


def input_spec(width: int, height: int, *, dtype: str = "float32", nhwc: bool = False, **how: Any) -> ModelSpec:
    """A model with such an input."""
    shape = (-1, height, width, 3) if nhwc else (-1, 3, height, width)
    layout: Any = "NHWC" if nhwc else "NCHW"
    return ModelSpec("m.plan", "0" * 64, "m", TensorSpec("images", shape, dtype), (), (), layout, **how)


def check_preprocess(
    machine: Machine, frames: Sequence[Frame], width: int = 224, height: int = 256, **how: Any
) -> None:
    """The kernel's tensor and letterboxes equal the reference's."""
    dtype, nhwc = how.pop("dtype", "float32"), how.pop("nhwc", False)
    spec = input_spec(width, height, dtype=dtype, nhwc=nhwc, **how)
    got, boxes = machine.preprocess(frames, spec)
    want, want_boxes = reference(
        frames, width, height, pad_value=spec.pad_value, color=spec.color, scale=spec.scale, placement=spec.placement,
        mean=spec.mean or (0, 0, 0), std=spec.std or (1, 1, 1),
    )  # fmt: skip
    # What one code value is worth, and the largest number.
    scale, most = float(spec.normalization()[0].max()), float(np.abs(want).max())
    assert boxes == want_boxes
    if nhwc:
        want = want.transpose(0, 2, 3, 1)
    assert got.shape == want.shape
    assert got.dtype == np.dtype(dtype)
    difference = np.abs(got.astype(np.float64) - want)
    if dtype == "float32":
        assert difference.max() <= CODE_VALUE_TOLERANCE * scale
    elif dtype == "float16":
        # Half a unit in the last place, of the largest value.
        assert difference.max() <= CODE_VALUE_TOLERANCE * scale + most * 2.0**-11
    else:
        low, high = (0, 255) if dtype == "uint8" else (-128, 127)
        assert np.abs(got.astype(np.float64) - np.clip(want, low, high)).max() <= 0.5 + CODE_VALUE_TOLERANCE * scale


GEOMETRIES = [
    ("plain", {}),
    ("crop", {"roi": Box(20, 40, 160, 120)}),
    ("odd crop", {"roi": Box(33, 7, 101, 97)}),
    ("upscaled crop", {"roi": Box(100, 50, 30, 40)}),
    ("tiny", {"width": 17, "height": 33}),
    ("narrow", {"width": 640, "height": 16}),
    ("one pixel high", {"width": 64, "height": 2, "roi": Box(0, 1, 64, 1)}),
    ("exact size", {"width": 224, "height": 256}),
    ("large", {"width": 1921, "height": 1081}),
]


INPUTS: list[dict[str, Any]] = [
    {"placement": Placement(align="top_left"), "color": "BGR", "scale": 1.0},
    {"placement": Placement("stretch"), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    {"placement": Placement("stretch", "top_left"), "scale": 1.0, "mean": (123.7, 116.3, 103.5), "color": "BGR"},
    {"std": (0.25, 0.5, 1.0), "pad_value": 0},
]
"""Other inputs than YOLOv5's: how YOLOX and PicoDet are fed, and what else can be declared."""


# ------------------------------------------------------------------------------------------------------------ decode

INPUT = (224, 192)
"""Height and width of the network behind the decode cases."""
CLASSES = 7


def _spec(outputs: Sequence[TensorSpec]) -> ModelSpec:
    return ModelSpec(
        "m.plan", "0" * 64, "m", TensorSpec("images", (-1, 3, *INPUT), "float32"), tuple(outputs),
        tuple(f"c{i}" for i in range(CLASSES)),
    )  # fmt: skip


def decode_case(
    kind: str, dtype: str, *, frames: int = 3, seed: int = 1, shuffled: bool = False
) -> tuple[list[TensorSpec], list[npt.NDArray[Any]], Any]:
    """Specs, random outputs (batch first) and head settings of one kind.

    Of `yolov5_heads` also as convolved, (batch, anchors·values, rows, columns), each head with its own number of
    anchors, and mixed with the other form.
    """
    random = np.random.default_rng(seed)
    height, width = INPUT
    cells = [(height // s, width // s) for s in (8, 16, 32)]
    if kind.startswith("yolov5_heads"):
        anchors = [3, 3, 3] if kind == "yolov5_heads" else [3, 1, 2]
        shapes: list[Any] = [(a, h, w, 5 + CLASSES) for a, (h, w) in zip(anchors, cells, strict=True)]
        if shuffled:
            shapes = [shapes[1], shapes[2], shapes[0]]
        arrays = [random.normal(-1.0, 2.0, (frames, *s)) for s in shapes]
        settings: Any = Yolov5HeadsSettings()
        if kind != "yolov5_heads":
            settings = Yolov5HeadsSettings(
                anchors=tuple(a[: 2 * n] for a, n in zip(COCO_ANCHORS.values(), anchors, strict=True))
            )
            kept = 1 if "mixed" in kind else 3
            arrays = [convolved(a) if i != kept else a for i, a in enumerate(arrays)]
    elif kind == "yolov5_sigmoid":
        rows = sum(h * w for h, w in cells) * 3
        arrays = [1 / (1 + np.exp(-random.normal(-1.0, 2.0, (frames, rows, 5 + CLASSES))))]
        settings = Yolov5SigmoidSettings()
    else:
        rows = sum(h * w for h, w in cells) * (3 if kind == "yolov5_cat" else 1)
        boxes = random.uniform(1, 190, (frames, rows, 4))
        scores = random.uniform(0, 1, (frames, rows, CLASSES)) ** 3
        if kind == "yolov5_cat":
            arrays = [np.concatenate([boxes, random.uniform(0, 1, (frames, rows, 1)) ** 3, scores], axis=2)]
            settings = Yolov5CatSettings()
        elif kind == "yolov8":
            arrays = [np.ascontiguousarray(np.concatenate([boxes, scores], axis=2).transpose(0, 2, 1))]
            settings = Yolov8Settings()
        else:
            classes = random.integers(-1, CLASSES + 2, (frames, 300, 1))
            corners = np.concatenate([boxes[:, :300, :2], boxes[:, :300, :2] + boxes[:, :300, 2:]], axis=2)
            arrays = [np.concatenate([corners, scores[:, :300, :1], classes], axis=2)]
            settings = EndToEndSettings()
    arrays = [a.astype(dtype) for a in arrays]
    specs = [TensorSpec(f"o{i}", (-1, *a.shape[1:]), dtype) for i, a in enumerate(arrays)]
    return specs, arrays, settings


def convolved(heads: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(B, A·K, H, W) of YOLOv5's (B, A, H, W, K): how the convolution had it."""
    batch, anchors, rows, columns, values = heads.shape
    return np.ascontiguousarray(heads.transpose(0, 1, 4, 2, 3)).reshape(batch, anchors * values, rows, columns)


def check_decode(machine: Machine, kind: str, dtype: str, *, multi_label: bool, conf: float, **case: Any) -> int:
    """The kernel's candidates equal the NumPy head's, in its order. Returns how many there were."""
    specs, arrays, settings = decode_case(kind, dtype, **case)
    head = open_head(settings, _spec(specs), DetectSettings(conf=conf, multi_label=multi_label))
    assert head.plan is not None
    frames = len(arrays[0])
    floats = [a.astype(np.float32) for a in arrays]
    want = [head.candidates(floats, i) for i in range(frames)]
    found, counts = machine.decode(head.plan, specs, arrays, 1 << 15)
    assert len(found) == frames
    for got, expected, count in zip(found, want, counts, strict=True):
        got_keys = list(zip(got.class_id.tolist(), np.round(got.score, 3).tolist(), strict=True))
        # A score within rounding of the threshold may fall on either side of it.
        close = int((np.abs(expected.score - conf) < 1e-5).sum())
        assert abs(count - len(expected.score)) <= close, (count, len(expected.score), got_keys[:5])
        assert count == len(got.score)
        if count == len(expected.score):
            can = which_can(expected)
            # A size within rounding of none may be one or not.
            sides = (expected.xyxy[:, 2:] - expected.xyxy[:, :2]).min(axis=1)
            sure = np.abs(sides - LEAST_SIDE) > 1e-4
            np.testing.assert_array_equal(got.class_id[sure], np.where(can, expected.class_id, -1)[sure])
            np.testing.assert_allclose(got.score[sure], np.where(can, expected.score, 0)[sure], rtol=2e-6, atol=1e-7)
            np.testing.assert_allclose(got.xyxy, expected.xyxy, rtol=1e-5, atol=1e-3)
        assert got.xyxy.dtype == np.float32
        assert got.class_id.dtype == np.int32
    return sum(counts)


DECODE_KINDS = [
    "yolov5_heads", "yolov5_heads convolved", "yolov5_heads mixed", "yolov5_cat", "yolov5_sigmoid", "yolov8",
    "end_to_end",
]  # fmt: skip


def check_overflow(machine: Machine) -> None:
    """What fits is kept and is genuine; the count says how many there were."""
    specs, arrays, settings = decode_case("yolov8", "float32")
    head = open_head(settings, _spec(specs), DetectSettings(conf=0.25))
    assert head.plan is not None
    want = [head.candidates([a.astype(np.float32) for a in arrays], i) for i in range(3)]
    found, counts = machine.decode(head.plan, specs, arrays, 16)
    assert counts == [len(w.score) for w in want]
    assert min(counts) > 16
    for got, expected in zip(found, want, strict=True):
        assert got.xyxy.shape == (16, 4)
        genuine = {tuple(row) for row in np.round(expected.xyxy, 2).tolist()}
        assert all(tuple(row) in genuine for row in np.round(got.xyxy, 2).tolist())


# ---------------------------------------------------------------------------------------------------------- suppress


def boxes_case(count: int, seed: int, *, kind: str = "random", classes: int = 3) -> npt.NDArray[np.void]:
    """So many candidates in no order.

    Args:
        count: how many.
        seed: of everything random.
        kind: random; clustered, a few objects seen often; ties, of whole pixels, few scores, and many an IoU of exactly
            a half; twins, all alike; apart, none touching another; near, pairs whose IoU is 0.45 but for rounding.
        classes: how many.
    """
    random = np.random.default_rng(seed)
    records = np.zeros(count, CANDIDATE)
    records["order"] = random.permutation(count)
    records["class_id"] = random.integers(0, classes, count)
    records["score"] = random.uniform(0.01, 1, count)
    corner: npt.NDArray[Any] = random.uniform(0, 560, (count, 2))
    size: npt.NDArray[Any] = random.uniform(4, 120, (count, 2))
    if kind == "clustered":
        of = random.integers(0, max(1, count // 12), count)
        corner, size = corner[of], size[of]
        records["class_id"] = records["class_id"][of]
        corner = corner + random.normal(0, 0.06, (count, 2)) * size
        size = size * np.exp(random.normal(0, 0.1, (count, 2)))
    elif kind == "ties":
        corner = random.integers(0, 12, (count, 2)) * 4.0
        size = random.choice([4.0, 8.0, 12.0, 16.0], (count, 2))
        records["score"] = random.integers(1, 8, count) / 8
    elif kind == "twins":
        corner[:], size[:], records["score"] = 10.0, 20.0, 0.5
    elif kind == "apart":
        corner = np.stack(np.divmod(np.arange(count), 256), axis=1) * 9.0
        size = np.full((count, 2), 8.0)
    elif kind == "near":
        pair = np.arange(count) // 2
        records["class_id"] = pair % classes
        corner, size = np.stack([200.0 * (pair // classes), random.uniform(0, 300, count)[pair]], axis=1), size[pair]
        corner[1::2, 0] += size[1::2, 0] * (0.55 / 1.45)
    records["xyxy"] = np.concatenate([corner, corner + size], axis=1)
    return records


BOXES = ["random", "clustered", "ties", "twins", "apart", "near"]


def check_suppress(
    machine: Machine, frames: Sequence[npt.NDArray[np.void]], *, capacity: int = 1024, iou: float = 0.45,
    max_det: int = 300, agnostic: bool = False,
) -> list[int]:  # fmt: skip
    """The kernel keeps the very boxes that the host's NMS keeps, in its order; returns how many of each frame.

    Not only up to rounding: where single precision could err, the kernel decides in double precision, as the host does.
    """
    records = np.zeros((len(frames), capacity), CANDIDATE)
    for row, frame in zip(records, frames, strict=True):
        row[: len(frame)] = frame[:capacity]
        # What lies behind the candidates is whatever an earlier batch left there.
        row[len(frame) :]["score"] = 2.0
    plan = DecodePlan(
        "class_columns", CLASSES, 0.0, False, suppress=True, iou=iou, max_det=max_det, agnostic=agnostic
    )  # fmt: skip
    found = machine.suppress(plan, records, [len(f) for f in frames])
    assert len(found) == len(frames)
    for got, frame in zip(found, frames, strict=True):
        there = frame[:capacity]
        there = there[np.argsort(there["order"], kind="stable")]
        # In double precision, as the host does it class by class: agnostic, it stays in single.
        xyxy: Any = there["xyxy"].astype(np.float64) if agnostic else there["xyxy"]
        kept = nms(xyxy, there["score"], there["class_id"], iou, max_det, agnostic=agnostic)
        np.testing.assert_array_equal(got.score, there["score"][kept])
        np.testing.assert_array_equal(got.class_id, there["class_id"][kept])
        np.testing.assert_array_equal(got.xyxy, there["xyxy"][kept])
        assert got.suppressed
    return [len(c.score) for c in found]


BAD = [
    (np.nan, 20, 8, 8, 0.95), (20, 20, np.inf, 8, 0.95), (20, 20, 3e38, 3e38, 0.95), (20, 20, -8, -8, 0.95),
    (20, 20, 0, 8, 0.95), (100, 100, 60, 60, 7e30), (100, 100, 60, 60, np.inf), (-900, 20, 8, 8, 0.95),
]  # fmt: skip
"""cx, cy, width, height and score of boxes that cannot be."""


def check_bad_boxes(machine: Machine, **detect: Any) -> None:
    """Boxes that cannot be suppress nothing on the device either, and are counted on the host as there."""
    specs, arrays, settings = decode_case("yolov8", "float32")
    columns = arrays[0]
    columns[:, 4:] *= 0.9
    for i, (*shape, score) in enumerate(BAD):
        # In every class: where NMS asks for one of the same.
        for class_id in range(CLASSES):
            at = 10 * i + class_id
            columns[:, :4, at], columns[:, 4:, at], columns[:, 4 + class_id, at] = shape, 0, score
    spec, wanted = _spec(specs), DetectSettings(max_det=30_000, **detect)
    head = open_head(settings, spec, wanted)
    assert head.plan is not None
    post = Postprocess(head, wanted, spec.labels)
    height, width = INPUT
    box = Letterbox.fit(Box(0, 0, width, height), width, height)
    found = machine.detect(head.plan, specs, arrays, 1 << 13)
    for i in range(len(columns)):
        want = post(arrays, i, box)
        rejected = dict(post.rejected)
        assert sum(rejected.values()) >= (len(BAD) - 1) * CLASSES + 1, "NMS may leave one of those outside"
        got = post(found, i, box)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-3)
        assert post.rejected == rejected


DETECTS: list[dict[str, Any]] = [
    {},
    {"multi_label": True, "conf": 0.4, "max_det": 40},
    {"classes": ("c1", 4), "iou": 0.3},
    {"class_conf": {"c2": 0.05, "c5": 0.9}, "max_det": 25},
    {"classes": ("c3", "c0"), "class_conf": {"c3": 0.7, "c1": 0.1}, "agnostic": True},
]


def check_detect(machine: Machine, kind: str, dtype: str, **detect: Any) -> int:
    """Decoding, filtering and NMS on the device publish what the host publishes. Returns how many boxes there were."""
    specs, arrays, settings = decode_case(kind, dtype)
    spec, wanted = _spec(specs), DetectSettings(**detect)
    head = open_head(settings, spec, wanted)
    assert head.plan is not None
    post = Postprocess(head, wanted, spec.labels)
    height, width = INPUT
    box = Letterbox.fit(Box(0, 0, 2 * width, 2 * height), width, height)
    found = machine.detect(head.plan, specs, arrays, 1 << 13)
    floats = [a.astype(np.float32) for a in arrays]
    total = 0
    for i in range(len(arrays[0])):
        xyxy, score, class_id = post(found, i, box)
        want_xyxy, want_score, want_class_id = post(floats, i, box)
        assert len(score) == len(want_score)
        # Scores that differ by rounding may change places.
        order, want = (np.lexsort((c, *np.round(b, 0).T)) for b, c in ((xyxy, class_id), (want_xyxy, want_class_id)))
        np.testing.assert_array_equal(class_id[order], want_class_id[want])
        np.testing.assert_allclose(score[order], want_score[want], rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(xyxy[order], want_xyxy[want], rtol=1e-5, atol=2e-3)
        assert (np.diff(score) <= 0).all()
        assert not any(np.shares_memory(a, b) for a in (score, class_id) for b in (found[i].score, found[i].class_id))
        total += len(score)
    return total


GLANCE_SIZES = [
    (1920, 1080), (3840, 2160), (640, 360), (704, 576), (322, 241), (161, 91), (160, 90), (96, 64), (2, 2),
    (1080, 1920),
]  # fmt: skip
"""Pixels; cells of whole words, of broken ones, of fewer rows than four, and of less than a pixel."""
GLANCE_FORMATS = ["nv12", "p010le", "p016le", "yuv444p", "gray"]


SURFACE = struct.Struct("<Q6i")
"""kernels.cu's `Surface`."""


def surface_of(frame: Frame, layout: Layout) -> bytes:
    """A frame's `Surface`."""
    plane: Any = frame.picture.native.planes[0]
    size = frame.picture.width, frame.picture.height
    return SURFACE.pack(plane.buffer_ptr, plane.line_size, *size, layout.size, layout.shift, 0)


def check_glance(machine: Machine, frames: Sequence[Frame]) -> None:
    """The small pictures are those of the reference in NumPy, to the level, whatever else the launch reads."""
    got = machine.glance([(frame, LAYOUTS[frame.picture.format]) for frame in frames])
    assert got.shape == (len(frames), ROWS, COLUMNS)
    reference = Glancer(None)
    for i, frame in enumerate(frames):
        want = reference.take(frame)
        assert want is not None
        np.testing.assert_array_equal(got[i], want.luma, err_msg=f"frame {i}")
