"""Past events over HTTP: as JSON, with the files that belong to them."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from streamd.errors import SinkError
from streamd.events.journal import Journal
from streamd.events.query import Filter
from streamd.events.record import Record, data
from streamd.telemetry.routes import Request, Response

MAX_LIMIT = 1000
PIECE = 256 << 10
SMALL = 1 << 20
"""Bytes of a file that is sent at once, as a snapshot: it does not count as one of the port's few endless answers."""
MAX_RANGE = 4 << 20
"""Bytes of one answer to a range request; a player asks for the next."""
_KINDS = {
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".jpg": "image/jpeg",
    ".json": "application/json",
}
_PARAMETERS = ("since", "until", "stream", "rule", "label", "kind", "type", "id", "before", "after", "limit", "order")
MAX_VALUES = 500
"""Values of one parameter: older versions of SQLite take 999 in all."""
_RANGE = re.compile(r"bytes=([0-9]{0,1000})-([0-9]{0,1000})", re.ASCII | re.IGNORECASE)
_INT64 = 1 << 63


def time_ns(text: str) -> int:
    """Unix seconds, or an ISO 8601 date with a time (UTC unless it says otherwise), as Unix nanoseconds.

    Raises:
        ValueError: it is neither.
    """
    try:
        return round(float(text) * 1e9)
    except (ValueError, OverflowError):
        moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.timezone.utc)
        return round(moment.timestamp() * 1e6) * 1000


def filter_of(query: Mapping[str, str]) -> Filter:
    """What a request asks for. Several values of a field are separated by commas.

    Raises:
        ValueError: says what is wrong.
    """
    for name in query:
        if name not in _PARAMETERS:
            raise ValueError(f"unknown parameter {name[:40]}; expected {', '.join(_PARAMETERS)}")

    def number(name: str, default: int | None) -> int | None:
        try:
            return _int64(int(query[name])) if name in query else default
        except ValueError:
            raise ValueError(f"{name}: expected a whole number below 2**63") from None

    def moment(name: str) -> int | None:
        try:
            return _int64(time_ns(query[name])) if name in query else None
        except (ValueError, OverflowError):
            raise ValueError(f"{name}: expected Unix seconds, or a time such as 2027-01-15T08:00:00Z") from None

    def several(name: str) -> tuple[str, ...] | None:
        values = tuple(filter(None, query[name].split(","))) if name in query else None
        if values is not None and len(values) > MAX_VALUES:
            raise ValueError(f"{name}: expected at most {MAX_VALUES} values")
        return values

    limit = number("limit", 100) or 0
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit: expected 1 to {MAX_LIMIT}")
    if query.get("order", "newest") not in ("newest", "oldest"):
        raise ValueError("order: expected newest or oldest")
    kinds: Any = several("kind")
    return Filter(
        since_ns=moment("since"), until_ns=moment("until"), streams=several("stream"), rules=several("rule"),
        labels=several("label"), kinds=kinds, types=several("type"), ids=several("id"), before=number("before", None),
        after=number("after", None), newest_first=query.get("order", "newest") == "newest", limit=limit,
    )  # fmt: skip


def _int64(number: int) -> int:
    """`number`, if the database can have it.

    Raises:
        ValueError: it cannot.
    """
    if not -_INT64 <= number < _INT64:
        raise ValueError("out of range")
    return number


def described(record: Record) -> dict[str, Any]:
    """The record's data with its position, and where its files can be fetched instead of where they lie."""
    body = {"position": record.position, **data(record)}
    for role, media in body["media"].items():
        media["name"] = os.path.basename(media.pop("path"))
        if media["state"] == "written":
            media["url"] = f"media/{quote(record.id, safe='')}/{quote(role, safe='')}"
    return body


class Archive:
    """Serves /events and /media/EVENT/ROLE.

    Args:
        journal: the open journal; None while there is none.
    """

    def __init__(self, journal: Callable[[], Journal | None]) -> None:
        self._journal = journal

    def events(self, request: Request) -> Response:
        """A page of events: `{"events": [...], "next": position or null}`."""
        try:
            wanted = filter_of(request.query)
        except ValueError as error:
            return Response(f"{error}\n".encode(), code=400)
        journal = self._journal()
        try:
            records = journal.find(wanted) if journal is not None else []
        except SinkError as error:
            return Response(f"{error}\n".encode(), code=503)
        following = records[-1].position if len(records) == wanted.limit else None
        body = {"events": [described(record) for record in records], "next": following}
        return Response(msgspec.json.encode(body), "application/json")

    def media(self, request: Request) -> Response:
        """A file of an event, whole or a range of it."""
        event, _, role = request.path.removeprefix("/media/").rpartition("/")
        journal = self._journal()
        if journal is None or not event or not role:
            return Response(b"not found; expected /media/EVENT/ROLE\n", code=404)
        try:
            records = journal.find(Filter(ids=[event], limit=1))
        except SinkError as error:
            return Response(f"{error}\n".encode(), code=503)
        media = records[0].media.get(role) if records else None
        if media is None or media.state != "written":
            return Response(b"there is no such file, or it is gone\n", code=404)
        return _file(Path(media.path), request)


def _file(path: Path, request: Request) -> Response:
    try:
        size = path.stat().st_size
        kind = _KINDS.get(path.suffix, "application/octet-stream")
        headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=60"}
        if "download" in request.query:
            headers["Content-Disposition"] = f'attachment; filename="{path.name}"'
        span = _span(request.headers.get("Range", ""), size)
        if span is None and size <= SMALL:
            return Response(path.read_bytes(), kind, headers=headers)
        if span is None:
            return Response(_pieces(path, size), kind, headers={**headers, "Content-Length": str(size)})
        first, last = span
        if first >= size:
            return Response(b"", code=416, headers={"Content-Range": f"bytes */{size}"})
        with path.open("rb") as handle:
            handle.seek(first)
            piece = handle.read(last - first + 1)
        headers["Content-Range"] = f"bytes {first}-{first + len(piece) - 1}/{size}"
        return Response(piece, kind, 206, headers)
    except OSError:
        return Response(b"the file is gone\n", code=404)


def _span(asked: str, size: int) -> tuple[int, int] | None:
    """The first and last byte that a header Range asks for; the first is `size` where there are none such. None: all,
    as for several ranges, other units and what is no range (RFC 9110, 14.2)."""
    found = _RANGE.fullmatch(asked.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:  # so many at the end
        first, last = size - min(int(found[2]), size), size - 1
    else:
        first, last = min(int(found[1]), size), int(found[2]) if found[2] else size - 1
        if found[2] and last < int(found[1]):
            return None
    return first, min(last, size - 1, first + MAX_RANGE - 1)


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as handle:
        while size > 0 and (piece := handle.read(min(PIECE, size))):
            size -= len(piece)
            yield piece
