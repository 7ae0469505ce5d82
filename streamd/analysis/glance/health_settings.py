"""The section `camera_health` of a stream."""

from __future__ import annotations

from pydantic import Field

from streamd.settings import Settings


class CameraHealthSettings(Settings):
    """Whether the camera can see: covered, dark, overexposed, blurred, frozen, moved, or a picture of the recorder."""

    enabled: bool = Field(False, description="Watch the health of this camera. Off, it costs nothing.")
    rate: float = Field(2.0, ge=1, le=5, description="Pictures to look at each second.")
    begin_s: float = Field(
        4.0, ge=1, le=60, description="A fault is reported once it has lasted for this long, seconds."
    )
    end_s: float = Field(5.0, ge=1, le=300, description="It is over once it has not been seen for this long, seconds.")
    frozen_s: float = Field(
        5.0,
        ge=2,
        le=600,
        description="Shortest time without any change that is a frozen picture, seconds. "
        "A camera whose picture is often still gets longer by itself.",
    )
    accept_moved_s: float = Field(
        3600.0,
        ge=60,
        le=604_800,
        description="Another scene that has stayed for this long is the scene from then on, seconds.",
    )
