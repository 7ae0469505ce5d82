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
    """Properties of a source, known once it is open."""

    codec: str
    decoder: str
    """software or nvdec"""
    width: int
    """As declared, in pixels. Rotation and mid-stream changes are properties of the frames."""
    height: int
    fps: float
    """As declared by the stream; 0 if unknown."""
    live: bool
    """True if the sender sets the pace (a camera); False for a file."""


class Source(Protocol):
    """One opened-once input. `open` and `frames` are called by one thread, `close` by any."""

    def open(self) -> SourceInfo:
        """Connects, probes, and prepares the decoder.

        Raises:
            SourceError: with the reason; the source is closed and not used again.
        """
        ...

    corrupt: int
    """Packets or frames that the decoder has rejected so far."""
    skipped: int
    """Frames skipped by max_fps so far."""
    lost: int
    """Lost RTP packets, as reported by FFmpeg."""
    deadline: float
    """Monotonic time by which the current call must have returned, in seconds; infinite if there is none. A source that
    exceeds it hangs for good."""
    clock: StreamClock
    """Measurements of the sender's clocks."""

    def frames(self) -> Iterator[Frame]:
        """Yields frames in presentation order until the input ends. `epoch` and `seq` are left to the caller.

        The caller counts a `quarantined` frame and releases it.

        Paced sources sleep here; a blocked consumer only delays the next read.

        Raises:
            SourceError: the input failed; never for a single bad packet.
        """
        ...

    def close(self) -> None:
        """Interrupts a waiting `open` or `frames` within a second. Idempotent, callable from any thread."""
        ...


class CropSettings(Settings):
    """The part of the upright picture to analyse, in pixels. Boxes are still published in whole-picture pixels."""

    x: int = Field(ge=0, description="Left edge.")
    y: int = Field(ge=0, description="Top edge.")
    width: int = Field(ge=16, description="Width.")
    height: int = Field(ge=16, description="Height.")


class ReconnectSettings(Settings):
    """What to do when a stream fails."""

    initial_s: Seconds = Field(0.5, description="Delay before the first reconnection attempt, in seconds.")
    max_s: Seconds = Field(30.0, description="Longest delay between attempts, in seconds.")
    attempts: int | None = Field(
        None, ge=0, description="Consecutive attempts before the stream becomes FAILED. Default: no limit."
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
        0.99, gt=0, lt=1, description="Fraction of frames to publish within that time. Dropped frames count as missed."
    )


class StreamSettings(Settings):
    """Settings common to all kinds of stream."""

    id: Name = Field(description="Name of the stream in topics, metrics and logs. Unique.")
    priority: int = Field(
        0,
        ge=-100,
        le=100,
        description="Streams of higher priority are batched first; every eighth frame comes from the stream that has "
        "waited longest, regardless of priority.",
    )
    crop: CropSettings | None = Field(None, description="Analyse only this part of the picture.")
    device: int | None = Field(
        None,
        ge=0,
        description="Which of the engine's devices runs the stream. Default: the one with the fewest streams.",
    )
    max_fps: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Analyse at most this many frames per second; the others are decoded and discarded.",
    )
    ring: int = Field(4, ge=1, le=256, description="Number of decoded frames that may wait for the engine.")
    policy: Literal["drop_oldest", "latest", "block"] | None = Field(
        None,
        description="When the ring is full: drop_oldest drops the oldest frame; latest keeps only the newest; block "
        "waits, so that no frame is lost (files). Default: drop_oldest for live and paced streams, block for others.",
    )
    max_age_ms: Milliseconds | None = Field(
        None,
        description="A frame that has waited longer than this since it was decoded, in milliseconds, is dropped when "
        "its turn comes (too_old); 0: no limit. Default: 1000, or no limit if the policy is block.",
    )
    objective: ObjectiveSettings | None = Field(None, description="Latency objective. Default: none.")
    reconnect: ReconnectSettings = Field(ReconnectSettings(), description="What to do when the stream fails.")


class AvStreamSettings(StreamSettings):
    """A file, camera or network stream read with FFmpeg (PyAV)."""

    kind: Literal["av"] = "av"
    url: str = Field(min_length=1, description="File path, rtsp/http/rtmp/srt/udp URL, or /dev/videoN.")
    transport: Literal["tcp", "udp", "auto"] = Field(
        "tcp", description="RTSP transport; auto tries UDP first, then TCP."
    )
    open_timeout_s: Seconds = Field(10.0, description="Timeout for connecting and probing, in seconds.")
    read_timeout_s: Seconds = Field(
        5.0, description="Longest silence before the stream is considered lost, in seconds."
    )
    frames: Literal["all", "key"] = Field("all", description="key: decode key frames only.")
    decode: Literal["auto", "software", "nvdec"] = Field(
        "auto", description="auto: the GPU's decoder if the engine runs on that GPU, otherwise software."
    )
    decoder_threads: int = Field(1, ge=0, le=64, description="Threads of the software decoder; 0: FFmpeg chooses.")
    isolation: Literal["thread", "process"] = Field(
        "thread",
        description="Where the stream is read and decoded. thread: in the daemon. process: in its own process, so that "
        "a decoder that crashes, hangs or leaks affects this stream only; costs a copy of each picture and some memory "
        "(docs/reliability.md). A process always decodes in software.",
    )
    max_rss_mb: int | None = Field(
        None,
        ge=100,
        le=1_000_000,
        description="Only with isolation: process. A decoder process that uses more private memory than this, in "
        "megabytes, is terminated and the stream reconnected. Default: no limit.",
    )
    loop: bool = Field(False, description="Restart a file when it ends.")
    start_s: float = Field(
        0.0, ge=0, le=1e6, description="Files: start position in seconds. Later repeats play the whole file."
    )
    pace: Literal["auto", "realtime", "asap"] = Field(
        "auto",
        description="Files: realtime plays at the clip's own rate, asap as fast as possible. auto means realtime.",
    )
    on_corruption: Literal["quarantine", "publish"] = Field(
        "quarantine",
        description="Damaged pictures, and pictures predicted from them. quarantine: drop them until the next clean "
        "key frame (for 30 s at most), with the reason quarantine. publish: treat them as intact.",
    )
    clock_max_offset_s: float = Field(
        10.0,
        ge=0,
        description="Take captured_at from the camera's wall clock (RTCP sender reports) while it is within this many "
        "seconds of the arrival time, otherwise from the arrival time. 0: always the arrival time.",
    )
    options: dict[str, str] = Field(
        default_factory=dict, description="Additional FFmpeg demuxer options, passed on unchanged."
    )


class SyntheticStreamSettings(StreamSettings):
    """Generated frames without a file or camera, for load, scheduling and fault tests."""

    kind: Literal["synthetic"] = "synthetic"
    width: int = Field(640, ge=16, le=8192, description="Pixels.")
    height: int = Field(480, ge=16, le=8192, description="Pixels.")
    fps: float = Field(25.0, ge=0, le=10_000, description="Frames per second; 0: as fast as possible.")
    count: int | None = Field(None, ge=0, description="Number of frames. Default: endless.")
    fail_after: int | None = Field(
        None, ge=0, description="Number of frames after which the source fails with the reason corrupt."
    )


def _kind(value: Any) -> str:
    kind = value.get("kind", "av") if isinstance(value, dict) else getattr(value, "kind", "av")
    return str(kind)


StreamConfig = Annotated[
    Annotated[AvStreamSettings, Tag("av")] | Annotated[SyntheticStreamSettings, Tag("synthetic")],
    Discriminator(_kind),
]


def is_live(settings: AvStreamSettings | SyntheticStreamSettings) -> bool:
    """True if the sender sets the pace and the end of input is a fault: for anything but a file."""
    if isinstance(settings, SyntheticStreamSettings):
        return settings.count is None
    path = settings.url.removeprefix("file:")
    return "://" in path or path.startswith("/dev/video")


def paces(settings: AvStreamSettings | SyntheticStreamSettings) -> bool:
    """True if the source waits between frames to keep the input's own rate."""
    if isinstance(settings, SyntheticStreamSettings):
        return settings.fps > 0
    return not is_live(settings) and settings.pace != "asap"


def default_policy(settings: AvStreamSettings | SyntheticStreamSettings) -> Literal["drop_oldest", "latest", "block"]:
    """The ring's policy: as configured, otherwise block for files read as fast as possible, else drop_oldest."""
    if settings.policy is not None:
        return settings.policy
    return "drop_oldest" if is_live(settings) or paces(settings) else "block"


DEFAULT_MAX_AGE_S = 1.0
"""Longer than a healthy engine makes any frame wait, yet short enough to count as live."""


def max_age(settings: AvStreamSettings | SyntheticStreamSettings) -> float | None:
    """Seconds that a decoded frame may wait for the engine; None for no limit."""
    if settings.max_age_ms is None:
        return None if default_policy(settings) == "block" else DEFAULT_MAX_AGE_S
    return settings.max_age_ms / 1e3 or None


def open_source(
    settings: AvStreamSettings | SyntheticStreamSettings, *, device: int | None = None, held: int = 8
) -> Source:
    """Creates the source that `settings` describe, without connecting yet.

    Args:
        settings: one member of the union.
        device: CUDA device whose decoder `decode: auto` should use, None for software.
        held: pictures that may be in use outside the ring at the same time.
    """
    if isinstance(settings, SyntheticStreamSettings):
        from streamd.sources.synthetic import SyntheticSource

        return SyntheticSource(settings)
    if settings.isolation == "process":
        from streamd.sources.process import ProcessSource

        return ProcessSource(settings, held=held)
    from streamd.sources.av import AvSource

    return AvSource(settings, device=device)
