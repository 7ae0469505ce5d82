"""The output of a classifier: what is one, and what its numbers are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamd.errors import ConfigError
from streamd.heads.classes import ClassScores
from streamd.types import ModelSpec, TensorSpec

LABELS = ("a", "b", "c")


def spec(*shapes: tuple[int, ...], labels: tuple[str, ...] = LABELS) -> ModelSpec:
    outputs = tuple(TensorSpec(f"out{i}", shape, "float32") for i, shape in enumerate(shapes))
    return ModelSpec("m.onnx", "0" * 64, "m", TensorSpec("images", (-1, 3, 32, 32), "float32"), outputs, labels)


@pytest.mark.parametrize("shape", [(-1, 3), (4, 3), (1, 3, 1, 1), (-1, 1, 1, 3)])
@pytest.mark.parametrize("scores", ["logits", "probabilities"])
def test_rows_become_probabilities(shape: tuple[int, ...], scores: Any) -> None:
    raw = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]], np.float32)
    right = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    output = (raw if scores == "logits" else right.astype(np.float32)).reshape(2, *shape[1:])
    head = ClassScores(spec(shape), None)
    head.settle([output])
    assert head.scores == scores
    found, valid = head([output])
    assert valid.all()
    np.testing.assert_allclose(found, right, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "labels", "message"),
    [
        ([(-1, 3), (-1, 7)], LABELS, "a classifier has one"),
        ([(-1, 84, 8400)], LABELS, "detector, which belongs in the section model"),
        ([(-1, 3, 7, 7)], LABELS, r"expected \(batch, classes\)"),
        ([(-1, -1)], LABELS, r"expected \(batch, classes\)"),
        ([(-1, 1)], ("a",), "at least two"),
        ([(-1, 3)], (), "no names are declared; give model.labels: a list of 3"),
        ([(-1, 4)], LABELS, "has 4 classes, but 3 names are declared"),
    ],
)
def test_no_classifier_is_refused_with_what_fits(
    shapes: list[tuple[int, ...]], labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassScores(spec(*shapes, labels=labels), None)


@pytest.mark.parametrize(
    ("declared", "row", "message"),
    [
        ("probabilities", [3.0, -1, 0], "declare model.output: logits"),
        ("probabilities", [np.nan, 0, 0], "declare model.output: logits"),
        ("logits", [0.5, 0.25, 0.25], "declare model.output: probabilities"),
        (None, [0.9, 0.8, 0.1], "does not add up to 1"),
    ],
)
def test_wrong_declarations_are_refused(declared: Any, row: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassScores(spec((-1, 3)), declared).settle([np.array([row], np.float32)])


@pytest.mark.parametrize("scores", ["logits", "probabilities"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_impossible_row_is_told_and_spoils_no_other(scores: Any, bad: float) -> None:
    found, valid = ClassScores(spec((-1, 3)), scores)([np.array([[0.2, 0.2, bad], [0.1, 0.1, 0.8]], np.float32)])
    assert valid.tolist() == [False, True]
    assert found[1].argmax() == 2
    assert ClassScores(spec((-1, 3)), "probabilities")([np.array([[1.5, 0, 0]])])[1].tolist() == [False]
