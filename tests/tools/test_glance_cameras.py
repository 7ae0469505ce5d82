"""How many cameras a machine serves: the search, and what counts as served."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import glance_cameras as tool
import pytest

from streamd.analysis.glance.settings import LookSettings
from streamd.config import Config
from streamd.sources.av import AvStreamSettings

GOOD = tool.Trial(8, True, 90.0, 2000, 1, 400, 3, 8, 1.0, 1.4)


@pytest.mark.parametrize("truth", [1, 3, 9, 10, 12, 14])
def test_the_largest_number_that_is_served_is_found(truth: int) -> None:
    tried: list[int] = []

    def run(n: int) -> bool:
        tried.append(n)
        return n <= truth

    assert tool.most(run, 10, 2, tries=8) == truth
    assert len(set(tried)) == len(tried)


def test_the_search_ends_after_so_many_tries() -> None:
    tried: list[int] = []

    def fails(n: int) -> bool:
        tried.append(n)
        return False

    assert tool.most(fails, 20, 2, tries=2) == 0
    assert len(tried) == 2


@pytest.mark.parametrize(
    ("changed", "served"),
    [({}, True), ({"p99_ms": 300.0}, False), ({"dropped": 3}, False), ({"offered": 0.9}, False)],
)
def test_what_counts_as_served(changed: dict[str, Any], served: bool) -> None:
    assert replace(GOOD, **changed).passed(250.0, 0.02) is served


def test_the_costs_bound_the_gain() -> None:
    costs = tool.Costs(decode=1.0, glance=0.5, infer=10.0)
    assert costs.gain(1.0) == pytest.approx(11 / 11.5)
    assert costs.gain(0.2) == pytest.approx(11 / 3.5)


def test_cameras_play_from_different_places(tmp_path: Path) -> None:
    args = argparse.Namespace(day=tmp_path / "day.mp4", model="builtin:road6", length=100.0)
    config = Config.model_validate(tool.configuration(args, 5, LookSettings(when="motion", hold_s=1), (5001, 5002)))
    starts = sorted(stream.start_s for stream in config.streams if isinstance(stream, AvStreamSettings))
    assert min(b - a for a, b in itertools.pairwise(starts)) > 10
    assert all(stream.look.gated and stream.look.hold_s == 1 for stream in config.streams)
    always = Config.model_validate(tool.configuration(args, 5, None, (5001, 5002)))
    assert not any(stream.look.gated for stream in always.streams)
