"""Events: what happened in a stream, recorded in one journal per daemon.

`record` defines an event and its envelope, `journal` accepts and commits events, `channel` transfers them from a worker
process, sinks deliver with `cursors` and `retry`, and `query` reads. docs/events.md states the guarantees."""

from __future__ import annotations

from streamd.events.record import Event, Kind, Media, Record, envelope

__all__ = ["Event", "Kind", "Media", "Record", "envelope"]
