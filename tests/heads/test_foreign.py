"""Heads of other packages: whatever they return or raise is one error that names the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamd.errors import BackendError, ConfigError, ModelError
from streamd.heads import DetectSettings, Head
from streamd.heads.foreign import ForeignHead
from streamd.settings.plugins import Origin
from streamd.types import Box, Candidates, DecodePlan, Details, Letterbox, Outputs

ORIGIN = Origin("head", "odd", "acme-heads 2.0")
ONE = (np.array([[1, 2, 3, 4]], np.float32), np.array([0.5], np.float32), np.array([2], np.int32))


TWO = Candidates(
    np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32), np.array([0.5, 0.9], np.float32), np.zeros(2, np.int32)
)
WHOLE = Letterbox(0, 0, 64, 64, Box(0, 0, 64, 64))
WHOSE = "head kind odd of the package acme-heads 2.0 .*"


class Scripted(Head):
    classes = 3

    def __init__(self, answer: Callable[[], Any], **of_itself: Any) -> None:
        self._answer = answer
        for name, value in of_itself.items():
            setattr(self, name, value)

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        found: Candidates = self._answer()
        return found


def raises(error: Exception) -> Any:
    raise error


def test_sound_boxes_pass() -> None:
    found = Candidates(*ONE)
    assert ForeignHead(Scripted(lambda: found), ORIGIN).candidates([], 0) is found


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: raises(ValueError("boom")), r"failed to decode a frame \(ValueError: boom, in heads/test_foreign.py"),
        (lambda: None, "a NoneType; expected streamd.types.Candidates"),
        (lambda: Candidates(*ONE[:2], ONE[2].astype(np.int64)), "class_id of type int64; expected .* int32"),
        (lambda: Candidates([[1, 2, 3, 4]], *ONE[1:]), "xyxy of type list; expected a NumPy array of float32"),  # type: ignore[arg-type]
        (lambda: Candidates(ONE[0][:0], *ONE[1:]), r"xyxy \(0, 4\), score \(1,\) and class_id \(1,\)"),
        (lambda: Candidates(*ONE[:2], np.array([3], np.int32)), "classes 3 to 3; expected 0 to 2"),
        (lambda: Candidates(*ONE[:2], np.array([-1], np.int32)), "classes -1 to -1; expected 0 to 2"),
        (lambda: Candidates(ONE[0], np.float32(0.5), ONE[2]), "score of type float32; expected a NumPy array"),
        (lambda: Candidates(ONE[0], np.array(0.5, np.float32), ONE[2]), r"score \(\) and class_id \(1,\)"),
        (lambda: Candidates(*ONE, extra=np.zeros(3, np.float32)), r"extra \(3,\) of 1 boxes; expected \(1, E\)"),
        (lambda: Candidates(*ONE, extra=np.zeros((2, 3), np.float32)), r"extra \(2, 3\) of 1 boxes; expected \(1, E\)"),
        (lambda: Candidates(*ONE, extra=[[1.0]]), "extra of type list; expected a NumPy array of float32"),  # type: ignore[arg-type]
        (lambda: Candidates(*ONE, suppressed=True), "suppressed=True; expected False, and nms = False of the head"),
    ],
)
def test_everything_else_is_an_error_of_its_package(answer: Callable[[], Any], words: str) -> None:
    with pytest.raises(BackendError, match="head kind odd of the package acme-heads 2.0 .*" + words):
        ForeignHead(Scripted(answer), ORIGIN).candidates([], 0)


def test_what_it_says_itself_is_passed_on() -> None:
    with pytest.raises(ModelError, match="its own words"):
        ForeignHead(Scripted(lambda: raises(ModelError("its own words"))), ORIGIN).candidates([], 0)


class Suppressing(Scripted):
    def suppress(self, found: Candidates, detect: DetectSettings) -> Any:
        return self._answer()


def test_sound_indices_pass() -> None:
    for order in (np.array([1, 0]), np.array([1], np.uint8), np.empty(0, np.intp)):
        head = ForeignHead(Suppressing(lambda order=order: order), ORIGIN)  # type: ignore[misc]
        assert head.suppress(TWO, DetectSettings()) is order
    assert ForeignHead(Scripted(lambda: None), ORIGIN).suppress(TWO, DetectSettings()).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: raises(KeyError("x")), r"failed to suppress boxes \(KeyError: 'x', in heads/test_foreign.py, line"),
        (lambda: None, "its suppress returned indices of type NoneType; expected a NumPy array of intp"),
        (lambda: [1, 0], "indices of type list; expected a NumPy array of intp"),
        (lambda: np.array([True, False]), "indices of type bool; expected a NumPy array of intp"),
        (lambda: np.array([1.0, 0.0]), "indices of type float64; expected a NumPy array of intp"),
        (lambda: np.array([[1, 0]]), r"indices \(1, 2\); expected \(N,\)"),
        (lambda: np.array(1), r"indices \(\); expected \(N,\)"),
        (lambda: np.array([2]), "indices 2 to 2 of 2 boxes"),
        (lambda: np.array([-1]), "indices -1 to -1 of 2 boxes"),
        (lambda: np.array([1, 1]), "2 indices of which some are the same; expected each box once"),
        (lambda: np.array([0, 1]), "a box of score 0.9 behind one of 0.5; expected the best first"),
        (lambda: np.array([1, 0]), "2 boxes; expected at most max_det, 1"),
    ],
)
def test_odd_indices_are_an_error_of_its_package(answer: Callable[[], Any], words: str) -> None:
    detect = DetectSettings(max_det=1 if "max_det" in words else 300)
    with pytest.raises(BackendError, match=WHOSE + words):
        ForeignHead(Suppressing(answer), ORIGIN).suppress(TWO, detect)


class Detailed(Scripted):
    detailed = True

    def details(self, outputs: Outputs, index: int, kept: Candidates, letterbox: Letterbox) -> Any:
        return self._answer()


def details(answer: Callable[[], Any], *outputs: Any) -> Details:
    return ForeignHead(Detailed(answer), ORIGIN).details(outputs, 0, TWO, WHOLE)


POINTS = np.full((2, 17, 3), 0.5, np.float32)
CORNERS = np.zeros((2, 4, 2), np.float32)
OUTLINE = np.zeros((5, 2), np.float32)


def test_sound_details_pass() -> None:
    found = details(lambda: Details(POINTS, CORNERS, (OUTLINE, OUTLINE[:0])), np.zeros((1, 4), np.float32))
    assert (found.keypoints is POINTS, found.oriented is CORNERS) == (True, True)
    assert [len(polygon) for polygon in found.polygons or ()] == [5, 0]
    assert details(Details) == Details()


def test_details_do_not_change_with_the_next_batch() -> None:
    outputs = POINTS.copy(), CORNERS.copy(), OUTLINE.copy()
    found = details(lambda: Details(outputs[0][:, ::-1], outputs[1], [outputs[2], outputs[2][:0]]), *outputs)
    for output in outputs:
        output[...] = 99
    assert found.keypoints is not None
    assert found.oriented is not None
    assert found.polygons is not None
    assert (found.keypoints.max(), found.oriented.max(), found.polygons[0].max()) == (0.5, 0, 0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda: raises(KeyError("x")),
            r"failed to decode the details of boxes \(KeyError: 'x', in heads/test_foreign",
        ),
        (lambda: None, "its details returned a NoneType; expected streamd.types.Details"),
        (lambda: {"keypoints": POINTS}, "a dict; expected streamd.types.Details"),
        (lambda: Details(POINTS.tolist()), "keypoints of type list; expected a NumPy array of float32"),  # type: ignore[arg-type]
        (lambda: Details(POINTS.astype(np.float64)), "keypoints of type float64; expected a NumPy array of float32"),
        (lambda: Details(POINTS[:1]), r"keypoints \(1, 17, 3\); expected \(2, K, 3\)"),
        (lambda: Details(np.concatenate([POINTS, POINTS])), r"keypoints \(4, 17, 3\); expected \(2, K, 3\)"),
        (lambda: Details(POINTS[..., :2]), r"keypoints \(2, 17, 2\); expected \(2, K, 3\)"),
        (lambda: Details(POINTS * np.float32(np.nan)), "keypoints with NaN or infinity; expected numbers"),
        (lambda: Details(POINTS * 4), "keypoints with scores of 2 to 2; expected 0 to 1"),
        (lambda: Details(oriented=CORNERS[:, 0]), r"oriented \(2, 2\); expected \(2, 4, 2\)"),
        (lambda: Details(oriented=CORNERS + np.float32(np.inf)), "oriented with NaN or infinity"),
        (lambda: Details(polygons=np.zeros((2, 5, 2), np.float32)), "polygons of type ndarray; expected a list"),  # type: ignore[arg-type]
        (lambda: Details(polygons=[OUTLINE]), "1 polygons of 2 boxes; expected one for each"),
        (lambda: Details(polygons=[OUTLINE, None]), "polygon 1 of type NoneType; expected a NumPy array of float32"),  # type: ignore[list-item]
        (lambda: Details(polygons=[OUTLINE, OUTLINE.T]), r"polygon 1 \(2, 5\); expected \(V, 2\)"),
    ],
)
def test_odd_details_are_an_error_of_its_package(answer: Callable[[], Any], words: str) -> None:
    with pytest.raises(BackendError, match=WHOSE + words):
        details(answer)


PLAN = DecodePlan("class_columns", 3, 0.25, multi_label=False)


def test_a_sound_plan_is_as_it_is() -> None:
    assert ForeignHead(Scripted(lambda: None, plan=PLAN, classes=np.int64(3)), ORIGIN).plan is PLAN


@pytest.mark.parametrize(
    ("of_itself", "words"),
    [
        ({"classes": "3"}, "its head has classes = '3'; expected their number, an int of at least 1"),
        ({"classes": 0}, "its head has classes = 0; expected their number"),
        ({"classes": 3.0}, "its head has classes = 3.0; expected their number"),
        ({"nms": None}, "its head has nms = None; expected True or False"),
        ({"detailed": "yes"}, "its head has detailed = 'yes'; expected True or False"),
        ({"detailed": True}, "its head has detailed = True, but no method details"),
        ({"plan": {"layout": "class_columns"}}, "its head has plan = {.*; expected streamd.types.DecodePlan or None"),
        ({"plan": replace(PLAN, classes=4)}, "its head has a plan of 4 classes; it has 3"),
        ({"plan": replace(PLAN, layout="rows")}, "its head has a plan of the layout 'rows'; expected one of anch"),  # type: ignore[arg-type]
    ],
)
def test_what_it_says_of_itself_is_an_error_before_the_first_frame(of_itself: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=WHOSE + words):
        ForeignHead(Scripted(lambda: None, **of_itself), ORIGIN)
