"""Box decoding on the device: kernels.cu's `Decode`, filled from a head's plan, and its results as `Candidates`."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from streamd.errors import BackendError
from streamd.types import Candidates, DecodePlan, TensorSpec

MAX_OUTPUTS = 8
MAX_ANCHORS = 8
BLOCK = (128, 1, 1)
"""Threads a block: one a row of the output."""
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
_OUTPUT = struct.Struct(f"<Q5if{MAX_ANCHORS * 2}f")
DECODE_BYTES = _HEAD.size + MAX_OUTPUTS * _OUTPUT.size


def total_rows(plan: DecodePlan, outputs: Sequence[TensorSpec]) -> int:
    """Rows that may hold a box, of one frame."""
    if plan.kind == "yolov5_heads":
        return sum(int(np.prod(o.shape[1:4])) for o in outputs)
    return outputs[0].shape[2 if plan.kind == "yolov8" else 1]


def check(plan: DecodePlan, outputs: Sequence[TensorSpec]) -> None:
    """Whether the device can decode `outputs` by `plan`.

    Raises:
        BackendError: more outputs, anchors, rows or another element type than the kernels know.
    """
    listed = ", ".join(f"{o.name}{list(o.shape)} {o.dtype}" for o in outputs)
    if any(o.dtype not in TYPES for o in outputs):
        raise BackendError(f"backend tensorrt: outputs must be float32 or float16 to be decoded, found {listed}")
    heads = plan.kind == "yolov5_heads"
    limit = MAX_OUTPUTS if heads else 1
    if len(outputs) > limit or (heads and any(len(row) > 2 * MAX_ANCHORS for row in plan.anchors)):
        raise BackendError(
            f"backend tensorrt: {plan.kind} is decoded for up to {limit} outputs of {MAX_ANCHORS} anchors each, "
            f"found {listed}"
        )
    if total_rows(plan, outputs) * plan.classes >= 1 << 32:
        raise BackendError(f"backend tensorrt: too many rows and classes to number: {listed}")


def pack(
    plan: DecodePlan,
    outputs: Sequence[TensorSpec],
    addresses: Sequence[int],
    counts: int,
    candidates: int,
    capacity: int,
) -> bytes:
    """The `Decode` structure.

    Args:
        plan: what the head knows.
        outputs: in `ModelSpec.outputs` order, all dimensions but the batch known.
        addresses: where each output is.
        counts: address of one u32 a frame.
        candidates: address of `capacity` candidates a frame.
        capacity: how many fit.
    """
    check(plan, outputs)
    heads = plan.kind == "yolov5_heads"
    # Finest first, as the NumPy head goes through them: `order` numbers rows in its order.
    order = sorted(range(len(outputs)), key=lambda i: -outputs[i].shape[2]) if heads else [0]
    packed, first = [], 0
    for i in order:
        spec = outputs[i]
        sizes = np.zeros(2 * MAX_ANCHORS, np.float32)
        anchors = rows = columns = stride = 0
        if heads:
            _, anchors, rows, columns, _ = spec.shape
            stride = plan.strides[i]
            sizes[: len(plan.anchors[i])] = plan.anchors[i]
        packed.append(
            _OUTPUT.pack(addresses[i], TYPES[spec.dtype], first, anchors, rows, columns, stride, *sizes.tolist())
        )
        first += anchors * rows * columns
    # As the NumPy heads compare: in single precision, and for logits against the threshold's own logit.
    conf = float(np.float32(plan.conf))
    with np.errstate(divide="ignore"):
        logit = float(np.float32(np.log(plan.conf) - np.log1p(-plan.conf)))
    head = _HEAD.pack(
        counts, candidates, capacity, len(order), total_rows(plan, outputs), plan.classes, plan.multi_label,
        conf, logit, 0,
    )  # fmt: skip
    return (head + b"".join(packed)).ljust(DECODE_BYTES, b"\0")


def decode_grid(plan: DecodePlan, outputs: Sequence[TensorSpec], frames: int) -> tuple[int, int, int]:
    """Blocks that cover every row of so many frames."""
    return -(-total_rows(plan, outputs) // BLOCK[0]), frames, 1


def candidates_of(records: npt.NDArray[np.void]) -> Candidates:
    """One frame's candidates, in the order of the NumPy head. Copies: nothing refers to `records` afterwards.

    Args:
        records: (M,) of dtype CANDIDATE, in any order.
    """
    found = records[np.argsort(records["order"], kind="stable")]
    return Candidates(
        np.ascontiguousarray(found["xyxy"]),
        np.ascontiguousarray(found["score"]),
        np.ascontiguousarray(found["class_id"]),
    )
