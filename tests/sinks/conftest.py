"""Fixtures of the sinks' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sinks.brokers import Server, mosquitto
from tests.sinks.scene import Scene


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Server]:
    """Mosquitto."""
    with mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()
