"""When the network looks at a stream's frames."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from streamd.analysis.rules.settings import Point
from streamd.settings import Settings, schema_of

MaskPolygon = Annotated[tuple[Point, ...], Field(min_length=3, max_length=128)]


class LookSettings(Settings):
    """Whether the network looks at every frame, or at those in which something moves."""

    when: Literal["always", "motion"] = Field(
        "always",
        description="always: the network processes every frame. motion: it processes frames in which something "
        "moves, frames shortly after them, and one every at_least_every_s seconds. For every other frame, a "
        "message of kind `glance` is published (docs/glance.md).",
    )
    at_least_every_s: float = Field(
        2.0,
        gt=0,
        le=3600,
        description="Longest time between two frames that are processed while nothing moves, in seconds. In a "
        "scene that stays still, it grows up to relax_to_s.",
    )
    relax_to_s: float = Field(
        8.0,
        gt=0,
        le=3600,
        description="What at_least_every_s grows to in a scene that stays still, in seconds. After two frames in a "
        "row in which the network finds everything still and nothing new, each further one doubles the time to the "
        "next, up to this. Motion or a new object resets it. A value of at_least_every_s or less: it does not "
        "grow. Lower it if objects that appear without visible motion must be found sooner.",
    )
    hold_s: float = Field(
        2.0,
        ge=0,
        le=300,
        description="How long min_fps frames per second are processed after the last motion of an object or change "
        "of light, in seconds. It ends earlier once two of these frames show everything still.",
    )
    min_fps: float = Field(
        2.0,
        gt=0,
        le=1000,
        description="Frames processed per second during hold_s, and while it is uncertain whether something moves.",
    )
    max_fps: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Largest number of frames processed per second while something moves. The first one is "
        "processed at once. Default: every frame.",
    )
    skip_followed: bool = Field(
        True,
        description="Process only every second frame while all that moves are at most six tracked objects that are "
        "confirmed, apart from each other and slow for their size (docs/glance.md). Needs `tracking`. An event may "
        "come one frame later.",
    )
    masks: tuple[MaskPolygon, ...] = Field(
        (),
        max_length=64,
        description="Polygons in which motion is ignored, such as trees: corners x, y in 0..1 of the upright "
        "picture, in order. Boxes in them are still published.",
    )
    sensitivity: Literal["auto"] | float = Field(
        "auto",
        json_schema_extra=schema_of({"const": "auto"}, {"type": "number", "minimum": 1, "maximum": 10}),
        description="How little motion is enough: 1 is least sensitive, 10 most. auto: starts at 5 and adapts to "
        "the noise of the picture, and to where the network finds objects.",
    )

    @property
    def gated(self) -> bool:
        """Whether some frames may not be processed."""
        return self.when == "motion"
