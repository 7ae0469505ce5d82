"""What every tracker promises."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from streamd.analysis.tracking import TRACKERS, Observation, StreamTracks, TrackingSettings, open_tracker
from streamd.analysis.tracking.batch import Tracker
from streamd.analysis.tracking.tracks import ID, TrackIds
from streamd.testing.contract import Contract
from streamd.testing.scenes import NOTHING, SIZE, Frame, boxes, play, wild

PERSON = boxes((100, 100, 40, 100))


class TrackerContract(Contract):
    """Tests that hold for every tracker. The class that derives from it has `kind`."""

    registry = TRACKERS

    def contract(self, **options: object) -> TrackingSettings:
        """The settings of the tracker.

        Args:
            options: fields that all trackers have, such as `lost_s`.
        """
        return TRACKERS.validate({"kind": self.kind, **options})

    def _make(self, **options: object) -> Tracker:
        return open_tracker(self._checked(self.contract(**options)))

    def test_an_object_keeps_its_id_and_boxes_without_a_track_have_none(self) -> None:
        step = play(self._make())
        for i in range(50):
            tracked = step(i / 25, boxes((100 + 4 * i, 100, 40, 100), (900, 500, 40, 100, 0.05)))
            assert tracked.id.tolist() == [1, 0]
            assert tracked.confirmed.tolist() == [True, False]
            assert tracked.velocity[1].tolist() == [0, 0]
            assert tracked.age_s.tolist() == pytest.approx([i / 25, 0])
        assert tracked.velocity[0] == pytest.approx([100, 0], abs=5)
        assert step.state.active == 1

    def test_an_uncertain_box_needs_a_second_one(self) -> None:
        step = play(self._make())
        assert step(0, boxes((100, 100, 40, 100, 0.5))).id.tolist() == [0]
        tracked = step(0.04, boxes((100, 100, 40, 100, 0.5)))
        assert tracked.id.tolist() == [1]
        assert tracked.age_s[0] == pytest.approx(0.04)
        assert step(0.08, boxes((500, 500, 40, 100, 0.5))).id.tolist() == [0]
        step(0.12, NOTHING)
        assert len(step.state) == 1, "what was seen once only is forgotten"

    @pytest.mark.parametrize("seed", range(20))
    def test_ids_are_unique_and_no_track_has_two_boxes(self, seed: int) -> None:
        step, ended, seen = play(self._make(lost_s=0.3)), set[int](), set[int]()
        for i, frame in enumerate(wild(seed, 60)):
            tracked = step(i / 25, frame)
            ids = tracked.id[tracked.id > 0].tolist()
            assert len(ids) == len(set(ids))
            assert not ended & set(ids), "an ended track's id came back"
            gone = [track.id for track in tracked.ended]
            assert len(gone) == len(set(gone))
            assert set(gone) <= seen
            assert not ended & set(gone)
            ended |= set(gone)
            seen |= set(ids)
            kept = step.state.matrix[ID]
            kept = kept[kept > 0].tolist()
            assert len(kept) == len(set(kept))
            assert set(kept) | ended == seen, "each id is alive or has ended"
            assert (
                len(tracked.id) == len(tracked.age_s) == len(tracked.velocity) == len(tracked.class_id) == len(frame[0])
            )

    @pytest.mark.parametrize("seed", range(20))
    def test_the_order_of_the_boxes_does_not_matter(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        one, other = play(self._make()), play(self._make())
        for i, frame in enumerate(wild(seed, 40)):
            order = rng.permutation(len(frame[1]))
            a, b = one(i / 25, frame), other(i / 25, (frame[0][order], frame[1][order], frame[2][order]))
            assert a.id[order].tolist() == b.id.tolist()
            assert a.class_id[order].tolist() == b.class_id.tolist()

    @pytest.mark.parametrize("seed", range(20))
    def test_a_batch_gives_what_each_stream_gives_alone(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        # One stream of very many objects beside small ones, too: that goes another way (`pairs.meeting`).
        crowds = [int(n) for n in rng.choice((0, 1, 5, 12, 60), 5)]
        films = [wild(seed + k, 30, objects=n) if n else [NOTHING] * 30 for k, n in enumerate(crowds)]
        tracker = self._make(lost_s=0.4)
        alone, together = [play(tracker) for _ in films], [StreamTracks() for _ in films]
        for i in range(30):
            present = [k for k in range(len(films)) if rng.random() < 0.8]
            batch = tracker.step([_observation(together[k], films[k][i], i) for k in present])
            for k, tracked in zip(present, batch, strict=True):
                expected = alone[k](i / 25, films[k][i])
                assert tracked.error is None
                assert tracked.id.tolist() == expected.id.tolist()
                assert tracked.class_id.tolist() == expected.class_id.tolist()
                assert [(e.id, e.reason) for e in tracked.ended] == [(e.id, e.reason) for e in expected.ended]
                np.testing.assert_allclose(tracked.velocity, expected.velocity, rtol=1e-6, atol=1e-6)
                np.testing.assert_allclose(tracked.age_s, expected.age_s, rtol=1e-9)

    def test_a_batch_of_crowds_gives_what_each_gives_alone(self) -> None:
        films = [wild(k, 25, objects=50, classes=1) for k in range(4)]
        tracker = self._make()
        alone, together = [play(tracker) for _ in films], [StreamTracks() for _ in films]
        for i in range(25):
            batch = tracker.step([_observation(state, film[i], i) for state, film in zip(together, films, strict=True)])
            for step, film, tracked in zip(alone, films, batch, strict=True):
                assert tracked.id.tolist() == step(i / 25, film[i]).id.tolist()

    def test_frames_of_one_stream_in_one_batch_go_in_order(self) -> None:
        tracker, film = self._make(), wild(5, 20)
        alone, state, other = play(tracker), StreamTracks(), StreamTracks()
        expected = [alone(i / 25, frame).id.tolist() for i, frame in enumerate(film)]
        batch = [_observation(state, frame, i) for i, frame in enumerate(film)]
        batch.insert(3, _observation(other, PERSON, 0))
        found = list(tracker.step(batch))
        assert found.pop(3).id.tolist() == [1]
        assert [tracked.id.tolist() for tracked in found] == expected

    def test_ids_may_be_shared_among_streams(self) -> None:
        ids = TrackIds(7)
        tracker, states = self._make(), [StreamTracks(ids), StreamTracks(ids)]
        found = tracker.step([_observation(state, PERSON, 0) for state in states])
        assert sorted(int(t.id[0]) for t in found) == [7, 8]

    def test_nothing_to_do_is_done(self) -> None:
        tracker = self._make()
        assert len(tracker.step([])) == 0
        step = play(tracker)
        for i in range(3):
            tracked = step(i, NOTHING)
            assert tracked.id.shape == (0,)
            assert tracked.velocity.shape == (0, 2)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_box_that_is_none_gets_no_track_and_harms_none(self, value: float) -> None:
        step = play(self._make())
        for i in range(5):
            corners, scores, classes = boxes((100, 100, 40, 100), (0, 0, 10, 10), (50, 50, 0, 20), (9, 9, -5, 20))
            corners[1, 2] = value
            tracked = step(i / 25, (corners, scores, classes))
            assert tracked.id.tolist() == [1, 0, 0, 0]
            assert np.isfinite(step.state.matrix).all()

    def test_a_score_that_is_no_number_gets_no_track(self) -> None:
        step = play(self._make())
        for i in range(3):
            assert step(i / 25, boxes((100, 100, 40, 100), (500, 100, 40, 100, np.nan))).id.tolist() == [1, 0]

    def test_a_failure_costs_that_stream_its_tracks_and_no_frame(self) -> None:
        tracker, good, bad = self._make(), StreamTracks(), StreamTracks()
        tracker.step([_observation(good, PERSON, 0), _observation(bad, PERSON, 0)])
        broken = (PERSON[0], np.zeros(3, np.float32), PERSON[2])
        fine, failed = tracker.step([_observation(good, PERSON, 1), _observation(bad, broken, 1)])
        assert fine.error is None
        assert fine.id.tolist() == [1]
        assert isinstance(failed.error, Exception)
        assert failed.id.tolist() == [0]
        assert [(e.id, e.reason) for e in failed.ended] == [(1, "failed")]
        fine, again = tracker.step([_observation(good, PERSON, 2), _observation(bad, PERSON, 2)])
        assert (fine.id.tolist(), again.id.tolist()) == ([1], [2]), "ids go on"

    def test_a_class_is_voted_for(self) -> None:
        step = play(self._make())
        for i in range(20):
            score, class_id = (0.9, 2) if i % 3 else (0.95, 7)
            tracked = step(i / 25, boxes((100, 100, 40, 100, score, class_id)))
            assert tracked.id.tolist() == [1]
        assert tracked.class_id.tolist() == [2]

    def test_boxes_of_another_class_do_not_take_a_track_over(self) -> None:
        step = play(self._make())
        step(0, boxes((100, 100, 40, 100, 0.9, 0)))
        tracked = step(0.04, boxes((110, 130, 50, 80, 0.95, 1), (104, 104, 40, 100, 0.7, 0)))
        assert tracked.id.tolist() == [2, 1]

    def test_more_tracks_than_allowed_are_refused(self) -> None:
        step = play(self._make(max_tracks=10))
        rng = np.random.default_rng(0)
        for i in range(20):
            place = rng.uniform(0, 1800, (30, 2))
            step(i / 25, boxes(*((x, y, 20, 50) for x, y in place)))
            assert len(step.state) <= 10

    def test_short_tracks_leave_nothing_behind(self) -> None:
        tracker, state = self._make(lost_s=0.05), StreamTracks()
        marks = []
        tracemalloc.start()
        try:
            for tracks in flood(tracker, 400, 50, state):
                if tracks in (10_000, 20_000):
                    gc.collect()
                    marks.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        # 10,000 tracks more: a byte each would be 10 kB.
        assert marks[1] - marks[0] < 10_000

    def test_a_pause_ages_only_what_was_not_seen(self) -> None:
        """The network did not look, since nothing moved."""
        tracker, state = self._make(lost_s=1.5), StreamTracks()
        both = boxes((100, 100, 40, 100), (400, 100, 40, 100))
        for i in range(10):
            tracker.step([_observation(state, both, i)])
        stays, goes = tracker.step([_observation(state, both, 10)])[0].id.tolist()
        tracker.step([_observation(state, PERSON, 11)])
        for i in range(12, 15):
            state.pause(1.0)
            tracked = tracker.step([_observation(state, PERSON, i)])[0]
            assert tracked.id.tolist() == [stays]
            assert tracked.age_s[0] < 1.0
            ended = [end.id for end in tracked.ended]
            assert ended == ([goes] if i == 13 else [])


def _observation(state: StreamTracks, frame: Frame, i: int) -> Observation:
    return Observation(state, i * 40_000_000, *frame, *SIZE)


def flood(tracker: Tracker, frames: int, born: int, state: StreamTracks) -> Iterator[int]:
    """Short tracks by the thousand; after each frame how many there were."""
    rng = np.random.default_rng(1)
    scores, classes = np.full(born, 0.9, np.float32), np.zeros(born, np.int32)
    for i in range(frames):
        low = rng.uniform((0, 0), (60_000, 60_000), (born, 2)).astype(np.float32)
        tracker.step([_observation(state, (np.hstack((low, low + 40)), scores, classes), i)])
        yield (i + 1) * born
