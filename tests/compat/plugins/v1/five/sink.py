"""A datagram for each message."""

import socket
from typing import Literal

from pydantic import Field
from streamd.errors import SinkError
from streamd.sinks import Sink, SinkSettings
from streamd.sinks.envelope import DETECTIONS, STATUS, Message, MessageKind


class DatagramsSettings(SinkSettings):
    """A UDP datagram for each frame and status."""

    kind: Literal["datagrams"] = "datagrams"
    host: str = Field("127.0.0.1", description="Host to send to.")
    port: int = Field(ge=1, le=65_535, description="Port to send to.")

    @property
    def wants(self) -> frozenset[MessageKind]:
        return frozenset({DETECTIONS, STATUS})

    def open(self) -> Sink:
        return Datagrams((self.host, self.port))


class Datagrams(Sink):
    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def open(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(self, message: Message) -> str | None:
        try:
            self._socket.sendto(message.payload, self._address)
        except OSError as error:
            raise SinkError(f"datagrams sink: {self._address}: {error}; check host and port") from error
        return None

    def close(self) -> None:
        self._socket.close()
