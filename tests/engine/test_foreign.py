"""Engines of other packages: whatever they return or raise is one error that names the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.foreign import ForeignBackend
from streamd.engine.null import NullBackend, NullSettings
from streamd.errors import BackendError, FrameError
from streamd.settings.plugins import Origin
from streamd.types import Candidates
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


def run(backend: Odd) -> Any:
    """One batch of two frames."""
    foreign = ForeignBackend(backend, ORIGIN)
    foreign.start()
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
    assert run(Odd(collect=lambda slot: [empty, empty])) == [empty, empty]


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
        ({"collect": lambda slot: [np.zeros((2, 6))]}, r"\[2, 6\] for the output detections; expected \[2, 1, 6\]"),
        ({"collect": lambda slot: [np.zeros((1, 1, 6))]}, r"\[1, 1, 6\] for the output detections"),
        ({"collect": lambda slot: [np.zeros((2, 1, 7))]}, r"\[2, 1, 7\] for the output detections"),
    ],
)
def test_everything_else_is_an_error_of_its_package(instead: dict[str, Callable[..., Any]], words: str) -> None:
    with pytest.raises(BackendError, match=WHOSE + words):
        run(Odd(**instead))


def test_what_it_says_itself_is_passed_on() -> None:
    with pytest.raises(FrameError, match="its own words"):
        run(Odd(preprocess=lambda slot, frames: raises(FrameError("its own words"))))


def test_an_error_in_close_is_logged() -> None:
    with capture_logs() as logs:
        ForeignBackend(Odd(close=lambda: raises(ValueError("boom"))), ORIGIN).close()
    assert [each["event"] for each in logs] == ["backend failed to close"]
    assert "package acme-engines 2.0 failed to close (ValueError: boom" in logs[0]["error"]
