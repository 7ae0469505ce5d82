"""Engines of other packages: what they return is checked, and their errors name the package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from streamd.analysis.glance.picture import SurfaceReader
from streamd.errors import BackendError, StreamdError
from streamd.flow.contracts import Backend
from streamd.settings.plugins import Origin, misfit, told
from streamd.types import Box, Candidates, DecodePlan, Frame, Letterbox, ModelSpec, Outputs, TensorSpec
from streamd.types.unfit import unfit_array, unfit_candidates, unfit_order

log = structlog.get_logger(__name__)

STAGES = ("preprocess", "infer")
"""Of which `device_times` tells."""
DTYPES = ("float32", "float16", "int32", "int64")
"""Of outputs, whatever the specification says; numbers of classes may be whole ones."""


class ForeignBackend(Backend[Any]):
    """A backend of another package. See `Backend`; every unexpected error is a BackendError.

    Args:
        backend: it, open. Closed again if it cannot be used.
        origin: its package.

    Raises:
        BackendError: what it says of its model is wrong.
    """

    def __init__(self, backend: Backend[Any], origin: Origin) -> None:
        self._backend, self._origin = backend, origin
        self._frames: dict[int, int] = {}
        """Of each slot under way, by its number: how many frames it has."""
        self._slots: Sequence[Any] = ()
        self._plan: DecodePlan | None = None
        self._timed = True
        """Whether its times are sound so far."""
        try:
            with told(origin, "tell of its model", BackendError):
                self.spec, self.title = backend.spec, backend.title
                problem = unfit_spec(self.spec)
                if not problem and type(self.title) is not str:
                    problem = f"title = {self.title!r:.80}; expected text"
            if problem:
                raise BackendError(origin.unfit(f"it has {problem}"))
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> Sequence[Any]:
        """See `Backend.slots`."""
        return self._slots

    def start(self, plan: DecodePlan | None = None) -> None:
        """See `Backend.start`."""
        with told(self._origin, "start", BackendError):
            self._backend.start(plan)
            slots = tuple(self._backend.slots)
            numbers = [slot.index for slot in slots]
        if not slots:
            raise BackendError(self._origin.unfit("it has no slots once it was started; expected one or more"))
        if any(type(number) is not int for number in numbers) or len(set(numbers)) < len(numbers):
            problem = f"its slots have the index {', '.join(map(repr, numbers)):.80}; expected different ints"
            raise BackendError(self._origin.unfit(problem))
        self._slots, self._plan = slots, plan

    def preprocess(self, slot: Any, frames: Sequence[Frame]) -> Sequence[Letterbox]:
        """See `Backend.preprocess`."""
        with told(self._origin, "preprocess a batch", BackendError):
            boxes = self._backend.preprocess(slot, frames)
            problem = unfit_letterboxes(boxes, frames)
            self._frames[slot.index] = len(frames)
        if problem:
            raise BackendError(self._origin.unfit(f"its preprocess returned {problem}"))
        return boxes

    def infer(self, slot: Any) -> None:
        """See `Backend.infer`."""
        with told(self._origin, "run its model", BackendError):
            self._backend.infer(slot)

    def collect(self, slot: Any) -> Outputs | Sequence[Candidates]:
        """See `Backend.collect`."""
        with told(self._origin, "collect a batch", BackendError):
            found: Any = self._backend.collect(slot)
            frames = self._frames[slot.index]
            problem = unfit(found, self.spec, frames, self._plan)
        if problem:
            raise BackendError(self._origin.unfit(f"its collect returned {problem}"))
        if isinstance(found[0], Candidates):
            return found if len(found) == frames else list(found[:frames])
        # An engine with a fixed batch may return rows of no frame, too.
        return found if all(len(array) == frames for array in found) else [array[:frames] for array in found]

    def close(self) -> None:
        """See `Backend.close`. Raises nothing: what is closed after it has to be closed, too."""
        try:
            self._backend.close()
        except Exception as error:  # noqa: BLE001 - another package may raise anything
            log.error("backend failed to close", error=self._origin.failed("close", error))

    @property
    def device(self) -> int | None:
        """See `Backend.device`."""
        with told(self._origin, "tell its device", BackendError):
            device = self._backend.device
        if device is not None and (type(device) is not int or device < 0):
            expected = "expected a CUDA ordinal, an int, or None"
            raise BackendError(self._origin.unfit(f"its device is {device!r:.80}; {expected}"))
        return device

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
            picture = self._backend.thumbnail(frame, width, height)
            problem = unfit_array("a picture", picture, np.uint8)
            if not problem and picture.shape != (height, width, 3):
                problem = f"a picture {picture.shape}; expected {(height, width, 3)}"
        if problem:
            raise BackendError(self._origin.unfit(f"its thumbnail returned {problem}"))
        return picture

    def surface_reader(self) -> SurfaceReader | None:
        """See `Backend.surface_reader`."""
        with told(self._origin, "make a reader of surfaces", BackendError):
            reader = self._backend.surface_reader()
            problem = misfit(reader, SurfaceReader) if reader is not None else ""
        if problem:
            raise BackendError(self._origin.unfit(f"what its surface_reader returns {problem}"))
        return reader

    def device_times(self, slot: Any) -> Mapping[str, float]:
        """See `Backend.device_times`. Nothing but metrics depends on them: after an odd answer, which is logged, they
        are empty, and it is not asked again."""
        if not self._timed:
            return {}
        try:
            with told(self._origin, "tell its times", BackendError):
                times = self._backend.device_times(slot)
                problem = unfit_times(times)
                if not problem:
                    return {stage: float(seconds) for stage, seconds in times.items()}
            words = self._origin.unfit(f"its device_times returned {problem}")
        except StreamdError as error:
            words = str(error)
        self._timed = False
        log.error("device times left out", error=words)
        return {}


def unfit_spec(spec: object) -> str:
    """What is wrong with the specification of an open model; empty if nothing is."""
    if not isinstance(spec, ModelSpec):
        return f"spec = {spec!r:.80}; expected streamd.types.ModelSpec"
    for name, text in (("path", spec.path), ("sha256", spec.sha256), ("name", spec.name)):
        if type(text) is not str:
            return f"a spec whose {name} is {text!r:.80}; expected text"
    if type(spec.max_batch) is not int or spec.max_batch < 1:
        return f"a spec whose max_batch is {spec.max_batch!r:.80}; expected an int of at least 1"
    if not isinstance(spec.labels, tuple) or any(type(label) is not str for label in spec.labels):
        return f"a spec whose labels are {spec.labels!r:.80}; expected a tuple of text, empty if they are not known"
    if not isinstance(spec.outputs, tuple) or not spec.outputs:
        return f"a spec whose outputs are {spec.outputs!r:.80}; expected a tuple of streamd.types.TensorSpec"
    for tensor in (spec.input, *spec.outputs):
        if not isinstance(tensor, TensorSpec):
            return f"a spec with {tensor!r:.80} among its input and outputs; expected streamd.types.TensorSpec"
        if not isinstance(tensor.shape, tuple) or any(type(size) is not int for size in tensor.shape):
            return f"a spec whose {tensor.name} has the shape {tensor.shape!r:.80}; expected a tuple of ints"
    if len(spec.input.shape) != 4 or min(spec.input.shape[1:]) < 1:
        return f"a spec whose input has the shape {spec.input.shape}; expected four dimensions, all but the batch fixed"
    return ""


def unfit_letterboxes(boxes: Any, frames: Sequence[Frame]) -> str:
    """What is wrong with the letterboxes of a batch; empty if nothing is.

    Args:
        boxes: as `preprocess` returned them.
        frames: of the batch.
    """
    if len(boxes) != len(frames) or not all(isinstance(box, Letterbox) for box in boxes):
        return f"{boxes!r:.80}; expected a streamd.types.Letterbox for each of {len(frames)} frames"
    for box, frame in zip(boxes, frames, strict=True):
        sizes = box.pad_x, box.pad_y, box.content_width, box.content_height
        if any(type(size) is not int for size in sizes) or min(sizes[2:]) < 1:
            return f"{box!r:.160}; expected ints, and a content of at least one pixel"
        roi = box.roi
        if not isinstance(roi, Box) or not (
            0 <= roi.x < roi.x + roi.width <= frame.width and 0 <= roi.y < roi.y + roi.height <= frame.height
        ):
            return f"a Letterbox of {roi!r:.80}; expected a streamd.types.Box in {frame.width} x {frame.height} pixels"
    return ""


def unfit_times(times: Any) -> str:
    """What is wrong with the times of a batch; empty if nothing is."""
    if not isinstance(times, Mapping) or not times.keys() <= set(STAGES):
        return f"{times!r:.80}; expected a dict of seconds by stage: {', '.join(STAGES)}"
    if not all(0 <= float(seconds) < math.inf for seconds in times.values()):
        return f"{times!r:.80}; expected seconds of 0 or more"
    return ""


def unfit(found: Any, spec: ModelSpec, frames: int, plan: DecodePlan | None = None) -> str:
    """What is wrong with the outputs of a batch; empty if nothing is.

    Args:
        found: as `collect` returned them.
        spec: of the model.
        frames: number of frames in the batch.
        plan: by which the engine may decode boxes itself.
    """
    if not isinstance(found, (list, tuple)):
        return f"a {type(found).__qualname__}; expected a list of arrays, or of streamd.types.Candidates"
    if found and isinstance(found[0], Candidates):
        if len(found) < frames:
            return f"Candidates of {len(found)} frames; expected those of {frames}"
        if plan is None:
            return "Candidates, although start was given no plan; expected the arrays of its outputs"
        for i in range(frames):
            if problem := _unfit_frame(found[i], plan):
                return f"for frame {i} of the batch {problem}"
        return ""
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
        if not isinstance(array, np.ndarray) or str(array.dtype) not in (*DTYPES, output.dtype):
            return unfit_array(f"the output {output.name}", array, np.float32, np.float16)
    return ""


def _unfit_frame(found: Any, plan: DecodePlan) -> str:
    """What is wrong with the boxes of one frame; empty if nothing is. Invalid boxes may have class -1."""
    if problem := unfit_candidates(found, plan.classes, least=-1):
        return problem
    if found.suppressed is False:
        return ""
    if found.suppressed is not True:
        return f"suppressed={found.suppressed!r:.80}; expected True or False"
    if not plan.suppress:
        return "boxes with suppressed=True, although the plan of start did not tell what to suppress; expected False"
    return unfit_order(found.score[found.class_id >= 0], plan.max_det)
