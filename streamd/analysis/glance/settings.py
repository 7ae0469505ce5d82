"""When the network looks at a stream's frames."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from streamd.analysis.rules.settings import Point
from streamd.settings import Settings

MaskPolygon = Annotated[tuple[Point, ...], Field(min_length=3, max_length=128)]


class LookSettings(Settings):
    """Whether the network looks at every frame, or at those in which something moves."""

    when: Literal["always", "motion"] = Field(
        "always",
        description="always: the network processes every frame. motion: only frames in which something moves, frames "
        "shortly after them, and one every at_least_every_s seconds; of every other frame, a message of kind `glance` "
        "is published (docs/glance.md).",
    )
    at_least_every_s: float = Field(
        2.0,
        gt=0,
        le=3600,
        description="The longest time between two frames that are processed, in seconds; see relax_to_s.",
    )
    relax_to_s: float = Field(
        8.0,
        gt=0,
        le=3600,
        description="While looks confirm that everything stands still, each doubles the time to the next one, up to so "
        "many seconds; with any motion, or a new object, it is at_least_every_s again. A value of at_least_every_s or "
        "less: it is always that.",
    )
    hold_s: float = Field(
        2.0,
        ge=0,
        le=300,
        description="Time after the last motion of an object, or of the light, in which frames are still processed, in "
        "seconds; less, once two of them show that everything stands still.",
    )
    min_fps: float = Field(
        2.0,
        gt=0,
        le=1000,
        description="Frames processed per second during hold_s, and while it is not certain that something moves.",
    )
    max_fps: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Most frames processed per second while something moves; the first one is processed at once. "
        "Default: every frame.",
    )
    skip_followed: bool = Field(
        True,
        description="Process only every second frame while all that moves are at most six tracked objects that are "
        "apart, slow for their size, and known for longer than a moment. Needs `tracking`. An event may come one frame "
        "later.",
    )
    masks: tuple[MaskPolygon, ...] = Field(
        (),
        max_length=64,
        description="Polygons in which motion does not matter: corners x, y in 0..1 of the upright picture, in order. "
        "Boxes in them are still published.",
    )
    sensitivity: Literal["auto"] | float = Field(
        "auto",
        description="How little motion is enough, 1 (least sensitive) to 10. auto: as sensitive as the noise of the "
        "picture allows, found in the first minutes and followed afterwards.",
    )

    @property
    def gated(self) -> bool:
        """Whether some frames may not be processed."""
        return self.when == "motion"
