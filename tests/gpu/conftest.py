"""A GPU, or the reason why these tests do not run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from streamd.engine.auto import tensorrt_unavailable
from streamd.engine.tensorrt.cuda import Device


@pytest.fixture(scope="session")
def gpu() -> None:
    """Skips where there is no usable GPU; fails where one was promised."""
    missing = tensorrt_unavailable()
    if missing is None:
        return
    if os.environ.get("STREAMD_REQUIRE_GPU") == "1":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture
def device(gpu: None) -> Iterator[Device]:
    """GPU 0, closed afterwards."""
    opened = Device(0)
    yield opened
    opened.close()
