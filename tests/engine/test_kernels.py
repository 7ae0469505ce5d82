"""The device code, compiled for the host by g++, against the NumPy reference and the NumPy heads."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamd.analysis.glance import COLUMNS, ROWS
from streamd.analysis.glance.picture import Grid, Layout, mean_of
from streamd.engine.tensorrt import decode as dec
from streamd.engine.tensorrt import glance as gla
from streamd.engine.tensorrt import kernels as ker
from streamd.engine.tensorrt import suppress as sup
from streamd.errors import BackendError, FrameError
from streamd.heads.nms import MAX_CANDIDATES
from streamd.types import Box, Candidates, DecodePlan, Frame, Letterbox, ModelSpec, TensorSpec
from tests.gpu.kernel_cases import (
    BOXES,
    DECODE_KINDS,
    DETECTS,
    GEOMETRIES,
    GLANCE_FORMATS,
    GLANCE_SIZES,
    INPUT,
    INPUTS,
    REFERENCE_FORMATS,
    SURFACE,
    boxes_case,
    check_bad_boxes,
    check_decode,
    check_detect,
    check_glance,
    check_overflow,
    check_preprocess,
    check_suppress,
    decode_case,
    input_spec,
    noise_frame,
    surface_of,
)

ROOT = Path(__file__).resolve().parent.parent.parent


class Affine(ctypes.Structure):
    """kernels.cu's."""

    _fields_ = [("gain", ctypes.c_float * 3), ("offset", ctypes.c_float * 3)]


class Host:
    """Runs the host build, through the same structures that go to a GPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def preprocess(self, frames: Sequence[Frame], spec: ModelSpec) -> tuple[npt.NDArray[Any], list[Letterbox]]:
        width, height, nhwc, dtype = spec.input_width, spec.input_height, spec.layout == "NHWC", spec.input.dtype
        geometries = ker.Geometries(width, height, spec.color, spec.placement)
        gain, offset = spec.normalization()
        table = bytearray(ker.PICTURE_BYTES * len(frames))
        boxes = []
        for i, frame in enumerate(frames):
            geometry = geometries.of(frame)
            planes = [(address, pitch) for address, pitch, _ in ker.plane_layout(frame, geometry)]
            ker.pack_picture(table, i, planes, geometry)
            boxes.append(geometry.box)
        shape = (len(frames), height, width, 3) if nhwc else (len(frames), 3, height, width)
        out = np.empty(shape, dtype)
        getattr(self.library, f"preprocess_{dtype}")(
            (ctypes.c_char * len(table)).from_buffer(table), out.ctypes.data_as(ctypes.c_void_p), width, height,
            int(nhwc), Affine(tuple(gain.tolist()), tuple(offset.tolist())), ctypes.c_float(spec.pad_value),
            len(frames),
        )  # fmt: skip
        return out, boxes

    def decode(
        self, plan: DecodePlan, specs: Sequence[TensorSpec], outputs: Sequence[npt.NDArray[Any]], capacity: int
    ) -> tuple[list[Candidates], list[int]]:
        counts, records = self._decode(plan, specs, outputs, capacity)
        found = [dec.candidates_of(records[i, : min(int(n), capacity)]) for i, n in enumerate(counts)]
        return found, counts.tolist()

    def _decode(
        self, plan: DecodePlan, specs: Sequence[TensorSpec], outputs: Sequence[npt.NDArray[Any]], capacity: int
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.void]]:
        frames = len(outputs[0])
        counts = np.zeros(frames, np.uint32)
        records = np.zeros((frames, capacity), dec.CANDIDATE)
        arrays = [np.ascontiguousarray(o) for o in outputs]
        packed = dec.pack(
            plan, specs, INPUT, [a.ctypes.data for a in arrays], counts.ctypes.data, records.ctypes.data, capacity
        )
        getattr(self.library, dec.kernel_name(plan))(packed, frames)
        return counts, records

    def suppress(self, plan: DecodePlan, records: npt.NDArray[np.void], counts: Sequence[int]) -> list[Candidates]:
        frames, capacity = records.shape
        layout = sup.Layout(frames + 2, capacity, plan.max_det)
        result = np.full(layout.result_bytes(frames + 2), 0xA5, np.uint8)
        scratch = np.full(layout.scratch_bytes + 16, 0xA5, np.uint8)
        result[: frames * 4].view(np.uint32)[:] = counts
        scratch[: records.nbytes] = records.view(np.uint8).reshape(-1)
        self.library.suppress(layout.pack(plan, result.ctypes.data, scratch.ctypes.data), frames)
        end = layout.result_bytes(frames)
        assert (result[end:] == 0xA5).all(), "written past the result block"
        assert (scratch[layout.scratch_bytes :] == 0xA5).all(), "written past the scratch block"
        return sup.Boxes(result, layout).candidates(frames)

    def glance(self, frames: Sequence[tuple[Frame, Layout]]) -> npt.NDArray[np.uint8]:
        out = np.full((len(frames) + 1, ROWS, COLUMNS), 0xA5, np.uint8)
        table = b"".join(surface_of(frame, layout) for frame, layout in frames)
        self.library.glance(out.ctypes.data_as(ctypes.c_void_p), table, len(frames))
        assert (out[-1] == 0xA5).all(), "written past the cells"
        return out[:-1]

    def detect(
        self, plan: DecodePlan, specs: Sequence[TensorSpec], outputs: Sequence[npt.NDArray[Any]], capacity: int
    ) -> list[Candidates]:
        frames = len(outputs[0])
        counts, records = self._decode(plan, specs, outputs, capacity)
        assert plan.suppress
        return self.suppress(plan, records, counts.tolist()[:frames])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernels for the host")
    out = tmp_path_factory.mktemp("kernels") / "kernels.so"
    subprocess.run(
        [compiler, "-x", "c++", "-std=c++11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
         str(ker.SOURCE), "-o", str(out)],
        check=True,
    )  # fmt: skip
    found = ctypes.CDLL(str(out))
    found.host_float_to_half.restype = ctypes.c_uint16
    found.host_float_to_half.argtypes = [ctypes.c_float]
    found.host_half_to_float.restype = ctypes.c_float
    found.host_half_to_float.argtypes = [ctypes.c_uint16]
    return found


@pytest.fixture(scope="module")
def host(library: ctypes.CDLL) -> Host:
    return Host(library)


def test_structures_have_the_size_that_python_packs(library: ctypes.CDLL) -> None:
    assert library.size_of_picture() == ker.PICTURE_BYTES
    assert library.size_of_decode() == dec.DECODE_BYTES
    assert library.size_of_candidate() == dec.CANDIDATE.itemsize
    assert library.size_of_suppress() == sup.SUPPRESS_BYTES
    assert library.size_of_surfaces() == gla.MOST * gla.SURFACE_BYTES
    assert library.most_candidates() == sup.BEST == MAX_CANDIDATES


def test_half_precision_is_numpys(library: ctypes.CDLL) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    halves = bits.view(np.float16)
    as_float = np.array([library.host_half_to_float(int(b)) for b in bits], np.float32)
    np.testing.assert_array_equal(as_float, halves.astype(np.float32))
    finite = halves[np.isfinite(halves)].astype(np.float32)
    random = np.random.default_rng(0)
    values = np.concatenate(
        [finite, random.normal(0, 1, 20_000), random.normal(0, 1e-6, 20_000), [65519.9, 65520, 1e9]]
    )
    with np.errstate(over="ignore"):
        want = values.astype(np.float32).astype(np.float16)
    got = np.array([library.host_float_to_half(float(v)) for v in values.astype(np.float32)], np.uint16)
    np.testing.assert_array_equal(got, want.view(np.uint16))


@pytest.mark.parametrize("fmt", REFERENCE_FORMATS)
def test_every_format_equals_the_reference(host: Host, fmt: str) -> None:
    check_preprocess(host, [noise_frame(fmt)])


@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("fmt", ["nv12", "p010le", "yuv420p"])
def test_matrix_and_range(host: Host, fmt: str, matrix: str, full_range: bool) -> None:
    check_preprocess(host, [noise_frame(fmt, matrix=matrix, full_range=full_range)])


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("fmt", ["nv12", "bgr24"])
def test_mirrored_pictures_and_oblong_pixels(host: Host, fmt: str, rotation: int) -> None:
    """Of the host's numbers alone: the kernel walks an affine map, whatever its signs and steps."""
    check_preprocess(host, [noise_frame(fmt, rotation=rotation, mirrored=True)])
    check_preprocess(host, [noise_frame(fmt, rotation=rotation, mirrored=True, roi=Box(20, 40, 160, 120))])
    check_preprocess(host, [noise_frame(fmt, rotation=rotation, pixel_aspect=16 / 11)])


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("fmt", ["nv12", "yuv422p", "bgr24"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g[0])
def test_rotation_crop_and_size(host: Host, fmt: str, geometry: Any, rotation: int) -> None:
    options = dict(geometry[1])
    if rotation in (90, 270) and "roi" in options:
        options["width"], options["height"] = options.get("height", 241), options.get("width", 322)
    check_preprocess(host, [noise_frame(fmt, rotation=rotation, **options)])


def test_a_batch_of_different_frames(host: Host) -> None:
    sizes = [(322, 240), (17, 33), (640, 360)]
    batch = [
        noise_frame(f, w, h, seed=i)
        for i, (f, (w, h)) in enumerate(zip(["nv12", "bgr24", "p010le"], sizes, strict=True))
    ]
    check_preprocess(host, batch, 192, 96)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8"])
@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_input_types_layouts_and_channel_orders(host: Host, dtype: str, nhwc: bool, color: str) -> None:
    scale = {"uint8": 1.0, "int8": 0.5}.get(dtype, 1 / 255)
    batch = [noise_frame("nv12"), noise_frame("rgb24", 100, 200)]
    check_preprocess(host, batch, 96, 64, dtype=dtype, nhwc=nhwc, color=color, scale=scale, pad_value=7)


@pytest.mark.parametrize("how", INPUTS)
@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_placement_mean_and_deviation(host: Host, how: dict[str, Any], rotation: int, dtype: str) -> None:
    batch = [noise_frame("nv12", 322, 180, rotation=rotation), noise_frame("bgr24", 100, 200, roi=Box(3, 5, 60, 90))]
    check_preprocess(host, batch, 96, 64, dtype=dtype, **how)


def test_formats_the_reference_does_not_read_equal_their_kin(host: Host) -> None:
    ten, sixteen = noise_frame("p010le"), noise_frame("p016le")
    np.testing.assert_array_equal(
        host.preprocess([ten], input_spec(96, 64))[0], host.preprocess([sixteen], input_spec(96, 64))[0]
    )
    # yuv422p10le from yuv422p: the same picture four times as large in value.
    eight, wide = noise_frame("yuv422p"), noise_frame("yuv422p10le")
    for small, large in zip(eight.picture.native.planes, wide.picture.native.planes, strict=True):
        rows = np.frombuffer(memoryview(small), np.uint8).reshape(-1, small.line_size)
        into = np.frombuffer(memoryview(large), np.uint16).reshape(-1, large.line_size // 2)
        width = min(rows.shape[1], into.shape[1])
        into[:, :width] = rows[:, :width].astype(np.uint16) * 4
    np.testing.assert_allclose(
        host.preprocess([wide], input_spec(96, 64))[0], host.preprocess([eight], input_spec(96, 64))[0], atol=1e-5
    )


def test_what_cannot_be_read_is_a_frame_error() -> None:
    geometries = ker.Geometries(64, 64)
    with pytest.raises(FrameError, match=r"pixel format yuv411p is not supported on the GPU; supported: bgr24"):
        geometries.of(noise_frame("yuv411p"))
    with pytest.raises(FrameError, match="crop 400×300 at 0,0 does not lie inside the 322×241"):
        geometries.of(noise_frame("nv12", roi=Box(0, 0, 400, 300)))


def test_geometries_are_bounded() -> None:
    geometries = ker.Geometries(64, 64)
    for x in range(300):
        geometries.of(noise_frame("gray", roi=Box(x, 0, 8, 8)))
    assert len(geometries._kept) <= 256


def test_staging_keeps_planes_apart() -> None:
    frame = noise_frame("yuv420p")
    planes = ker.plane_layout(frame, ker.Geometries(64, 64).of(frame))
    copied: list[tuple[int, int, int]] = []
    laid, end = ker.stage(planes, 1 << 20, 512, lambda *a: copied.append(a))
    assert laid[0] == ((1 << 20) + 512, planes[0][1])
    assert all(offset % ker.STAGE_ALIGN == 0 for offset, _, _ in copied)
    for (offset, _, size), (following, _, _) in itertools.pairwise(copied):
        assert offset + size <= following
    assert copied[-1][0] + copied[-1][2] <= end
    assert ker.stage(planes, 1 << 20, 512, None) == (laid, end)


@pytest.mark.parametrize("kind", DECODE_KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("conf", [0.05, 0.25, 0.6])
def test_decoding_equals_the_numpy_head(host: Host, kind: str, dtype: str, multi_label: bool, conf: float) -> None:
    assert check_decode(host, kind, dtype, multi_label=multi_label, conf=conf) > 5


@pytest.mark.parametrize("kind", ["yolov5_heads", "yolov5_heads convolved"])
def test_heads_in_another_order_are_numbered_finest_first(host: Host, kind: str) -> None:
    assert check_decode(host, kind, "float32", multi_label=True, conf=0.3, shuffled=True) > 5


def test_the_extreme_thresholds(host: Host) -> None:
    assert check_decode(host, "yolov5_heads", "float32", multi_label=False, conf=0.0, frames=1) > 1000
    assert check_decode(host, "yolov5_cat", "float32", multi_label=False, conf=1.0, frames=1) == 0


def test_overflow_keeps_what_fits(host: Host) -> None:
    check_overflow(host)


def test_values_that_are_no_numbers_yield_no_box(host: Host) -> None:
    specs, arrays, _ = decode_case("yolov8", "float32", frames=1)
    plan = DecodePlan("class_columns", 7, 0.25, False)
    arrays[0][:] = np.nan
    assert host.decode(plan, specs, arrays, 64)[1] == [0]


def test_what_the_device_cannot_decode_is_named() -> None:
    plan = DecodePlan("class_columns", 7, 0.25, False)
    with pytest.raises(BackendError, match=r"must be float32 or float16 to be decoded, found o\[-1, 11, 10\] int32"):
        dec.check(plan, [TensorSpec("o", (-1, 11, 10), "int32")], INPUT)
    with pytest.raises(BackendError, match="up to 1 outputs"):
        dec.check(plan, [TensorSpec("o", (-1, 11, 10), "float32")] * 2, INPUT)
    plan = DecodePlan("anchor_rows", 7, 0.25, False, (8, 16), ((1.0, 2.0), (3.0, 4.0)))
    with pytest.raises(BackendError, match=r"strides \[8, 16\] make 840 rows at input 224×192, found o\[-1, 10, 12\]"):
        dec.check(plan, [TensorSpec("o", (-1, 10, 12), "float32")], INPUT)
    other: Any = "another"
    with pytest.raises(BackendError, match="no kernel decodes another; known: anchor_grids"):
        dec.check(DecodePlan(other, 7, 0.25, False), [TensorSpec("o", (-1, 11, 10), "float32")], INPUT)


@pytest.mark.parametrize("detect", [{}, {"agnostic": True, "iou": 0.9}, {"multi_label": True, "conf": 0.3}])
def test_boxes_that_cannot_be_suppress_nothing(host: Host, detect: dict[str, Any]) -> None:
    check_bad_boxes(host, **detect)


@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize("iou", [0.0, 0.45, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("agnostic", [False, True])
def test_suppression_is_the_hosts(host: Host, kind: str, iou: float, agnostic: bool) -> None:
    counts = (0, 1, 2, 31, 300, 1024)
    frames = [boxes_case(n, seed, kind=kind, classes=1 + seed * 20) for seed, n in enumerate(counts)]
    kept = check_suppress(host, frames, iou=iou, agnostic=agnostic)
    assert kept[:2] == [0, 1]


@pytest.mark.parametrize("size", GLANCE_SIZES)
@pytest.mark.parametrize("fmt", GLANCE_FORMATS)
def test_small_pictures_are_the_hosts(host: Host, fmt: str, size: tuple[int, int]) -> None:
    check_glance(host, [noise_frame(fmt, *size)])


def test_one_launch_reads_frames_of_all_kinds(host: Host) -> None:
    kinds = zip(GLANCE_FORMATS * 2, GLANCE_SIZES, strict=True)
    check_glance(host, [noise_frame(fmt, *size, seed=i) for i, (fmt, size) in enumerate(kinds)])


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_rows_that_begin_anywhere(library: ctypes.CDLL, offset: int) -> None:
    """Neither the first sample nor the pitch is a multiple of a word."""
    width, height, pitch = 323, 187, 325
    raw = np.full(offset + pitch * height, 255, np.uint8)
    plane = np.lib.stride_tricks.as_strided(raw[offset:], (height, width), (pitch, 1))
    plane[:] = np.random.default_rng(offset).integers(0, 255, plane.shape)
    out = np.zeros((ROWS, COLUMNS), np.uint8)
    surface = SURFACE.pack(raw.ctypes.data + offset, pitch, width, height, 1, 0, 0)
    library.glance(out.ctypes.data_as(ctypes.c_void_p), surface, 1)
    np.testing.assert_array_equal(out, mean_of(plane, Grid(width, height), 0))


def test_white_of_sixteen_bits_does_not_wrap(library: ctypes.CDLL) -> None:
    width, height = 7680, 720
    plane = np.full((height, width), 0xFFFF, np.uint16)
    out = np.zeros((ROWS, COLUMNS), np.uint8)
    surface = SURFACE.pack(plane.ctypes.data, 2 * width, width, height, 2, 8, 0)
    library.glance(out.ctypes.data_as(ctypes.c_void_p), surface, 1)
    assert (out == 255).all()


def test_the_threads_of_a_block_wait_for_each_other(tmp_path: Path, library: ctypes.CDLL) -> None:
    built = tmp_path / "block.so"
    subprocess.run(
        ["g++", "-std=c++11", "-O2", "-pthread", "-shared", "-fPIC", f'-DKERNELS="{ker.SOURCE}"',
         str(Path(__file__).with_name("block.cpp")), "-o", str(built)],
        check=True,
    )  # fmt: skip
    threads = ctypes.CDLL(str(built))
    for count in (2, 7, 16):
        block = Host(threads)
        threads.set_threads(count)
        for kind in BOXES:
            check_suppress(block, [boxes_case(n, n, kind=kind) for n in (0, 3, 100, 300)])
        check_suppress(block, [boxes_case(5000, 9, kind="clustered")], capacity=6000)


def test_suppression_keeps_no_more_than_asked_for(host: Host) -> None:
    frames = [boxes_case(n, n, kind="apart") for n in (900, 299, 301)]
    assert check_suppress(host, frames) == [300, 299, 300]
    assert check_suppress(host, frames, max_det=1) == [1, 1, 1]
    assert check_suppress(host, frames, max_det=30_000) == [900, 299, 301]


def test_suppression_of_more_than_fit_takes_what_fits(host: Host) -> None:
    frames = [boxes_case(n, n, kind="clustered") for n in (17, 16, 500)]
    assert all(n > 0 for n in check_suppress(host, frames, capacity=16))


@pytest.mark.parametrize("capacity", [4096, 5000, 32768])
def test_suppression_of_a_frame_full_of_boxes(host: Host, capacity: int) -> None:
    frames = [boxes_case(n, n, kind=kind) for n, kind in ((capacity, "ties"), (4100, "clustered"), (3, "random"))]
    assert min(check_suppress(host, frames, capacity=capacity)) > 0
    assert check_suppress(host, [boxes_case(capacity, 5, kind="apart")], capacity=capacity, max_det=30_000) == [4096]


@pytest.mark.parametrize("kind", [k for k in DECODE_KINDS if k != "end_to_end"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("detect", DETECTS, ids=lambda d: "+".join(d) or "default")
def test_detections_are_the_hosts(host: Host, kind: str, dtype: str, detect: dict[str, Any]) -> None:
    assert check_detect(host, kind, dtype, **detect) > 5


def test_the_committed_ptx_belongs_to_the_source() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "build_kernels.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "streamd" / "engine" / "tensorrt"
    folder.mkdir(parents=True)
    (tmp_path / "tools").mkdir()
    tool = tmp_path / "tools" / "build_kernels.py"
    shutil.copy(ROOT / "tools" / "build_kernels.py", tool)
    shutil.copy(ker.PTX, folder)
    source = folder / ker.SOURCE.name
    source.write_text(ker.SOURCE.read_text() + "// another\n")
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "was built from another kernels.cu" in done.stderr
    source.write_text(ker.SOURCE.read_text())
    ptx = folder / ker.PTX.name
    ptx.write_text(ptx.read_text().replace("mul", "add", 1))
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "was changed after it was built" in done.stderr
