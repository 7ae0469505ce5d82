"""A GPU, or the reason why these tests do not run."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(autouse=True)
def neighbours(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests run side by side on one GPU, but for those marked `alone`, which take all of its memory or places."""
    if tensorrt_unavailable() is not None:
        yield
        return
    path = Path(tempfile.gettempdir()) / f"streamd-gpu-tests-{os.getuid()}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        yield
