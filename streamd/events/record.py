"""An event as submitted by a rule, as stored in the journal, and as delivered."""

from __future__ import annotations

import datetime
from typing import Any, Literal
from urllib.parse import quote

import msgspec

Kind = Literal["begin", "update", "end", "instant"]
"""`begin`, any number of `update` and one `end` share an id; `instant` stands alone."""
MAX_DETAILS_BYTES = 16 << 10
"""Limit for an event's details as JSON. Larger ones are rejected, so that nobody stores pictures in the journal."""
SCHEMA = 1
"""Version of `data` in the envelope."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a rule has detected. Immutable; may be submitted from any thread."""

    id: str
    """Shared by begin, updates and end. Unique across processes: made of boot_id, life and a number."""
    stream: str
    kind: Kind
    type: str = ""
    """What happened, e.g. line_crossed or zone_entered. The rules define the types."""
    rule: str | None = None
    """Name of the zone or line."""
    label: str | None = None
    """Class of the object."""
    track: str | int | None = None
    """Id of the track."""
    epoch: int = 0
    """Of the frame that decided it, as in the detections."""
    seq: int = 0
    """Of the frame that decided it, as in the detections."""
    at_ns: int
    """Unix nanoseconds of the capture of the frame that decided it. Never used for durations, since clocks step."""
    details: dict[str, Any] = {}
    """Further details as plain JSON values, at most 16 KiB. Durations belong here, in seconds."""
    counts: dict[str, int] = {}
    """How much this event increases each of the stream's counters. They are increased even if the event is lost."""
    generation: int = 0
    """Of the box that has the stream; 0 outside a fleet."""
    state: dict[str, Any] = {}
    """What its rule has counted, this event included, as plain JSON values: a successor's rule continues from it. Kept
    with the event's commit, but not part of the record."""


class RuleStates(msgspec.Struct, frozen=True):
    """What rules of one stream have counted without an event to tell it."""

    stream: str
    seen_ns: int | None
    """Unix time of the stream's last frame in nanoseconds, where the process ends its work on it; None while it goes
    on."""
    rules: list[dict[str, Any]]
    """See `Event.state`."""
    memory: list[Any] | None = None
    """Presences that a successor may resume; None while the process goes on."""


class OpenEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event that has begun and not ended, as the journal keeps it and as the boxes of a fleet tell each other."""

    id: str
    type: str
    rule: str | None
    label: str | None
    track: str | int | None
    epoch: int
    seq: int
    began_ns: int
    last_ns: int
    """Unix nanoseconds at which it was last known to be open."""
    stream: str = ""
    origin: str = ""
    """The process that submitted it; empty for this one."""
    deleted: int = 0
    """1 if it was deleted on request: later parts of it are not kept."""
    generation: int = 0
    """See `Event.generation`."""


class Media(msgspec.Struct, frozen=True):
    """A file that belongs to an event."""

    path: str
    state: Literal["pending", "written", "failed", "deleted"] = "written"
    """`deleted`: the file was removed by retention or on request."""
    reason: str = ""
    """Why it failed."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An event after its commit."""

    position: int
    """Increases with every event of the journal, and is never reused. Cursors and pages refer to it."""
    log_id: str
    """Id of the journal file. If the file is lost, a new one starts with a new event_seq and new counters."""
    event_seq: int
    """Counts the stream's events in this journal from 1, without a gap."""
    began_ns: int
    """`at_ns` of the begin that has the same id."""
    committed_ns: int
    """Unix nanoseconds."""
    events_lost: int
    """Events of this stream lost since the record before this one."""
    counters: dict[str, int]
    """The counters that this event increased, with their new values."""
    id: str
    stream: str
    kind: Kind
    type: str
    rule: str | None
    label: str | None
    track: str | int | None
    epoch: int
    seq: int
    at_ns: int
    details: dict[str, Any]
    generation: int = 0
    """Of the box that had the stream; 0 outside a fleet."""
    media: dict[str, Media] = {}
    """By role: clip, snapshot, and others. As known when the record was read."""

    @property
    def clip(self) -> str | None:
        """Path of the clip, once it is written."""
        return self._written("clip")

    @property
    def snapshot(self) -> str | None:
        """Path of the snapshot, once it is written."""
        return self._written("snapshot")

    def _written(self, role: str) -> str | None:
        found = self.media.get(role)
        return found.path if found is not None and found.state == "written" else None


def rfc3339(ns: int) -> str:
    """Unix nanoseconds as RFC 3339 in UTC, to the microsecond."""
    seconds, rest = divmod(ns, 1_000_000_000)
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(
        seconds=seconds, microseconds=rest // 1000
    )
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _seconds(ns: int) -> float:
    return ns // 1000 / 1e6  # whole microseconds are exact in a float; nanoseconds since 1970 are not


def data(record: Record) -> dict[str, Any]:
    """The record as plain values; times are Unix seconds, as in all messages of streamd."""
    found = {
        "schema": SCHEMA,
        "log_id": record.log_id,
        "event_seq": record.event_seq,
        "events_lost": record.events_lost,
        "id": record.id,
        "stream": record.stream,
        "kind": record.kind,
        "type": record.type,
        "rule": record.rule,
        "label": record.label,
        "track": record.track,
        "epoch": record.epoch,
        "seq": record.seq,
        "at": _seconds(record.at_ns),
        "began_at": _seconds(record.began_ns),
        "committed_at": _seconds(record.committed_ns),
        "details": record.details,
        "counters": record.counters,
        "media": {role: msgspec.to_builtins(each) for role, each in record.media.items()},
    }
    if record.generation:
        found["generation"] = record.generation
    return found


def event_id(record: Record) -> str:
    """The CloudEvents `id`: the same however often and by whichever sink the record is delivered."""
    if record.generation:
        return f"{record.log_id}/{record.stream}/{record.generation}/{record.event_seq}"
    return f"{record.log_id}/{record.stream}/{record.event_seq}"


def envelope(record: Record, instance: str) -> dict[str, Any]:
    """The record as a CloudEvents 1.0 event in JSON format.

    The `id` is the same however often and by whichever sink the record is delivered.

    Args:
        record: the committed event.
        instance: name of this daemon, part of `source`.

    Returns:
        Plain values: specversion, id, source, type, subject, time, datacontenttype, data.
    """
    return {
        "specversion": "1.0",
        "id": event_id(record),
        "source": f"/streamd/{quote(instance, safe='')}",
        "type": f"streamd.event.{record.kind}",
        "subject": record.stream,
        "time": rfc3339(record.at_ns),
        "datacontenttype": "application/json",
        "data": data(record),
    }
