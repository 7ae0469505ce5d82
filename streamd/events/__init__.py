"""Events: what happened in a stream, accounted for in one journal per daemon.

`record` is an event and its envelope, `journal` takes events and commits them, `channel` brings them from a worker
process, `cursors` and `retry` are what a sink delivers with, `query` reads. See docs/events.md for what is promised.
"""

from __future__ import annotations

from streamd.events.record import Event, Kind, Media, Record, envelope

__all__ = ["Event", "Kind", "Media", "Record", "envelope"]
