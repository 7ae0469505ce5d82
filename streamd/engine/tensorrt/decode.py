"""Box decoding on the device: kernels.cu's `Decode`, filled from a head's plan, and its results as `Candidates`."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.errors import BackendError
from streamd.types import Candidates, DecodePlan, DeviceLayout, TensorSpec

MAX_OUTPUTS = 8
MAX_ANCHORS = 8
BLOCK = (128, 1, 1)
"""Threads per block: one for each row of the output."""
TYPES = {"float32": 0, "float16": 1}

CANDIDATE = np.dtype(
    [
        ("xyxy", "<f4", (4,)),
        ("score", "<f4"),
        ("class_id", "<i4"),
        ("order", "<u4"),
        ("unused", "<u4"),
    ]
)
"""kernels.cu's `Candidate`."""
_HEAD = struct.Struct("<2Q5i2fi")
_OUTPUT = struct.Struct(f"<Q7if{MAX_ANCHORS * 2}f")
DECODE_BYTES = _HEAD.size + MAX_OUTPUTS * _OUTPUT.size
CANDIDATES, MANY_CANDIDATES = 1024, 32768
"""Room for the boxes of a frame before NMS, where the settings do not say."""
_LOW_CONF = 0.05


class _Level(NamedTuple):
    """One head of a model: rows (anchors, rows, columns) of one output. Zeros if rows need no decoding by cell."""

    output: int
    anchors: int = 0
    rows: int = 0
    columns: int = 0
    stride: float = 0.0
    sizes: tuple[float, ...] = ()


Outputs = Sequence[TensorSpec]
Size = tuple[int, int]
"""Height and width of the network's input."""


def _grid(plan: DecodePlan, outputs: Outputs, index: int) -> tuple[int, int, int]:
    """Anchors, rows and columns of one output of anchor_grids."""
    rows, columns = outputs[index].shape[2:4]
    return len(plan.anchors[index]) // 2, rows, columns


def _grids(plan: DecodePlan, outputs: Outputs, size: Size) -> list[_Level]:
    # Finest first.
    order = sorted(range(len(outputs)), key=lambda i: -outputs[i].shape[2])
    return [_Level(i, *_grid(plan, outputs, i), plan.strides[i], plan.anchors[i]) for i in order]


def _joined(plan: DecodePlan, outputs: Outputs, size: Size) -> list[_Level]:
    height, width = size
    return [
        _Level(0, len(sizes) // 2, height // stride, width // stride, stride, sizes)
        for stride, sizes in zip(plan.strides, plan.anchors, strict=True)
    ]


def _whole(plan: DecodePlan, outputs: Outputs, size: Size) -> list[_Level]:
    return [_Level(0)]


class _Kernel(NamedTuple):
    """How one layout is decoded."""

    name: str
    """The function in kernels.cu."""
    levels: Callable[[DecodePlan, Outputs, Size], list[_Level]]
    """In the NumPy head's order, in which `order` numbers rows."""
    rows_axis: int = 1
    """Which dimension of the output counts rows; 0 if the levels do."""
    most_outputs: int = 1


KERNELS: Mapping[DeviceLayout, _Kernel] = {
    "anchor_grids": _Kernel("decode_yolov5_heads", _grids, 0, MAX_OUTPUTS),
    "anchor_rows": _Kernel("decode_yolov5_sigmoid", _joined),
    "objectness_rows": _Kernel("decode_yolov5_cat", _whole),
    "class_columns": _Kernel("decode_yolov8", _whole, 2),
    "final_boxes": _Kernel("decode_end_to_end", _whole),
}
"""Layouts that have a kernel."""


def kernel_name(plan: DecodePlan) -> str:
    """The function in kernels.cu that decodes according to `plan`."""
    return KERNELS[plan.layout].name


def total_rows(plan: DecodePlan, outputs: Outputs) -> int:
    """Number of rows of one frame that may hold a box."""
    axis = KERNELS[plan.layout].rows_axis
    return outputs[0].shape[axis] if axis else sum(math.prod(_grid(plan, outputs, i)) for i in range(len(outputs)))


def _steps(plan: DecodePlan, output: TensorSpec, level: _Level) -> tuple[int, int]:
    """Strides in elements: between the cells of an anchor, and between the values of a cell."""
    return (1, level.rows * level.columns) if len(output.shape) == 4 else (5 + plan.classes, 1)


def check(plan: DecodePlan, outputs: Outputs, size: Size) -> None:
    """Checks that the device can decode `outputs` according to `plan`.

    Args:
        plan: the head's plan.
        outputs: in `ModelSpec.outputs` order, all dimensions but the batch known.
        size: height and width of the network's input.

    Raises:
        BackendError: another layout or element type, or more outputs, anchors or rows than the kernels know.
    """
    if plan.layout not in KERNELS:
        raise BackendError(f"backend tensorrt: no kernel decodes {plan.layout}; known: {', '.join(KERNELS)}")
    kernel = KERNELS[plan.layout]
    listed = ", ".join(f"{o.name}{list(o.shape)} {o.dtype}" for o in outputs)
    if any(o.dtype not in TYPES for o in outputs):
        raise BackendError(f"backend tensorrt: outputs must be float32 or float16 to be decoded, found {listed}")
    levels = kernel.levels(plan, outputs, size)
    if len(outputs) > kernel.most_outputs or len(levels) > MAX_OUTPUTS or any(v.anchors > MAX_ANCHORS for v in levels):
        raise BackendError(
            f"backend tensorrt: {plan.layout} is decoded for up to {kernel.most_outputs} outputs and {MAX_OUTPUTS} "
            f"strides of {MAX_ANCHORS} anchors each, found {listed} with {len(levels)} strides"
        )
    rows = sum(v.anchors * v.rows * v.columns for v in levels)
    if kernel.levels is _joined and rows != total_rows(plan, outputs):
        raise BackendError(
            f"backend tensorrt: strides {list(plan.strides)} make {rows} rows at input {size[0]}×{size[1]}, "
            f"found {listed}"
        )
    if total_rows(plan, outputs) * plan.classes >= 1 << 32:
        raise BackendError(f"backend tensorrt: too many rows and classes to number: {listed}")


def pack(
    plan: DecodePlan,
    outputs: Outputs,
    size: Size,
    addresses: Sequence[int],
    counts: int,
    candidates: int,
    capacity: int,
) -> bytes:
    """The `Decode` structure, followed by the lowest score of each class if the device filters by them.

    Args:
        plan: the head's plan.
        outputs: in `ModelSpec.outputs` order, all dimensions but the batch known.
        size: height and width of the network's input.
        addresses: where each output is.
        counts: address of one u32 per frame.
        candidates: address of `capacity` candidates per frame.
        capacity: how many fit.
    """
    check(plan, outputs, size)
    packed, first = [], 0
    levels = KERNELS[plan.layout].levels(plan, outputs, size)
    for level in levels:
        sizes = np.zeros(2 * MAX_ANCHORS, np.float32)
        sizes[: len(level.sizes)] = level.sizes
        output, grid = outputs[level.output], (level.anchors, level.rows, level.columns)
        packed.append(
            _OUTPUT.pack(
                addresses[level.output], TYPES[output.dtype], first, *grid, *_steps(plan, output, level), level.stride,
                *sizes.tolist(),
            )
        )  # fmt: skip
        first += math.prod(grid)
    # As in the NumPy heads: in single precision, and logits against the threshold's logit.
    conf = float(np.float32(plan.conf))
    with np.errstate(divide="ignore"):
        logit = float(np.float32(np.log(plan.conf) - np.log1p(-plan.conf)))
    head = _HEAD.pack(
        counts, candidates, capacity, len(levels), total_rows(plan, outputs), plan.classes, plan.multi_label,
        conf, logit, plan.suppress and bool(plan.class_conf),
    )  # fmt: skip
    floors = np.array(plan.class_conf, "<f4").tobytes() if plan.suppress else b""
    return (head + b"".join(packed)).ljust(DECODE_BYTES, b"\0") + floors


def decode_grid(plan: DecodePlan, outputs: Outputs, frames: int) -> tuple[int, int, int]:
    """Number of blocks that cover every row of this many frames."""
    return -(-total_rows(plan, outputs) // BLOCK[0]), frames, 1


def capacity(plan: DecodePlan, given: int | None) -> int:
    """Room for the boxes of a frame before NMS.

    Args:
        plan: asks for boxes of a least score.
        given: `TensorRtSettings.max_candidates`.
    """
    if given is not None:
        return given
    return MANY_CANDIDATES if plan.multi_label or plan.conf < _LOW_CONF else CANDIDATES


def candidates_of(records: npt.NDArray[np.void]) -> Candidates:
    """One frame's candidates, in the order of the NumPy head. Copies: nothing refers to `records` afterwards.

    Args:
        records: (M,) of dtype CANDIDATE, in any order.
    """
    order = np.argsort(records["order"], kind="stable")
    # Field by field: indexing whole structures copies element by element.
    return Candidates(records["xyxy"][order], records["score"][order], records["class_id"][order])
