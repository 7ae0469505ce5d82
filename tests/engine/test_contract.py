"""The suite of `streamd.testing.engines` on every backend that this machine can run, with a real model and clip."""

from __future__ import annotations

import os
from typing import Any

import pytest

from streamd.engine import ENGINES
from streamd.engine.auto import tensorrt_unavailable
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.testing.engines import EngineContract
from streamd.types import Frame
from tests import contracts
from tests.conftest import shared


class Real(EngineContract):
    """YOLOv5n on a street."""

    conf = 0.25

    @property
    def model(self) -> str:  # type: ignore[override]
        return str(shared("models/yolov5n_heads.onnx"))

    def pictures(self, count: int) -> list[Frame]:
        source = AvSource(AvStreamSettings(id="s", url=str(shared("videos/vtest.avi")), pace="asap"))
        source.open()
        frames = source.frames()
        found = [next(frames) for _ in range(count)]
        source.close()
        return found


made: dict[str, Any] = contracts.classes(Real, ENGINES)
del made["Test_auto"]  # one of the others
globals().update(made)


class Test_null(Real):
    """One box in every frame, whatever is in it."""

    kind = "null"
    model = "none"
    looks_at_pixels = False


@pytest.mark.gpu
class Test_tensorrt(Real):
    """Slots of a plan may run other kernels, whose INT8 rounding differs."""

    kind = "tensorrt"
    pixels, share = 5.0, 0.9

    @property
    def model(self) -> str:  # type: ignore[override]
        return os.environ.get("STREAMD_TEST_PLAN") or super().model

    def unavailable(self) -> str:
        missing = tensorrt_unavailable()
        if missing is not None and os.environ.get("STREAMD_REQUIRE_GPU") == "1":
            pytest.fail(missing)
        return missing or ""


class TestOpenVinoOnWhatIsShipped(EngineContract):
    """As the suite runs in the tests of another package: without material."""

    kind = "openvino"
