"""Which boxes are published: compiled as in NumPy."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.analysis.tracking import Tracked
from streamd.analysis.tracking import selection as module
from streamd.analysis.tracking.observation import TrackedBatch
from streamd.analysis.tracking.selection import SHORT, Selection, library
from streamd.types import FoundBatch
from tests.compiler import shared_library

FLOOR = np.array([0.25, 0.5, np.inf], np.float32)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = library(shared_library(tmp_path_factory.mktemp("native"), [Path(module.__file__).with_name("select.c")]))
    assert found is not None
    return found


def boxes(counts: list[int], seed: int = 0) -> tuple[FoundBatch, TrackedBatch]:
    """Frames with so many boxes each, and what a tracker says of them."""
    rng, n = np.random.default_rng(seed), sum(counts)
    xyxy = [rng.random((k, 4)).astype(np.float32) for k in counts]
    score = [rng.choice(np.array([0.1, 0.25, 0.4, 0.5, 0.9, np.nan], np.float32), k) for k in counts]
    number = rng.choice([0, 0, 1, 77, 2**40], n)
    velocity = rng.random((2, n)).T
    found = Tracked(number, rng.random(n), velocity, rng.integers(0, 3, n).astype(np.int32))
    return FoundBatch.of(xyxy, score, [np.zeros(k, np.int32) for k in counts]), batch_of(found, counts)


def batch_of(found: Tracked, counts: list[int]) -> TrackedBatch:
    return TrackedBatch(found, [0, *itertools.accumulate(counts)])


@given(st.lists(st.integers(0, 12), max_size=6), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_both_ways_choose_the_same(native: Any, counts: list[int], weak: bool, seed: int) -> None:
    given_ = boxes(counts, seed)
    one, other = Selection(FLOOR, weak)(*given_), Selection(FLOOR, weak, native)(*given_)
    assert list(one.ends) == list(other.ends)
    pairs: Any = zip(one[1:], other[1:], strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("compiled", [True, False])
def test_scores_classes_and_weak_boxes(compiled: bool, native: Any) -> None:
    xyxy: list[Any] = [np.arange(16, dtype=np.float32).reshape(4, 4), np.arange(8, dtype=np.float32).reshape(2, 4)]
    score = [np.array([0.3, 0.3, 0.9, 0.1], np.float32), np.array([0.1, 0.9], np.float32)]
    given_ = FoundBatch.of(xyxy, score, [np.zeros(4, np.int32), np.zeros(2, np.int32)])
    number = np.array([0, 5, 6, 7, 0, 8])
    found = Tracked(number, number / 2, np.zeros((6, 2)), np.array([0, 1, 2, 0, 0, 1], np.int32))
    for weak, kept in ((False, [0, 5]), (True, [0, 1, 3, 5])):
        chosen = Selection(FLOOR, weak, native if compiled else None)(given_, batch_of(found, [4, 2]))
        assert np.flatnonzero(chosen.kept).tolist() == kept
        assert chosen.ends == [len(kept) - 1, len(kept)]
        assert chosen.number.tolist() == number[kept].tolist()
        assert chosen.xyxy.tolist() == np.concatenate(xyxy)[kept].tolist()


@pytest.mark.parametrize("compiled", [True, False])
def test_a_class_that_has_no_label(compiled: bool, native: Any) -> None:
    given_ = boxes([3])
    given_[1].joined.class_id[1] = 3
    with pytest.raises(IndexError):
        Selection(FLOOR, False, native if compiled else None)(*given_)


def test_many_boxes(native: Any) -> None:
    given_ = boxes([SHORT, 5])
    one, other = Selection(FLOOR, True)(*given_), Selection(FLOOR, True, native)(*given_)
    np.testing.assert_array_equal(one.xyxy, other.xyxy)


def test_without_the_library_numpy_does_it(tmp_path: Path) -> None:
    assert library(str(tmp_path / "none.so")) is None
