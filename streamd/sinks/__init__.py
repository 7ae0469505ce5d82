"""The sink room: where detections and statuses go.

Each sink has its own thread and its own ring (`flow.sink`), so a slow or dead reader never slows a stream. To add a
sink: write one file here, add its settings to `SinkConfig` and its opener to `open_sink`, and pass
`tests/sinks/test_contract.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from pydantic import Discriminator, Field, SecretStr, Tag

from streamd.settings import Name, Seconds, Settings
from streamd.types import Detections, StreamCounts, StreamStatus


class Sink(Protocol):
    """One destination. Every method is called by one thread, the sink's own."""

    def open(self) -> None:
        """Binds, connects or opens.

        Raises:
            SinkError: naming the address or file and what to do.
        """
        ...

    def publish(self, detections: Detections) -> str | None:
        """Sends one frame's detections without waiting for any reader.

        Returns:
            None, or the reason (a short constant, it is a metric label) for which some reader did not get it.

        Raises:
            SinkError: the sink is broken; the caller logs it once, counts, and keeps trying.
        """
        ...

    def status(self, status: StreamStatus, counts: StreamCounts) -> None:
        """Sends one stream's status: on change and as a heartbeat."""
        ...

    def forward(self, name: bytes, payload: bytes) -> str | None:
        """Sends a message that a worker process has encoded, as `publish` or `status` would have sent it.

        Args:
            name: the topic; it tells a status from detections.
            payload: in the encoding of the settings (JSON where there is no choice).

        Returns:
            See `publish`.

        Raises:
            SinkError: see `publish`.
        """
        ...

    def poll(self) -> None:
        """Housekeeping, called at least every 100 ms: late subscribers, rotation, flush."""
        ...

    def close(self) -> None:
        """Flushes within a second and closes. Idempotent."""
        ...


class SinkSettings(Settings):
    """What every sink has."""

    name: Name | None = Field(None, description="Name in metrics and logs. Default: kind and position.")
    ring: int = Field(256, ge=1, le=65_536, description="Messages kept waiting for the sink; the oldest is dropped.")
    heartbeat_s: Seconds = Field(5.0, description="Each stream's status is sent at least this often, in seconds.")


KEY_PATTERN = r"^[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$"
"""A CURVE key in Z85."""
Key = Annotated[str, Field(pattern=KEY_PATTERN)]


class CurveSettings(Settings):
    """Encryption, and who may listen: ZeroMQ CURVE. Keys are made by `streamd keygen`."""

    secret_key: SecretStr = Field(description="The daemon's own secret key, as ${file:server.key} or ${NAME}.")
    clients: str | tuple[Key, ...] = Field(
        description="Who may listen: public keys, a file with one a line (read again when it changes), or any."
    )


class ZmqSettings(SinkSettings):
    """ZeroMQ publisher: topic and payload, message version 1."""

    kind: Literal["zmq"] = "zmq"
    bind: str | None = Field(None, description="Endpoint to bind: tcp://HOST:PORT or ipc://PATH. Give bind or connect.")
    connect: str | None = Field(None, description="Endpoint to connect to, where the subscriber binds.")
    hwm: int = Field(
        1000, ge=1, le=1_000_000, description="Messages queued for each subscriber before its are dropped."
    )
    curve: CurveSettings | None = Field(None, description="Keys for an encrypted sink. Default: not encrypted.")
    encoding: Literal["json", "msgpack"] = Field("json", description="Encoding of the payload.")
    linger_s: float = Field(1.0, ge=0, le=60, description="Longest time to deliver what is queued at exit, in seconds.")


class JsonlSettings(SinkSettings):
    """JSON lines, one message a line, to a file or standard output."""

    kind: Literal["jsonl"] = "jsonl"
    path: str = Field("-", description="File to append to; - is standard output.")
    rotate_mb: float | None = Field(None, gt=0, description="Start a new file at this size, in megabytes.")
    keep: int = Field(5, ge=1, le=1000, description="Rotated files kept (path.1 is the newest).")
    status: bool = Field(False, description="Write status messages too.")


def _kind(value: Any) -> str:
    kind = value.get("kind", "") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


SinkConfig = Annotated[
    Annotated[ZmqSettings, Tag("zmq")] | Annotated[JsonlSettings, Tag("jsonl")],
    Discriminator(_kind),
]


def open_sink(settings: ZmqSettings | JsonlSettings, *, boot_id: str) -> Sink:
    """Makes the sink that `settings` describes; nothing is bound yet.

    Args:
        settings: one member of the union.
        boot_id: random identity of this process, part of every message.
    """
    if isinstance(settings, JsonlSettings):
        from streamd.sinks.jsonl import JsonlSink

        return JsonlSink(settings, boot_id=boot_id)
    from streamd.sinks.zmq import ZmqSink

    return ZmqSink(settings, boot_id=boot_id)
