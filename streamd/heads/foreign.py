"""Heads of other packages: what they return is checked, and their errors name the package."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamd.errors import BackendError
from streamd.heads import DetectSettings, Head
from streamd.settings.plugins import Origin, told
from streamd.types import Candidates, Details, Letterbox, Outputs


class ForeignHead(Head):
    """A head of another package. See `Head`.

    Args:
        head: it.
        origin: its package.
    """

    def __init__(self, head: Head, origin: Origin) -> None:
        self._head, self._origin = head, origin
        self.nms, self.classes, self.plan, self.detailed = head.nms, head.classes, head.plan, head.detailed

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`.

        Raises:
            BackendError: it failed, or returned something else.
        """
        with told(self._origin, "decode a frame", BackendError):
            found = self._head.candidates(outputs, index)
            problem = unfit(found, self.classes)
        if problem:
            raise BackendError(self._origin.unfit(f"its candidates returned {problem}"))
        return found

    def suppress(self, found: Candidates, detect: DetectSettings) -> npt.NDArray[np.intp]:
        """See `Head.suppress`."""
        with told(self._origin, "suppress boxes", BackendError):
            return self._head.suppress(found, detect)

    def details(self, outputs: Outputs, index: int, kept: Candidates, letterbox: Letterbox) -> Details:
        """See `Head.details`."""
        with told(self._origin, "decode the details of boxes", BackendError):
            return self._head.details(outputs, index, kept, letterbox)


def unfit(found: Candidates, classes: int) -> str:
    """What is wrong with the boxes of a frame; empty if nothing is.

    Args:
        found: as the head returned it.
        classes: number of classes in the model's outputs.
    """
    if not isinstance(found, Candidates):
        return f"a {type(found).__qualname__}; expected streamd.types.Candidates"
    xyxy, score, class_id = found.xyxy, found.score, found.class_id
    for name, array, kind in (
        ("xyxy", xyxy, np.float32),
        ("score", score, np.float32),
        ("class_id", class_id, np.int32),
    ):
        if not isinstance(array, np.ndarray) or array.dtype != kind:
            given = array.dtype if isinstance(array, np.ndarray) else type(array).__qualname__
            return f"{name} of type {given}; expected a NumPy array of {kind.__name__}"
    boxes = len(score)
    if score.shape != (boxes,) or xyxy.shape != (boxes, 4) or class_id.shape != (boxes,):
        return f"xyxy {xyxy.shape}, score {score.shape} and class_id {class_id.shape}; expected (M, 4), (M,) and (M,)"
    if boxes and not 0 <= int(class_id.min()) <= int(class_id.max()) < classes:
        return f"classes {int(class_id.min())} to {int(class_id.max())}; expected 0 to {classes - 1}"
    return ""
