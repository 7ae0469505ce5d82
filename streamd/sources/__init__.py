"""The source room: what turns a URL into frames.

A source is one small contract: it opens, yields frames, raises, and closes. It never retries; the stream's runner in
`flow.supervisor` owns its life. To add a source kind: write one file here, add its settings to `StreamConfig` and its
opener to `open_source`, and pass `tests/sources/test_contract.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import Discriminator, Field, Tag

from streamd.settings import Milliseconds, Name, Seconds, Settings
from streamd.sources.clock import StreamClock
from streamd.types import Frame


@dataclass(slots=True, frozen=True)
class SourceInfo:
    """What was found when the source opened."""

    codec: str
    decoder: str
    """software or nvdec"""
    width: int
    """As declared, in pixels: rotation and changes in mid-stream are the frames' own."""
    height: int
    fps: float
    """As declared by the stream; 0 where unknown."""
    live: bool
    """True where the sender sets the pace (a camera); False for a file."""


class Source(Protocol):
    """One opened-once input. `open` and `frames` are called by one thread, `close` by any."""

    def open(self) -> SourceInfo:
        """Connects, probes, and prepares the decoder.

        Raises:
            SourceError: with the reason; the source is closed and not used again.
        """
        ...

    corrupt: int
    """Packets or frames the decoder refused so far."""
    skipped: int
    """Frames left out by max_fps so far."""
    lost: int
    """RTP packets that never came, as far as FFmpeg tells."""
    deadline: float
    """Monotonic seconds by which the call that is under way must have returned; infinite where none is. A source that
    is past it hangs for good."""
    clock: StreamClock
    """What is known of the sender's clocks."""

    def frames(self) -> Iterator[Frame]:
        """Yields frames in presentation order until the input ends. `epoch` and `seq` are left to the caller.

        A frame that is `quarantined` is to be counted and let go.

        Paced sources sleep here; a blocked consumer simply delays the next read.

        Raises:
            SourceError: the input broke; never for one bad packet.
        """
        ...

    def close(self) -> None:
        """Cuts whatever `open` or `frames` is waiting for, within a second. Idempotent, callable from any thread."""
        ...


class CropSettings(Settings):
    """The part of the upright picture to look at, in pixels. Boxes are still published in whole-picture pixels."""

    x: int = Field(ge=0, description="Left edge.")
    y: int = Field(ge=0, description="Top edge.")
    width: int = Field(ge=16, description="Width.")
    height: int = Field(ge=16, description="Height.")


class ReconnectSettings(Settings):
    """What happens when a stream breaks."""

    initial_s: Seconds = Field(0.5, description="Wait before the first new attempt, in seconds.")
    max_s: Seconds = Field(30.0, description="Longest wait between attempts, in seconds.")
    attempts: int | None = Field(
        None, ge=0, description="Attempts in a row before the stream is FAILED. Default: no limit."
    )


class ObjectiveSettings(Settings):
    """What a stream is held to; how much of it is missed is in the metrics."""

    latency_ms: float = Field(
        200.0, gt=0, le=60_000, description="From reading a frame's packet to its detections, in milliseconds."
    )
    share: float = Field(
        0.99, gt=0, lt=1, description="Part of the frames that are to be published within that time. Dropped ones miss."
    )


class StreamSettings(Settings):
    """What every stream has, whatever its kind."""

    id: Name = Field(description="Name of the stream in topics, metrics and logs. Unique.")
    priority: int = Field(
        0,
        ge=-100,
        le=100,
        description="Streams of higher priority are batched first; every eighth frame is that of the stream which was "
        "served longest ago, whatever its priority.",
    )
    crop: CropSettings | None = Field(None, description="Look only at this part of the picture.")
    device: int | None = Field(
        None,
        ge=0,
        description="Which of the engine's devices serves the stream. Default: the one with the fewest streams.",
    )
    max_fps: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Use at most this many frames a second; the others are decoded and let go.",
    )
    ring: int = Field(4, ge=1, le=256, description="Decoded frames kept waiting for the engine.")
    policy: Literal["drop_oldest", "latest", "block"] | None = Field(
        None,
        description="When the ring is full: drop_oldest drops the oldest frame; latest keeps only the newest; block "
        "waits, so that nothing is lost (files). Default: drop_oldest for live and paced streams, block for others.",
    )
    max_age_ms: Milliseconds | None = Field(
        None,
        description="A frame that has waited for the engine for longer than this since it was decoded is dropped when "
        "its turn comes (too_old), in milliseconds; 0 for no bound. Default: 1000, no bound where the policy is block.",
    )
    objective: ObjectiveSettings | None = Field(None, description="Latency objective. Default: none.")
    reconnect: ReconnectSettings = Field(ReconnectSettings(), description="What happens when the stream breaks.")


class AvStreamSettings(StreamSettings):
    """A file, camera or network stream read with FFmpeg (PyAV)."""

    kind: Literal["av"] = "av"
    url: str = Field(min_length=1, description="File path, or rtsp/http/rtmp/srt/udp URL, or /dev/videoN.")
    transport: Literal["tcp", "udp", "auto"] = Field("tcp", description="RTSP transport; auto tries UDP, then TCP.")
    open_timeout_s: Seconds = Field(10.0, description="Longest time for connecting and probing, in seconds.")
    read_timeout_s: Seconds = Field(5.0, description="Longest silence before the stream counts as lost, in seconds.")
    frames: Literal["all", "key"] = Field("all", description="key decodes key frames only.")
    decode: Literal["auto", "software", "nvdec"] = Field(
        "auto", description="auto: the GPU's decoder where the engine runs on that GPU, software otherwise."
    )
    decoder_threads: int = Field(1, ge=0, le=64, description="Threads of the software decoder; 0 lets FFmpeg choose.")
    isolation: Literal["thread", "process"] = Field(
        "thread",
        description="Where the stream is read and decoded: thread in the daemon; process in a process of its own, so "
        "that a decoder that crashes, hangs or leaks ends this stream only, for a copy of each picture and some memory "
        "(docs/reliability.md). A process decodes in software.",
    )
    max_rss_mb: int | None = Field(
        None,
        ge=100,
        le=1_000_000,
        description="isolation: process only. A decoder process with more memory of its own than this, in megabytes, "
        "is ended and the stream connected again. Default: no limit.",
    )
    loop: bool = Field(False, description="Start a file again when it ends.")
    start_s: float = Field(
        0.0, ge=0, le=1e6, description="Files: play from here, in seconds from the beginning. Repeats play the whole."
    )
    pace: Literal["auto", "realtime", "asap"] = Field(
        "auto",
        description="Files: realtime plays at the clip's own rate, asap as fast as possible. auto: realtime.",
    )
    on_corruption: Literal["quarantine", "publish"] = Field(
        "quarantine",
        description="Damaged pictures, and those predicted from them: quarantine drops them until the next clean key "
        "frame (for 30 s at most) with the reason quarantine; publish treats them as if they were sound.",
    )
    clock_max_offset_s: float = Field(
        10.0,
        ge=0,
        description="A camera's wall clock (RTCP sender reports) gives captured_at while it is within so many seconds "
        "of arrival; else arrival does. 0: always arrival.",
    )
    options: dict[str, str] = Field(default_factory=dict, description="Further FFmpeg demuxer options, verbatim.")


class SyntheticStreamSettings(StreamSettings):
    """Drawn frames with no file or camera behind them: load, scheduling and fault tests."""

    kind: Literal["synthetic"] = "synthetic"
    width: int = Field(640, ge=16, le=8192, description="Pixels.")
    height: int = Field(480, ge=16, le=8192, description="Pixels.")
    fps: float = Field(25.0, ge=0, le=10_000, description="Frames a second; 0 is as fast as possible.")
    count: int | None = Field(None, ge=0, description="Frames until the end. Default: endless.")
    fail_after: int | None = Field(None, ge=0, description="Frames after which the source breaks with reason corrupt.")


def _kind(value: Any) -> str:
    kind = value.get("kind", "av") if isinstance(value, dict) else getattr(value, "kind", "av")
    return str(kind)


StreamConfig = Annotated[
    Annotated[AvStreamSettings, Tag("av")] | Annotated[SyntheticStreamSettings, Tag("synthetic")],
    Discriminator(_kind),
]


def is_live(settings: AvStreamSettings | SyntheticStreamSettings) -> bool:
    """True where the sender sets the pace and the end of input is a fault: anything but a file."""
    if isinstance(settings, SyntheticStreamSettings):
        return settings.count is None
    path = settings.url.removeprefix("file:")
    return "://" in path or path.startswith("/dev/video")


def paces(settings: AvStreamSettings | SyntheticStreamSettings) -> bool:
    """True where the source waits between frames to keep the input's own rate."""
    if isinstance(settings, SyntheticStreamSettings):
        return settings.fps > 0
    return not is_live(settings) and settings.pace != "asap"


def default_policy(settings: AvStreamSettings | SyntheticStreamSettings) -> Literal["drop_oldest", "latest", "block"]:
    """The ring's policy: the configured one, else block for files read as fast as possible, drop_oldest otherwise."""
    if settings.policy is not None:
        return settings.policy
    return "drop_oldest" if is_live(settings) or paces(settings) else "block"


DEFAULT_MAX_AGE_S = 1.0
"""Longer than any engine in order makes a frame wait, shorter than anybody takes for live."""


def max_age(settings: AvStreamSettings | SyntheticStreamSettings) -> float | None:
    """Seconds that a decoded frame may wait for the engine; None for no bound."""
    if settings.max_age_ms is None:
        return None if default_policy(settings) == "block" else DEFAULT_MAX_AGE_S
    return settings.max_age_ms / 1e3 or None


def open_source(
    settings: AvStreamSettings | SyntheticStreamSettings, *, device: int | None = None, held: int = 8
) -> Source:
    """Makes the source that `settings` describes; nothing is connected yet.

    Args:
        settings: one member of the union.
        device: CUDA device whose decoder `decode: auto` should use, None for software.
        held: pictures that may be held beside the ring at the same time.
    """
    if isinstance(settings, SyntheticStreamSettings):
        from streamd.sources.synthetic import SyntheticSource

        return SyntheticSource(settings)
    if settings.isolation == "process":
        from streamd.sources.process import ProcessSource

        return ProcessSource(settings, held=held)
    from streamd.sources.av import AvSource

    return AvSource(settings, device=device)
