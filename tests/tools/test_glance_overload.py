"""The network is too slow: gated streams beside streams that are looked at always, in simulated time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import glance_overload as tool
import pytest

from streamd.analysis.glance.settings import LookSettings
from tests.clips import write_clip
from tests.tools.test_glance_eval import FRAMES, Truth, _yard

LOOK = LookSettings(when="motion")


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(
        tmp_path_factory.mktemp("overload") / "yard.mp4", frames=FRAMES, size=(320, 180), gop=50, draw=_yard
    )


def _play(day: Path, look: LookSettings | None, capacity: float | None) -> tuple[list[tool.Stream], float]:
    network: Any = Truth()
    boxes = {day: network.boxes(day)}
    played: tuple[list[tool.Stream], float] = tool.simulate([day], boxes, network, look, 2, capacity, 1.0, 1)
    return played


def test_a_network_that_takes_no_time_looks_at_all_that_is_asked_for(day: Path) -> None:
    always, seconds = _play(day, None, None)
    assert all(stream.looked == {*range(FRAMES)} and not stream.passed for stream in always)
    assert seconds == pytest.approx(FRAMES / 25 + 1, abs=1)
    gated, _ = _play(day, LOOK, None)
    assert [len(stream.way.run.events) for stream in gated] == [len(always[0].way.run.events)] * 2
    for stream in gated:
        assert not {"overload", "busy", "lost"} & {*stream.passed}
        assert len(stream.looked) + sum(stream.passed.values()) == FRAMES


def test_a_slow_network_loses_frames_of_what_is_looked_at_always_and_none_of_what_is_gated(day: Path) -> None:
    capacity = 15.0
    always, seconds = _play(day, None, capacity)
    assert sum(len(stream.looked) for stream in always) == pytest.approx(capacity * seconds, rel=0.1)
    assert all(len(stream.looked) + stream.passed["lost"] == FRAMES for stream in always)
    gated, seconds = _play(day, LOOK, capacity)
    assert sum(len(stream.looked) for stream in gated) <= capacity * seconds + 1
    for stream in gated:
        assert stream.passed["overload"] + stream.passed["busy"] > 0
        assert stream.passed["lost"] == 0
        assert len(stream.looked) + sum(stream.passed.values()) == FRAMES
        assert stream.way.run.looked.count(True) == len(stream.looked)
