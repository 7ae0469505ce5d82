"""A stream as the coordinator sees it: its box, and its way to another one."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamd.fleet.accounts import StreamBook
from streamd.fleet.placement import Demand
from streamd.fleet.records import FleetStream, Handover


@dataclass
class Hold:
    """The box that has a stream."""

    box: str
    generation: int
    handover: Handover | None = None
    """Sent until the box reports the stream."""


@dataclass
class Move:
    """A stream on its way to another box."""

    to: str | None
    """None: it is only released, since there is no room for it."""
    generation: int
    reason: str
    since: float
    parting: bool
    """The old box has been told to release it; False: the new one is still connecting beside it."""
    left_out: int = 0
    """Number of the first order of the old box without the stream."""


@dataclass
class Placed:
    """One stream."""

    demand: Demand
    hold: Hold | None = None
    move: Move | None = None
    reason: str = ""
    """Why it has no box."""
    state: str = ""
    """As its box reports it; empty before."""
    why: str = ""
    """The reason that its box gives for the state."""
    book: StreamBook = field(default_factory=StreamBook)
    last: int = 0
    """Generation of its last box."""
    refused: dict[str, float] = field(default_factory=dict)
    """By box that has refused it: until when it is not asked again, monotonic seconds."""

    def claimed(self, generation: int) -> bool:
        """Whether a box that reports this generation has the stream, though it was believed otherwise."""
        if self.hold is None:
            return generation >= self.last
        return generation > self.hold.generation and (self.move is None or self.move.generation != generation)

    @property
    def goes_to(self) -> str | None:
        """Its box once it has moved."""
        if self.move is not None:
            return self.move.to
        return self.hold.box if self.hold is not None else None

    def shown(self) -> FleetStream:
        """For display."""
        hold, move = self.hold, self.move
        if hold is None:
            state, reason = "WAITING", self.reason
        elif move is not None:
            state, reason = "MOVING", move.reason
        elif not self.state:
            state, reason = "STARTING", ""
        else:
            state = {"LIVE": "RUNNING", "ENDED": "ENDED", "FAILED": "FAILED"}.get(self.state, "DOWN")
            reason = self.why
        return FleetStream(
            self.demand.name, hold.box if hold is not None else None,
            hold.generation if hold is not None else self.last, state, reason,
            move.to if move is not None else None, self.book.account(),
        )  # fmt: skip
