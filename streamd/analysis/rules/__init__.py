"""Rules: what tracks do at zones and lines. NumPy only; one engine per stream, used by one thread.

`RuleEngine` (in `engine`) takes one `TrackedFrame` after the other, in capture order, and returns `RuleEvent`s. It
keeps counters that only increase and the open presences of every zone, and can pass both on to a successor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamd.types import Float32Array, Int32Array

MAX_GAP_S = 1.0
"""Between frames further apart than this, the stream counts as unobserved."""

Phase = Literal["begin", "update", "end", "instant"]
"""The begin, the updates and the end of an event share an id; an instant has its own."""
EventKind = Literal["line", "zone"]
Change = Literal[
    "crossed",
    "entered",
    "appeared",
    "resumed",
    "loitering",
    "stationary",
    "moving",
    "track",
    "exited",
    "vanished",
    "unknown",
    "schedule",
    "rule_changed",
    "stopped",
]
"""What happened. Lines: crossed. Zones, begin: entered, appeared, resumed; update: loitering, stationary, moving, track
(another track continues the presence); end: exited, vanished, unknown, schedule, rule_changed, stopped."""


@dataclass(slots=True)
class TrackedFrame:
    """The tracker's result for one processed frame. N tracks were seen in it; lost ones are not listed."""

    t_ns: int
    """Time of capture on a monotonic clock. A value below the previous one is treated as the previous one."""
    wall_ns: int
    """Unix time of capture."""
    epoch: int
    seq: int
    width: int
    """Width of the upright picture, in pixels."""
    height: int
    track: npt.NDArray[np.int64]
    """(N,) ids, unique for the lifetime of the tracker."""
    confirmed: npt.NDArray[np.bool_]
    """(N,) False while the tracker is not sure that the object exists. Such a track raises no event."""
    xyxy: Float32Array
    """(N, 4) observed boxes in upright pixels; never predicted ones."""
    score: Float32Array
    """(N,)"""
    class_id: Int32Array
    """(N,) class of the track."""
    ended: Sequence[tuple[int, str]] = ()
    """Tracks that ended since the last frame: id and reason. "lost" is a track that was not found again while frames
    arrived; any other reason (outage, loop, size, …) means that it cannot be known what happened to the object."""
    view: tuple[float, float, float, float] | None = None
    """The analysed part of the picture (x1, y1, x2, y2 in pixels), or None for all of it."""


@dataclass(slots=True, frozen=True)
class RuleEvent:
    """One step of an event. A presence in a zone has a begin, updates and an end; a crossing is an instant."""

    id: str
    phase: Phase
    kind: EventKind
    rule: str
    """Name of the zone or line."""
    change: Change
    label: str
    class_id: int
    track: int
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in upright pixels, in the frame of `epoch` and `seq`."""
    score: float
    epoch: int
    seq: int
    t_ns: int
    """When it happened, on the clock of `TrackedFrame.t_ns`; for a crossing, interpolated between two frames."""
    wall_ns: int
    """The same as Unix time."""
    begin_wall_ns: int
    """When the event began, as Unix time."""
    direction: str | None = None
    """Lines: name of the direction."""
    certain: bool = True
    """Lines: False where the crossing was not fully observed."""
    point: tuple[float, float] | None = None
    """Lines: where the line was crossed, in 0..1 of the picture."""
    dwell_s: float = 0.0
    """Zones: seconds since the object entered, including time in which it was not seen."""
    observed_s: float = 0.0
    unseen_s: float = 0.0
    previous: str | None = None
    """Zones: id of the ended event that this one resumes."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """The counters that this increases: line/NAME/DIRECTION/LABEL, line/NAME/DIRECTION/uncertain/LABEL,
    zone/NAME/begin/LABEL; including what `cooldown_s` has held back since the rule's last event."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """What the rule has counted, this event included; see `Rule.state`. Empty for an update, which counts nothing."""
