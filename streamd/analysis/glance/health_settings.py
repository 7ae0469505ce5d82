"""The section `camera_health` of a stream."""

from __future__ import annotations

from pydantic import Field

from streamd.settings import Settings


class CameraHealthSettings(Settings):
    """Whether the camera can see: covered, dark, overexposed, blurred, frozen, moved, or a picture of the recorder."""

    enabled: bool = Field(False, description="Whether the health of this camera is watched. Off, it costs nothing.")
    rate: float = Field(2.0, ge=1, le=5, description="Number of pictures examined per second.")
    begin_s: float = Field(
        4.0, ge=1, le=60, description="Time that a fault has to last before it is reported, in seconds."
    )
    end_s: float = Field(5.0, ge=1, le=300, description="Time without the fault after which it is over, in seconds.")
    frozen_s: float = Field(
        5.0,
        ge=2,
        le=600,
        description="Shortest time without any change that counts as frozen, in seconds. It grows by itself for a "
        "camera whose picture is often still.",
    )
    accept_moved_s: float = Field(
        3600.0,
        ge=60,
        le=604_800,
        description="Time after which the view of a moved camera is accepted as its normal one, in seconds.",
    )
