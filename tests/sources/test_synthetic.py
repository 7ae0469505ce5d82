"""Drawn frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamd.sources.synthetic import SyntheticStreamSettings

COUNT = 12
"""Frames of a source in the contract suite."""


def contract(folder: Path, paced: bool, **settings: Any) -> SyntheticStreamSettings:
    """See tests/sources/test_contract.py."""
    return SyntheticStreamSettings(id="s", width=192, height=108, fps=25 if paced else 0, count=COUNT, **settings)


def test_an_endless_one_is_live_and_one_with_a_rate_is_paced() -> None:
    assert SyntheticStreamSettings(id="s").live
    assert not SyntheticStreamSettings(id="s", count=3).live
    assert SyntheticStreamSettings(id="s", count=3).paced
    assert not SyntheticStreamSettings(id="s", count=3, fps=0).paced
    assert SyntheticStreamSettings(id="s", count=3, fps=0).ring_policy == "block"
