"""The same objects for every head, each of which encodes them in its own form: what the suite for heads runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.types import Box, DeviceLayout, Letterbox, ModelSpec, TensorSpec

SIZE, CLASSES = 320, 6
GRIDS = {s: SIZE // s for s in (8, 16, 32)}
CELLS = sum(n * n for n in GRIDS.values())
"""Rows of a head with one row a cell, at the strides 8, 16 and 32."""
LABELS = tuple(f"class_{i}" for i in range(CLASSES))
# cx, cy, w, h, objectness, class, class score: each suits a cell and an anchor of one stride.
OBJECTS = [
    (44.5, 60.0, 20.0, 26.0, 0.95, 1, 0.9),
    (200.0, 120.0, 60.0, 50.0, 0.9, 3, 0.8),
    (160.0, 240.0, 150.0, 110.0, 0.85, 5, 0.95),
    (210.0, 122.0, 58.0, 52.0, 0.8, 3, 0.7),  # overlaps the second: NMS must drop it
    (100.0, 100.0, 30.0, 30.0, 0.3, 2, 0.3),  # too weak
]
OVERLAPPING = OBJECTS[3]
WHOLE = Letterbox.fit(Box(0, 0, SIZE, SIZE), SIZE, SIZE)
"""The network's input is the picture."""
Encoded = tuple[ModelSpec, list[npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class Case:
    """One form of one kind of head."""

    name: str
    encode: Callable[[int, int], Encoded]
    """(batch, index) to a model and its outputs: `OBJECTS` in frame `index` of a batch of otherwise empty frames.

    The model's sidecar (`spec.head`) declares the head where the shapes cannot tell it.
    """
    layout: DeviceLayout | None
    """What a device that decodes boxes itself is told."""
    recognised: bool = True
    """False where the head has to be declared."""


def spec(*shapes: tuple[int, ...], **kwargs: Any) -> ModelSpec:
    """A model with an input of `SIZE` and outputs of these shapes."""
    outputs = tuple(TensorSpec(f"out{i}", s, "float32") for i, s in enumerate(shapes))
    return ModelSpec("m.onnx", "0" * 64, "m", TensorSpec("images", (1, 3, SIZE, SIZE), "float32"), outputs,
                     kwargs.pop("labels", LABELS), **kwargs)  # fmt: skip


def logit(p: npt.ArrayLike) -> Any:
    """The value whose sigmoid is `p`."""
    p = np.clip(np.asarray(p, np.float64), 1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def expected() -> tuple[Any, Any, Any]:
    """xyxy, score and class of the objects that are to be found, best first."""
    kept = sorted((OBJECTS[i] for i in (0, 1, 2)), key=lambda o: -o[4] * o[6])
    xyxy = [[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] for cx, cy, w, h, *_ in kept]
    return np.array(xyxy), np.array([o[4] * o[6] for o in kept]), np.array([o[5] for o in kept])
