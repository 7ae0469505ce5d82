"""Engines of other packages: whatever they return or raise is one error that names the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.foreign import ForeignBackend
from streamd.engine.null import NullBackend, NullSettings, NullSlot
from streamd.errors import BackendError, FrameError
from streamd.settings.plugins import Origin
from streamd.types import Box, Candidates, DecodePlan, Letterbox, TensorSpec
from tests.frames import frames

ORIGIN = Origin("engine", "odd", "acme-engines 2.0")
WHOSE = "engine kind odd of the package acme-engines 2.0 .*"


class Odd(NullBackend):
    """A sound backend of which some methods do something else."""

    def __init__(self, **instead: Callable[..., Any]) -> None:
        super().__init__(NullSettings(), ModelSettings(path="none"), batch=BatchSettings(max=4))
        for name, method in instead.items():
            setattr(self, name, method)


def raises(error: Exception) -> Any:
    raise error


def run(backend: Odd, plan: DecodePlan | None = None) -> Any:
    """One batch of two frames."""
    foreign = ForeignBackend(backend, ORIGIN)
    foreign.start(plan)
    slot = foreign.slots[0]
    assert len(foreign.preprocess(slot, list(frames("s", 2)))) == 2
    foreign.infer(slot)
    assert foreign.device_times(slot) == {}
    return foreign.collect(slot)


def test_a_sound_one_is_as_it_is() -> None:
    backend = Odd()
    assert run(backend)[0].shape == (2, 1, 6)
    foreign = ForeignBackend(backend, ORIGIN)
    assert (foreign.spec, foreign.title, foreign.device, foreign.memory) == (backend.spec, "null", None, {})
    empty = Candidates(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))
    assert run(Odd(collect=lambda slot: [empty, empty]), PLAN) == [empty, empty]


@pytest.mark.parametrize("memory", [lambda: raises(ValueError("boom")), lambda: None, lambda: {"free": "much"}])
def test_memory_that_it_cannot_tell_is_no_error_of_the_metrics(memory: Callable[[], Any]) -> None:
    class Forgetful(Odd):
        @property
        def memory(self) -> Any:
            return memory()

    assert ForeignBackend(Forgetful(), ORIGIN).memory == {}


@pytest.mark.parametrize(
    ("instead", "words"),
    [
        ({"start": lambda plan: raises(ValueError("boom"))}, r"failed to start \(ValueError: boom, in engine/test_for"),
        ({"start": lambda plan: None}, "it has no slots once it was started"),
        ({"preprocess": lambda slot, frames: raises(KeyError("x"))}, r"failed to preprocess a batch \(KeyError: 'x'"),
        ({"preprocess": lambda slot, frames: []}, r"returned \[\]; expected a streamd.types.Letterbox for each of 2"),
        ({"preprocess": lambda slot, frames: [1, 2]}, r"returned \[1, 2\]; expected a streamd.types.Letterbox"),
        ({"preprocess": lambda slot, frames: None}, r"failed to preprocess a batch \(TypeError"),
        ({"infer": lambda slot: raises(KeyError("x"))}, r"failed to run its model \(KeyError: 'x'"),
        ({"collect": lambda slot: raises(KeyError("x"))}, r"failed to collect a batch \(KeyError: 'x'"),
        ({"collect": lambda slot: None}, "its collect returned a NoneType; expected a list of arrays"),
        ({"collect": lambda slot: []}, "its collect returned 0 outputs; its spec has 1"),
        ({"collect": lambda slot: [3]}, r"a int for the output detections; expected \[2, 1, 6\]"),
        ({"preprocess": lambda slot, frames: [letterbox(content_width=0)] * 2}, "ints, and a content of at least one"),
        ({"preprocess": lambda slot, frames: [letterbox(pad_x=0.5)] * 2}, "expected ints, and a content of at least"),
        (
            {"preprocess": lambda slot, frames: [letterbox(roi=(0, 0, 9, 9))] * 2},
            r"a Letterbox of \(0, 0, 9, 9\); expected",
        ),
        ({"preprocess": lambda slot, frames: [letterbox(roi=Box(0, 0, 9999, 9))] * 2}, "in 64 x 48 pixels"),
        (
            {"collect": lambda slot: [np.zeros((2, 1, 6))]},
            "the output detections of type float64; expected a NumPy arr",
        ),
        ({"collect": lambda slot: [np.zeros((2, 1, 6), object)]}, "the output detections of type object; expected"),
        (
            {"collect": lambda slot: [memoryview(bytes(12)).cast("B", (2, 1, 6))]},
            "of type memoryview; expected a NumPy",
        ),
        ({"collect": lambda slot: [np.zeros((2, 6))]}, r"\[2, 6\] for the output detections; expected \[2, 1, 6\]"),
        ({"collect": lambda slot: [np.zeros((1, 1, 6))]}, r"\[1, 1, 6\] for the output detections"),
        ({"collect": lambda slot: [np.zeros((2, 1, 7))]}, r"\[2, 1, 7\] for the output detections"),
    ],
)
def test_everything_else_is_an_error_of_its_package(instead: dict[str, Callable[..., Any]], words: str) -> None:
    with pytest.raises(BackendError, match=WHOSE + words):
        run(Odd(**instead))


def letterbox(**other: Any) -> Letterbox:
    sound: dict[str, Any] = {
        "pad_x": 0,
        "pad_y": 0,
        "content_width": 640,
        "content_height": 480,
        "roi": Box(0, 0, 64, 48),
    }
    return Letterbox(**sound | other)


@pytest.mark.parametrize("kind", [np.float16, np.int64])
def test_outputs_of_half_precision_and_whole_numbers_pass(kind: type[np.generic]) -> None:
    outputs = [np.zeros((2, 1, 6), kind)]
    assert run(Odd(collect=lambda slot: outputs)) is outputs


def boxes(*score: float, classes: int = 0, **other: Any) -> Candidates:
    count = len(score)
    sound: dict[str, Any] = {
        "xyxy": np.tile(np.array([[1, 2, 3, 4]], np.float32), (count, 1)),
        "score": np.array(score, np.float32),
        "class_id": np.full(count, classes, np.int32),
    }
    return Candidates(**sound | other)


PLAN = DecodePlan("final_boxes", 1, 0.25, multi_label=False)
SUPPRESS = replace(PLAN, suppress=True, max_det=2)


@pytest.mark.parametrize(
    ("one", "plan"),
    [
        (boxes(0.5, 0.9), PLAN),
        (boxes(0.5, 0.9, classes=-1), PLAN),
        (boxes(0.9, 0.5, suppressed=True), SUPPRESS),
        (boxes(0.9, np.nan, suppressed=True), SUPPRESS),
        (boxes(0.0, 0.9, 0.5, class_id=np.array([-1, 0, 0], np.int32), suppressed=True), SUPPRESS),
    ],
)
def test_sound_boxes_of_an_engine_pass(one: Candidates, plan: DecodePlan) -> None:
    assert run(Odd(collect=lambda slot: (one, one)), plan) == (one, one)
    assert run(Odd(collect=lambda slot: (one, one, None)), plan) == [one, one]


def test_boxes_without_a_plan_are_an_error_of_its_package() -> None:
    with pytest.raises(BackendError, match=WHOSE + "its collect returned Candidates, although start was given no plan"):
        run(Odd(collect=lambda slot: [boxes(), boxes()]))


def test_rows_of_no_frame_are_left_out() -> None:
    """A classifier counts the rows."""
    assert [each.shape for each in run(Odd(collect=lambda slot: [np.zeros((4, 1, 6), np.float32)]))] == [(2, 1, 6)]


@pytest.mark.parametrize(
    ("one", "plan", "words"),
    [
        (None, PLAN, "a NoneType; expected streamd.types.Candidates"),
        (boxes(0.9, score=np.array([0.9])), PLAN, "score of type float64; expected a NumPy array of float32"),
        (boxes(0.9, xyxy=np.zeros((2, 4), np.float32)), PLAN, r"xyxy \(2, 4\), score \(1,\) and class_id \(1,\)"),
        (boxes(0.9, classes=1), PLAN, "classes 1 to 1; expected 0 to 0"),
        (boxes(0.9, classes=-2), PLAN, "classes -2 to -2; expected 0 to 0"),
        (boxes(0.9, extra=np.zeros((2, 1), np.float32)), PLAN, r"extra \(2, 1\) of 1 boxes"),
        (boxes(0.9, suppressed=1), PLAN, "suppressed=1; expected True or False"),
        (
            boxes(0.9, suppressed=True),
            PLAN,
            "suppressed=True, although the plan of start did not tell what to suppress",
        ),
        (boxes(0.9, 0.8, 0.7, suppressed=True), SUPPRESS, "3 boxes; expected at most max_det, 2"),
        (boxes(0.5, 0.9, suppressed=True), SUPPRESS, "a box of score 0.9 behind one of 0.5; expected the best first"),
    ],
)
def test_odd_boxes_of_any_frame_are_an_error_of_its_package(one: Any, plan: DecodePlan, words: str) -> None:
    with pytest.raises(BackendError, match=WHOSE + "its collect returned for frame 1 of the batch .*" + words):
        run(Odd(collect=lambda slot: [boxes(), one]), plan)


def test_times_of_a_device_are_numbers() -> None:
    foreign = ForeignBackend(Odd(device_times=lambda slot: {"infer": np.float32(0.5)}), ORIGIN)
    assert repr(foreign.device_times(None)) == "{'infer': 0.5}"


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (
            lambda slot: raises(KeyError("x")),
            "failed to tell its times (KeyError: 'x', in engine/test_foreign.py, line",
        ),
        (lambda slot: raises(BackendError("its own words")), "its own words"),
        (lambda slot: None, "its device_times returned None; expected a dict of seconds by stage: preprocess, infer"),
        (
            lambda slot: {"upload": 0.1},
            "its device_times returned {'upload': 0.1}; expected a dict of seconds by stage",
        ),
        (lambda slot: {"infer": -1.0}, "its device_times returned {'infer': -1.0}; expected seconds of 0 or more"),
        (lambda slot: {"infer": np.nan}, "its device_times returned {'infer': nan}; expected seconds of 0 or more"),
        (lambda slot: {"infer": None}, "failed to tell its times (TypeError"),
    ],
)
def test_odd_times_are_told_once_and_left_out(times: Callable[[Any], Any], words: str) -> None:
    foreign = ForeignBackend(Odd(device_times=times), ORIGIN)
    with capture_logs() as logs:
        assert foreign.device_times(None) == foreign.device_times(None) == {}
    (line,) = logs
    assert line["event"] == "device times left out"
    assert words in line["error"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("spec", None, "it has spec = None; expected streamd.types.ModelSpec"),
        ("title", None, "it has title = None; expected text"),
        ("max_batch", 0, "a spec whose max_batch is 0; expected an int of at least 1"),
        ("max_batch", None, "a spec whose max_batch is None; expected an int of at least 1"),
        ("labels", ["thing"], r"a spec whose labels are \['thing'\]; expected a tuple of text"),
        ("labels", (1, 2), r"a spec whose labels are \(1, 2\); expected a tuple of text"),
        ("name", None, "a spec whose name is None; expected text"),
        ("outputs", (), r"a spec whose outputs are \(\); expected a tuple of streamd.types.TensorSpec"),
        ("outputs", (None,), "a spec with None among its input and outputs; expected streamd.types.TensorSpec"),
        ("outputs", (TensorSpec("boxes", (1, 6.0), "float32"),), r"whose boxes has the shape \(1, 6.0\); expected a"),  # type: ignore[arg-type]
        (
            "input",
            TensorSpec("images", (1, 3, -1, -1), "float32"),
            "a spec whose input has the shape .*; expected four",
        ),
    ],
)
def test_what_it_says_of_its_model_is_an_error_when_it_is_opened(name: str, value: Any, words: str) -> None:
    closed: list[bool] = []
    backend = Odd(close=lambda: closed.append(True))
    if name in ("spec", "title"):
        setattr(backend, name, value)
    else:
        backend.spec = replace(backend.spec, **{name: value})
    with pytest.raises(BackendError, match=WHOSE + words):
        ForeignBackend(backend, ORIGIN)
    assert closed == [True]


def test_slots_are_told_apart_by_their_numbers() -> None:
    backend = Odd(start=lambda plan: backend._slots.extend([NullSlot(0, ZEROS), NullSlot(0, ZEROS)]))
    with pytest.raises(BackendError, match=WHOSE + "its slots have the index 0, 0; expected different ints"):
        ForeignBackend(backend, ORIGIN).start()


ZEROS = np.zeros((1, 1, 6), np.float32)


@pytest.mark.parametrize("device", ["0", True, -1, 0.0])
def test_an_odd_device_is_an_error_of_its_package(device: Any) -> None:
    class Elsewhere(Odd):
        @property
        def device(self) -> Any:
            return device

    with pytest.raises(BackendError, match=WHOSE + f"its device is {device!r}; expected a CUDA ordinal"):
        _ = ForeignBackend(Elsewhere(), ORIGIN).device


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (None, "its thumbnail returned a picture of type NoneType; expected a NumPy array of uint8"),
        (np.zeros((4, 8, 3)), "a picture of type float64; expected a NumPy array of uint8"),
        (np.zeros((8, 4, 3), np.uint8), r"a picture \(8, 4, 3\); expected \(4, 8, 3\)"),
    ],
)
def test_an_odd_thumbnail_is_an_error_of_its_package(picture: Any, words: str) -> None:
    foreign = ForeignBackend(Odd(thumbnail=lambda frame, width, height: picture), ORIGIN)
    with pytest.raises(BackendError, match=WHOSE + words):
        foreign.thumbnail(frames("s", 1)[0], 8, 4)


def test_an_odd_reader_of_surfaces_is_an_error_of_its_package() -> None:
    foreign = ForeignBackend(Odd(surface_reader=lambda: 3), ORIGIN)
    with pytest.raises(
        BackendError, match=WHOSE + "what its surface_reader returns has no device; see streamd.analysis"
    ):
        foreign.surface_reader()


def test_what_it_says_itself_is_passed_on() -> None:
    with pytest.raises(FrameError, match="its own words"):
        run(Odd(preprocess=lambda slot, frames: raises(FrameError("its own words"))))


def test_an_error_in_close_is_logged() -> None:
    with capture_logs() as logs:
        ForeignBackend(Odd(close=lambda: raises(ValueError("boom"))), ORIGIN).close()
    assert [each["event"] for each in logs] == ["backend failed to close"]
    assert "package acme-engines 2.0 failed to close (ValueError: boom" in logs[0]["error"]
