"""What several test files of sinks need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sinks.brokers import Server, mosquitto


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Server]:
    """A running mosquitto."""
    with mosquitto(tmp_path) as running:
        yield running
