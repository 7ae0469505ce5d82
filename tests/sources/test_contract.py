"""The suite of `streamd.testing.sources` on every built-in source, also in a process of its own.

`contract(folder, paced, **settings)` in the kind's own test file returns its settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamd.errors import SourceError
from streamd.sources import SOURCES, SourceSettings, open_source
from streamd.sources.synthetic import SyntheticStreamSettings
from streamd.testing.sources import SourceContract
from tests import contracts
from tests.sources import test_av

globals().update(contracts.classes(SourceContract, SOURCES, "tests.sources", "contract"))


class TestAvInAProcess(SourceContract):
    kind = "av"

    def contract(self, folder: Path, paced: bool, **settings: Any) -> SourceSettings:
        return test_av.contract(folder, paced, isolation="process", **settings)


def test_an_input_that_breaks_raises_a_source_error() -> None:
    source = open_source(SyntheticStreamSettings(id="s", fps=0, count=9, fail_after=3))
    source.open()
    seen = 0
    with pytest.raises(SourceError) as caught:
        for _ in source.frames():
            seen += 1
    assert (seen, caught.value.reason) == (3, "corrupt")
