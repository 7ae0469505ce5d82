"""The configuration: its sections, and one frozen `Config` of them all. `loader` makes it of a file."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import Field

from streamd.engine import BatchSettings, EngineConfig, ModelSettings
from streamd.engine.auto import AutoSettings
from streamd.heads import DetectSettings, HeadConfig
from streamd.settings import ConfigPath, ExternalSecret, Pattern, Seconds, Settings
from streamd.sinks import SinkConfig
from streamd.sources import StreamConfig

USER_PATTERN = r"^[^:\x00-\x1f]+$"
LISTEN_PATTERN = r"^(\[[0-9A-Fa-f:.]+\]|[^:\s]+):\d{1,5}$"


class DetectorSettings(ModelSettings):
    """The detector: its file, its head, and what counts as a detection."""

    head: HeadConfig | None = Field(
        None, description="What the outputs mean. Default: the sidecar's word, else recognised from their shapes."
    )
    detect: DetectSettings = Field(DetectSettings(), description="Which boxes count as detections.")


class TlsSettings(Settings):
    """HTTPS. Both files are read again when they change: a renewed certificate needs no restart."""

    certificate: ConfigPath = Field(description="PEM file with the certificate and its chain.")
    key: ConfigPath = Field(description="PEM file with the private key, without a passphrase.")


class LoginSettings(Settings):
    """One user name and its password (HTTP basic authentication)."""

    username: Annotated[str, Pattern("expected a name without a colon")] = Field(
        min_length=1, max_length=256, pattern=USER_PATTERN, description="User name."
    )
    password: ExternalSecret = Field(
        min_length=8, max_length=1024, description="Its password, as ${file:PATH} or ${NAME}; 8 characters at least."
    )


class MetricsSettings(Settings):
    """The HTTP port with /metrics, /healthz and /readyz."""

    listen: (
        Annotated[str, Field(pattern=LISTEN_PATTERN), Pattern("expected HOST:PORT, as in 127.0.0.1:9188")] | None
    ) = Field(
        "127.0.0.1:9188",
        description="HOST:PORT to listen on; null for none. Port 0 takes a free one.",
    )
    tls: TlsSettings | None = Field(None, description="Certificate and key for HTTPS. Default: plain HTTP.")
    login: LoginSettings | None = Field(
        None, description="Who may ask; holds for every path, /healthz too. Default: everybody who reaches the port."
    )
    page: bool = Field(
        False,
        description="Show a web page with every camera at / of the port: pictures, states, latency. Needs a login, or "
        "an address that only this machine can reach, as 127.0.0.1.",
    )


class LoggingSettings(Settings):
    """Structured logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is written.")
    format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal, else JSON.")


class RecorderSettings(Settings):
    """The flight recorder: the last seconds of everything, written as a bundle when something breaks."""

    folder: Annotated[ConfigPath, Field(min_length=1)] | None = Field(
        None,
        description="Where bundles go. Default: `bundles` in the service manager's state folder (`$STATE_DIRECTORY`); "
        "where there is none, nothing is recorded.",
    )
    seconds: float = Field(60.0, ge=5, le=600, description="How much is kept and written, in seconds.")
    keep: int = Field(10, ge=0, le=1000, description="Bundles in the folder at most; 0 records nothing.")


class Config(Settings):
    """The whole configuration. Relative paths are relative to the configuration file."""

    model: DetectorSettings = Field(description="The detector.")
    streams: tuple[StreamConfig, ...] = Field(max_length=1024, description="What to watch; at least one stream.")
    sinks: tuple[SinkConfig, ...] = Field((), max_length=64, description="Where detections go.")
    engine: EngineConfig = Field(AutoSettings(), description="What runs the model.")
    batch: BatchSettings = Field(BatchSettings(), description="How frames are gathered into batches.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share the streams, each with its own engine. More than one pays on a GPU that one "
        "process cannot keep busy.",
    )
    metrics: MetricsSettings = Field(MetricsSettings(), description="Metrics and health over HTTP.")
    logging: LoggingSettings = Field(LoggingSettings(), description="Logs.")
    recorder: RecorderSettings = Field(RecorderSettings(), description="The flight recorder.")
    drain_s: Seconds = Field(5.0, description="Longest time to finish what is under way at SIGTERM, in seconds.")
    stall_s: Seconds = Field(
        15.0,
        description="A stage at one batch for longer than this is dead: the watchdog is no longer fed, in seconds.",
    )


_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(text: str) -> bool:
    """True for scheme://…; a plain path is not a URL."""
    return bool(_SCHEME.match(text))


def is_loopback(listen: str) -> bool:
    """True where HOST:PORT is reached from this machine only."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def sink_names(config: Config) -> list[str]:
    """Each sink's name in metrics and logs."""
    return [sink.name or f"{sink.kind}{i}" for i, sink in enumerate(config.sinks)]
