"""Whether a stream's camera can see: takes small pictures of a few frames a second, on the thread of its source."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from streamd.analysis.glance import Glance
from streamd.analysis.glance.health import HealthCore
from streamd.analysis.glance.health_settings import CameraHealthSettings
from streamd.analysis.glance.picture import Glancer, SurfaceReader
from streamd.types import Frame

log = structlog.get_logger(__name__)

KEEP_S, KEPT = 5.0, 3
"""So often a picture in which all was well is kept, and so many: the oldest shows the scene before a slow fault."""


class HealthChange(NamedTuple):
    """The states of a camera have changed."""

    stream: str
    states: tuple[str, ...]
    """See `analysis.glance.health.STATES`."""
    wall_ns: int
    """Unix time of the frame that decided it."""
    epoch: int
    seq: int
    before: npt.NDArray[np.uint8] | None
    """(H, W) luma of the upright picture, small, from before; None if there has been no good one."""


class CameraWatch:
    """The health of one stream's camera. `frame` is for the thread of its source.

    Args:
        stream: the stream's id.
        settings: with `on`.
        on_change: called with every change; must not block.
        surfaces: see `Glancer`.
    """

    def __init__(
        self,
        stream: str,
        settings: CameraHealthSettings,
        on_change: Callable[[HealthChange], None],
        surfaces: SurfaceReader | None = None,
    ) -> None:
        self._stream, self._settings, self._on_change = stream, settings, on_change
        self._glancer = Glancer(surfaces=surfaces)
        self._core = HealthCore(settings)
        self._every_ns = round(1e9 / settings.rate)
        self._due_ns = 0
        self._good: deque[Glance] = deque(maxlen=KEPT)
        self._accept = self._off = False
        self._told = ""

    @property
    def states(self) -> tuple[str, ...]:
        """Why the camera cannot see. Any thread."""
        return self._core.states

    def accept(self) -> None:
        """The scene is the right one from now on, even if it is another. Any thread."""
        self._accept = True

    def frame(self, frame: Frame) -> None:
        """Looks at the frame if one is due. Raises nothing: a fault here must not cost a frame."""
        if frame.captured_ns < self._due_ns or self._off:
            return
        self._due_ns = max(self._due_ns + self._every_ns, frame.captured_ns + self._every_ns // 2)
        try:
            self._look(frame)
        except Exception as error:
            self._off = True
            log.error("camera health failed and is off", stream=self._stream, error=str(error), exc_info=error)

    def _look(self, frame: Frame) -> None:
        glance = self._glancer.take(frame)
        if glance is None:
            if self._told != self._glancer.unreadable:
                self._told = self._glancer.unreadable
                log.warning(
                    "the health of this camera cannot be watched", stream=self._stream, why=self._told,
                    hint="set decode: software, or camera_health.enabled: false",
                )  # fmt: skip
            return
        if self._accept:
            self._accept = False
            self._core.accept()
        before = self._core.states
        states = self._core.step(glance.luma, glance.captured_ns / 1e9)
        if states != before:
            self._change(glance, states)
        elif not states and (not self._good or glance.captured_ns - self._good[-1].captured_ns > KEEP_S * 1e9):
            self._good.append(glance)

    def _change(self, glance: Glance, states: tuple[str, ...]) -> None:
        good = self._good[0] if self._good else None
        picture = np.ascontiguousarray(good.upright(), np.uint8) if good is not None else None
        level = log.warning if states else log.info
        level("camera health", stream=self._stream, states=list(states))
        self._on_change(HealthChange(self._stream, states, glance.wall_ns, glance.epoch, glance.seq, picture))
