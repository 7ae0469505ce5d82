"""The sink of a worker process: hands encoded messages to the process that publishes them.

Messages leave here whole, topic and payload, as subscribers will get them, so that the publishing process only passes
bytes on. A few bytes before the topic tell it how far the stream is, without a look into the payload.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Literal

from streamd.errors import SinkError
from streamd.sinks.message import Gaps, detections_message, encoder, send_now, status_message, topic
from streamd.types import Detections, StreamCounts, StreamStatus

RELAY_FULL = "relay_full"
HWM = 4096
"""Messages on their way to the publishing process: a second or two of a busy worker."""
HEAD = struct.Struct("<IIQ")
"""Before the topic: which life of which worker sent it, and of detections their epoch and seq."""


class RelaySink:
    """See `streamd.sinks.Sink`.

    Args:
        endpoint: ipc:// address that the publishing process has bound.
        encoding: of the payload, as the sink it stands for wants it.
        boot_id: in every message.
        life: number of this process among all that were started.
    """

    def __init__(self, endpoint: str, encoding: Literal["json", "msgpack"], *, boot_id: str, life: int = 0) -> None:
        self._endpoint = endpoint
        self._boot_id = boot_id
        self._life = life
        self._encode = encoder(encoding)
        self._gaps = Gaps()
        self._topics: dict[str, bytes] = {}
        self._context: Any = None
        self._socket: Any = None

    def resume(self, told: Mapping[str, int]) -> None:
        """See `Gaps.resume`. Before the first message of these streams; any thread."""
        self._gaps.resume(told)

    def open(self) -> None:
        """See `Sink.open`."""
        import zmq

        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, HWM)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.connect(self._endpoint)

    def publish(self, detections: Detections) -> str | None:
        """See `Sink.publish`. What could not be handed over is told in `dropped` of the stream's next message."""
        stream, seq = detections.stream, detections.seq
        name = self._topics.get(stream)
        if name is None:
            name = self._topics[stream] = topic(stream, "detections")
        dropped = self._gaps.before(stream, seq)
        payload = self._encode(detections_message(detections, self._boot_id, dropped))
        if self._send(HEAD.pack(self._life, detections.epoch, seq) + name, payload):
            return None
        self._gaps.take_back(stream, seq, dropped)
        return RELAY_FULL

    def _send(self, name: bytes, payload: bytes) -> bool:
        import zmq

        try:
            send_now(self._socket, name, payload)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise SinkError(f"relay to {self._endpoint}: {error.strerror}") from error
        return True

    def status(self, status: StreamStatus, counts: StreamCounts) -> None:
        """See `Sink.status`."""
        payload = self._encode(status_message(status, counts, self._boot_id))
        self._send(HEAD.pack(self._life, 0, 0) + topic(status.stream, "status"), payload)

    def forward(self, name: bytes, payload: bytes) -> str | None:
        """See `Sink.forward`. A worker has no workers of its own."""
        return None if self._send(HEAD.pack(self._life, 0, 0) + name, payload) else RELAY_FULL

    def poll(self) -> None:
        """See `Sink.poll`. Nothing comes back."""

    def close(self) -> None:
        """See `Sink.close`."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._context is not None:
            self._context.term()
            self._context = None
