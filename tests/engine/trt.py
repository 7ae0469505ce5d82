"""Whether TensorRT can build here."""

from __future__ import annotations

import os

import pytest

from streamd.engine.tensorrt.driver import find_gpu
from streamd.engine.tensorrt.version import Trt, load_trt
from streamd.errors import BackendError


def trt_here() -> Trt:
    """The installed TensorRT; skips where none can build, and fails instead where STREAMD_REQUIRE_TRT=1."""
    try:
        found = load_trt()
        reason = None if found.is_rtx or find_gpu(0) is not None else f"{found} needs a GPU to build"
    except BackendError as error:
        found, reason = None, str(error)
    if reason is None:
        assert found is not None
        return found
    if os.environ.get("STREAMD_REQUIRE_TRT") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
