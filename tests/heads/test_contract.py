"""Every head of the union: the same objects, encoded each in the head's own form, come back as the same boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamd.errors import ConfigError, ModelError
from streamd.heads import (
    KINDS,
    DetectSettings,
    EndToEndSettings,
    Yolov5CatSettings,
    Yolov5HeadsSettings,
    Yolov5SigmoidSettings,
    Yolov8Settings,
)
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import declared, open_head, recognise, resolve_labels
from streamd.heads.yolov5 import COCO_ANCHORS, _by_cell
from streamd.types import Box, Candidates, Letterbox, ModelSpec, TensorSpec
from tests.gpu.kernel_cases import convolved

SIZE, CLASSES = 320, 6
CELLS = {s: SIZE // s for s in (8, 16, 32)}
TOTAL = sum(n * n for n in CELLS.values())
LABELS = tuple(f"class_{i}" for i in range(CLASSES))
# cx, cy, w, h, objectness, class, class score: each suits a cell and an anchor of one stride.
OBJECTS = [
    (44.5, 60.0, 20.0, 26.0, 0.95, 1, 0.9),
    (200.0, 120.0, 60.0, 50.0, 0.9, 3, 0.8),
    (160.0, 240.0, 150.0, 110.0, 0.85, 5, 0.95),
    (210.0, 122.0, 58.0, 52.0, 0.8, 3, 0.7),  # overlaps the second: NMS must drop it
    (100.0, 100.0, 30.0, 30.0, 0.3, 2, 0.3),  # too weak
]
RECOGNISED = [kind for kind in KINDS if kind != "yolov5_sigmoid"]


def spec(*shapes: tuple[int, ...], **kwargs: Any) -> ModelSpec:
    outputs = tuple(TensorSpec(f"out{i}", s, "float32") for i, s in enumerate(shapes))
    return ModelSpec("m.onnx", "0" * 64, "m", TensorSpec("images", (1, 3, SIZE, SIZE), "float32"), outputs,
                     kwargs.pop("labels", LABELS), **kwargs)  # fmt: skip


def logit(p: npt.ArrayLike) -> Any:
    p = np.clip(np.asarray(p, np.float64), 1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def encode(kind: str, batch: int = 1, index: int = 0) -> tuple[ModelSpec, list[npt.NDArray[np.float32]]]:
    """The objects in frame `index` of a batch of otherwise empty frames."""
    if kind == "yolov5_heads":
        outputs = [np.full((batch, 3, n, n, 5 + CLASSES), -12.0, np.float32) for n in CELLS.values()]
        for cx, cy, w, h, obj, cls, score in OBJECTS:
            # The anchor nearest in area; xy and wh must be reachable by the sigmoid forms.
            stride, a = min(
                ((s, a) for s in CELLS for a in range(3)),
                key=lambda sa: abs(np.log(w * h / np.prod(COCO_ANCHORS[sa[0]][2 * sa[1] : 2 * sa[1] + 2]))),
            )
            aw, ah = COCO_ANCHORS[stride][2 * a : 2 * a + 2]
            column, row = int(cx / stride), int(cy / stride)
            cell = outputs[list(CELLS).index(stride)][index, a, row, column]
            cell[0] = logit((cx / stride - column + 0.5) / 2)
            cell[1] = logit((cy / stride - row + 0.5) / 2)
            cell[2], cell[3] = logit(np.sqrt(w / aw) / 2), logit(np.sqrt(h / ah) / 2)
            cell[4], cell[5 + cls] = logit(obj), logit(score)
        return spec(*(o.shape for o in outputs)), outputs
    if kind == "yolov5_sigmoid":
        _, heads = encode("yolov5_heads", batch, index)
        joined = np.concatenate([o.reshape(batch, -1, 5 + CLASSES) for o in heads], axis=1)
        shares = (1 / (1 + np.exp(-joined))).astype(np.float32)
        return spec(shares.shape, head={"kind": kind}), [shares]
    if kind == "yolov5_cat":
        rows = np.zeros((batch, 3 * TOTAL, 5 + CLASSES), np.float32)
        for i, (cx, cy, w, h, obj, cls, score) in enumerate(OBJECTS):
            rows[index, 7 * i + 3, :5] = cx, cy, w, h, obj
            rows[index, 7 * i + 3, 5 + cls] = score
        return spec(rows.shape), [rows]
    if kind == "yolov8":
        columns = np.zeros((batch, 4 + CLASSES, TOTAL), np.float32)
        for i, (cx, cy, w, h, obj, cls, score) in enumerate(OBJECTS):
            columns[index, :4, 11 * i] = cx, cy, w, h
            columns[index, 4 + cls, 11 * i] = obj * score
        return spec(columns.shape), [columns]
    rows = np.zeros((batch, 300, 6), np.float32)
    rows[..., 5] = -1
    for i, (cx, cy, w, h, obj, cls, score) in enumerate(o for j, o in enumerate(OBJECTS) if j != 3):
        rows[index, i] = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, obj * score, cls
    return spec(rows.shape), [rows]


def expected() -> tuple[Any, Any, Any]:
    kept = sorted((OBJECTS[i] for i in (0, 1, 2)), key=lambda o: -o[4] * o[6])
    xyxy = [[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] for cx, cy, w, h, *_ in kept]
    return np.array(xyxy), np.array([o[4] * o[6] for o in kept]), np.array([o[5] for o in kept])


BOX = Letterbox.fit(Box(0, 0, SIZE, SIZE), SIZE, SIZE)


def run(kind: str, detect: DetectSettings | None = None, **kwargs: Any) -> Any:
    model, outputs = encode(kind, **kwargs)
    detect = detect or DetectSettings()
    return Postprocess(open_head(None, model, detect), detect, LABELS)(outputs, kwargs.get("index", 0), BOX)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "index"), [(1, 0), (3, 2)])
def test_objects_come_back(kind: str, batch: int, index: int) -> None:
    xyxy, score, class_id = run(kind, batch=batch, index=index)
    want_xyxy, want_score, want_class = expected()
    np.testing.assert_allclose(xyxy, want_xyxy, atol=0.01)
    np.testing.assert_allclose(score, want_score, rtol=1e-4)
    assert class_id.tolist() == want_class.tolist()
    assert (xyxy.dtype, score.dtype, class_id.dtype) == (np.float32, np.float32, np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_frame_gives_empty_arrays(kind: str) -> None:
    xyxy, score, class_id = run(kind, batch=2, index=1, detect=DetectSettings(conf=0.999))
    assert (xyxy.shape, score.shape, class_id.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_and_filters(kind: str) -> None:
    assert run(kind, DetectSettings(classes=("class_3",)))[2].tolist() == [3]
    assert run(kind, DetectSettings(classes=(5, "1")))[2].tolist() == [1, 5]
    assert run(kind, DetectSettings(conf=0.8))[2].tolist() == [1, 5]
    assert run(kind, DetectSettings(conf=0.8, class_conf={"class_3": 0.5}))[2].tolist() == [1, 5, 3]
    assert 2 in run(kind, DetectSettings(conf=0.8, class_conf={"class_2": 0.05}))[2].tolist()
    assert run(kind, DetectSettings(max_det=1))[2].tolist() == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_recognised_from_its_shapes_or_declared_and_its_plan_says_the_same(kind: str) -> None:
    model, _ = encode(kind)
    assert (model.head is None) == (kind in RECOGNISED)
    assert recognise(model).kind == kind
    plan = open_head(None, model, DetectSettings(conf=0.3, multi_label=True)).plan
    assert (plan.kind, plan.classes, plan.conf, plan.multi_label) == (kind, CLASSES, 0.3, True)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_mapped_to_the_source_and_clipped(kind: str) -> None:
    model, outputs = encode(kind)
    detect = DetectSettings()
    box = Letterbox.fit(Box(100, 50, 640, 320), SIZE, SIZE)
    xyxy, _, _ = Postprocess(open_head(None, model, detect), detect, LABELS)(outputs, 0, box)
    want = (expected()[0] - [box.pad_x, box.pad_y] * 2) * 2
    want = np.clip(want, 0, [640, 320] * 2) + [100, 50] * 2
    np.testing.assert_allclose(xyxy, want, atol=0.03)


def test_transposed_memory_gives_the_same_boxes() -> None:
    """OpenVINO hands out views whose channels are planes; values must not depend on how memory lies."""
    model, outputs = encode("yolov5_heads")
    detect = DetectSettings(conf=0.05)
    post = Postprocess(open_head(None, model, detect), detect, LABELS)
    views = [np.ascontiguousarray(o.transpose(0, 1, 4, 2, 3)).transpose(0, 1, 3, 4, 2) for o in outputs]
    for a, b in zip(post(outputs, 0, BOX), post(views, 0, BOX), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("of", [(0, 1, 2), (0, 2)], ids=["all", "mixed"])
def test_heads_as_convolved_give_the_same_candidates(dtype: str, of: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    width = 2 * SIZE
    heads = [random.normal(-1, 2, (2, 3, n, 2 * n, 5 + CLASSES)).astype(dtype) for n in CELLS.values()]
    given = [convolved(h) if i in of else h for i, h in enumerate(heads)]
    detect = DetectSettings(conf=0.3, multi_label=True)
    image = TensorSpec("images", (-1, 3, SIZE, width), "float32")
    plain, other = (replace(spec(*(o.shape for o in outputs)), input=image) for outputs in (heads, given))
    assert recognise(other) == Yolov5HeadsSettings()
    a, b = open_head(None, plain, detect), open_head(None, other, detect)
    assert a.plan == b.plan
    for index in (0, 1):
        want, got = a.candidates([h.astype(np.float32) for h in heads], index), b.candidates(given, index)
        assert len(want.score) > 1000
        np.testing.assert_array_equal(got.class_id, want.class_id)
        np.testing.assert_array_equal(got.score, want.score)
        np.testing.assert_array_equal(got.xyxy, want.xyxy)
        assert got.score.dtype == got.xyxy.dtype == np.dtype("float32")


def test_a_convolved_head_is_looked_at_in_place() -> None:
    head = np.zeros((3 * 11, 4, 8), np.float16)
    cells = _by_cell(head, 3)
    assert cells.shape == (3, 4, 8, 11)
    assert np.shares_memory(cells, head)


def test_convolved_heads_with_other_anchors_are_declared() -> None:
    shapes = [(1, 2 * (5 + CLASSES), n, n) for n in CELLS.values()]
    settings = Yolov5HeadsSettings(anchors=((1, 2, 3, 4),) * 3)
    assert open_head(settings, spec(*shapes), DetectSettings()).plan.classes == CLASSES
    with pytest.raises(ConfigError, match="no known head has outputs"):
        recognise(spec(*shapes))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "yolov5_heads"])
def test_half_precision_is_converted(kind: str) -> None:
    model, outputs = encode(kind)
    head = open_head(None, model, DetectSettings(conf=0.05))
    halves = [o.astype(np.float16) for o in outputs]
    got, want = head.candidates(halves, 0), head.candidates([h.astype(np.float32) for h in halves], 0)
    assert len(want.score) >= 3
    for name in ("xyxy", "score", "class_id"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
        assert getattr(got, name).dtype == getattr(want, name).dtype


@pytest.mark.parametrize("form", [lambda h: h, lambda h: convolved(h)], ids=["by cell", "convolved"])
def test_heads_after_a_sigmoid_are_refused(form: Any) -> None:
    _, logits = encode("yolov5_heads")
    outputs = [form((1 / (1 + np.exp(-o))).astype(np.float32)) for o in logits]
    head = open_head(None, spec(*(o.shape for o in outputs)), DetectSettings())
    with pytest.raises(ModelError, match=r"m\.onnx: .* they end in a sigmoid\. Export the model without it"):
        head.candidates(outputs, 0)


def test_heads_in_any_order() -> None:
    _, outputs = encode("yolov5_heads")
    reversed_ = outputs[::-1]
    head = open_head(None, spec(*(o.shape for o in reversed_)), DetectSettings())
    assert head.plan.strides == (32, 16, 8)
    assert sorted(head.candidates(reversed_, 0).class_id.tolist()) == [1, 3, 3, 5]


def test_multi_label_gives_every_class_above_the_threshold() -> None:
    model, outputs = encode("yolov5_cat")
    outputs[0][0, 3, 5:] = (0.5, 0.9, 0.0, 0.6, 0.0, 0.0)
    found = open_head(None, model, DetectSettings(multi_label=True, conf=0.4)).candidates(outputs, 0)
    assert sorted(found.class_id[:3].tolist()) == [0, 1, 3]


def test_undecoded_rows_are_refused_where_decoded_ones_are_expected() -> None:
    """By shape they are yolov5_cat; the first frame's values tell, before anything is reported."""
    declaring, outputs = encode("yolov5_sigmoid", batch=2)
    model = replace(declaring, head=None)
    assert recognise(model).kind == "yolov5_cat"
    head = open_head(None, model, DetectSettings(conf=0.999))
    with pytest.raises(
        ModelError, match=r'model\.head\.kind: yolov5_sigmoid .*--head .*m\.onnx\.json: {"version":1,"head"'
    ):
        head.candidates(outputs, 1)


def test_decoded_rows_are_looked_at_once() -> None:
    model, outputs = encode("yolov5_cat")
    head = open_head(None, model, DetectSettings())
    assert len(head.candidates(outputs, 0).score) == 4
    assert len(head.candidates([np.zeros_like(outputs[0])], 0).score) == 0


@pytest.mark.parametrize("value", [1.01, -0.01, np.nan])
def test_what_is_no_sigmoid_is_refused(value: float) -> None:
    model, outputs = encode("yolov5_sigmoid")
    outputs[0][0, 77, 3] = value
    with pytest.raises(ModelError, match="does not end in a sigmoid"):
        open_head(None, model, DetectSettings()).candidates(outputs, 0)


def test_sigmoid_rows_in_another_order_of_strides() -> None:
    """The order is the settings' own, and so are the anchors: a wrong one gives other boxes."""
    _, outputs = encode("yolov5_sigmoid")
    ends = np.cumsum([3 * n * n for n in CELLS.values()])[:-1]
    coarse_first = np.concatenate(np.split(outputs[0], ends, axis=1)[::-1], axis=1)
    model = spec(coarse_first.shape)
    settings = Yolov5SigmoidSettings(strides=(32, 16, 8))
    found = open_head(settings, model, DetectSettings()).candidates([coarse_first], 0)
    want = open_head(Yolov5SigmoidSettings(), model, DetectSettings()).candidates(outputs, 0)
    for box, class_id in zip(want.xyxy, want.class_id, strict=True):
        assert np.abs(found.xyxy[found.class_id == class_id] - box).max(axis=1).min() < 1e-3
    other = Yolov5SigmoidSettings(anchors=tuple(tuple(2 * v for v in row) for row in COCO_ANCHORS.values()))
    twice = open_head(other, model, DetectSettings()).candidates(outputs, 0)
    np.testing.assert_allclose(twice.xyxy[:, 2] - twice.xyxy[:, 0], 2 * (want.xyxy[:, 2] - want.xyxy[:, 0]), rtol=1e-5)


def test_a_kind_by_itself_keeps_what_the_sidecar_says_of_it() -> None:
    model = spec((1, 3 * TOTAL, 11), head={"kind": "yolov5_sigmoid", "strides": [32, 16, 8]})
    assert declared("yolov5_sigmoid", model) == Yolov5SigmoidSettings(strides=(32, 16, 8))
    assert declared("yolov5_cat", model) == Yolov5CatSettings()
    assert declared(None, model) is None


def test_device_decoded_candidates_take_the_same_last_steps() -> None:
    model, outputs = encode("yolov5_heads")
    detect = DetectSettings()
    head = open_head(None, model, detect)
    post = Postprocess(head, detect, LABELS)
    decoded: list[Candidates] = [head.candidates(outputs, 0)]
    for a, b in zip(post(outputs, 0, BOX), post(decoded, 0, BOX), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, TOTAL, 5 + CLASSES)], "YOLOX"),
        ([(1, -1, -1)], "dynamic shape; declare model.head.kind"),
        ([(1, 77, 11)], "fits no head"),
        ([(1, 10), (1, 4)], "no known head has outputs"),
        ([(1, 33, 40, 40), (1, 33, 20, 10)], "no known head has outputs"),
        ([(1, 34, 40, 40)], "no known head has outputs"),
        ([(1, 40, 40, 33)], "no known head has outputs"),
        ([(1, 15, 40, 40)], "no known head has outputs"),
        ([(1, 116, TOTAL), (1, 33, 40, 40)], "no known head has outputs"),
    ],
)
def test_unknown_layouts_are_named_not_guessed(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recognise(spec(*shapes))


def test_the_undecoded_form_of_yolov8_is_no_convolved_head_of_yolov5() -> None:
    """Its 144 channels would be 43 classes of 3 anchors."""
    shapes = [(1, 64 + 80, n, n) for n in CELLS.values()]
    for labels in (("a",) * 80, ()):
        with pytest.raises(ConfigError, match="are YOLOv8's before their decoding"):
            recognise(spec(*shapes, labels=labels))
    assert recognise(spec(*shapes, labels=("a",) * 43)).kind == "yolov5_heads"


def test_an_ambiguous_layout_is_refused() -> None:
    """At 64 × 64, (B, 252, 6) is both YOLOv5 with one class and end-to-end with 252 boxes."""
    model = ModelSpec("m.onnx", "", "m", TensorSpec("i", (1, 3, 64, 64), "float32"),
                      (TensorSpec("o", (1, 252, 6), "float32"),), ())  # fmt: skip
    with pytest.raises(ConfigError, match=r"fits yolov5_cat and end_to_end; declare"):
        recognise(model)


def test_the_sidecar_decides() -> None:
    model = spec((1, 252, 6), head={"kind": "end_to_end"})
    assert isinstance(recognise(model), EndToEndSettings)
    with pytest.raises(ConfigError, match=r"sidecar of m\.onnx: head"):
        recognise(spec((1, 252, 6), head={"kind": "yolov9"}))


@pytest.mark.parametrize(
    ("shapes", "anchors", "message"),
    [
        ([(1, 34, 40, 40)], None, r"\[3\] anchors expects that many times 5\+C channels.* has out0\[1, 34, 40, 40\]"),
        ([(1, 33, 40, 40), (1, 36, 20, 20)], None, r"the same C in each head; m\.onnx has out0.*out1"),
        ([(1, 33, 40, 40), (1, 3, 20, 20, 12)], None, "the same C in each head"),
        ([(1, 33, 40, 40)], ((1, 2, 3, 4),), r"\[2\] anchors expects"),
        ([(1, 33, 40, 40)], ((1, 2, 3),), "a row needs positive numbers"),
        ([(1, 33, 40, 40)], ((1, 2),) * 2, "2 rows given, but m.onnx has 1 heads"),
        ([(1, 33, 10, 10), (1, 33, 5, 5)], None, r"anchors: must be given for strides \[32, 64\]"),
        ([(1, 33, -1, -1)], None, "expects outputs of shape"),
        ([(1, 40, 40, 33)], None, "stride 8 on a 40×33 grid"),
        ([(1, 15, 40, 40)], None, "expects that many times"),
    ],
)
def test_convolved_heads_that_contradict_the_settings(shapes: Any, anchors: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_head(Yolov5HeadsSettings(anchors=anchors), spec(*shapes), DetectSettings())


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (Yolov5HeadsSettings(strides=(8, 16)), "yolov5_heads", "2 given, but m.onnx has 3"),
        (Yolov5HeadsSettings(strides=(8, 16, 64)), "yolov5_heads", "stride 64 on a 10×10 grid"),
        (Yolov5HeadsSettings(anchors=((1, 2),) * 3), "yolov5_heads", "needs 6 positive numbers"),
        (Yolov5CatSettings(), "yolov8", r"yolov5_cat expects|rows"),
        (Yolov5SigmoidSettings(), "yolov5_heads", "yolov5_sigmoid expects"),
        (Yolov5SigmoidSettings(), "yolov8", "make 6300 rows at input 320×320"),
        (Yolov5SigmoidSettings(strides=(8, 16)), "yolov5_sigmoid", "make 6000 rows"),
        (Yolov5SigmoidSettings(strides=(8, 16, 48)), "yolov5_sigmoid", "do not divide"),
        (Yolov5SigmoidSettings(strides=(8, 16, 64)), "yolov5_sigmoid", r"anchors: must be given"),
        (Yolov5SigmoidSettings(anchors=((1, 2),)), "yolov5_sigmoid", "1 rows given for 3 strides"),
        (Yolov5SigmoidSettings(anchors=((1, 2, 3),) * 3), "yolov5_sigmoid", "positive numbers, w,h an anchor"),
        (Yolov8Settings(), "end_to_end", "yolov8 expects"),
        (EndToEndSettings(), "yolov8", "end_to_end expects"),
    ],
)
def test_settings_that_contradict_the_model(settings: Any, kind: str, message: str) -> None:
    model, _ = encode(kind)
    if kind == "end_to_end" and settings.kind == "yolov8":
        model = spec((1, 4, 6))
    if settings.kind == "yolov5_cat":
        model = spec((1, 300, 5))
    with pytest.raises(ConfigError, match=message):
        open_head(settings, model, DetectSettings())


def test_labels() -> None:
    assert resolve_labels(spec((1, 1, 6), labels=()), 80)[0] == "person"
    assert resolve_labels(spec((1, 1, 6), labels=()), 2) == ("class_0", "class_1")
    with pytest.raises(ConfigError, match="6 names for a model with 80 classes"):
        resolve_labels(spec((1, 1, 6)), 80)


def test_an_unknown_class_is_named_with_near_ones() -> None:
    model, _ = encode("yolov8")
    detect = DetectSettings(classes=("clas_3",))
    with pytest.raises(ConfigError, match=r"no class 'clas_3'; near: class_3"):
        Postprocess(open_head(None, model, detect), detect, LABELS)
