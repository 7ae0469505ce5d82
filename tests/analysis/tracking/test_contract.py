"""The suite of `streamd.testing.trackers` on every built-in tracker, and what is told of their settings."""

from __future__ import annotations

import itertools

import psutil
import pytest
from pydantic import ValidationError

from streamd.analysis.tracking import TRACKERS, StreamTracks, open_tracker
from streamd.testing.trackers import TrackerContract, flood
from tests import contracts

globals().update(contracts.classes(TrackerContract, TRACKERS))


def test_no_kind_is_bytetrack_and_unknown_fields_are_refused() -> None:
    assert list(TRACKERS.builtin()) == ["bytetrack", "iou"]
    adapter = TRACKERS.adapter()
    assert adapter.validate_python({}) == adapter.validate_python({"kind": "bytetrack"})
    with pytest.raises(ValidationError, match="expected one of bytetrack, iou"):
        adapter.validate_python({"kind": "bytetrak"})
    with pytest.raises(ValidationError, match="lost"):
        adapter.validate_python({"kind": "iou", "lost": 3})


@pytest.mark.parametrize(
    ("options", "field"),
    [({"low": 0.5}, "high"), ({"high": 0.7}, "high"), ({"kind": "iou", "low": 0.7}, "low"), ({}, None)],
)
def test_thresholds_must_rise(options: dict[str, object], field: str | None) -> None:
    problems = list(TRACKERS.validate(options).check())
    assert [path for path, _ in problems] == ([(field,)] if field else [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(TRACKERS.builtin()))
def test_memory_does_not_grow_with_a_quarter_million_short_tracks(kind: str) -> None:
    tracker, state, process = (
        open_tracker(TRACKERS.validate({"kind": kind, "lost_s": 0.05})),
        StreamTracks(),
        psutil.Process(),
    )
    held = [
        process.memory_info().rss
        for tracks in flood(tracker, 3500, 100, state)
        if tracks in (100_000, 225_000, 350_000)
    ]
    # What every track leaves behind grows in both halves; what the allocator takes once, in one.
    assert min(after - before for before, after in itertools.pairwise(held)) * 8 < 2**20
