"""`streamd events`: what the event journal holds; `streamd events delete` has events deleted."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from streamd.cli.console import output_console
from streamd.config.yamlfile import MAX_BYTES, read_yaml
from streamd.errors import ConfigError, SinkError
from streamd.events import query, requests
from streamd.events.chores import remove_file
from streamd.events.journal import Journal
from streamd.events.place import JOURNAL, UNIT_FOLDER, owner, user_folder
from streamd.events.record import Record, data
from streamd.events.schema import damaged, open_reader
from streamd.events.upkeep import Deletion
from streamd.runtime.recorder.place import config_name
from streamd.security.text import plain
from streamd.security.trust import read_text
from streamd.telemetry.logs import configure

FOLLOW_S = 0.5
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "events",
        help="show the event journal, or delete events",
        description="Shows events, the newest last. `events delete` deletes them: rows, deliveries that wait, clips "
        "and snapshots. It needs --since and --until, and --stream or --all-streams.",
        epilog="A TIME is 2026-03-01, 2026-03-01T12:30 (of this machine's time zone), 2026-03-01T12:30Z, "
        "or how long ago: 90s, 15m, 2h, 7d.",
    )
    p.add_argument(
        "words", nargs="*", metavar="[delete] [PLACE]",
        help="PLACE: the state folder, or the configuration whose daemon writes it. Default: $STATE_DIRECTORY, "
        f"else {UNIT_FOLDER} and this user's ~/.local/state/streamd",
    )  # fmt: skip
    p.add_argument("--state-dir", metavar="FOLDER", help="the state folder; the same as PLACE")
    p.add_argument("--since", type=moment, metavar="TIME", help="only events from this time on")
    p.add_argument("--until", type=moment, metavar="TIME", help="only events before this time")
    p.add_argument("--stream", action="append", metavar="ID", help="only this stream (may be repeated)")
    p.add_argument("--label", action="append", metavar="NAME", help="only this class (may be repeated)")
    p.add_argument("--rule", action="append", metavar="NAME", help="only this zone or line (may be repeated)")
    p.add_argument("--kind", action="append", choices=("begin", "update", "end", "instant"), help="only this kind")
    p.add_argument("--limit", type=_limit, default=100, metavar="N", help="show at most the newest N (default 100)")
    p.add_argument("--json", action="store_true", help="print one JSON object per event instead of a table")
    p.add_argument("--follow", action="store_true", help="keep showing events as they are committed")
    p.add_argument("--all-streams", action="store_true", help="with delete: the events of every stream")
    p.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="with delete: longest wait (default 30)"
    )


def moment(text: str) -> int:
    """An option's value: a point in time as Unix nanoseconds."""
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if ago:
        return time.time_ns() - int(float(ago[1]) * _UNITS[ago[2]] * 1e9)
    try:
        # Python 3.10 does not know the Z.
        found = datetime.datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text))
        return int(found.timestamp() * 1_000_000) * 1000
    except (ValueError, OverflowError, OSError):
        expected = "expected a time as 2026-03-01T12:30, or how long ago as 15m, 2h or 7d"
        raise argparse.ArgumentTypeError(f"{text!r}: {expected}") from None


def _limit(text: str) -> int:
    value = int(text)
    if not 1 <= value <= query.MAX_PAGE:
        raise argparse.ArgumentTypeError(f"must be between 1 and {query.MAX_PAGE}")
    return value


def _configured(path: Path) -> Path | None:
    """`events.state_dir` of a configuration, and nothing else: secrets of the rest may not be in the environment."""
    text = read_text(path, MAX_BYTES, what=f"events: {path}", expected="a configuration or a state folder")
    try:
        values = read_yaml(text, os.environ, path.parent, secrets=False).values
    except ConfigError as error:
        raise ConfigError(f"events: {path}: {error}") from error
    section = values.get("events") if isinstance(values, dict) else None
    found = section.get("state_dir") if isinstance(section, dict) else None
    return (path.parent / os.path.expanduser(found)).absolute() if isinstance(found, str) else None


def _places(place: str | None) -> list[Path]:
    """Where the journal may be, the likeliest first."""
    state = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    # Without a service manager, the daemon is either the unit's or was started by this user.
    roots = [Path(state)] if state else [UNIT_FOLDER, user_folder()]
    if place is None:
        return roots
    path = Path(place)
    if not path.exists():
        raise ConfigError(f"events: {path}: does not exist; give a state folder, or the configuration of a daemon")
    if not path.is_file():
        return [path]
    configured = _configured(path)
    return [configured] if configured is not None else [root / config_name(path) for root in roots]


def _journals(place: Path) -> list[Path]:
    """The state folders at `place` or directly below it."""
    try:
        if (place / JOURNAL).exists():
            return [place]
        return sorted(path.parent for path in place.glob(f"*/{JOURNAL}"))
    except OSError as error:
        advice = "run this as the daemon's user, or as root"
        raise ConfigError(f"events: {place}: {error.strerror}; {advice}") from error


def folder(place: str | None) -> Path:
    """The state folder that is meant.

    Raises:
        ConfigError: there is no journal in it; the message says where there are some.
    """
    places = _places(place)
    found, refused = [], []
    for each in places:
        try:
            found += _journals(each)
        except ConfigError as error:
            refused.append(error)
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(map(str, found))
        where = " and ".join(map(str, dict.fromkeys(places)))
        raise ConfigError(f"events: several journals in {where}; name one of {several}")
    if refused:
        raise refused[0]
    advice = "name the state folder of a daemon that has zones or lines"
    raise ConfigError(f"events: no journal ({JOURNAL}) in {' or '.join(map(str, places))}; {advice}")


_LEFT_TO_JSON = ("observed_s", "clip_json", "snapshot_plain")
"""Says what others of the row say already."""


def _detail(record: Record) -> str:
    """What the event adds to the row, in a few words; `--json` has all of it."""
    parts: list[str] = []
    for name, value in record.details.items():
        if name in _LEFT_TO_JSON or not isinstance(value, str | int | float):
            continue
        if name == "direction":
            parts.insert(0, str(value))
        elif name == "certain":
            parts += [] if value else ["uncertain"]
        elif name == "score":
            parts.append(f"score {value:.2f}")
        elif name.endswith("_s") and not isinstance(value, str):
            parts += [f"{name[:-2].replace('_', ' ')} {value:.1f} s"] if value else []
        else:
            parts.append(f"{name}={value}")
    if record.events_lost:
        parts.append(f"events_lost={record.events_lost}")
    for role, media in record.media.items():
        if role not in _LEFT_TO_JSON:
            parts.append(role if media.state == "written" else f"{role} {media.state}")
    return ", ".join(parts)


def _at(record: Record) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.at_ns // 1000 / 1e6).astimezone()


def _cells(record: Record, form: str = "%m-%d %H:%M:%S") -> tuple[str, ...]:
    values = (
        f"{_at(record):{form}}",
        record.stream,
        record.type or record.kind,
        record.rule or "-",
        record.label or "-",
        _detail(record),
    )
    return tuple(map(plain, values))


COLUMNS = ("time", "stream", "event", "rule", "label", "details")
_FLOORS = (
    *(("details", 25), ("stream", 12), ("rule", 10), ("label", 8), ("event", 12)),
    *(("details", 10), ("stream", 6), ("rule", 6), ("label", 6), ("event", 6)),
)
"""Columns that give way where a line is too long, in this order, each down to so many characters."""


def _widths(rows: Sequence[Sequence[str]], width: int) -> dict[str, int]:
    """Of each column, so that a line is no longer than `width` if that is possible."""
    from rich.cells import cell_len

    widths = {name: max(map(cell_len, cells)) for name, *cells in zip(COLUMNS, *rows, strict=True)}
    widths = {name: max(found, len(name)) for name, found in widths.items()}
    over = sum(widths.values()) + len(COLUMNS) - 1 - width
    for name, floor in _FLOORS:
        cut = max(0, min(over, widths[name] - floor))
        widths[name] -= cut
        over -= cut
    return widths


def table(records: Sequence[Record], caption: str = "", width: int = 80) -> Any:
    """The events as a table that fits into `width` columns, of 60 and more. A day that all have stands above them."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    days = {_at(record).date() for record in records}
    title, form = (days.pop().isoformat(), "%H:%M:%S") if len(days) == 1 else (None, "%m-%d %H:%M:%S")
    made = Table(box=SIMPLE_HEAD, title=title, caption=caption or None, padding=0, show_edge=False)
    made.title_justify = "left"
    rows = [_cells(record, form) for record in records]
    for name, each in _widths(rows, width).items():
        made.add_column(name, overflow="fold", width=each)
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def _show(args: argparse.Namespace, path: Path) -> int:
    wanted = query.Filter(
        since_ns=args.since, until_ns=args.until, streams=args.stream, labels=args.label, rules=args.rule,
        kinds=args.kind, newest_first=True, limit=args.limit,
    )  # fmt: skip
    connection = open_reader(path)
    try:
        records = query.find(connection, wanted)[::-1]
        if args.json:
            for record in records:
                print(json.dumps(data(record)))
        elif records or not args.follow:
            _print_table(records, args.limit)
        if args.follow:
            sys.stdout.flush()
            with contextlib.suppress(KeyboardInterrupt):
                for record in _follow(path, connection, wanted, records[-1].position if records else None):
                    print(json.dumps(data(record)) if args.json else "  ".join(_cells(record)), flush=True)
    finally:
        connection.close()
    return 0


def _print_table(records: Sequence[Record], limit: int) -> None:
    console = output_console()
    if not records:
        console.print("no events", highlight=False)
        return
    note = f"the newest {limit}; --limit shows more" if len(records) == limit else ""
    console.print(table(records, note, console.width))


def _follow(path: Path, connection: sqlite3.Connection, wanted: query.Filter, position: int | None) -> Iterator[Record]:
    """Events as they come; a journal that began anew is followed, too."""
    import msgspec

    if position is None:
        (position,) = connection.execute("SELECT value FROM meta WHERE name = 'position'").fetchone()
    log_id = query.log_id(connection)
    identity = os.stat(path).st_ino
    while True:
        page = msgspec.structs.replace(wanted, after=position, newest_first=False)
        found = query.find(connection, page)
        for record in found:
            position = record.position
            yield record
        if len(found) == wanted.limit:
            continue
        time.sleep(FOLLOW_S)
        with contextlib.suppress(OSError, sqlite3.Error):
            if os.stat(path).st_ino != identity:
                connection.close()
                connection, identity = open_reader(path), os.stat(path).st_ino
                if query.log_id(connection) != log_id:
                    log_id, position = query.log_id(connection), 0


def _delete(args: argparse.Namespace, state: Path) -> int:
    if args.since is None or args.until is None or bool(args.stream) == args.all_streams:
        raise ConfigError("events delete: give --since and --until, and either --stream or --all-streams")
    if args.label or args.rule or args.kind or args.follow:
        raise ConfigError("events delete: --label, --rule, --kind and --follow cannot be combined with delete")
    configure("warning")
    if args.since >= args.until:
        raise ConfigError("events delete: --since is not before --until")
    total = Deletion(0, 0, [])
    for stream in args.stream or [None]:
        done = _delete_one(state, requests.DeleteRequest(stream, args.since, args.until), args.timeout)
        total = Deletion(total.events + done.events, total.pending + done.pending, total.paths + done.paths)
    if args.json:
        print(json.dumps(total._asdict()))
    else:
        files = len(total.paths)
        print(f"deleted {total.events} events, {total.pending} deliveries that waited and {files} files")
    for aside in damaged(state / JOURNAL):
        print(f"streamd: {aside}: a damaged journal may still contain them; delete it manually", file=sys.stderr)
    return 0


def _delete_one(state: Path, request: requests.DeleteRequest, timeout: float) -> Deletion:
    if owner(state) is not None:
        return requests.ask(state, request, timeout)
    journal = Journal(state)
    journal.start()
    try:
        done = journal.delete(request.stream, request.since_ns, request.until_ns, timeout)
        left = [path for path in done.paths if not remove_file(path)]
    finally:
        journal.close()
    if left:
        raise SinkError(f"events delete: {left[0]}: cannot be removed; the daemon will retry when it runs")
    return done


def run(args: argparse.Namespace) -> int:
    """Shows or deletes events.

    Raises:
        ConfigError: no such journal, or arguments that do not go together.
        SinkError: the journal cannot be read, or has not deleted anything.
        NoAnswerError: the daemon that writes the journal does not answer.
    """
    words = list(args.words)
    deleting = words[:1] == ["delete"]
    places = [*words[deleting:], *([args.state_dir] if args.state_dir else [])]
    if len(places) > 1:
        raise ConfigError(f"events: expected one place, not {', '.join(places)}")
    state = folder(places[0] if places else None)
    if deleting:
        return _delete(args, state)
    try:
        return _show(args, state / JOURNAL)
    except sqlite3.Error as error:
        raise SinkError(f"events: {state / JOURNAL}: cannot be read: {error}") from error
