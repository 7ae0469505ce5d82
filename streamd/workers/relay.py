"""The sink of a worker process: passes encoded messages to the process that publishes them.

Messages are already encoded, so the publishing process only forwards bytes. A short header tells it the kind, the
stream's position, and where the number of dropped frames belongs, without parsing the payload.
"""

from __future__ import annotations

import struct
import time
from typing import Any

from streamd.errors import SinkError
from streamd.sinks import Sink
from streamd.sinks.envelope import KINDS, Encoding, Message
from streamd.sinks.zmq import send_now

RELAY_FULL = "relay_full"
HWM = 4096
"""Messages in transit to the publishing process: one or two seconds of a busy worker."""
HEAD = struct.Struct("<IIQQIq")
"""The sending worker's life, the frame's epoch and seq, how many frames of its stream were not looked at, the position
in the payload of the number of dropped frames (NOWHERE if a message has none), and when it was sent (monotonic
nanoseconds, the same clock in all processes). Kind and stream follow, each ended by a line break."""
NOWHERE = 0xFFFFFFFF


def pack(life: int, message: Message) -> tuple[bytes, bytes]:
    """A message as sent to the parent: head and payload."""
    name = f"{message.kind.name}\n{message.stream}\n".encode()
    now_ns = time.monotonic_ns()
    if message.after is None:
        return HEAD.pack(life, message.epoch, message.seq, message.unlooked, NOWHERE, now_ns) + name, message.before
    head = HEAD.pack(life, message.epoch, message.seq, message.unlooked, len(message.before), now_ns) + name
    return head, message.before + message.after


class Route:
    """Where the messages of one kind and stream go; created once for each name.

    Args:
        name: the bytes after `HEAD`.

    Raises:
        ValueError: the kind is unknown, or the name is invalid.
    """

    __slots__ = ("epoch", "kind", "passed", "sent_ns", "seq", "stream")

    def __init__(self, name: bytes) -> None:
        kind, stream, _ = name.decode().split("\n")
        if kind not in KINDS:
            raise ValueError(f"unknown kind of message {kind[:80]!r}")
        self.kind, self.stream = KINDS[kind], stream
        self.passed = 0
        """Number of messages."""
        self.epoch, self.seq = -1, -1
        """Of the last one."""
        self.sent_ns = 0
        """When its worker sent it, monotonic."""

    def take(self, head: bytes, payload: bytes, encoding: Encoding) -> tuple[int, Message]:
        """Unpacks what `pack` made: the life, and the message, whose number of dropped frames is 0."""
        life, self.epoch, self.seq, unlooked, place, self.sent_ns = HEAD.unpack_from(head)
        self.passed += 1
        before, after = (payload, None) if place == NOWHERE else (payload[:place], payload[place:])
        message = Message(
            self.kind, self.stream, before, after, epoch=self.epoch, seq=self.seq, encoding=encoding, unlooked=unlooked
        )
        return life, message


class RelaySink(Sink):
    """See `streamd.sinks.Sink`.

    Args:
        endpoint: ipc:// address that the publishing process has bound.
        life: serial number of this process among all that were started.
    """

    def __init__(self, endpoint: str, *, life: int = 0) -> None:
        self._endpoint = endpoint
        self._life = life
        self._context: Any = None
        self._socket: Any = None

    def open(self) -> None:
        """See `Sink.open`."""
        import zmq

        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, HWM)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.connect(self._endpoint)

    def send(self, message: Message) -> str | None:
        """See `Sink.send`. Messages that could not be passed on are gaps in `seq`, which the parent reports."""
        import zmq

        try:
            send_now(self._socket, *pack(self._life, message))
        except zmq.Again:
            return RELAY_FULL
        except zmq.ZMQError as error:
            raise SinkError(f"relay to {self._endpoint}: {error.strerror}") from error
        return None

    def close(self) -> None:
        """See `Sink.close`."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._context is not None:
            self._context.term()
            self._context = None
