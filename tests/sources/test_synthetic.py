"""Drawn frames."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from streamd.sources.synthetic import SyntheticStreamSettings
from streamd.testing.sources import COUNT, FPS, HEIGHT, WIDTH


def contract(folder: Path, paced: bool, **settings: Any) -> SyntheticStreamSettings:
    """See tests/sources/test_contract.py."""
    fps = FPS if paced else 0
    return SyntheticStreamSettings(id="s", width=WIDTH, height=HEIGHT, fps=fps, count=COUNT, **settings)


def test_an_endless_one_is_live_and_one_with_a_rate_is_paced() -> None:
    assert SyntheticStreamSettings(id="s").live
    assert not SyntheticStreamSettings(id="s", count=3).live
    assert SyntheticStreamSettings(id="s", count=3).paced
    assert not SyntheticStreamSettings(id="s", count=3, fps=0).paced
    assert SyntheticStreamSettings(id="s", count=3, fps=0).ring_policy == "block"


@pytest.mark.parametrize("rate", [{"fps": 1e-300}, {"fps": 1, "max_fps": 1e-5}])
def test_a_rate_near_zero_is_a_frame_and_then_a_long_wait(rate: dict[str, float]) -> None:
    source = SyntheticStreamSettings(id="s", width=64, height=64, **rate).open()
    source.open()
    frames = source.frames()
    assert next(frames).pts_ns == 0
    threading.Timer(0.2, source.close).start()
    assert list(frames) == []  # it waited until it was closed
