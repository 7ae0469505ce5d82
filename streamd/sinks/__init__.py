"""Sinks: where messages go.

Each sink has its own thread and its own ring (`sinks.thread`), so a slow or dead reader never slows a stream. To add a
kind, write one file here with its settings class, decorated with `SINKS.register`, whose `open` returns a `Sink`;
`tests/sinks/test_contract.py` tests it. docs/extending.md has an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from streamd.errors import SinkError
from streamd.events.upkeep import Limits
from streamd.flow.settings import StreamSettings
from streamd.settings import FieldPath, KindSettings, Name, Seconds
from streamd.settings.plugins import opened, origin
from streamd.settings.registry import Registry
from streamd.sinks.envelope import CLASSIFIED, DETECTIONS, EVENT, STATUS, Message, MessageKind


@dataclass(frozen=True, slots=True)
class Readers:
    """The readers that are connected to a sink, and those it has turned away."""

    connected: int
    refused: Mapping[str, int]
    """Closed connections, by a short constant reason (it is a metric label)."""


class Sink(ABC):
    """One destination. Every method is called by one thread, the sink's own (`open` by the daemon's at start)."""

    @abstractmethod
    def open(self) -> None:
        """Binds, connects or opens. Called again after `close` if the sink failed.

        Raises:
            SinkError: names the address or file and what to do.
        """

    @abstractmethod
    def send(self, message: Message) -> str | None:
        """Sends one message without waiting for any reader.

        Returns:
            None, or a short constant reason (it is a metric label) if some reader did not receive it.

        Raises:
            SinkError: it was not sent. The caller counts and logs it, adds it to `dropped` of the stream's next
                message, and continues with the next message.
        """

    def set_streams(self, streams: Sequence[StreamSettings]) -> None:  # noqa: B027 - most sinks need not know
        """Tells which streams are configured: after the start, and after each reload that changes them."""

    def poll(self) -> None:  # noqa: B027 - most sinks have nothing to do
        """Housekeeping, called at least every 100 ms: late subscribers, rotation, flush."""

    @property
    def readers(self) -> Readers | None:
        """Who is connected; None for sinks to which nobody connects. Any thread, also while `open` or `close` runs."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Flushes within a second and closes. Idempotent."""


class SinkSettings(KindSettings):
    """Settings common to all sinks."""

    name: Name | None = Field(None, description="Name in metrics and logs. Default: kind and position, such as `zmq0`.")
    ring: int = Field(
        256,
        ge=1,
        le=65_536,
        description="Number of messages that may wait for the sink. When it is full, the oldest is dropped.",
    )
    heartbeat_s: Seconds = Field(5.0, description="Longest interval between status messages of a stream, in seconds.")

    @property
    def payload_encoding(self) -> Literal["json", "msgpack"]:
        """Encoding of the messages passed to the sink."""
        return "json"

    @property
    def wants(self) -> frozenset[MessageKind]:
        """Kinds of messages passed to the sink. What no sink wants is not encoded."""
        return frozenset({DETECTIONS, STATUS, EVENT, CLASSIFIED})

    @property
    def owed(self) -> Limits | None:
        """What the journal keeps for the sink; None if it takes events from memory. See `sinks.events`."""
        return None

    @property
    def address(self) -> str:
        """Where subscribers or readers find its messages, for people; empty if that cannot be told."""
        return ""

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """Resources that no two sinks may share: the field, the kind of resource, and its name."""
        yield from ()

    def look(self) -> Iterator[tuple[FieldPath, str]]:
        """What would keep the sink from opening now, as far as it can be told without opening anything."""
        yield from ()

    def open(self) -> Sink:
        """Creates the sink, without binding, connecting or opening anything yet."""
        raise NotImplementedError


SINKS: Registry[SinkSettings] = Registry("sink", SinkSettings, "streamd.sinks", first="zmq", contract=1)

if TYPE_CHECKING:
    SinkConfig = SinkSettings
else:
    SinkConfig = SINKS.one_of()


def open_sink(settings: SinkSettings) -> Sink:
    """Creates the sink that `settings` describe; see `SinkSettings.open`.

    Raises:
        SinkError: its package is at fault.
    """
    return opened(origin(settings), Sink, SinkError, settings.open)
