"""The kernels on a GPU against the NumPy reference and heads: the cases of the host build, run on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from streamd.engine.tensorrt.cuda import Device
from tests.gpu.kernel_cases import (
    DECODE_KINDS,
    GEOMETRIES,
    REFERENCE_FORMATS,
    check_decode,
    check_overflow,
    check_preprocess,
    noise_frame,
)
from tests.gpu.machine import Gpu

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def machine(gpu: None) -> Iterator[Gpu]:
    device = Device(0)
    yield Gpu(device)
    device.close()


@pytest.mark.parametrize("fmt", REFERENCE_FORMATS)
def test_every_format_equals_the_reference(machine: Gpu, fmt: str) -> None:
    check_preprocess(machine, [noise_frame(fmt)])


@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("fmt", ["nv12", "p010le", "yuv420p"])
def test_matrix_and_range(machine: Gpu, fmt: str, matrix: str, full_range: bool) -> None:
    check_preprocess(machine, [noise_frame(fmt, matrix=matrix, full_range=full_range)])


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("fmt", ["nv12", "yuv422p", "bgr24"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g[0])
def test_rotation_crop_and_size(machine: Gpu, fmt: str, geometry: Any, rotation: int) -> None:
    options = dict(geometry[1])
    if rotation in (90, 270) and "roi" in options:
        options["width"], options["height"] = options.get("height", 241), options.get("width", 322)
    check_preprocess(machine, [noise_frame(fmt, rotation=rotation, **options)])


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8"])
@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_input_types_layouts_and_channel_orders(machine: Gpu, dtype: str, nhwc: bool, color: str) -> None:
    scale = {"uint8": 1.0, "int8": 0.5}.get(dtype, 1 / 255)
    batch = [noise_frame("nv12"), noise_frame("rgb24", 100, 200)]
    check_preprocess(machine, batch, 96, 64, dtype=dtype, nhwc=nhwc, color=color, scale=scale, pad=7)


def test_a_large_batch_of_different_frames(machine: Gpu) -> None:
    sizes = [(1920, 1080), (17, 33), (640, 360), (3840, 2160)]
    formats = ["nv12", "p010le", "bgr24", "yuv420p"]
    batch = [noise_frame(formats[i % 4], *sizes[i % 4], seed=i) for i in range(16)]
    check_preprocess(machine, batch, 640, 640)


def test_half_precision_is_single_precision_rounded(machine: Gpu) -> None:
    frame = noise_frame("nv12")
    half, _ = machine.preprocess([frame], 96, 64, dtype="float16")
    single, _ = machine.preprocess([frame], 96, 64)
    np.testing.assert_array_equal(half, single.astype(np.float16))


@pytest.mark.parametrize("kind", DECODE_KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("conf", [0.05, 0.25, 0.6])
def test_decoding_equals_the_numpy_head(machine: Gpu, kind: str, dtype: str, multi_label: bool, conf: float) -> None:
    assert check_decode(machine, kind, dtype, multi_label=multi_label, conf=conf) > 5


def test_heads_in_another_order_are_numbered_finest_first(machine: Gpu) -> None:
    assert check_decode(machine, "yolov5_heads", "float32", multi_label=True, conf=0.3, shuffled=True) > 5


def test_a_frame_full_of_boxes_loses_none(machine: Gpu) -> None:
    assert check_decode(machine, "yolov5_heads", "float32", multi_label=False, conf=0.0, frames=8) > 8000


def test_overflow_keeps_what_fits(machine: Gpu) -> None:
    check_overflow(machine)


def test_the_same_input_gives_the_same_candidates(machine: Gpu) -> None:
    from streamd.types import DecodePlan
    from tests.gpu.kernel_cases import decode_case

    specs, arrays, _ = decode_case("yolov8", "float32")
    plan = DecodePlan("yolov8", 7, 0.05, True)
    first = machine.decode(plan, specs, arrays, 1 << 15)[0]
    for _ in range(5):
        for a, b in zip(first, machine.decode(plan, specs, arrays, 1 << 15)[0], strict=True):
            np.testing.assert_array_equal(a.xyxy, b.xyxy)
            np.testing.assert_array_equal(a.score, b.score)
            np.testing.assert_array_equal(a.class_id, b.class_id)
