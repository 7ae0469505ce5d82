"""Several boxes that share the streams of one configuration: what a fleet is made of, and which box serves what.

`placement` decides, from names and numbers alone; `plan` answers what would happen if a box were lost, or how many
boxes are needed. `coordinator` keeps a running fleet together, from the `records` that boxes send. Nothing here talks
to a machine.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from streamd.settings import LISTEN_PATTERN, ConfigPath, Pattern, Settings

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
BOX_VARIABLES = {"STREAMD_BOX": "box", "STREAMD_BOX_INDEX": "1"}
"""Variables that differ between the boxes of a fleet, where a configuration is read for no box in particular."""
Name = Annotated[
    str, Field(pattern=NAME_PATTERN, max_length=64), Pattern("expected letters, digits, dots, dashes or underscores")
]
FramesPerSecond = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
StreamCount = Annotated[int, Field(ge=1, le=100_000)]


class BoxSettings(Settings):
    """What one box can do."""

    fps: FramesPerSecond = Field(
        description="Frames per second that a box can analyse within its latency objective, all streams together; "
        "docs/fleet.md says how to measure it."
    )
    streams: StreamCount = Field(1024, description="Largest number of streams of a box, whatever their rate.")
    gpus: float = Field(
        1.0,
        ge=0,
        le=16,
        description="GPUs per box, on nodes that have any: 0.5 puts two boxes on a GPU. 0: one box per node, which "
        "asks for no GPU.",
    )
    memory_gb: float = Field(
        0.0, ge=0, le=1e5, description="Memory that a box reserves on its node, in gigabytes. 0: none."
    )


class NodeSettings(Settings):
    """One box that differs from the others, or that only some cameras can be reached from."""

    name: Name = Field(description="Name of the box.")
    labels: tuple[Name, ...] = Field(
        (), max_length=64, description="Names that `reach` refers to, such as a site or a network."
    )
    fps: FramesPerSecond | None = Field(None, description="Frames per second of this box. Default: `box.fps`.")
    streams: StreamCount | None = Field(
        None, description="Largest number of streams of this box. Default: `box.streams`."
    )


class ReachSettings(Settings):
    """Streams that only some boxes can reach."""

    streams: str = Field(
        min_length=1, max_length=256, description="Ids of the streams; `*` and `?` stand for other characters."
    )
    labels: tuple[Name, ...] = Field(
        min_length=1, max_length=64, description="Labels of the boxes that reach them; a box needs one of them."
    )


class SpreadSettings(Settings):
    """Streams that are kept on different boxes, so that not all of them are lost with one."""

    streams: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        min_length=1, max_length=1000, description="Ids of the streams; `*` and `?` stand for other characters."
    )


class RateSettings(Settings):
    """Frame rate of some streams, where it is not that of the others."""

    streams: str = Field(
        min_length=1, max_length=256, description="Ids of the streams; `*` and `?` stand for other characters."
    )
    fps: FramesPerSecond = Field(description="Frames per second that each of them delivers.")


class FleetSettings(Settings):
    """The boxes of a fleet, and what its streams ask of them."""

    boxes: int = Field(
        1, ge=0, le=1000, description="Number of equal boxes, in addition to `nodes`: box-1, box-2 and so on."
    )
    box: BoxSettings = Field(description="What one box can do.")
    nodes: tuple[NodeSettings, ...] = Field((), max_length=1000, description="Boxes with names of their own.")
    reach: tuple[ReachSettings, ...] = Field(
        (),
        max_length=1000,
        description="Streams that only some boxes can reach. The first entry that fits a stream applies.",
    )
    spread: tuple[SpreadSettings, ...] = Field(
        (),
        max_length=1000,
        description="Streams that are kept apart as far as there is room: on different machines, otherwise on "
        "different boxes. The first entry that fits a stream applies.",
    )
    most: int = Field(1000, ge=1, le=1000, description="Largest number of boxes, however many nodes the cluster has.")
    listen: (
        Annotated[str, Field(pattern=LISTEN_PATTERN), Pattern("expected HOST:PORT, as in 127.0.0.1:9189 or [::1]:9189")]
        | None
    ) = Field(
        "127.0.0.1:9189",
        description="HOST:PORT of the coordinator: /metrics, /healthz, /status, and /sd, from which Prometheus learns "
        "of all boxes; null to disable. Port 0 chooses a free one.",
    )
    state_dir: ConfigPath | None = Field(
        None,
        description="Folder on each node for its boxes: configuration, log, journals. Default: `fleet` in the "
        "service manager's state folder (`$STATE_DIRECTORY`), otherwise in `$XDG_STATE_HOME/streamd` "
        "(`~/.local/state/streamd`).",
    )
    stream_fps: FramesPerSecond = Field(
        25.0, description="Frames per second that a stream delivers, at most its `max_fps`."
    )
    rates: tuple[RateSettings, ...] = Field(
        (), max_length=1000, description="Streams with another rate. The first entry that fits a stream applies."
    )
    moves_per_minute: int = Field(
        30,
        ge=1,
        le=100_000,
        description="Largest number of streams per minute that are moved although they could stay: to a box that "
        "joins, away from one that is drained or overloaded, or apart (`spread`). Streams of a lost box move at "
        "once.",
    )
    single_session: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        (),
        max_length=1000,
        description="Ids of streams whose cameras serve only one session at a time; `*` and `?` stand for other "
        "characters. When such a stream moves, its old box disconnects before the new one connects. With all "
        "others, the new box connects first.",
    )


class ShareSettings(Settings):
    """One of several daemons with the same configuration, each of which serves a share of the streams."""

    index: Annotated[int, Field(ge=0, le=999)] | Literal["auto"] = Field(
        "auto",
        description="Number of this daemon, from 0. auto: the number at the end of the host name, as a Kubernetes "
        "StatefulSet assigns it (streamd-2).",
    )
    count: int = Field(ge=1, le=1000, description="Number of daemons.")
