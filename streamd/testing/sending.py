"""A sink with what its thread does for it: numbering, encoding, and the kinds of messages."""

from __future__ import annotations

from typing import Any

from streamd.errors import SinkError
from streamd.sinks import Sink
from streamd.sinks.envelope import DETECTIONS, STATUS, Encoding, MessageBuilder, MessageKind, Outgoing
from streamd.types import Detections, StreamCounts, StreamStatus


class Sender:
    """Passes messages to a sink. Whatever it does not know is asked of the sink itself.

    Args:
        sink: opened and closed by the caller.
        boot_id: of the daemon that sends.
        encoding: what the settings of the sink say.
        wants: likewise.
    """

    def __init__(
        self,
        sink: Sink,
        boot_id: str = "b",
        encoding: Encoding = "json",
        wants: frozenset[MessageKind] = frozenset({DETECTIONS, STATUS}),
    ) -> None:
        self.sink, self.wants, self._boot_id = sink, wants, boot_id
        self._builder = MessageBuilder(boot_id, encoding)

    def publish(self, detections: Detections) -> str | None:
        """Sends a frame's detections; returns what the sink's `send` returns.

        Raises:
            SinkError: the sink's; the message counts as dropped in the stream's next one.
        """
        message = self._builder.detections(Outgoing(detections, self._boot_id))
        try:
            return self.sink.send(message)
        except SinkError:
            self._builder.not_sent(message)
            raise

    def status(self, status: StreamStatus, counts: StreamCounts) -> None:
        """Sends a stream's status."""
        self.sink.send(self._builder.status(status, counts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink, name)
