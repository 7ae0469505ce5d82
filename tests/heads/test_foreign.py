"""Heads of other packages: whatever they return or raise is one error that names the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamd.errors import BackendError, ModelError
from streamd.heads import Head
from streamd.heads.foreign import ForeignHead
from streamd.settings.plugins import Origin
from streamd.types import Candidates, Outputs

ORIGIN = Origin("head", "odd", "acme-heads 2.0")
ONE = (np.array([[1, 2, 3, 4]], np.float32), np.array([0.5], np.float32), np.array([2], np.int32))


class Scripted(Head):
    classes = 3

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

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
    ],
)
def test_everything_else_is_an_error_of_its_package(answer: Callable[[], Any], words: str) -> None:
    with pytest.raises(BackendError, match="head kind odd of the package acme-heads 2.0 .*" + words):
        ForeignHead(Scripted(answer), ORIGIN).candidates([], 0)


def test_what_it_says_itself_is_passed_on() -> None:
    with pytest.raises(ModelError, match="its own words"):
        ForeignHead(Scripted(lambda: raises(ModelError("its own words"))), ORIGIN).candidates([], 0)
