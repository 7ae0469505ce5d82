"""Which head a model has: recognised, declared, or refused with what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamd.engine.sidecar import Sidecar
from streamd.errors import ConfigError, ModelError
from streamd.heads import HEADS, DetectSettings
from streamd.heads.end_to_end import EndToEndSettings
from streamd.heads.select import check_decoded, declared, open_head, recognise, resolve_labels
from streamd.heads.yolov5_cat import Yolov5CatSettings
from streamd.heads.yolov5_sigmoid import Yolov5SigmoidSettings
from streamd.testing.objects import CELLS, CLASSES, LABELS, spec
from streamd.types import ModelSpec, TensorSpec
from tests.contracts import gives


def test_a_kind_by_itself_keeps_what_the_sidecar_says_of_it() -> None:
    model = spec((1, 3 * CELLS, 11), head={"kind": "yolov5_sigmoid", "strides": [32, 16, 8]})
    assert declared("yolov5_sigmoid", model) == Yolov5SigmoidSettings(strides=(32, 16, 8))
    assert declared("yolov5_cat", model) == Yolov5CatSettings()
    assert declared(None, model) is None


def test_rows_that_are_not_decoded_are_refused_where_they_would_be_read_as_decoded() -> None:
    rows, picodet = spec((1, 3 * CELLS, 11)), spec(*((1, n, c) for c in (CLASSES, 32) for n in (16, 4, 1, 1)))
    check_decoded(None, rows, ends_in_sigmoid=False)
    check_decoded("yolov5_sigmoid", rows, ends_in_sigmoid=True)
    check_decoded(None, replace(rows, head={"kind": "yolov5_sigmoid"}), ends_in_sigmoid=True)
    # Other families end in a sigmoid, too, and mean it.
    check_decoded(None, picodet, ends_in_sigmoid=True)
    cat = replace(rows, head={"kind": "yolov5_cat"})
    for kind, model in ((None, rows), (None, spec((1, -1, -1))), ("yolov5_cat", rows), (None, cat)):
        with pytest.raises(ModelError, match=r"end in a sigmoid, so its rows are not decoded.*--head yolov5_sigmoid"):
            check_decoded(kind, model, ends_in_sigmoid=True)
    with pytest.raises(ConfigError, match="head: expected one of"):
        check_decoded("yolov9", rows, ends_in_sigmoid=True)


READS_SIGMOIDS = {
    "yolov5_cat": False,
    "detr": True,
    "detr_final": True,
    "end_to_end": False,
    "nanodet": False,
    "obb": False,
    "picodet": True,
    "pose": False,
    "rf_detr": True,
    "rtdetr": True,
    "segment": True,
    "yolov5_heads": False,
    "yolov5_sigmoid": True,
    "yolov8": False,
    "yolox": False,
}
"""Whether an output of the family may be nothing but values after a sigmoid."""


@pytest.mark.parametrize("kind", HEADS.builtin())
def test_every_head_says_whether_its_outputs_may_end_in_a_sigmoid(kind: str) -> None:
    """Declared in the model's sidecar or beside it, or recognised, where shapes tell the head."""
    for case in gives("tests.heads", kind, "contract_cases")():
        model, _ = case.encode(1, 0)
        asked = [(kind, model)] + ([(None, model)] if case.recognised or model.head is not None else [])
        for named, each in asked:
            check_decoded(named, each, ends_in_sigmoid=False)
            if READS_SIGMOIDS[kind]:
                check_decoded(named, each, ends_in_sigmoid=True)
                continue
            with pytest.raises(ModelError, match=rf"m\.onnx: its outputs end in a sigmoid, .*{kind}.*; "):
                check_decoded(named, each, ends_in_sigmoid=True)


def test_heads_of_unknown_size_are_those_of_as_many_dimensions() -> None:
    heads = spec(*((1, 3, -1, -1, 11) for _ in range(3)))
    with pytest.raises(ModelError, match="yolov5_heads expects logits"):
        check_decoded(None, heads, ends_in_sigmoid=True)
    check_decoded(None, spec((1, -1), (1, -1)), ends_in_sigmoid=True)


def test_an_unknown_kind_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="head: expected one of yolov5_cat, detr, detr_final"):
        declared("yolov9", spec((1, 252, 6)))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, -1, -1)], "dynamic shape; declare model.head.kind"),
        ([(1, 77, 11)], "fits no head"),
        ([(1, 10), (1, 4)], "no known head has outputs"),
        ([(1, 33, 40, 40), (1, 33, 20, 10)], "no known head has outputs"),
        ([(1, 34, 40, 40)], "no known head has outputs"),
        ([(1, 40, 40, 33)], "no known head has outputs"),
        ([(1, 15, 40, 40)], "no known head has outputs"),
        ([(1, 116, CELLS), (1, 33, 40, 40)], "no known head has outputs"),
    ],
)
def test_unknown_layouts_are_named_not_guessed(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recognise(spec(*shapes))


def test_rows_of_an_anchor_free_grid_are_yolox_only_where_the_classes_say_so() -> None:
    assert recognise(spec((1, CELLS, 5 + CLASSES))).kind == "yolox"
    assert recognise(spec((1, CELLS, 85), labels=())).kind == "yolox"
    for labels in ((), LABELS):
        with pytest.raises(ConfigError, match=r"are YOLOv8's, transposed; export it as \(B, 4\+C, N\)"):
            recognise(spec((1, CELLS, 4 + (len(labels) or 80)), labels=labels))
    with pytest.raises(ConfigError, match="YOLOX's with 6 classes, or YOLOv8's, transposed, with 7; name the classes"):
        recognise(spec((1, CELLS, 5 + CLASSES), labels=()))
    with pytest.raises(ConfigError, match=r"fits no head .*yolox has \[1, 2100, 11\]"):
        recognise(spec((1, CELLS, 13)))


def test_what_each_head_would_have_had_is_told() -> None:
    with pytest.raises(
        ConfigError, match=r"with 6 classes yolov5_cat has \[1, 6300, 11\], .*yolov8 has \[1, 10, 2100\]"
    ):
        recognise(spec((1, 77, 11)))


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
    with pytest.raises(ConfigError, match=r"sidecar of m\.onnx: head\.strides"):
        recognise(spec((1, 252, 6), head={"kind": "yolov5_sigmoid", "strides": "x"}))


def test_a_family_that_is_fed_otherwise_must_say_how() -> None:
    model = spec((1, CELLS, 5 + CLASSES), input_declared=False)
    with pytest.raises(ConfigError) as raised:
        open_head(None, model, DetectSettings())
    said = str(raised.value)
    assert 'color: "BGR", scale: 1, align: "top_left"' in said
    assert '{"version":1,"color":"BGR","scale":1,"align":"top_left"} into m.onnx.json' in said
    open_head(None, replace(model, input_declared=True), DetectSettings())
    open_head(None, spec((1, 3 * CELLS, 11), input_declared=False), DetectSettings())


def test_what_the_error_says_to_write_is_a_sidecar() -> None:
    for kind in HEADS:
        Sidecar.model_validate({"version": 1, **kind.usual_input})


@pytest.mark.parametrize("task", ["classify", " Classify "])
def test_other_tasks_are_refused_recognised_or_declared(task: str) -> None:
    model = spec((1, 4 + CLASSES, CELLS), metadata={"task": task})
    with pytest.raises(ConfigError, match=r"m\.onnx: its metadata says .* the task classify, which no head decodes\."):
        recognise(model)
    with pytest.raises(ConfigError, match="which no head decodes"):
        open_head(Yolov5CatSettings(), model, DetectSettings())


@pytest.mark.parametrize(("task", "kind"), [("pose", "pose"), ("segment", "segment"), ("obb", "obb")])
def test_heads_of_another_task_than_the_models_are_refused(task: str, kind: str) -> None:
    model = spec((1, 4 + CLASSES, CELLS), metadata={"task": task})
    with pytest.raises(ConfigError, match=rf"head yolov5_cat does not decode; declare model\.head\.kind: {kind}, or"):
        open_head(Yolov5CatSettings(), model, DetectSettings())
    other = spec((1, 4 + CLASSES, CELLS), metadata={"task": "detect"}, head={"kind": kind})
    with pytest.raises(ConfigError, match=rf"for the task detect, which the head {kind} does not decode"):
        open_head(None, other, DetectSettings())


@pytest.mark.parametrize("task", ["detect", "object-detection", ""])
def test_what_detects_or_says_nothing_is_taken(task: str) -> None:
    assert recognise(spec((1, 4 + CLASSES, CELLS), metadata={"task": task})).kind == "yolov8"


def test_labels() -> None:
    assert resolve_labels(spec((1, 1, 6), labels=()), 80)[0] == "person"
    assert resolve_labels(spec((1, 1, 6), labels=()), 2) == ("class_0", "class_1")
    with pytest.raises(ConfigError, match="6 names for a model with 80 classes"):
        resolve_labels(spec((1, 1, 6)), 80)
    with pytest.raises(ConfigError, match=r"with the declared head, its outputs .* would be of 25196 classes; declare"):
        resolve_labels(spec((1, 25200, 85), labels=()), 25196)
