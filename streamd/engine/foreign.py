"""Engines of other packages: what they return is checked, and their errors name the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from streamd.analysis.glance.picture import SurfaceReader
from streamd.errors import BackendError
from streamd.flow.contracts import Backend
from streamd.settings.plugins import Origin, told
from streamd.types import Candidates, DecodePlan, Frame, Letterbox, ModelSpec, Outputs

log = structlog.get_logger(__name__)


class ForeignBackend(Backend[Any]):
    """A backend of another package. See `Backend`; every unexpected error is a BackendError.

    Args:
        backend: it, open.
        origin: its package.
    """

    def __init__(self, backend: Backend[Any], origin: Origin) -> None:
        self._backend, self._origin = backend, origin
        self.spec, self.title = backend.spec, backend.title
        self._frames: dict[int, int] = {}
        """Of each slot under way, by its number: how many frames it has."""

    @property
    def slots(self) -> Sequence[Any]:
        """See `Backend.slots`."""
        return self._backend.slots

    def start(self, plan: DecodePlan | None = None) -> None:
        """See `Backend.start`."""
        with told(self._origin, "start", BackendError):
            self._backend.start(plan)
            slots = len(self._backend.slots)
        if not slots:
            raise BackendError(self._origin.unfit("it has no slots once it was started; expected one or more"))

    def preprocess(self, slot: Any, frames: Sequence[Frame]) -> Sequence[Letterbox]:
        """See `Backend.preprocess`."""
        with told(self._origin, "preprocess a batch", BackendError):
            boxes = self._backend.preprocess(slot, frames)
            sound = len(boxes) == len(frames) and all(isinstance(box, Letterbox) for box in boxes)
            self._frames[slot.index] = len(frames)
        if not sound:
            expected = f"expected a streamd.types.Letterbox for each of {len(frames)} frames"
            raise BackendError(self._origin.unfit(f"its preprocess returned {boxes!r:.80}; {expected}"))
        return boxes

    def infer(self, slot: Any) -> None:
        """See `Backend.infer`."""
        with told(self._origin, "run its model", BackendError):
            self._backend.infer(slot)

    def collect(self, slot: Any) -> Outputs | Sequence[Candidates]:
        """See `Backend.collect`."""
        with told(self._origin, "collect a batch", BackendError):
            found = self._backend.collect(slot)
            problem = unfit(found, self.spec, self._frames[slot.index])
        if problem:
            raise BackendError(self._origin.unfit(f"its collect returned {problem}"))
        return found

    def close(self) -> None:
        """See `Backend.close`. Raises nothing: what is closed after it has to be closed, too."""
        try:
            self._backend.close()
        except Exception as error:  # noqa: BLE001 - another package may raise anything
            log.error("backend failed to close", error=self._origin.failed("close", error))

    @property
    def device(self) -> int | None:
        """See `Backend.device`."""
        return self._backend.device

    @property
    def memory(self) -> Mapping[str, int]:
        """See `Backend.memory`. Empty where it cannot be told."""
        try:
            return {kind: int(size) for kind, size in self._backend.memory.items()}
        except Exception:  # noqa: BLE001 - asked for by whoever reads the metrics
            return {}

    def thumbnail(self, frame: Frame, width: int, height: int) -> npt.NDArray[np.uint8]:
        """See `Backend.thumbnail`."""
        with told(self._origin, "make a thumbnail", BackendError):
            return self._backend.thumbnail(frame, width, height)

    def surface_reader(self) -> SurfaceReader | None:
        """See `Backend.surface_reader`."""
        with told(self._origin, "make a reader of surfaces", BackendError):
            return self._backend.surface_reader()

    def device_times(self, slot: Any) -> Mapping[str, float]:
        """See `Backend.device_times`."""
        with told(self._origin, "tell its times", BackendError):
            return self._backend.device_times(slot)


def unfit(found: Any, spec: ModelSpec, frames: int) -> str:
    """What is wrong with the outputs of a batch; empty if nothing is.

    Args:
        found: as `collect` returned them.
        spec: of the model.
        frames: number of frames in the batch.
    """
    if not isinstance(found, (list, tuple)):
        return f"a {type(found).__qualname__}; expected a list of arrays, or of streamd.types.Candidates"
    if found and isinstance(found[0], Candidates):
        return "" if len(found) >= frames else f"Candidates of {len(found)} frames; expected those of {frames}"
    if len(found) != len(spec.outputs):
        return f"{len(found)} outputs; its spec has {len(spec.outputs)}"
    for array, output in zip(found, spec.outputs, strict=True):
        shape = getattr(array, "shape", None)
        wanted = (frames, *output.shape[1:])
        if (
            shape is None
            or len(shape) != len(wanted)
            or shape[0] < frames
            or any(asked not in (-1, given) for given, asked in zip(shape[1:], wanted[1:], strict=True))
        ):
            given = list(shape) if shape is not None else f"a {type(array).__qualname__}"
            return f"{given} for the output {output.name}; expected {list(wanted)}"
    return ""
