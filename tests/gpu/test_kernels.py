"""The kernels on a GPU against the NumPy reference and heads: the cases of the host build, run on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from streamd.engine.tensorrt.cuda import Device
from streamd.types import Box
from tests.gpu.kernel_cases import (
    BOXES,
    DECODE_KINDS,
    DETECTS,
    GEOMETRIES,
    GLANCE_FORMATS,
    GLANCE_SIZES,
    INPUTS,
    REFERENCE_FORMATS,
    boxes_case,
    check_bad_boxes,
    check_decode,
    check_detect,
    check_glance,
    check_overflow,
    check_preprocess,
    check_suppress,
    input_spec,
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
    check_preprocess(machine, batch, 96, 64, dtype=dtype, nhwc=nhwc, color=color, scale=scale, pad_value=7)


@pytest.mark.parametrize("how", INPUTS)
@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_placement_mean_and_deviation(machine: Gpu, how: dict[str, Any], rotation: int, dtype: str) -> None:
    batch = [noise_frame("nv12", 322, 180, rotation=rotation), noise_frame("bgr24", 100, 200, roi=Box(3, 5, 60, 90))]
    check_preprocess(machine, batch, 96, 64, dtype=dtype, **how)


def test_a_large_batch_of_different_frames(machine: Gpu) -> None:
    sizes = [(1920, 1080), (17, 33), (640, 360), (3840, 2160)]
    formats = ["nv12", "p010le", "bgr24", "yuv420p"]
    batch = [noise_frame(formats[i % 4], *sizes[i % 4], seed=i) for i in range(16)]
    check_preprocess(machine, batch, 640, 640)


def test_half_precision_is_single_precision_rounded(machine: Gpu) -> None:
    frame = noise_frame("nv12")
    half, _ = machine.preprocess([frame], input_spec(96, 64, dtype="float16"))
    single, _ = machine.preprocess([frame], input_spec(96, 64))
    np.testing.assert_array_equal(half, single.astype(np.float16))


@pytest.mark.parametrize("kind", DECODE_KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("conf", [0.05, 0.25, 0.6])
def test_decoding_equals_the_numpy_head(machine: Gpu, kind: str, dtype: str, multi_label: bool, conf: float) -> None:
    assert check_decode(machine, kind, dtype, multi_label=multi_label, conf=conf) > 5


@pytest.mark.parametrize("kind", ["yolov5_heads", "yolov5_heads convolved"])
def test_heads_in_another_order_are_numbered_finest_first(machine: Gpu, kind: str) -> None:
    assert check_decode(machine, kind, "float32", multi_label=True, conf=0.3, shuffled=True) > 5


def test_a_frame_full_of_boxes_loses_none(machine: Gpu) -> None:
    assert check_decode(machine, "yolov5_heads", "float32", multi_label=False, conf=0.0, frames=8) > 8000


def test_overflow_keeps_what_fits(machine: Gpu) -> None:
    check_overflow(machine)


def test_the_same_input_gives_the_same_candidates(machine: Gpu) -> None:
    from streamd.types import DecodePlan
    from tests.gpu.kernel_cases import decode_case

    specs, arrays, _ = decode_case("yolov8", "float32")
    plan = DecodePlan("class_columns", 7, 0.05, True)
    first = machine.decode(plan, specs, arrays, 1 << 15)[0]
    for _ in range(5):
        for a, b in zip(first, machine.decode(plan, specs, arrays, 1 << 15)[0], strict=True):
            np.testing.assert_array_equal(a.xyxy, b.xyxy)
            np.testing.assert_array_equal(a.score, b.score)
            np.testing.assert_array_equal(a.class_id, b.class_id)


@pytest.mark.parametrize("detect", [{}, {"agnostic": True, "iou": 0.9}, {"multi_label": True, "conf": 0.3}])
def test_boxes_that_cannot_be_suppress_nothing(machine: Gpu, detect: dict[str, Any]) -> None:
    check_bad_boxes(machine, **detect)


@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize("iou", [0.0, 0.45, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("agnostic", [False, True])
def test_suppression_is_the_hosts(machine: Gpu, kind: str, iou: float, agnostic: bool) -> None:
    counts = (0, 1, 2, 31, 300, 1024)
    frames = [boxes_case(n, seed, kind=kind, classes=1 + seed * 20) for seed, n in enumerate(counts)]
    assert check_suppress(machine, frames, iou=iou, agnostic=agnostic)[:2] == [0, 1]


def test_suppression_of_a_large_batch(machine: Gpu) -> None:
    frames = [boxes_case(50 + 7 * i, i, kind=BOXES[i % 3]) for i in range(128)]
    assert min(check_suppress(machine, frames)) > 0


def test_suppression_keeps_no_more_than_asked_for(machine: Gpu) -> None:
    frames = [boxes_case(n, n, kind="apart") for n in (900, 299, 301)]
    assert check_suppress(machine, frames) == [300, 299, 300]
    assert check_suppress(machine, frames, max_det=1) == [1, 1, 1]
    assert check_suppress(machine, frames, max_det=30_000) == [900, 299, 301]


@pytest.mark.parametrize("capacity", [16, 4096, 5000, 32768])
def test_suppression_of_a_frame_full_of_boxes(machine: Gpu, capacity: int) -> None:
    frames = [boxes_case(n, n, kind=kind) for n, kind in ((capacity, "ties"), (4100, "clustered"), (3, "random"))]
    assert min(check_suppress(machine, frames, capacity=capacity)) > 0
    kept = check_suppress(machine, [boxes_case(capacity, 5, kind="apart")], capacity=capacity, max_det=30_000)
    assert kept == [min(capacity, 4096)]


@pytest.mark.parametrize("kind", [k for k in DECODE_KINDS if k != "end_to_end"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("detect", DETECTS, ids=lambda d: "+".join(d) or "default")
def test_detections_are_the_hosts(machine: Gpu, kind: str, dtype: str, detect: dict[str, Any]) -> None:
    assert check_detect(machine, kind, dtype, **detect) > 5


@pytest.mark.parametrize("size", GLANCE_SIZES)
@pytest.mark.parametrize("fmt", GLANCE_FORMATS)
def test_small_pictures_are_the_hosts(machine: Gpu, fmt: str, size: tuple[int, int]) -> None:
    check_glance(machine, [noise_frame(fmt, *size)])


def test_one_launch_reads_64_frames_of_all_kinds(machine: Gpu) -> None:
    kinds = [(fmt, size) for size in GLANCE_SIZES for fmt in GLANCE_FORMATS]
    kinds += kinds[: 64 - len(kinds)]
    check_glance(machine, [noise_frame(fmt, *size, seed=i) for i, (fmt, size) in enumerate(kinds)])
