"""A scripted backend, to test the pipeline's scheduling, load and faults without an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from streamd.engine import ENGINES, BatchSettings, Devices, DeviceSettings, ModelSettings
from streamd.errors import BackendError
from streamd.flow.contracts import Backend
from streamd.settings import Milliseconds
from streamd.types import Box, DecodePlan, Frame, Letterbox, ModelSpec, Outputs, TensorSpec


@ENGINES.register
class NullSettings(DeviceSettings):
    """A scripted backend without hardware, for scheduling, load and fault tests."""

    kind: Literal["null"] = "null"
    device: Devices = Field(0, description="Simulated devices; several share the streams.")
    latency_ms: Milliseconds = Field(0.0, description="Time that each batch takes, in milliseconds.")
    slots: int = Field(2, ge=1, le=64, description="Number of batches in flight.")
    fail_after: int | None = Field(
        None, ge=0, description="Number of batches after which infer raises BackendError. Default: never."
    )
    classes: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="Makes it a classifier with this many classes, of which the first always has probability 0.9. "
        "Default: a detector.",
    )
    hang_after: int | None = Field(
        None, ge=0, description="Number of batches after which collect never returns. Default: never."
    )

    def open(self, model: ModelSettings, *, batch: BatchSettings, live: bool = False) -> Backend[Any]:
        """See `EngineSettings.open`."""
        return NullBackend(self, model, batch=batch)


@dataclass
class NullSlot:
    """One batch in flight."""

    index: int
    outputs: npt.NDArray[np.float32]
    count: int = 0
    ready_at: float = field(default=0.0)


class NullBackend(Backend[NullSlot]):
    """See `streamd.engine.Backend`. Every frame yields one box: its middle half, score 0.9, class 0.

    The simulated device processes batches one after the other, `latency_ms` each, whatever their size.
    """

    title = "null"

    def __init__(self, settings: NullSettings, model: ModelSettings, *, batch: BatchSettings) -> None:
        height, width = model.input_size or (640, 640)
        self.spec = ModelSpec(
            path=model.path,
            sha256="0" * 64,
            name=model.name or "null",
            input=TensorSpec("images", (-1, 3, height, width), "float32"),
            outputs=(_output(settings.classes),),
            labels=model.labels if isinstance(model.labels, tuple) else _labels(settings.classes),
            max_batch=batch.max or 8,
        )
        self._slots: list[NullSlot] = []
        self._settings = settings
        self._free_at = 0.0
        self._started = 0
        self._collected = 0
        self._closed = threading.Event()
        self._letterboxes: dict[Box, Letterbox] = {}
        """By what was scaled, as the other backends keep theirs."""

    @property
    def slots(self) -> Sequence[NullSlot]:
        """See `Backend.slots`."""
        return self._slots

    def start(self, plan: DecodePlan | None = None) -> None:
        """See `Backend.start`."""
        width, height = self.spec.input_width, self.spec.input_height
        row = np.array([[width / 4, height / 4, width * 3 / 4, height * 3 / 4, 0.9, 0]], np.float32)
        if (classes := self._settings.classes) is not None:
            row = np.full(classes, 0.1 / (classes - 1), np.float32)
            row[0] = 0.9
        batch = np.stack([row] * self.spec.max_batch)
        self._slots = [NullSlot(i, batch.copy()) for i in range(self._settings.slots)]

    def preprocess(self, slot: NullSlot, frames: Sequence[Frame]) -> Sequence[Letterbox]:
        """See `Backend.preprocess`."""
        slot.count = len(frames)
        return [self._letterbox(f.roi or Box(0, 0, f.width, f.height)) for f in frames]

    def _letterbox(self, roi: Box) -> Letterbox:
        found = self._letterboxes.get(roi)
        if found is None:
            spec = self.spec
            found = Letterbox.fit(roi, spec.input_width, spec.input_height, spec.placement)
            self._letterboxes[roi] = found
        return found

    def infer(self, slot: NullSlot) -> None:
        """See `Backend.infer`."""
        if self._settings.fail_after is not None and self._started >= self._settings.fail_after:
            raise BackendError(f"backend null: told to fail after {self._settings.fail_after} batches")
        self._started += 1
        self._free_at = max(self._free_at, time.monotonic()) + self._settings.latency_ms / 1e3
        slot.ready_at = self._free_at

    def collect(self, slot: NullSlot) -> Outputs:
        """See `Backend.collect`."""
        if self._settings.hang_after is not None and self._collected >= self._settings.hang_after:
            self._closed.wait()
        self._collected += 1
        delay = slot.ready_at - time.monotonic()
        if delay > 0:
            self._closed.wait(delay)
        return [slot.outputs[: slot.count]]

    def close(self) -> None:
        """See `Backend.close`. Ends a hang, too."""
        self._closed.set()


def _output(classes: int | None) -> TensorSpec:
    if classes is None:
        return TensorSpec("detections", (-1, 1, 6), "float32")
    return TensorSpec("scores", (-1, classes), "float32")


def _labels(classes: int | None) -> tuple[str, ...]:
    return ("thing",) if classes is None else tuple(f"class{i}" for i in range(classes))
