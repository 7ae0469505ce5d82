"""Fixtures of the sinks' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sinks.scene import Scene


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()
