"""The sink room: where messages go.

Each sink has its own thread and its own ring (`sinks.thread`), so a slow or dead reader never slows a stream. To add a
kind: one file here with its settings, which `SINKS.register` decorates and whose `open` makes a `Sink`;
`tests/sinks/test_contract.py` runs over it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from streamd.settings import FieldPath, KindSettings, Name, Seconds
from streamd.settings.registry import Registry
from streamd.sinks.envelope import Message


class Sink(ABC):
    """One destination. Every method is called by one thread, the sink's own (`open` by the daemon's at start)."""

    @abstractmethod
    def open(self) -> None:
        """Binds, connects or opens. Called again after `close`, where the sink broke.

        Raises:
            SinkError: naming the address or file and what to do.
        """

    @abstractmethod
    def send(self, message: Message) -> str | None:
        """Sends one message without waiting for any reader.

        Returns:
            None, or the reason (a short constant, it is a metric label) for which some reader did not get it.

        Raises:
            SinkError: it was not sent. The caller counts and logs it, tells it in `dropped` of the stream's next
                message, and goes on with the next.
        """

    def poll(self) -> None:  # noqa: B027 - most sinks have nothing to do
        """Housekeeping, called at least every 100 ms: late subscribers, rotation, flush."""

    @abstractmethod
    def close(self) -> None:
        """Flushes within a second and closes. Idempotent."""


class SinkSettings(KindSettings):
    """What every sink has."""

    name: Name | None = Field(None, description="Name in metrics and logs. Default: kind and position.")
    ring: int = Field(256, ge=1, le=65_536, description="Messages kept waiting for the sink; the oldest is dropped.")
    heartbeat_s: Seconds = Field(5.0, description="Each stream's status is sent at least this often, in seconds.")

    @property
    def payload_encoding(self) -> Literal["json", "msgpack"]:
        """Encoding of the messages that the sink is handed."""
        return "json"

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """What no two sinks may share: the field, what it is, and which one."""
        yield from ()

    def open(self) -> Sink:
        """Makes the sink; nothing is bound, connected or opened yet."""
        raise NotImplementedError


SINKS: Registry[SinkSettings] = Registry("sink", SinkSettings, "streamd.sinks", first="zmq")

if TYPE_CHECKING:
    SinkConfig = SinkSettings
else:
    SinkConfig = SINKS.one_of()


def open_sink(settings: SinkSettings) -> Sink:
    """Makes the sink that `settings` describes; see `SinkSettings.open`."""
    return settings.open()
