"""What the flow needs to know about every stream, whatever its source."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from streamd.analysis.glance.health_settings import CameraHealthSettings
from streamd.analysis.glance.settings import LookSettings
from streamd.analysis.rules.checks import check_polygon, check_rules
from streamd.analysis.rules.settings import LineSettings, ZoneSettings
from streamd.settings import KindSettings, Milliseconds, Name, Problems, Seconds, Settings

RingPolicy = Literal["drop_oldest", "latest", "block"]
CLIP_SLACK_S = 5.0
"""Seconds of packets beyond what rules ask for: an event is decided once its frame has gone through the engine."""
DEFAULT_MAX_AGE_S = 1.0
"""Longer than a frame waits for a healthy engine, and shorter than a delay that still counts as live."""


class ReconnectSettings(Settings):
    """What to do when a stream fails."""

    initial_s: float = Field(
        0.5,
        ge=0.01,
        le=86_400,
        description="Delay before the first attempt, in seconds. It doubles with each further attempt, up to "
        "`max_s`; each delay is shortened by up to half at random.",
    )
    max_s: Seconds = Field(30.0, description="Longest delay between attempts, in seconds.")
    attempts: int | None = Field(
        None,
        ge=0,
        description="Number of failed attempts in a row after which the stream becomes FAILED. Default: no limit.",
    )


class ObjectiveSettings(Settings):
    """A stream's latency objective; the metrics count how often it is missed."""

    latency_ms: float = Field(
        200.0,
        gt=0,
        le=60_000,
        description="Largest time from reading a frame's packet to publishing its detections, in milliseconds.",
    )
    share: float = Field(
        0.99,
        gt=0,
        lt=1,
        description="Fraction of the frames that have to be published within that time. Dropped frames count as "
        "missed.",
    )


class StreamSettings(KindSettings):
    """Settings of every stream, whatever its kind."""

    id: Name = Field(description="Name of the stream in topics, metrics and logs; unique.")
    priority: int = Field(
        0,
        ge=-100,
        le=100,
        description="Streams of higher priority are batched first; every eighth frame comes from the stream that has "
        "waited longest, regardless of priority.",
    )
    device: int | None = Field(
        None,
        ge=0,
        description="Number of the device that runs the stream, one of `engine.device`. Default: the device with "
        "the fewest streams.",
    )
    ring: int = Field(4, ge=1, le=256, description="Number of decoded frames that may wait for the engine.")
    policy: RingPolicy | None = Field(
        None,
        description="What happens when the ring is full. drop_oldest: the oldest frame is dropped. latest: only "
        "the newest frame is kept. block: the source waits, so that no frame is lost (for files). Default: "
        "drop_oldest for live and paced streams, `block` for others.",
    )
    max_age_ms: Milliseconds | None = Field(
        None,
        description="Longest time that a decoded frame may wait, in milliseconds. An older one is dropped when its "
        "turn comes, with the reason too_old. 0: no limit. Default: 1000, or no limit if the policy is `block`.",
    )
    objective: ObjectiveSettings | None = Field(None, description="Latency objective. Default: none.")
    reconnect: ReconnectSettings = Field(ReconnectSettings(), description="What to do when the stream fails.")
    look: LookSettings = Field(
        LookSettings(), description="Whether the network processes every frame, or only those in which something moves."
    )

    camera_health: CameraHealthSettings = Field(
        CameraHealthSettings(), description="Detects that a camera is covered, blurred, frozen, moved and so on."
    )

    HOT: ClassVar[frozenset[str]] = frozenset(
        {
            "priority",
            "ring",
            "policy",
            "max_age_ms",
            "objective",
            "reconnect",
            "max_fps",
            "max_behind_ms",
            "zones",
            "lines",
        }
    )
    """Fields that change between two frames, without a new connection."""

    def connects_as(self, other: StreamSettings) -> bool:
        """True where `other` needs no connection of its own: only fields in `HOT` differ."""
        return type(self) is type(other) and all(
            getattr(self, name) == getattr(other, name) for name in type(self).model_fields if name not in self.HOT
        )

    zones: tuple[ZoneSettings, ...] = Field(
        (), max_length=256, description="Polygons of the picture in which objects are counted and timed."
    )
    lines: tuple[LineSettings, ...] = Field(
        (), max_length=256, description="Lines across the picture at which crossings are counted."
    )

    @property
    def live(self) -> bool:
        """True where the sender sets the pace and the end of input is a fault: anything but a file."""
        return True

    @property
    def paced(self) -> bool:
        """True where the source waits between frames to keep the input's own rate."""
        return False

    @property
    def has_packets(self) -> bool:
        """True where the source reads compressed video, from which clips are made."""
        return False

    @property
    def has_snapshots(self) -> bool:
        """Whether any rule asks for snapshots, or the camera's health needs them."""
        return self.camera_health.enabled or any(rule.snapshot for rule in (*self.zones, *self.lines))

    @property
    def clip_ring_s(self) -> float:
        """Seconds of packets that the clips of the rules need; 0 where no rule asks for clips."""
        needed = [rule.clip.pre_s + rule.latest_s for rule in (*self.zones, *self.lines) if rule.clip is not None]
        return max(needed) + CLIP_SLACK_S if needed else 0.0

    @property
    def clip_audio(self) -> bool:
        """Whether any rule asks for the sound in its clips."""
        return any(rule.clip is not None and rule.clip.audio for rule in (*self.zones, *self.lines))

    @property
    def ring_policy(self) -> RingPolicy:
        """`policy`, else block for what is read as fast as possible and drop_oldest for everything else."""
        if self.policy is not None:
            return self.policy
        return "drop_oldest" if self.live or self.paced else "block"

    @property
    def max_age_s(self) -> float | None:
        """Seconds that a decoded frame may wait for the engine; None for no bound."""
        if self.max_age_ms is None:
            return None if self.ring_policy == "block" else DEFAULT_MAX_AGE_S
        return self.max_age_ms / 1e3 or None

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        if self.policy == "latest" and self.ring != type(self).model_fields["ring"].default:
            yield ("ring",), "policy latest keeps one frame; remove ring"
        yield from check_rules(self.zones, self.lines)
        for i, mask in enumerate(self.look.masks):
            yield from check_polygon(("look", "masks", i), mask)
        if self.look.sensitivity != "auto" and not 1 <= self.look.sensitivity <= 10:
            yield ("look", "sensitivity"), f"expected auto or a number from 1 to 10, got {self.look.sensitivity:g}"
        for key, rules in (("zones", self.zones), ("lines", self.lines)):
            for i, rule in enumerate(rules):
                if rule.clip is not None and not self.has_packets:
                    yield (key, i, "clip"), "there is no compressed video to copy; expected a stream of kind av"
