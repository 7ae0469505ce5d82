"""The configuration of zones, lines and schedules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from streamd.settings import Name, Pattern, Settings

Point = tuple[float, float]
Anchor = Literal["bottom_center", "center", "top_center"]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ClockTime = Annotated[
    str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$|^24:00$"), Pattern("expected HH:MM, from 00:00 to 24:00, in quotes")
]


class TimesSettings(Settings):
    """Hours of some days of the week."""

    days: tuple[Day, ...] = Field(DAYS, min_length=1, description="Days on which the hours begin. Default: every day.")
    start: ClockTime = Field("00:00", description="First minute, HH:MM in the schedule's time zone.")
    end: ClockTime = Field(
        "24:00", description="End, HH:MM, exclusive; if it is not after start, it is on the next day."
    )


class ScheduleSettings(Settings):
    """When a rule is active. Outside these hours it counts nothing and raises no event."""

    timezone: str = Field(
        min_length=1, max_length=64, description="IANA time zone, such as Europe/Berlin. Daylight saving is observed."
    )
    times: tuple[TimesSettings, ...] = Field(min_length=1, max_length=64, description="Hours; active in any of them.")


class ClipSettings(Settings):
    """The video of each event, copied from the camera without re-encoding."""

    pre_s: float = Field(
        5.0,
        ge=0,
        le=60,
        description="Seconds before the event. The clip begins at a key frame, so it may begin earlier.",
    )
    post_s: float = Field(5.0, ge=0, le=300, description="Seconds after the end of the event.")
    max_s: float = Field(
        300.0, ge=5, le=3600, description="Longest clip, in seconds; of a longer event, only the beginning is kept."
    )
    audio: bool = Field(
        False,
        description="Also record the camera's sound. Recording speech needs consent in many places.",
    )


class RuleSettings(Settings):
    """What zones and lines have in common."""

    name: Name = Field(description="Name in events, counters and metrics. Unique in its stream.")
    classes: tuple[str | int, ...] | None = Field(
        None, min_length=1, description="Only objects of these classes, by name or number. Default: all."
    )
    anchor: Anchor = Field(
        "bottom_center",
        description="Point of the box used as its position. It is frozen while the edge of the picture cuts the box.",
    )
    schedule: ScheduleSettings | None = Field(None, description="When the rule is active. Default: always.")
    cooldown_s: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="After an event of this rule begins, no other begins for this many seconds. Counters still count.",
    )
    clip: ClipSettings | None = Field(
        None, description="Record a clip of each event; `{}` takes the defaults. Default: none."
    )

    snapshot: bool = Field(
        False, description="Save a picture of each event: the frame that shows its object best, plain and with its box."
    )

    @property
    def latest_s(self) -> float:
        """Longest time from the begin of an event until it is told, in seconds."""
        return 0.0


class ZoneSettings(RuleSettings):
    """A polygon of the picture: which objects are in it, since when, and for how long."""

    points: tuple[Point, ...] = Field(
        max_length=128, description="Corners x, y in 0..1 of the upright picture, in order; at least three."
    )
    min_s: float = Field(
        0.0, ge=0, le=3600, description="Time that an object has to be inside before its event begins, in seconds."
    )
    hysteresis: float = Field(
        0.1,
        ge=0,
        le=5,
        description="An object has left once its anchor is outside by this many heights of its box.",
    )
    loiter_s: float | None = Field(
        None,
        gt=0,
        le=86_400,
        description="Observed time inside after which an object counts as loitering, in seconds. Default: never.",
    )
    stationary_s: float = Field(
        10.0,
        gt=0,
        le=86_400,
        description="An object that has not moved for this many seconds is stationary; if its track is lost and one "
        "begins in the same place within this time, both are the same object.",
    )

    @property
    def latest_s(self) -> float:
        """See `RuleSettings.latest_s`."""
        return self.min_s


class LineSettings(RuleSettings):
    """A line across the picture: which objects cross it, and in which direction."""

    points: tuple[Point, ...] = Field(max_length=2, description="Both ends, x, y in 0..1 of the upright picture.")
    directions: tuple[Name, Name] = Field(
        ("in", "out"),
        description="Names of the directions: from the left of the line to its right, as seen on the picture when "
        "going from the first point to the second, and from right to left.",
    )
    settle_s: float = Field(
        0.5,
        gt=0,
        le=10,
        description="Seconds for which an object has to stay on its side before and after. Two processed frames each "
        "side must lie within them for a crossing to be certain.",
    )
    hysteresis: float = Field(
        0.1,
        ge=0,
        le=5,
        description="An object is clear of the line once its anchor is this many heights of its box away from it.",
    )

    @property
    def latest_s(self) -> float:
        """See `RuleSettings.latest_s`."""
        return 2 * self.settle_s
