"""One bundle: a .tar.gz of JSON files and a summary, written to a temporary file and then renamed."""

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
from streamd.runtime.recorder import facts
from streamd.runtime.recorder.memory import LOG, PROCESS, STATUS, Record
from streamd.runtime.recorder.summary import STAGES, milliseconds, summary
from streamd.telemetry.logs import Redactor
from streamd.telemetry.streams import STATES

_clean = Redactor().clean
_PART = ".part"
_CHUNK = 256
_PAUSE_S = 0.0005
"""Rows are serialized a few at a time, releasing the interpreter to the stages in between."""
_NAME = re.compile(r"^(?P<config>.+)-(?P<at>\d{8}T\d{6}Z)-(?P<reason>[a-z_]+)-(?P<pid>\d+)(\.\d+)?\.tar\.gz$")


def bundles(folder: Path, config: str, reason: str | None = None) -> list[Path]:
    """Bundles of a configuration in `folder`, oldest first; only those of `reason` if given."""
    found = []
    for path in folder.glob("*.tar.gz"):
        match = _NAME.match(path.name)
        if match and match["config"] == config and reason in (None, match["reason"]):
            found.append((modified_ns(path), path))
    return [path for _, path in sorted(found)]


def modified_ns(path: Path) -> int:
    """Unix nanoseconds; 0 if it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def tidy(folder: Path, config: str, keep: int, newest: Path) -> None:
    """Removes all but the newest `keep` bundles: first those that somebody asked for, as they can be had again, then
    those from the future, which a wrong clock has stamped.

    Args:
        folder: of the bundles.
        config: the configuration's name.
        keep: how many stay.
        newest: the one just written, which stays whatever the clock said.
    """
    found = bundles(folder, config)
    asked = set(bundles(folder, config, "request")[:-1])  # the newest may not have been fetched yet
    tomorrow_ns = time.time_ns() + 86_400 * 10**9
    late = {path for path in found if modified_ns(path) > tomorrow_ns}
    found.sort(key=lambda path: (path == newest, path not in asked, path not in late))
    for path in found[:-keep]:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_unfinished(folder: Path, config: str) -> None:
    """Removes the temporary files of a process that died while writing. Only for the process that records the
    configuration."""
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
        folder: created if it is missing.
        record: the recorded history.
        config: the configuration's name.
        reason: a word that becomes part of the file's name.
        detail: a sentence.
        settings: the configuration as JSON values.
        seconds: how much history was to be kept.
        traceback: of the exception, if there was one.
        live: False if the record is that of another, dead process, whose stacks are not available.

    Raises:
        OSError: it cannot be written; no partial file remains.
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
    """The last `seconds` of the record before its newest entry, since a dead process may be found late."""
    ends = [int(a[k][-1]) for a, k in ((record.frames, "postprocessed"), (record.streams, "at")) if len(a)]
    begin = max(ends, default=0) - int(seconds * 1e9)
    frames = record.frames[record.frames["postprocessed"] >= begin]
    streams = record.streams[record.streams["at"] >= begin]
    # Streams that were removed earlier are forgotten.
    used = np.union1d(frames["stream"], streams["stream"])
    for rows in (frames, streams):
        rows["stream"] = np.searchsorted(used, rows["stream"])
    newest_note = record.notes[-1].wall_s if record.notes else 0.0
    return Record(
        record.header,
        record.wall_minus_monotonic_ns,
        [record.names[number] for number in used],
        frames,
        streams,
        # The log lines from the start of the process stay if there is room: they describe the setup.
        [n for n in record.notes if n.wall_s >= newest_note - seconds or n.kind == LOG],
    )


def _span(rows: Any, field: str) -> float:
    return (int(rows[field][-1]) - int(rows[field][0])) / 1e9 if len(rows) else 0.0


def _files(record: Record, breach: Mapping[str, Any], settings: Any, live: bool) -> Iterator[tuple[str, Iterable[str]]]:
    if live:  # first: they change while this is written
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
    """Redacts before serializing: JSON quotes and escapes would hide a secret that contains such characters."""
    return json.dumps(_clean(value), indent=1) + "\n"


def _columns(columns: Mapping[str, Any], more: Mapping[str, Any]) -> Iterator[str]:
    """{…, "columns": [names], "rows": [[values], …]}, in pieces."""
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
        {"streams": record.names, "states": STATES, "units": "totals since the start, one row per second and stream; "
         "held, missed: frames covered by the objective, and those of them that were late or dropped"},
    )  # fmt: skip


def _frames(record: Record) -> Iterator[str]:
    rows = record.frames
    times = {f"{name}_ms": np.round(value, 3) for name, value in milliseconds(rows).items()}
    yield from _columns(
        {"unix_s": np.round(record.wall_s(rows["postprocessed"]), 6), "stream": rows["stream"],
         "epoch": rows["epoch"], "seq": rows["seq"], **times},
        {"streams": record.names, "stages": [name for name, _, _ in STAGES], "units": "unix_s: time of publication; "
         "_ms: milliseconds in each stage; total: since the packet was read"},
    )  # fmt: skip


def _add(archive: tarfile.TarFile, name: str, pieces: Iterable[str], at: float) -> None:
    content = io.BytesIO()
    for piece in pieces:
        content.write(piece.encode("utf-8", "backslashreplace"))
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = content.tell(), int(at), 0o600
    content.seek(0)
    archive.addfile(entry, content)
