"""What a subscriber knows of a daemon's streams, and the table that shows it."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UnsetType

from streamd.cli.console import enumerated
from streamd.security.text import plain
from streamd.sinks.message import Detection, DetectionsMessage, StatusMessage
from streamd.types import DEGRADED

WINDOW_S = 5.0
SETTLE_S = 1.0
"""After a connection, frames of the camera's or server's buffer arrive at once: they are no frame rate."""
MAX_ROWS = 4096
WIDE = 100
"""Columns of a terminal that has room for all of ours."""
_COLORS = {
    "LIVE": "green", "DEGRADED": "yellow", "BLIND": "yellow", "BACKOFF": "red", "CONNECTING": "yellow", "FAILED": "red",
    "ENDED": "blue",
}  # fmt: skip


def span(seconds: float) -> str:
    """A duration in one or two units: "40 s", "12 min", "3 h 5 min", "2 d 4 h"."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min"
    return f"{s // 3600} h {s % 3600 // 60} min" if s < 86_400 else f"{s // 86_400} d {s % 86_400 // 3600} h"


@dataclass
class Row:
    """The state of one stream."""

    stream: str
    state: str = "?"
    reason: str = ""
    blind: str = ""
    """Why the camera cannot see; empty if it can."""
    epoch: int = 0
    frames: int = 0
    dropped: int = 0
    """Frames that the daemon reports as dropped before the messages received."""
    missed: int = 0
    """Messages that never arrived: gaps in seq that the daemon does not account for."""
    last: str = ""
    counts: str = ""
    """Of its zones and lines; empty without any."""
    next_seq: int | None = None
    unlooked: int = 0
    """Frames so far that the network did not look at: there is no message of theirs here."""
    since: float | None = None
    """Since when it has been live or down, by our monotonic clock."""
    rate_from: float = float("inf")
    """Frames that arrive before this count in no rate."""
    recent: deque[tuple[float, float]] = field(default_factory=deque)
    """(arrival, capture-to-publish in ms) of the most recent seconds."""

    def trim(self, now: float) -> None:
        """Drops entries older than the window."""
        while self.recent and now - self.recent[0][0] > WINDOW_S:
            self.recent.popleft()

    @property
    def condition(self) -> str:
        """The state for people: a live stream that suffers from load is DEGRADED, one that shows nothing is BLIND."""
        if self.state == "LIVE" and self.blind:
            return "BLIND"
        return "DEGRADED" if self.state == "LIVE" and self.reason in DEGRADED else self.state

    @property
    def urgency(self) -> int:
        """0 for a stream that is down, 1 for a degraded or blind one, 2 for all others."""
        down = self.state in ("BACKOFF", "FAILED") or (self.state == "CONNECTING" and self.frames > 0)
        return 0 if down else 1 if self.condition in ("DEGRADED", "BLIND") else 2

    def fps(self, now: float) -> float:
        """Frames a second over the window, without those that came at once after a connection."""
        begin = max(self.rate_from, now - WINDOW_S)
        return round(sum(at >= begin for at, _ in self.recent) / max(0.2, now - begin), 1)

    def view(self, now: float) -> dict[str, Any]:
        """The row as plain values."""
        self.trim(now)
        latencies = sorted(ms for _, ms in self.recent)

        def rank(share: float) -> float | None:
            return round(latencies[min(len(latencies) - 1, int(share * len(latencies)))], 1) if latencies else None

        return {
            "stream": self.stream,
            "state": self.state,
            "reason": self.reason,
            **({"camera_health": self.blind.split(", ")} if self.blind else {}),
            "fps": self.fps(now),
            "p50_ms": rank(0.5),
            "p99_ms": rank(0.99),
            "frames": self.frames,
            "dropped": self.dropped,
            "missed": self.missed,
            "epoch": self.epoch,
            "last": self.last,
            **({"counts": self.counts} if self.counts else {}),
        }

    def note(self, now: float) -> str:
        """What was seen last, or how long the stream has been down."""
        if self.urgency == 0 and self.since is not None:
            return f"down for {span(now - self.since)}"
        return self.last


def _named(d: Detection) -> str:
    """The object's label with what classifiers say of it, e.g. "car red"."""
    return " ".join((d.label, *(a.label for a in d.attributes or ())))


def _counted(counts: Any) -> str:
    """The counts of a message in words, e.g. "hall 2, gate left_to_right 5". Empty for what streamd does not send."""
    told = []
    try:
        for zone, report in counts["zones"].items():
            known = "?" if report["occupancy"] is None else report["occupancy"]
            told.append(f"{zone} {known}{' (stale)' if report['stale'] else ''}")
        for line, report in counts["lines"].items():
            ways = (f"{way} {sum(labels.values())}" for way, labels in report["crossings"].items())
            told.append(f"{line} {', '.join(ways) or 0}")
    except (AttributeError, KeyError, TypeError):
        return ""
    return plain(", ".join(told))


class Board:
    """Rows by stream, updated from messages."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.boot_id = ""
        self.bad = 0
        """Messages that streamd did not send."""
        self.seen: Counter[str] = Counter()
        """Boxes per label over all streams."""

    def add(self, message: DetectionsMessage | StatusMessage, now: float) -> None:
        """Processes one message."""
        if message.boot_id != self.boot_id:
            # A restarted daemon counts from zero: keep nothing that would look like a gap.
            self.boot_id = message.boot_id
            for row in self.rows.values():
                row.next_seq = None
        name = plain(message.stream)
        if name not in self.rows and len(self.rows) >= MAX_ROWS:
            self.bad += 1
            return
        row = self.rows.setdefault(name, Row(name, epoch=message.epoch))
        if isinstance(message, StatusMessage):
            row.state, row.reason = plain(message.state), plain(message.reason)
            health = message.camera_health
            row.blind = "" if isinstance(health, msgspec.UnsetType) else plain(", ".join(health))
            row.since = now - (message.published_at - message.since)
            return
        if not row.frames:
            row.rate_from = now
        elif message.epoch != row.epoch:
            row.recent.clear()
            row.rate_from = now + SETTLE_S
        row.epoch = message.epoch
        row.frames += 1
        unlooked = 0 if isinstance(message.look, UnsetType) else message.look.unlooked
        if row.next_seq is not None:
            row.dropped += message.dropped
            row.missed += max(0, message.seq - row.next_seq - message.dropped - max(0, unlooked - row.unlooked))
        row.unlooked = unlooked
        row.next_seq = message.seq + 1
        row.recent.append((now, message.latency_ms.total))
        row.trim(now)
        counts = Counter(_named(d) for d in message.detections)
        self.seen.update(counts)
        best = max((d.score for d in message.detections), default=0.0)
        seen = enumerated(counts, 4)
        row.last = plain(f"{seen} ({best:.2f})" if seen else "nothing")
        row.counts = _counted(message.counts)

    def sorted(self) -> list[Row]:
        """Streams that are down first, then degraded ones; by name among equals."""
        return sorted(self.rows.values(), key=lambda row: (row.urgency, row.stream))


def table(board: Board, endpoint: str, problem: str = "", width: int = 80) -> Any:
    """The board as a table for a terminal, and below it what zones and lines have counted, on the whole width.

    Args:
        board: what to show.
        endpoint: where it comes from.
        problem: why nothing arrives; empty if it does.
        width: of the terminal. Each column has a width of its own, so that none moves when a number changes.
    """
    from rich import box
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    rows, now = board.sorted(), time.monotonic()
    shown = Table(title=f"streamd at {endpoint}", box=box.SIMPLE_HEAD, show_edge=False, padding=0, width=width)
    name_width = max([6, *(len(row.stream) for row in rows)])
    # With long names, all numbers would leave no room for the boxes.
    wide = width >= max(WIDE, min(name_width, 32) + WIDE - 12)

    def column(title: str, wanted: int | None, *, right: bool = False) -> None:
        shown.add_column(
            title, justify="right" if right else "left", no_wrap=True, overflow="ellipsis", min_width=wanted,
            max_width=wanted, ratio=None if wanted else 1,
        )  # fmt: skip

    column("stream", min(name_width, 32 if wide else 14))
    column("state", 24 if wide else 20)
    numbers = [("fps", "fps", 5), ("p50 ms", "p50_ms", 6), ("dropped", "dropped", 7), ("missed", "missed", 6)]
    if wide:
        numbers[2:2] = [("p99 ms", "p99_ms", 6), ("frames", "frames", 8)]
    for title, _, wanted in numbers:
        column(title, wanted, right=True)
    column("boxes in the last frame" if wide else "last frame", None)
    for row in rows:
        view = row.view(now)
        why = row.blind if row.condition == "BLIND" else row.reason
        state = escape(f"{row.condition} {why}".strip())
        shown.add_row(
            escape(row.stream),
            f"[{_COLORS.get(row.condition, 'white')}]{state}[/]",
            *("-" if view[key] is None else _number(view[key]) for _, key, _ in numbers),
            escape(row.note(now)),
        )
    if problem:
        shown.caption = problem
    elif not rows:
        shown.caption = "waiting for the first message…"
    elif board.bad:
        shown.caption = f"{board.bad} messages could not be parsed"
    if not any(row.counts for row in rows):
        return shown
    counted = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, width=width)
    counted.add_column("stream", no_wrap=True, overflow="ellipsis", width=min(name_width, 32 if wide else 14))
    counted.add_column("zones and lines", ratio=1)
    for row in rows:
        if row.counts:
            counted.add_row(escape(row.stream), escape(row.counts))
    return Group(shown, "", counted)


def _number(value: float) -> str:
    """At most seven characters."""
    if value >= 1e7:
        return f"{value / 1e6:.0f}M"
    return f"{value:.0f}" if isinstance(value, float) and value >= 1000 else str(value)
