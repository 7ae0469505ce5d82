"""The configuration: its sections, and one frozen `Config` of them all. `loader` makes it of a file."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from streamd.analysis.tracking import TrackingConfig, TrackingSettings
from streamd.analysis.tracking.bytetrack import ByteTrackSettings
from streamd.config.classifiers import ClassifierSettings
from streamd.engine import BatchSettings, EngineConfig, ModelSettings
from streamd.engine.auto import AutoSettings
from streamd.fleet import FleetSettings, ShareSettings
from streamd.heads import DetectSettings, HeadConfig
from streamd.settings import LISTEN_PATTERN, ConfigPath, ExternalSecret, Pattern, Seconds, Settings
from streamd.sinks import SinkConfig
from streamd.sources import StreamConfig

USER_PATTERN = r"^[^:\x00-\x1f]+$"
ENDPOINT_PATTERN = r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$"
MOST_WORKERS = 64
MOST_STREAMS = 1024
"""Of one daemon, or of the workers behind one address."""


class DetectorSettings(ModelSettings):
    """The detector: its file, its head, and detection thresholds. A field from `labels` to `pad_value` that is left out
    comes from the model's sidecar (`MODEL.onnx.json`), otherwise it has the default that is named here."""

    head: HeadConfig | None = Field(
        None,
        description="How the outputs are read. Default: as the sidecar declares, otherwise recognised from their "
        "shapes.",
    )
    detect: DetectSettings = Field(DetectSettings(), description="Detection thresholds and classes.")


class TlsSettings(Settings):
    """HTTPS. Both files are read again when they change, so a renewed certificate needs no restart."""

    certificate: ConfigPath = Field(description="PEM file with the certificate and its chain.")
    key: ConfigPath = Field(description="PEM file with the private key, without a passphrase.")


class LoginSettings(Settings):
    """One user name and its password (HTTP basic authentication)."""

    username: Annotated[str, Pattern("expected a name without a colon")] = Field(
        min_length=1, max_length=256, pattern=USER_PATTERN, description="User name."
    )
    password: ExternalSecret = Field(
        min_length=8, max_length=1024, description="Password, as ${file:PATH} or ${NAME}; at least 8 characters."
    )


class MetricsSettings(Settings):
    """The HTTP port with /metrics, /healthz and /readyz."""

    listen: (
        Annotated[str, Field(pattern=LISTEN_PATTERN), Pattern("expected HOST:PORT, as in 127.0.0.1:9188 or [::1]:9188")]
        | None
    ) = Field(
        "127.0.0.1:9188",
        description="HOST:PORT to listen on; null to disable. Port 0 chooses a free one.",
    )
    tls: TlsSettings | None = Field(None, description="Certificate and key for HTTPS. Default: plain HTTP.")
    login: LoginSettings | None = Field(
        None, description="Login required for every path, including /healthz. Default: none."
    )
    page: bool = Field(
        False,
        description="Serve a web page with every camera at / of the port: pictures, states, latency. Needs a login, or "
        "an address that only this machine can reach, such as 127.0.0.1.",
    )


class HeaderSettings(Settings):
    """A header of every request to the collector."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"), Pattern("expected the name of a header")] = (
        Field(max_length=256, description="Name.")
    )
    value: ExternalSecret = Field(description="Value, as ${file:PATH} or ${NAME}.")


class OtlpSettings(Settings):
    """Export to an OpenTelemetry collector."""

    endpoint: Annotated[
        str, Field(pattern=ENDPOINT_PATTERN), Pattern("expected http://HOST:PORT or https://HOST:PORT, without a login")
    ] = Field(
        max_length=2048,
        description="Base URL of the collector's OTLP receiver over HTTP, such as http://127.0.0.1:4318; /v1/metrics "
        "and /v1/traces are added.",
    )
    headers: tuple[HeaderSettings, ...] = Field((), max_length=16, description="Headers, such as a login.")
    metrics_every_s: float = Field(
        30.0, ge=0, le=3600, description="Seconds between two exports of all metrics; 0: no metrics."
    )
    traces_every_s: float = Field(
        60.0, ge=0, le=86_400, description="Seconds between two frames of a stream that are traced; 0: no traces."
    )


class LoggingSettings(Settings):
    """Structured logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, otherwise json."
    )


class RecorderSettings(Settings):
    """The flight recorder: keeps the most recent history, and writes it as a bundle when something fails."""

    folder: Annotated[ConfigPath, Field(min_length=1)] | None = Field(
        None,
        description="Folder for bundles. Default: `bundles` in the service manager's state folder ($STATE_DIRECTORY); "
        "without one, nothing is recorded.",
    )
    seconds: float = Field(60.0, ge=5, le=600, description="Length of the history, in seconds.")
    keep: int = Field(
        10,
        ge=0,
        le=1000,
        description="Largest number of bundles in the folder. 0: nothing is recorded.",
    )


class EventsSettings(Settings):
    """The event journal."""

    state_dir: ConfigPath | None = Field(
        None,
        description="Folder of the journal, on a local disk; each daemon needs its own. Default: a folder named "
        "after the configuration file in the service manager's state folder (`$STATE_DIRECTORY`), otherwise in "
        "`$XDG_STATE_HOME/streamd` (`~/.local/state/streamd`).",
    )
    keep_days: float = Field(30.0, gt=0, le=3650, description="Time for which events are kept, in days.")
    keep_events: int = Field(
        500_000, ge=1000, description="Largest number of events that are kept; the oldest are deleted."
    )


class MediaSettings(Settings):
    """Clips and snapshots of events: where they are kept, and how much."""

    folder: Annotated[ConfigPath, Field(min_length=1)] | None = Field(
        None, description="Folder for clips and snapshots. Default: `media` in the folder of the event journal."
    )
    keep_gb: float = Field(
        10.0, gt=0, le=1e6, description="Largest space for clips and snapshots, in gigabytes; the oldest are deleted."
    )
    keep_days: float = Field(30.0, gt=0, le=3650, description="Time for which clips and snapshots are kept, in days.")
    min_free_gb: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="Space to keep free on the folder's file system, in gigabytes. Below it, the oldest clips and "
        "snapshots are deleted, and nothing is recorded until there is enough again.",
    )
    ring_mb: float = Field(
        64.0,
        ge=1,
        le=4096,
        description="Largest memory for the compressed packets that each stream keeps for clips, in megabytes. "
        "Only streams with rules that ask for clips use it.",
    )


def _number_or_auto(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_WORKERS):
        return value
    raise PydanticCustomError("workers", f"expected a whole number from 1 to {MOST_WORKERS}, or auto")


class Config(Settings):
    """The whole configuration. Relative paths are relative to the configuration file."""

    model: DetectorSettings = Field(description="The detector.")
    streams: tuple[StreamConfig, ...] = Field(
        max_length=10_000,
        description=f"Video streams; at least one, and at most {MOST_STREAMS} unless several boxes divide them "
        "(`fleet` or `share`).",
    )
    sinks: tuple[SinkConfig, ...] = Field(
        (), max_length=64, description="Outputs for detections, statuses and events. Default: none."
    )
    tracking: TrackingConfig | None = Field(
        None,
        description="Joins the boxes that show the same object in successive frames, and gives them ids. `{}` is "
        "ByteTrack with its defaults. Default: ByteTrack if any stream has zones or lines, otherwise no tracking.",
    )
    classifiers: tuple[ClassifierSettings, ...] = Field(
        (), max_length=16, description="Second-stage models, which classify detected objects."
    )
    events: EventsSettings = Field(EventsSettings(), description="Journal of the events of zones and lines.")
    media: MediaSettings = Field(MediaSettings(), description="Clips and snapshots of events.")
    engine: EngineConfig = Field(AutoSettings(), description="Inference backend.")
    batch: BatchSettings = Field(BatchSettings(), description="How frames are collected into batches.")
    workers: Annotated[
        Annotated[int, Field(ge=1, le=MOST_WORKERS)] | Literal["auto"], BeforeValidator(_number_or_auto)
    ] = Field(
        "auto",
        description="Number of processes that share the streams, each with its own engine. Raise it if one process "
        "cannot keep a GPU busy. auto: one process; with a GPU and more than 16 streams, one for every 16 streams, "
        "at most eight per GPU, as far as CPU cores and device memory allow.",
    )
    share: ShareSettings | None = Field(
        None,
        description="The share of the streams that this daemon serves, if several daemons divide them. Default: "
        "all streams.",
    )
    fleet: FleetSettings | None = Field(
        None,
        description="The boxes of a fleet, among which `streamd fleet` divides the streams; `streamd run` ignores it.",
    )
    metrics: MetricsSettings = Field(MetricsSettings(), description="Metrics and health over HTTP.")
    otlp: OtlpSettings | None = Field(
        None, description="Export of metrics and traces to an OpenTelemetry collector (`pip install streamd[otlp]`)."
    )
    logging: LoggingSettings = Field(LoggingSettings(), description="Logs.")
    recorder: RecorderSettings = Field(RecorderSettings(), description="The flight recorder.")
    drain_s: Seconds = Field(5.0, description="Longest time to finish the work in flight after SIGTERM, in seconds.")
    stall_s: Seconds = Field(
        15.0,
        description="Longest time that a stage may work on one batch, in seconds. Beyond it, the daemon counts as "
        "hung: systemd's watchdog is no longer notified.",
    )

    @property
    def tracker(self) -> TrackingSettings | None:
        """The tracker's settings, where boxes are tracked."""
        if self.tracking is not None:
            return self.tracking
        return ByteTrackSettings() if any(s.zones or s.lines for s in self.streams) else None


_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(text: str) -> bool:
    """True for scheme://…; a plain path is not a URL."""
    return bool(_SCHEME.match(text))


def is_loopback(listen: str) -> bool:
    """True if HOST:PORT can be reached from this machine only."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def sink_names(config: Config) -> list[str]:
    """Each sink's name in metrics and logs."""
    return [sink.name or f"{sink.kind}{i}" for i, sink in enumerate(config.sinks)]
