"""One bundle: a .tar.gz of JSON files and a summary, written beside its place and then renamed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamd import __version__
from streamd.recorder import facts
from streamd.recorder.memory import LOG, PROCESS, STATUS, Record
from streamd.recorder.summary import STAGES, milliseconds, summary
from streamd.telemetry.logs import Redactor
from streamd.telemetry.metrics import STATES

_clean = Redactor().clean
_PART = ".part"
_CHUNK = 256
_PAUSE_S = 0.0005
"""Rows are turned into text a few at a time, with the interpreter left to the stages in between."""
_NAME = re.compile(r"^(?P<config>.+)-(?P<at>\d{8}T\d{6}Z)-(?P<reason>[a-z_]+)-(?P<pid>\d+)(\.\d+)?\.tar\.gz$")


def bundles(folder: Path, config: str, reason: str | None = None) -> list[Path]:
    """Bundles of a configuration in `folder`, the oldest first; of one reason where one is given."""
    found = []
    for path in folder.glob("*.tar.gz"):
        match = _NAME.match(path.name)
        if match and match["config"] == config and reason in (None, match["reason"]):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def tidy(folder: Path, config: str, keep: int) -> None:
    """Removes all but the newest `keep` bundles."""
    for path in bundles(folder, config)[:-keep]:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_unfinished(folder: Path, config: str) -> None:
    """Removes what a process left that died over a bundle. For the one process that records a configuration."""
    for path in folder.glob(f"*{_PART}"):
        match = _NAME.match(path.name.removesuffix(_PART))
        if match and match["config"] == config:
            path.unlink(missing_ok=True)


def write(
    folder: Path,
    record: Record,
    *,
    config: str,
    reason: str,
    detail: str,
    settings: Any,
    seconds: float,
    traceback: str = "",
    live: bool = True,
) -> Path:
    """Writes one bundle.

    Args:
        folder: made where it is missing.
        record: what was remembered.
        config: the configuration's name.
        reason: a word that becomes part of the file's name.
        detail: a sentence.
        settings: the configuration as JSON has it.
        seconds: how much was to be kept.
        traceback: of what was raised, if anything.
        live: False where the record is that of another, dead process: its stacks are not to be had.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    now = time.time()
    record = _newest(record, seconds)
    breach = {
        "reason": reason,
        "detail": _clean(detail),
        "traceback": _clean(traceback),
        "at": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now)),
        "unix_s": now,
        "version": record.header.get("version", __version__),
        "pid": record.header.get("pid"),
        "boot_id": record.header.get("boot_id"),
        "host": os.uname().nodename,
        "config": config,
        "seconds": seconds,
        "frames_held_s": _span(record.frames, "postprocessed"),
        "seconds_held_s": _span(record.streams, "at"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{config}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{reason}-{os.getpid()}"
    path = next(p for i in range(10_000) if not (p := folder / f"{stem}{f'.{i}' if i else ''}.tar.gz").exists())
    part = path.with_name(path.name + _PART)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
                for name, pieces in _files(record, breach, settings, live):
                    _add(archive, f"{stem}/{name}", pieces, now)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def _newest(record: Record, seconds: float) -> Record:
    """The last `seconds` of it, counted from its own newest entry: a dead process may be found late."""
    ends = [int(a[k][-1]) for a, k in ((record.frames, "postprocessed"), (record.streams, "at")) if len(a)]
    begin = max(ends, default=0) - int(seconds * 1e9)
    newest_note = record.notes[-1].wall_s if record.notes else 0.0
    return Record(
        record.header,
        record.wall_minus_monotonic_ns,
        record.names,
        record.frames[record.frames["postprocessed"] >= begin],
        record.streams[record.streams["at"] >= begin],
        # What was said when the process started stays, if there is room: it tells what runs here.
        [n for n in record.notes if n.wall_s >= newest_note - seconds or n.kind == LOG],
    )


def _span(rows: Any, field: str) -> float:
    return (int(rows[field][-1]) - int(rows[field][0])) / 1e9 if len(rows) else 0.0


def _files(record: Record, breach: Mapping[str, Any], settings: Any, live: bool) -> Iterator[tuple[str, Iterable[str]]]:
    if live:  # first: they are what changes while this is written
        yield "threads.json", [_json(facts.threads())]
    yield "summary.txt", [_clean(summary(record, breach))]
    yield "breach.json", [_json(breach)]
    yield "config.json", [_json(settings)]
    yield "environment.json", [_json(facts.environment())]
    logs = [n for n in record.notes if n.kind == LOG]
    yield "log.jsonl", (json.dumps(_clean(n.values)) + "\n" for n in logs)
    for name, kind in (("statuses.json", STATUS), ("process.json", PROCESS)):
        yield name, [_json([{"unix_s": n.wall_s, **n.values} for n in record.notes if n.kind == kind])]
    yield "streams.json", _streams(record)
    yield "frames.json", _frames(record)


def _json(value: Any) -> str:
    """Redacted before it is text: quotes and escapes of JSON would hide a secret that has such characters."""
    return json.dumps(_clean(value), indent=1) + "\n"


def _columns(columns: Mapping[str, Any], more: Mapping[str, Any]) -> Iterator[str]:
    """{…, "columns": [names], "rows": [[values], …]}, a piece at a time."""
    head = json.dumps({**more, "columns": list(columns)})
    yield head[:-1] + ', "rows": ['
    count = len(next(iter(columns.values())))
    for start in range(0, count, _CHUNK):
        rows = zip(*(c[start : start + _CHUNK].tolist() for c in columns.values()), strict=True)
        text = ",\n".join(json.dumps(row) for row in rows)
        yield ("\n" if start == 0 else ",\n") + text
        time.sleep(_PAUSE_S)
    yield "]}\n"


def _streams(record: Record) -> Iterator[str]:
    rows = record.streams
    totals = {k: rows[k] for k in ("received", "published", "dropped", "held", "missed", "waiting", "reconnects")}
    yield from _columns(
        {"unix_s": np.round(record.wall_s(rows["at"]), 3), "stream": rows["stream"], "state": rows["state"], **totals},
        {"streams": record.names, "states": STATES, "units": "totals since the start, one row a second and stream; "
         "held, missed: frames that the objective holds for, and of those the late or dropped ones"},
    )  # fmt: skip


def _frames(record: Record) -> Iterator[str]:
    rows = record.frames
    times = {f"{name}_ms": np.round(value, 3) for name, value in milliseconds(rows).items()}
    yield from _columns(
        {"unix_s": np.round(record.wall_s(rows["postprocessed"]), 6), "stream": rows["stream"],
         "epoch": rows["epoch"], "seq": rows["seq"], **times},
        {"streams": record.names, "stages": [name for name, _, _ in STAGES], "units": "unix_s: when it was published; "
         "_ms: milliseconds in each stage; total: from reading the packet"},
    )  # fmt: skip


def _add(archive: tarfile.TarFile, name: str, pieces: Iterable[str], at: float) -> None:
    content = io.BytesIO()
    for piece in pieces:
        content.write(piece.encode())
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = content.tell(), int(at), 0o600
    content.seek(0)
    archive.addfile(entry, content)
