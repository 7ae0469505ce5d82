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
    start: ClockTime = Field("00:00", description="Start, HH:MM in the schedule's time zone.")
    end: ClockTime = Field(
        "24:00",
        description="End, HH:MM; this minute is not included. If it is not after `start`, it is on the next day.",
    )


class ScheduleSettings(Settings):
    """When a rule is active. Outside these hours it counts nothing and raises no event."""

    timezone: str = Field(
        min_length=1, max_length=64, description="IANA time zone, such as Europe/Berlin. Daylight saving is observed."
    )
    times: tuple[TimesSettings, ...] = Field(
        min_length=1, max_length=64, description="Hours in which the rule is active; one of the entries is enough."
    )


class ClipSettings(Settings):
    """The video of each event, copied from the camera without re-encoding."""

    pre_s: float = Field(
        5.0,
        ge=0,
        le=60,
        description="Length of the clip before the event, in seconds. It begins at a key frame, so it may begin "
        "earlier.",
    )
    post_s: float = Field(5.0, ge=0, le=300, description="Length of the clip after the end of the event, in seconds.")
    max_s: float = Field(
        300.0, ge=5, le=3600, description="Longest clip, in seconds. Of a longer event, only the beginning is kept."
    )
    audio: bool = Field(
        False,
        description="Also record the camera's sound. Recording speech needs consent in many places.",
    )


class RuleSettings(Settings):
    """What zones and lines have in common."""

    name: Name = Field(description="Name in events, counters and metrics; unique in its stream.")
    classes: tuple[str | int, ...] | None = Field(
        None, min_length=1, description="Only objects of these classes, by name or number. Default: all."
    )
    anchor: Anchor = Field(
        "bottom_center",
        description="Point of the box that is taken for the object's position. It stays where it was while the "
        "edge of the picture cuts the box.",
    )
    schedule: ScheduleSettings | None = Field(None, description="When the rule is active. Default: always.")
    cooldown_s: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="Shortest time between the starts of two events of this rule, in seconds. Counters still count.",
    )
    clip: ClipSettings | None = Field(
        None, description="Records a clip of each event; `{}` takes the defaults. Default: no clips."
    )

    snapshot: bool = Field(
        False,
        description="Saves a picture of each event: the frame that shows its object best, plain and with its box.",
    )

    @property
    def latest_s(self) -> float:
        """Longest time from the begin of an event until it is told, in seconds."""
        return 0.0


class ZoneSettings(RuleSettings):
    """A polygon of the picture: which objects are in it, since when, and for how long."""

    points: tuple[Point, ...] = Field(
        max_length=128,
        description="Corners of the polygon in order, at least three: x, y in 0..1 of the upright picture.",
    )
    min_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="Time that an object has to be inside before its event begins, in seconds. Raise it to ignore "
        "passers-by.",
    )
    hysteresis: float = Field(
        0.1,
        ge=0,
        le=5,
        description="How far outside the zone the anchor has to be before the object has left, in heights of its box.",
    )
    loiter_s: float | None = Field(
        None,
        gt=0,
        le=86_400,
        description="Time inside after which an object counts as loitering, in seconds; only time that was "
        "observed counts. Default: never.",
    )
    stationary_s: float = Field(
        10.0,
        gt=0,
        le=86_400,
        description="Time without moving after which an object is stationary, in seconds. If its track is lost and "
        "another begins in the same place within this time, both are the same object.",
    )

    @property
    def latest_s(self) -> float:
        """See `RuleSettings.latest_s`."""
        return self.min_s


class LineSettings(RuleSettings):
    """A line across the picture: which objects cross it, and in which direction."""

    points: tuple[Point, ...] = Field(
        max_length=2, description="Both ends of the line: x, y in 0..1 of the upright picture."
    )
    directions: tuple[Name, Name] = Field(
        ("in", "out"),
        description="Names of the two directions. Looking along the line from the first point to the second, the "
        "first name is for crossing from left to right, the second for right to left. Default: in, out.",
    )
    settle_s: float = Field(
        0.5,
        gt=0,
        le=10,
        description="Time that an object has to stay on each side of the line, before and after it crosses, in "
        "seconds. A crossing is certain if at least two processed frames on each side lie within it.",
    )
    hysteresis: float = Field(
        0.1,
        ge=0,
        le=5,
        description="How far from the line the anchor has to be to be clear of it, in heights of the object's box.",
    )

    @property
    def latest_s(self) -> float:
        """See `RuleSettings.latest_s`."""
        return 2 * self.settle_s
