"""Heads of other packages: what they return is checked, and their errors name the package."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import numpy.typing as npt

from streamd.errors import BackendError, ConfigError
from streamd.heads import DetectSettings, Head
from streamd.settings.plugins import Origin, told
from streamd.types import Candidates, DecodePlan, Details, Float32Array, Letterbox, Outputs
from streamd.types.models import DeviceLayout
from streamd.types.unfit import unfit_candidates, unfit_choice, unfit_details


class ForeignHead(Head):
    """A head of another package. See `Head`.

    Args:
        head: it.
        origin: its package.

    Raises:
        ConfigError: what it says of itself is wrong.
    """

    def __init__(self, head: Head, origin: Origin) -> None:
        self._head, self._origin = head, origin
        with told(origin, "open", ConfigError):
            self.nms, self.classes, self.plan, self.detailed = head.nms, head.classes, head.plan, head.detailed
            problem = unfit(head)
        if problem:
            raise ConfigError(origin.unfit(f"its head has {problem}"))

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`.

        Raises:
            BackendError: it failed, or returned something else.
        """
        with told(self._origin, "decode a frame", BackendError):
            found = self._head.candidates(outputs, index)
            problem = unfit_candidates(found, self.classes)
            if not problem and found.suppressed is not False:
                problem = f"suppressed={found.suppressed!r:.80}; expected False, and nms = False of the head instead"
        if problem:
            raise BackendError(self._origin.unfit(f"its candidates returned {problem}"))
        return found

    def suppress(self, found: Candidates, detect: DetectSettings) -> npt.NDArray[np.intp]:
        """See `Head.suppress`.

        Raises:
            BackendError: it failed, or returned something else.
        """
        with told(self._origin, "suppress boxes", BackendError):
            order = self._head.suppress(found, detect)
            problem = unfit_choice(order, found.score, detect.max_det)
        if problem:
            raise BackendError(self._origin.unfit(f"its suppress returned {problem}"))
        return order

    def details(self, outputs: Outputs, index: int, kept: Candidates, letterbox: Letterbox) -> Details:
        """See `Head.details`.

        Raises:
            BackendError: it failed, or returned something else.
        """
        with told(self._origin, "decode the details of boxes", BackendError):
            details = self._head.details(outputs, index, kept, letterbox)
            problem = unfit_details(details, len(kept.score))
        if problem:
            raise BackendError(self._origin.unfit(f"its details returned {problem}"))
        return _kept(details, outputs)


def unfit(head: Head) -> str:
    """What is wrong with what a head says of itself; empty if nothing is."""
    for name, flag in (("nms", head.nms), ("detailed", head.detailed)):
        if not isinstance(flag, (bool, np.bool_)):
            return f"{name} = {flag!r:.80}; expected True or False"
    classes, plan = head.classes, head.plan
    if not isinstance(classes, (int, np.integer)) or isinstance(classes, bool) or classes < 1:
        return f"classes = {classes!r:.80}; expected their number, an int of at least 1"
    if head.detailed and type(head).details is Head.details:
        return "detailed = True, but no method details"
    if plan is None:
        return ""
    if not isinstance(plan, DecodePlan):
        return f"plan = {plan!r:.80}; expected streamd.types.DecodePlan or None"
    if plan.layout not in get_args(DeviceLayout):
        return f"a plan of the layout {plan.layout!r:.80}; expected one of {', '.join(get_args(DeviceLayout))}"
    return f"a plan of {plan.classes!r:.80} classes; it has {classes}" if plan.classes != classes else ""


def _kept(details: Details, outputs: Outputs) -> Details:
    """The details without views of the outputs, whose memory the next batch overwrites before they are published."""

    def kept(array: Float32Array) -> Float32Array:
        return array.copy() if any(np.may_share_memory(array, output) for output in outputs) else array

    keypoints, oriented, polygons = details.keypoints, details.oriented, details.polygons
    return replace(
        details,
        keypoints=None if keypoints is None else kept(keypoints),
        oriented=None if oriented is None else kept(oriented),
        polygons=None if polygons is None else [kept(polygon) for polygon in polygons],
    )
