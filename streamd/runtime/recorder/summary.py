"""summary.txt, which people read first: what happened, in which order, in which stream and stage."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.runtime.recorder.memory import LOG, PROCESS, STATUS, Note, Record
from streamd.telemetry.streams import STATES

STAGES = (
    ("decode", "captured", "decoded"),
    ("queue", "decoded", "batched"),
    ("preprocess", "batched", "preprocessed"),
    ("infer", "preprocessed", "inferred"),
    ("postprocess", "inferred", "postprocessed"),
)
MAX_EVENTS = 60
MAX_STREAMS = 40
_SLOW = 3.0
"""A frame is slow if it took this many times the median of the whole record."""


def clock(wall_s: float) -> str:
    """UTC time of day with milliseconds."""
    return datetime.datetime.fromtimestamp(wall_s, datetime.timezone.utc).strftime("%H:%M:%S.%f")[:-3]


def milliseconds(frames: npt.NDArray[np.void]) -> dict[str, npt.NDArray[np.float64]]:
    """Each frame's time in each stage, and in total."""
    found = {name: (frames[end] - frames[begin]) / 1e6 for name, begin, end in STAGES}
    return {**found, "total": (frames["postprocessed"] - frames["captured"]) / 1e6}


def events(record: Record) -> list[tuple[float, str]]:
    """(Unix seconds, what happened) for everything unusual, in order; repetitions are only counted."""
    found = [(note.wall_s, text) for note in record.notes if (text := _event(note))]
    found += _slow_frames(record)
    found += _lost_frames(record)
    seen: dict[str, list[float]] = {}
    for at, text in sorted(found):
        seen.setdefault(text, []).append(at)
    again = {text: f" ({len(ats)} times, last at {clock(ats[-1])})" for text, ats in seen.items() if len(ats) > 1}
    return [(ats[0], text + again.get(text, "")) for text, ats in seen.items()]


def _event(note: Note) -> str:
    values = note.values
    if note.kind == STATUS and values.get("state") != "CONNECTING":
        reason = f" ({values['reason']})" if values.get("reason") else ""
        detail = f": {values['detail']}" if values.get("detail") else ""
        return f"stream {values.get('stream')} is {values.get('state')}{reason}{detail}"
    told = str(values.get("event", "")).startswith("stream ")  # its status reports it
    if note.kind == LOG and values.get("level") in ("warning", "error", "critical") and not told:
        more = ", ".join(f"{k}={str(v)[:120]}" for k, v in values.items() if k not in ("level", "event", "timestamp"))
        return f"{values['level']}: {values.get('event')}{': ' if more else ''}{more}".replace("\n", " ")
    return ""


def _slow_frames(record: Record) -> Iterator[tuple[float, str]]:
    """The first frame of each stream that took much longer than usual."""
    frames = record.frames
    times = milliseconds(frames)
    for number in np.unique(frames["stream"]):
        mine = frames["stream"] == number
        total = times["total"][mine]
        slow = np.flatnonzero(total > _SLOW * np.median(total) + 5)
        if len(total) >= 20 and slow.size:
            first = slow[0]
            worst = max((name for name, _, _ in STAGES), key=lambda s: float(times[s][mine][first]))
            at = float(record.wall_s(frames["postprocessed"][mine][first]))
            text = (
                f"stream {record.names[number]}: first slow frame, seq {frames['seq'][mine][first]}: "
                f"{total[first]:.1f} ms (median {np.median(total):.1f}), of which {worst} "
                f"{times[worst][mine][first]:.1f}; {slow.size} of {len(total)} were slow"
            )
            yield at, text


def _lost_frames(record: Record) -> Iterator[tuple[float, str]]:
    """The first second in which a stream dropped frames or received none."""
    for number in np.unique(record.streams["stream"]):
        rows = record.streams[record.streams["stream"] == number]
        name, at = record.names[number], record.wall_s(rows["at"])
        dropped = np.flatnonzero(np.diff(rows["dropped"]) > 0)
        if dropped.size:
            total = int(rows["dropped"][-1] - rows["dropped"][0])
            yield float(at[dropped[0] + 1]), f"stream {name}: first dropped frames, {total} in total"
        came = np.diff(rows["received"])
        silent = np.flatnonzero(came == 0)
        if came.any() and silent.size:
            yield float(at[silent[0] + 1]), f"stream {name}: first second without a frame, {silent.size} in total"


def _table(record: Record) -> Iterator[str]:
    frames, seconds = record.frames, record.streams
    times = milliseconds(frames)
    numbers = np.unique(seconds["stream"])
    yield f"{'stream':<24}{'state':>11}{'in/s':>7}{'out/s':>7}{'dropped':>9}{'p50 ms':>9}{'p99 ms':>9}  slowest stage"
    for number in numbers[:MAX_STREAMS]:
        rows = seconds[seconds["stream"] == number]
        span = max((int(rows["at"][-1]) - int(rows["at"][0])) / 1e9, 1e-9)
        gain = {k: int(rows[k][-1] - rows[k][0]) for k in ("received", "published", "dropped")}
        mine = frames["stream"] == number
        p50, p99, stage = "-", "-", ""
        if mine.any():
            p50, p99 = (f"{p:.1f}" for p in np.percentile(times["total"][mine], (50, 99)))
            means = {name: float(times[name][mine].mean()) for name, _, _ in STAGES}
            stage = max(means, key=lambda s: means[s])
            stage = f"{stage} (mean {means[stage]:.1f} ms)"
        state = STATES[rows["state"][-1]] if rows["state"][-1] < len(STATES) else "?"
        yield (
            f"{record.names[number]:<24}{state:>11}{gain['received'] / span:>7.1f}{gain['published'] / span:>7.1f}"
            f"{gain['dropped']:>9}{p50:>9}{p99:>9}  {stage}"
        )
    if len(numbers) > MAX_STREAMS:
        yield f"and {len(numbers) - MAX_STREAMS} more in streams.json"


def _process(record: Record) -> Iterator[str]:
    notes = [n.values for n in record.notes if n.kind == PROCESS]
    if not notes:
        return
    first, last = notes[0], notes[-1]
    for name in ("rss_mb", "fds", "threads"):
        if name in first and name in last:
            yield f"{name}: {first[name]:g} -> {last[name]:g}"
    waiting = {k: v for k, v in last.get("queues", {}).items() if v}
    yield f"queue lengths: {', '.join(f'{k} {v:g}' for k, v in waiting.items()) or 'all empty'}"
    yield f"batches in flight: {last.get('in_flight', 0):g}"


def summary(record: Record, breach: Mapping[str, Any]) -> str:
    """The text."""
    happened = events(record)
    written = (
        f"written {breach['at']} UTC by streamd {breach['version']}, process {breach['pid']} on {breach['host']}, "
        f"configuration {breach['config']}, boot_id {breach['boot_id']}"
    )
    holds = (
        f"contains {breach['frames_held_s']:.1f} s of frames and {breach['seconds_held_s']:.1f} s of counters, "
        f"of {breach['seconds']:g} s requested"
    )
    odd = next(((at, text) for at, text in happened if " is LIVE" not in text), None)
    first = f"{clock(odd[0])}  {odd[1]}" if odd else "nothing unusual before it"
    lines = [f"{breach['reason']}: {breach['detail']}", "", written, holds, "", "What happened first", f"  {first}"]
    lines += ["", "In order (UTC)"]
    shown = happened if len(happened) <= MAX_EVENTS else happened[: MAX_EVENTS // 2] + happened[-MAX_EVENTS // 2 :]
    lines += [f"  {clock(at)}  {text}" for at, text in shown]
    if len(shown) < len(happened):
        lines.append(f"  ({len(happened) - len(shown)} omitted here: see log.jsonl and statuses.json)")
    lines += ["", "Streams", *(f"  {line}" for line in _table(record)), "", "Process"]
    lines += [f"  {line}" for line in _process(record)]
    if breach.get("traceback"):
        lines += ["", "Error", *(f"  {line}" for line in breach["traceback"].rstrip().splitlines())]
    return "\n".join(lines) + "\n"
