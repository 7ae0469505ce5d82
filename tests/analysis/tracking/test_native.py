"""The compiled step of ByteTrack gives what NumPy's gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.analysis.tracking import Observation, StreamTracks, Tracked
from streamd.analysis.tracking.bytetrack import ByteTrack, ByteTrackSettings
from streamd.analysis.tracking.native import library
from streamd.testing.scenes import SIZE, Frame, boxes, wild
from streamd.types import Box
from tests.compiler import tracking_library


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tracking_library(tmp_path_factory.mktemp("native"))


class Twins:
    """Both implementations on the same frames."""

    def __init__(self, step: Any, **values: Any) -> None:
        chosen = ByteTrackSettings(**values)
        self.numpy, self.native = ByteTrack(chosen), ByteTrack(chosen, step)
        self.states = StreamTracks(), StreamTracks()

    def __call__(self, at_s: float, frame: Frame, size: tuple[int, int] = SIZE, **facts: Any) -> Tracked:
        first, second = (
            tracker.step([Observation(state, round(at_s * 1e9), *frame, *size, **facts)])[0]
            for tracker, state in zip((self.numpy, self.native), self.states, strict=True)
        )
        assert first.error is None
        assert second.error is None
        for name in ("id", "confirmed", "class_id"):
            assert getattr(first, name).tolist() == getattr(second, name).tolist(), name
            assert getattr(first, name).dtype == getattr(second, name).dtype, name
        for name in ("age_s", "velocity"):
            np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-6, atol=1e-6)
        assert [(e.id, e.reason, e.class_id) for e in first.ended] == [
            (e.id, e.reason, e.class_id) for e in second.ended
        ]
        for one, other in zip(first.ended, second.ended, strict=True):
            assert (one.age_s, one.unseen_s) == pytest.approx((other.age_s, other.unseen_s))
        a, b = (state.matrix for state in self.states)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        return second


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 12, 60]),
    st.lists(st.sampled_from([0.0, 0.04, 0.04, 0.04, 0.2, 1.0, 3.0, 7.0]), min_size=20, max_size=20),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_wild_scenes(step: Any, seed: int, objects: int, passed: list[float], shaking: bool) -> None:
    both, at = Twins(step), 0.0
    rng = np.random.default_rng(seed)
    for dt, frame in zip(passed, wild(seed, len(passed), objects), strict=True):
        at += dt
        if shaking:
            frame = (frame[0] + np.tile(rng.normal(0, 30, 2), 2).astype(np.float32), *frame[1:])
        both(at, frame, missed=int(rng.integers(0, 3)))


BREAKS: dict[str, dict[str, Any]] = {
    "lost": {}, "loop": {"begin": "loop"}, "restart": {"begin": "restart"}, "size": {"size": (640, 360)},
    "crop": {"roi": Box(10, 20, 400, 300)},
}  # fmt: skip


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 12, 60]),
    st.lists(
        st.tuples(st.sampled_from([-0.1, 0.04, 0.04, 7.0]), st.sampled_from(sorted(BREAKS))), min_size=20, max_size=20
    ),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_whatever_ends_all_tracks(step: Any, seed: int, objects: int, events: list[tuple[float, str]]) -> None:
    both, at, ended = Twins(step), 10.0, set()
    for (dt, event), frame in zip(events, wild(seed, len(events), objects), strict=True):
        at += dt
        # Without a frame in between, tracks would have no time to be confirmed.
        for later, facts in (
            (at, BREAKS[event]),
            (at + 0.04, {k: v for k, v in BREAKS[event].items() if k != "begin"}),
        ):
            ended |= {each.reason for each in both(later, frame, **facts).ended}
    assert ended <= {"lost", "loop", "restart", "size", "crop", "lost: outage"}


@pytest.mark.parametrize("event", [*sorted(BREAKS), "lost: outage"])
def test_why_tracks_end(step: Any, event: str) -> None:
    both, frame = Twins(step), boxes((100, 100, 40, 100, 0.9), (300, 100, 40, 100, 0.9))
    for i in range(5):
        both(i * 0.04, frame)
    outage = event == "lost: outage"
    found = both(60.0 if outage else 0.2, boxes() if event == "lost" else frame, **BREAKS.get(event, {}))
    assert [each.reason for each in found.ended] == ([] if event == "lost" else [event] * 2)


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-6, 0.2, 0.5, 1.0]), st.sampled_from([0.0, 0.3, 0.9]),
    st.sampled_from([(1.0, 0.0), (40.0, 0.0), (1.0, 60_000.0), (0.02, 300.0)]), st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_gates_sizes_and_places(
    step: Any, seed: int, gate: float, weak: float, scale: tuple[float, float], many: bool
) -> None:
    """Pairs are tried in single precision: none may be missed that the gates admit."""
    both = Twins(step, gate=gate, weak_gate=weak, new_gate=gate)
    for i, (corners, score, class_id) in enumerate(wild(seed, 10, 40 if many else 8)):
        factor, away = scale
        both(i * 0.1, (corners * np.float32(factor) + np.float32(away), score, class_id))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 30), min_size=2, max_size=6))
@settings(max_examples=15, deadline=None)
def test_frames_of_many_streams_in_one_call(step: Any, seed: int, objects: list[int]) -> None:
    films = [wild(seed + k, 12, n) for k, n in enumerate(objects)]
    both = ByteTrack(ByteTrackSettings()), ByteTrack(ByteTrackSettings(), step)
    states = [[StreamTracks() for _ in films] for _ in both]
    for i in range(12):
        # Every third time a stream has no frame, and the first one two.
        shown = [k for k in range(len(films)) if (i + k) % 3] + ([0] if i % 4 == 0 else [])
        at_ns = [(i * 2 + (j > 0 and k == 0)) * 40_000_000 for j, k in enumerate(shown)]
        found = [
            tracker.step(
                [Observation(own[k], at, *films[k][i], *SIZE) for k, at in zip(shown, at_ns, strict=True)]
            )
            for tracker, own in zip(both, states, strict=True)
        ]  # fmt: skip
        assert not found[1].errors
        for one, other in zip(*found, strict=True):
            assert (one.id.tolist(), one.class_id.tolist()) == (other.id.tolist(), other.class_id.tolist())
            assert other.confirmed.tolist() == (other.id > 0).tolist()
            assert [e.id for e in one.ended] == [e.id for e in other.ended]
            np.testing.assert_allclose(one.age_s, other.age_s, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(one.velocity, other.velocity, rtol=1e-6, atol=1e-6)
        assert found[1].joined.id.tolist() == [number for each in found[1] for number in each.id.tolist()]
        for a, b in zip(*states, strict=True):
            np.testing.assert_allclose(a.matrix, b.matrix, rtol=1e-6, atol=1e-6)


def test_a_stream_with_too_many_tracks_does_not_affect_the_others(step: Any) -> None:
    few, many = boxes((100, 100, 40, 100, 0.9)), boxes(*((50 * n, 100, 40, 100, 0.9) for n in range(9)))
    both = ByteTrack(ByteTrackSettings(max_tracks=5)), ByteTrack(ByteTrackSettings(max_tracks=5), step)
    states = [[StreamTracks() for _ in range(3)] for _ in both]
    for i in range(4):
        found = [
            tracker.step(
                [Observation(own[k], i * 40_000_000, *frame, *SIZE) for k, frame in enumerate((few, many, few))]
            )
            for tracker, own in zip(both, states, strict=True)
        ]  # fmt: skip
        assert [each.id.tolist() for each in found[0]] == [each.id.tolist() for each in found[1]]
        assert not found[1].errors
    assert [len(state) for state in states[1]] == [1, 5, 1]


def test_numpy_failing_on_one_stream_does_not_step_the_others_twice(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = boxes((100, 100, 40, 100, 0.9)), boxes(*((50 * n, 100, 40, 100, 0.9) for n in range(9)))
    tracker, states = ByteTrack(ByteTrackSettings(max_tracks=5), step), [StreamTracks() for _ in range(2)]

    def broken(*_: Any) -> Any:
        raise ValueError("broken")

    monkeypatch.setattr(tracker, "_born", broken)
    for i in range(3):
        fine, failed = tracker.step(
            [
                Observation(state, i * 10**9 // 10, *frame, *SIZE)
                for state, frame in zip(states, (few, many), strict=True)
            ]
        )
        assert fine.error is None
        assert fine.age_s.tolist() == [pytest.approx(i / 10)]
        assert str(failed.error) == "broken"
        assert failed.id.tolist() == [0] * 9


def test_boxes_that_are_none_and_frames_without_any(step: Any) -> None:
    both = Twins(step)
    person = (100, 100, 40, 100)
    both(0.0, boxes(person))
    corners, score, class_id = boxes(person, (0, 0, 1, 1), (5, 5, 1, 1), (1, 1, 1, 1))
    corners[1], corners[2, 2], corners[3, 2] = np.nan, np.inf, -5
    found = both(0.04, (corners, score, class_id))
    assert found.id.tolist() == [1, 0, 0, 0]
    both(0.08, boxes())
    assert both(0.12, boxes(person)).id.tolist() == [1]


def test_tracks_end_and_classes_are_voted_for(step: Any) -> None:
    both = Twins(step)
    for i in range(12):
        both(i * 0.04, boxes((100 + i, 100, 40, 100, 0.9, i % 5), (600, 100, 40, 100, 0.5, 1)))
    for i in range(70):
        both(0.5 + i * 0.04, boxes((700, 500, 30, 30, 0.3 + 0.005 * i)))
    assert len(both.states[1]) == 1


def test_many_tracks_are_left_to_numpy(step: Any) -> None:
    both = Twins(step, max_tracks=5)
    for i in range(4):
        both(i * 0.04, boxes(*((50 * n, 100, 40, 100, 0.9) for n in range(9))))
    assert len(both.states[1]) == 5


def test_large_frames_do_not_fit_on_the_stack(step: Any) -> None:
    both = Twins(step)
    for i in range(3):
        both(i * 0.04, wild(i, 1, 400)[0])


@pytest.mark.parametrize("wrong", [slice(0, 3), slice(0, 0)])
def test_arrays_that_do_not_go_together_cost_the_tracks_only(step: Any, wrong: slice) -> None:
    tracker, state = ByteTrack(ByteTrackSettings(), step), StreamTracks()
    corners, score, class_id = wild(1, 1)[0]
    tracker.step([Observation(state, 0, corners, score, class_id, *SIZE)])
    (found,) = tracker.step([Observation(state, 1, corners[wrong], score, class_id, *SIZE)])
    assert isinstance(found.error, ValueError)
    assert len(state) == 0


def test_without_the_library_numpy_does_it(tmp_path: Path) -> None:
    assert library(str(tmp_path / "none.so")) is None
    (tmp_path / "broken.so").write_bytes(b"\x7fELF of another machine")
    assert library(str(tmp_path / "broken.so")) is None
