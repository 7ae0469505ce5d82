"""What is done with a stream's small pictures, on the thread of its source."""

from __future__ import annotations

import structlog

from streamd.analysis.glance.gate import Gate
from streamd.analysis.glance.picture import Glancer, SurfaceReader
from streamd.types import ForeignPicture, Frame, Look, Picture

log = structlog.get_logger(__name__)


class _Nothing(ForeignPicture):
    __slots__ = ()
    planes = ()


NO_PICTURE = Picture(_Nothing(), "none", 0, 0)
"""Of a frame that the network does not look at: the decoder gets its buffer back at once."""


class Glimpse:
    """Makes the small picture of each frame and asks who needs it. For the thread of the stream's source.

    Args:
        stream: the stream's id.
        gate: decides whether the network looks.
        surfaces: see `Glancer`.
    """

    def __init__(self, stream: str, gate: Gate, surfaces: SurfaceReader | None = None) -> None:
        self._stream = stream
        self._glancer = Glancer(surfaces=surfaces)
        self.gate = gate
        self._told = ""
        self._failed = False

    def frame(self, frame: Frame) -> None:
        """Sets `frame.view`, and takes the picture from a frame that is not looked at. Raises nothing."""
        try:
            glance = self._glancer.take(frame)
            if glance is None and self._told != self._glancer.unreadable:
                self._told = self._glancer.unreadable
                log.warning(
                    "frames of this stream are all looked at: motion cannot be found", stream=self._stream,
                    why=self._told, hint="set decode: software, or look.when: always",
                )  # fmt: skip
            self.gate.decide(frame, glance)
        except Exception as error:  # a fault here must not cost a frame: it is looked at
            frame.view = Look(True, "unreadable")
            if not self._failed:
                self._failed = True
                log.exception("the small picture failed; frames are looked at", stream=self._stream, error=str(error))
        if frame.view is not None and not frame.view.wanted:
            frame.picture = NO_PICTURE
