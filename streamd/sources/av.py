"""Files, cameras and network streams read with FFmpeg: their settings. `av_source` reads them."""

from __future__ import annotations

import difflib
import os
import re
from typing import Literal

from pydantic import Field

from streamd.errors import ConfigError
from streamd.flow.contracts import Source
from streamd.flow.packets import PacketSink
from streamd.flow.settings import StreamSettings
from streamd.security.redact import redact
from streamd.settings import ConfigPath, Milliseconds, Problems, Seconds, schema_of
from streamd.sources import SOURCES, SourceSettings
from streamd.sources.authority import WITH_HOST, authority_problem

_URL = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
SCHEMES = frozenset(
    ("amqp", "async", "bluray", "cache", "concat", "concatf", "crypto", "data", "dtls", "fd", "ffrtmpcrypt",
     "ffrtmphttp", "file", "ftp", "gopher", "gophers", "hls", "hls+file", "hls+http", "hls+https", "http",
     "httpproxy", "https", "ipfs", "ipns", "md5", "mms", "mmsh", "mmst", "pipe", "prompeg", "rist", "rtmp",
     "rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts", "rtp", "rtsp", "rtsps", "sap", "satip", "sctp", "sftp", "smb",
     "srt", "srtp", "subfile", "tcp", "tls", "udp", "udplite", "unix", "whep", "zmq")
)  # fmt: skip
"""Every protocol of FFmpeg, whether a build has it or not. Its builds offer no list of theirs to PyAV."""
_NEARLY = re.compile(r"(?:^|/)\s*(?P<scheme>rtsps?|rtmps?|https?|srt|udp|rtp|tcp):(?![/\\]{0,2}$)", re.IGNORECASE)
"""What was meant for a URL, and became a path."""
DEFAULT_MAX_BEHIND_NS = 2_000_000_000
"""A short outage of the network is over before, and what is shown still counts as live."""
LEAST_BEHIND_MS = 500
"""Less cannot be told from jitter."""
_PACEABLE = ("file", "http", "https", "ftp", "sftp", "smb", "hls")
"""Schemes behind which there may be a file or a playlist."""


@SOURCES.register
class AvStreamSettings(SourceSettings):
    """A file, camera or network stream read with FFmpeg (PyAV)."""

    kind: Literal["av"] = "av"
    url: ConfigPath = Field(min_length=1, description="Path of a file, rtsp/http/rtmp/srt/udp URL, or /dev/videoN.")
    transport: Literal["tcp", "udp", "auto"] = Field(
        "tcp", description="Transport of RTSP. auto: UDP is tried first, then TCP."
    )
    open_timeout_s: Seconds = Field(10.0, description="Longest time for connecting and probing, in seconds.")
    read_timeout_s: Seconds = Field(
        5.0, description="Longest silence before the stream is considered lost, in seconds."
    )
    frames: Literal["all", "key"] = Field(
        "all", description="Which frames are decoded. all: every frame. key: key frames only."
    )
    decode: Literal["auto", "software", "nvdec"] = Field(
        "auto", description="The decoder. auto: the GPU's (nvdec) if the engine runs on that GPU, otherwise software."
    )
    decoder_threads: int = Field(
        1, ge=0, le=64, description="Number of threads of the software decoder; 0: FFmpeg chooses."
    )
    isolation: Literal["thread", "process"] = Field(
        "thread",
        description="Where the stream is read and decoded. thread: in the daemon. process: in its own process, so "
        "that a decoder that crashes, hangs or leaks affects this stream only. This costs a copy of each picture "
        "and some memory (docs/reliability.md), and always decodes in software.",
    )
    max_rss_mb: int | None = Field(
        None,
        ge=100,
        le=1_000_000,
        description="With isolation: process, the largest private memory of the decoder process, in megabytes. "
        "Above it, the process is terminated and the stream reconnects. Default: no limit.",
    )
    loop: bool = Field(False, description="Whether a file starts again when it ends.")
    start_s: float = Field(
        0.0, ge=0, le=1e6, description="Files: where to start, in seconds. With `loop`, repeats play the whole file."
    )
    pace: Literal["auto", "realtime", "asap"] = Field(
        "auto",
        description="How fast a file is played. realtime: at its own rate. asap: as fast as possible. auto: realtime.",
    )
    on_corruption: Literal["quarantine", "publish"] = Field(
        "quarantine",
        description="What becomes of damaged pictures, and of pictures predicted from them. quarantine: they are "
        "dropped until the next clean key frame (for 30 s at most), with the reason `quarantine`. publish: they "
        "are treated as intact.",
    )
    track: int | None = Field(
        None,
        ge=0,
        description="Number of the video track to read if there are several, counted from 0 in the order of the "
        "container. Default: the one marked as default, otherwise the largest; never a cover picture.",
    )
    every_s: Seconds = Field(
        1.0,
        description="Still pictures: time between two fetches of a snapshot URL, or between two repeats of an "
        "image file with `loop`, in seconds.",
    )
    pixel_aspect: Literal["display", "square"] = Field(
        "display",
        description="For video with oblong pixels (anamorphic). display: objects are detected in the picture as it "
        "is meant to be shown. square: in the picture as it is stored. Boxes are published in stored pixels in "
        "either case.",
    )
    clock_max_offset_s: float = Field(
        10.0,
        ge=0,
        description="captured_at is the camera's own time (RTCP sender reports) while it differs from the time of "
        "arrival by at most this many seconds, otherwise the time of arrival. 0: always the time of arrival.",
    )
    max_behind_ms: Milliseconds | None = Field(
        None,
        json_schema_extra=schema_of({"const": 0}, {"type": "number", "minimum": LEAST_BEHIND_MS, "maximum": 60_000}),
        description="Live streams: largest delay in reading, in milliseconds, on a machine that is too slow. "
        "Beyond it, the stream goes on with the newest key frame; what is left out is dropped with the reason "
        "`behind`. 0: never. Default: 2000, or 0 if the policy is `block`.",
    )
    options: dict[str, str] = Field(
        default_factory=dict, description="Further options of FFmpeg's demuxer, passed on unchanged."
    )

    @property
    def live(self) -> bool:
        """See `StreamSettings.live`."""
        path = self.url.removeprefix("file:")
        return "://" in path or path.startswith("/dev/video")

    @property
    def max_behind_ns(self) -> int | None:
        """Nanoseconds from which on a live stream catches up; None: never."""
        if self.max_behind_ms is None:
            return None if self.ring_policy == "block" else DEFAULT_MAX_BEHIND_NS
        return round(self.max_behind_ms * 1e6) or None

    @property
    def paced(self) -> bool:
        """See `StreamSettings.paced`."""
        return not self.live and self.pace != "asap"

    @property
    def has_packets(self) -> bool:
        """See `StreamSettings.has_packets`."""
        return True

    def connects_as(self, other: StreamSettings) -> bool:
        """See `StreamSettings.connects_as`. A decoder process has as many buffers as the ring that it began with, and
        passes packets on or does not."""
        if not super().connects_as(other) or self.clip_audio != other.clip_audio:
            return False  # sound is asked for, or not, when the connection is made
        if self.isolation == "thread":
            return True
        return self.ring <= other.ring and bool(self.clip_ring_s) == bool(other.clip_ring_s)

    @property
    def _listens(self) -> bool:
        """Whether it is the camera that connects."""
        told = (self.url.partition("?")[2], *self.options, *self.options.values())
        return any("listen" in each for each in told)

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        yield from super().check()
        match = _URL.match(self.url)
        url = match is not None
        scheme = match["scheme"].lower() if match else ""
        if not url and (nearly := _NEARLY.search(self.url)) is not None and not os.path.exists(self.url):
            yield (
                ("url",),
                f"is read as the path of a file; a URL begins with {nearly['scheme'].lower()}://, without a space",
            )
        elif url and self.url != self.url.strip():
            yield ("url",), "ends with a space or a line break"
        elif url and scheme not in SCHEMES:
            close = difflib.get_close_matches(scheme, ("rtsp", "rtmp", "http", "https", "srt", "udp"), n=1)
            hint = (
                f"did you mean {close[0]}?" if close else "expected rtsp, http, rtmp, srt, udp or another one of FFmpeg"
            )
            yield ("url",), f"{scheme}:// is no protocol that FFmpeg knows; {hint}"
        elif scheme in WITH_HOST and (problem := authority_problem(self.url, listens=self._listens)) is not None:
            yield ("url",), problem
        elif self.pace != "auto" and (self.url.startswith("/dev/") or (url and scheme not in _PACEABLE)):
            yield ("pace",), "only files, HLS and HTTP have a pace of their own; remove it"
        if self.loop and url and not self.url.startswith("file:"):
            yield ("loop",), "only a file can loop"
        if self.start_s and self.live:
            yield ("start_s",), "only a file has a beginning"
        if not url and self.transport == "udp":
            yield ("transport",), "a file has no transport"
        if self.max_behind_ms is not None and 0 < self.max_behind_ms < LEAST_BEHIND_MS:
            yield ("max_behind_ms",), f"less than {LEAST_BEHIND_MS} ms cannot be told from jitter; 0 turns it off"
        if self.max_behind_ms and not self.live:
            yield ("max_behind_ms",), "only a live stream can be read later than it is sent; remove it"
        if self.isolation == "process" and self.decode == "nvdec":
            message = "pictures in GPU memory cannot be handed over by a decoder process"
            yield ("decode",), f"{message}; set decode: software or isolation: thread"
        if self.isolation == "thread" and self.max_rss_mb is not None:
            yield ("max_rss_mb",), "only a decoder process has a limit of its own; set isolation: process"

    def open(self, *, device: int | None = None, held: int = 8) -> Source:
        """See `SourceSettings.open`."""
        return self._open(device, held, None)

    def open_recorded(self, packets: PacketSink, *, device: int | None = None, held: int = 8) -> Source:
        """See `SourceSettings.open_recorded`."""
        return self._open(device, held, packets)

    def _open(self, device: int | None, held: int, packets: PacketSink | None) -> Source:
        if self.isolation == "process":
            from streamd.sources.process import ProcessSource

            return ProcessSource(self, held=held, packets=packets if self.clip_ring_s else None)
        from streamd.sources.av_source import AvSource

        return AvSource(self, device=device, packets=packets)


def check_url(url: str) -> None:
    """Checks an input of the command line as `check` does the `url` of a stream: as far as it can be wrong without
    being opened.

    Raises:
        ConfigError: what is wrong with it, without a password.
    """
    for path, message in AvStreamSettings(id="input", url=url).check():
        if path == ("url",):
            raise ConfigError(f"{redact(url)}: {message}")
