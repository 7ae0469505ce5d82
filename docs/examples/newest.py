"""Drops what a box of a fleet still sends of a stream that another box has by now.

    newest = Newest()
    ...
    if newest.accepts(message):  # decoded JSON: detections, status, counts, event, or a CloudEvent
        ...

One object for all streams and all boxes that you subscribe to. Messages of a single daemon, which have no generation,
are always accepted. Needs nothing but Python.
"""

from __future__ import annotations

from typing import Any


class Newest:
    """The newest generation of each stream. For one thread."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, float]] = {}
        """By stream: its generation, and the time of the first message that had it (Unix seconds)."""

    def accepts(self, message: dict[str, Any]) -> bool:
        """Whether to use the message; to be asked about each one, in the order of arrival."""
        if isinstance(message.get("data"), dict):
            message = message["data"]  # an event as a CloudEvent
        generation, stream = message.get("generation", 0), message["stream"]
        if not generation:
            return True
        known, since = self._newest.get(stream, (0, 0.0))
        is_event = "event_seq" in message
        at = message["at"] if is_event else message.get("captured_at", message.get("published_at", since))
        if generation < known:
            # Events are delivered until they arrive: one that happened before the other box began is late, not double.
            return is_event and at < since
        # The end of an event of a lost box has the time at which that box was last heard of.
        if generation > known and not (is_event and message["details"].get("reason") == "node_lost"):
            self._newest[stream] = (generation, at)
        return True
