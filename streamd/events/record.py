"""An event as a rule submits it, as the journal keeps it, and as the world receives it."""

from __future__ import annotations

import datetime
from typing import Any, Literal
from urllib.parse import quote

import msgspec

Kind = Literal["begin", "update", "end", "instant"]
"""`begin`, any number of `update` and one `end` share an id; `instant` stands alone."""
MAX_DETAILS_BYTES = 16 << 10
"""Of an event's details as JSON. Larger ones are refused: a journal of pictures would hold nothing else."""
SCHEMA = 1
"""Version of `data` in the envelope."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a rule has seen. Immutable; may be submitted from any thread."""

    id: str
    """Shared by begin, updates and end. Unique across processes: made of boot_id, life and a number."""
    stream: str
    kind: Kind
    type: str = ""
    """What happened, e.g. line_crossed or zone_entered. The rules define the words."""
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
    """Unix time in nanoseconds: capture of the frame that decided it. No duration is taken from it: clocks step."""
    details: dict[str, Any] = {}
    """What else the rule has to say, as plain JSON values, at most 16 KiB. Durations belong here, in seconds."""
    counts: dict[str, int] = {}
    """By how much this event raises each of the stream's counters. They are raised even if the event is lost."""


class Media(msgspec.Struct, frozen=True):
    """A file that belongs to an event."""

    path: str
    state: Literal["pending", "written", "failed", "deleted"] = "written"
    """`deleted`: retention, or a request, has removed the file."""
    reason: str = ""
    """Why it failed."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An event after its commit."""

    position: int
    """Grows with every event of the journal; never given twice. What cursors and pages count in."""
    log_id: str
    """Of the journal file. A lost file begins a new one, and with it event_seq and counters."""
    event_seq: int
    """Counts the stream's events in this journal from 1, without a gap."""
    began_ns: int
    """`at_ns` of the begin that has the same id."""
    committed_ns: int
    """Unix time in nanoseconds."""
    events_lost: int
    """Events of this stream lost since the record before this one."""
    counters: dict[str, int]
    """The counters that this event raised, as they are after it."""
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
    media: dict[str, Media] = {}
    """By role: clip, snapshot, and whatever else lies beside them. What was known when this was read."""

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
    """The record as plain values; times are Unix seconds, as in all of streamd's messages."""
    return {
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


def envelope(record: Record, instance: str) -> dict[str, Any]:
    """The record as a CloudEvents 1.0 event in JSON format.

    The `id` is the same however often and by whichever sink the record is delivered.

    Args:
        record: what was committed.
        instance: name of this daemon, part of `source`.

    Returns:
        Plain values: specversion, id, source, type, subject, time, datacontenttype, data.
    """
    return {
        "specversion": "1.0",
        "id": f"{record.log_id}/{record.stream}/{record.event_seq}",
        "source": f"/streamd/{quote(instance, safe='')}",
        "type": f"streamd.event.{record.kind}",
        "subject": record.stream,
        "time": rfc3339(record.at_ns),
        "datacontenttype": "application/json",
        "data": data(record),
    }
