"""`streamd watch ENDPOINT`: a live table of what a daemon publishes."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamd.cli.console import duration
from streamd.errors import ConfigError, SinkError
from streamd.security.trust import read_text
from streamd.sinks.curve import KEY_PATTERN, read_keys, secure_client
from streamd.sinks.message import MAX_MESSAGE_BYTES, TOPIC_PREFIX, DetectionsMessage, StatusMessage, decode

WINDOW_S = 5.0
MAX_ROWS = 4096
MAX_TEXT = 200


@dataclass
class Row:
    """The state of one stream."""

    stream: str
    state: str = "?"
    reason: str = ""
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
    recent: deque[tuple[float, float]] = field(default_factory=deque)
    """(arrival, capture-to-publish in ms) of the most recent seconds."""

    def trim(self, now: float) -> None:
        """Drops entries older than the window."""
        while self.recent and now - self.recent[0][0] > WINDOW_S:
            self.recent.popleft()

    def view(self, now: float) -> dict[str, Any]:
        """The row as plain values."""
        self.trim(now)
        latencies = sorted(ms for _, ms in self.recent)
        span = min(WINDOW_S, max(0.2, now - self.recent[0][0])) if self.recent else WINDOW_S

        def rank(share: float) -> float | None:
            return round(latencies[min(len(latencies) - 1, int(share * len(latencies)))], 1) if latencies else None

        return {
            "stream": self.stream,
            "state": self.state,
            "reason": self.reason,
            "fps": round(len(latencies) / span, 1),
            "p50_ms": rank(0.5),
            "p99_ms": rank(0.99),
            "frames": self.frames,
            "dropped": self.dropped,
            "missed": self.missed,
            "epoch": self.epoch,
            "last": self.last,
            **({"counts": self.counts} if self.counts else {}),
        }


def _plain(text: str) -> str:
    """`text` made safe to print: a terminal obeys escape sequences, whoever sent them."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_TEXT])


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
    return _plain(", ".join(told))


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
        name = _plain(message.stream)
        if name not in self.rows and len(self.rows) >= MAX_ROWS:
            self.bad += 1
            return
        row = self.rows.setdefault(name, Row(name))
        row.epoch = message.epoch
        if isinstance(message, StatusMessage):
            row.state, row.reason = _plain(message.state), _plain(message.reason)
            return
        row.frames += 1
        if row.next_seq is not None:
            row.dropped += message.dropped
            row.missed += max(0, message.seq - row.next_seq - message.dropped)
        row.next_seq = message.seq + 1
        row.recent.append((now, message.latency_ms.total))
        row.trim(now)
        counts = Counter(d.label for d in message.detections)
        self.seen.update(counts)
        best = max((d.score for d in message.detections), default=0.0)
        seen = ", ".join(f"{n} {label}" for label, n in counts.most_common(4))
        row.last = _plain(f"{seen} ({best:.2f})" if seen else "nothing")
        row.counts = _counted(message.counts)


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser("watch", help="show a live table of a daemon's streams")
    p.add_argument("endpoint", metavar="ENDPOINT", help="the zmq sink's address, e.g. tcp://127.0.0.1:5555")
    p.add_argument("--stream", action="append", metavar="ID", help="show only this stream (may be repeated)")
    p.add_argument("--for", dest="seconds", type=duration, metavar="SECONDS", help="stop after this many seconds")
    p.add_argument("--json", action="store_true", help="print one JSON object per second instead of the table")
    p.add_argument(
        "--server-key", metavar="KEY", help="encrypted sink: the daemon's public key, or a file that holds it"
    )
    p.add_argument(
        "--key",
        metavar="FILE",
        help="encrypted sink: file of this client's secret key, from `streamd keygen`. Default: a temporary one",
    )


class Connection:
    """A subscription to a daemon, and the likely reason if nothing arrives.

    Args:
        endpoint: the zmq sink's address.
        streams: stream ids, None for all.
        server_key: the daemon's public key if the sink is encrypted.
        secret_key: this client's; None for a temporary one.

    Raises:
        ConfigError: an invalid address or key.
    """

    def __init__(
        self,
        endpoint: str,
        streams: list[str] | None = None,
        server_key: str | None = None,
        secret_key: str | None = None,
    ) -> None:
        import zmq

        self._endpoint = endpoint
        self._context = zmq.Context()
        self.socket: Any = self._context.socket(zmq.SUB)
        self._monitor: Any = None
        self._encrypted = server_key is not None
        self.problem = ""
        """Why the handshake with the daemon fails; empty if it does not."""
        socket = self.socket
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 10_000)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        for prefix in [f"{TOPIC_PREFIX}{s}/" for s in streams] if streams else [TOPIC_PREFIX]:
            socket.setsockopt_string(zmq.SUBSCRIBE, prefix)
        try:
            if server_key is not None:
                secure_client(socket, server_key, secret_key)
            self._monitor = socket.get_monitor_socket(
                zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
                | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            )  # fmt: skip
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"watch: {endpoint}: {error.strerror}; expected the zmq sink's address, such as tcp://HOST:PORT or ipc://PATH"
            ) from error
        except ConfigError as error:
            self.close()
            raise ConfigError(f"watch: {error}") from error

    def look(self) -> None:
        """Updates `problem`, and reconnects if the daemon refused us."""
        import zmq
        from zmq.utils.monitor import recv_monitor_message

        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.problem = ""
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self.problem = "refused: the daemon does not know this client's key; add it to the sink's curve.clients"
                # libzmq does not retry by itself.
                with contextlib.suppress(zmq.ZMQError):
                    self.socket.disconnect(self._endpoint)
                self.socket.connect(self._endpoint)
            elif self._encrypted:
                self.problem = "handshake failed: --server-key is not this daemon's key, or its sink is not encrypted"
            else:
                self.problem = "handshake failed: the sink is encrypted; give --server-key and --key"

    def close(self) -> None:
        """Ends it."""
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close(0)
        self.socket.close()
        self._context.term()


def _key(given: str | None) -> str | None:
    """A public key as given, or the first one in the named file."""
    if given is None or re.fullmatch(KEY_PATTERN, given):
        return given
    return next(iter(read_keys(Path(given), "watch: --server-key")), given)


def _secret(file: str | None) -> str | None:
    if file is None:
        return None
    return read_text(Path(file), 1024, what=f"watch: --key {file}", expected="a secret key of `streamd keygen`").strip()


def _receive(socket: Any, board: Board, until: float) -> None:
    """Processes messages until the monotonic time `until`."""
    import zmq

    while (left := until - time.monotonic()) > 0:
        if not socket.poll(int(left * 1000) + 1):
            return
        while True:
            try:
                parts = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            try:
                board.add(decode(parts), time.monotonic())
            except SinkError:
                board.bad += 1


def _ticks(seconds: float | None, period: float, going: Callable[[], bool]) -> Iterator[float]:
    end = None if seconds is None else time.monotonic() + seconds
    while going() and (end is None or time.monotonic() < end):
        yield min(time.monotonic() + period, end or float("inf"))


def _table(board: Board, endpoint: str, problem: str = "") -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"streamd at {endpoint}", expand=False)
    for name, right in (
        ("stream", False), ("state", False), ("fps", True), ("p50 ms", True), ("p99 ms", True), ("frames", True),
        ("dropped", True), ("missed", True), ("last seen", False),
    ):  # fmt: skip
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "last seen")
    counting = any(row.counts for row in board.rows.values())
    if counting:
        table.add_column("zones and lines")
    colors = {"LIVE": "green", "BACKOFF": "yellow", "CONNECTING": "yellow", "FAILED": "red", "ENDED": "blue"}
    now = time.monotonic()
    for name in sorted(board.rows):
        view = board.rows[name].view(now)
        state = escape(f"{view['state']} {view['reason']}".strip())
        color = colors.get(view["state"], "white")
        numbers = (view[k] for k in ("fps", "p50_ms", "p99_ms", "frames", "dropped", "missed"))
        cells = ("-" if n is None else str(n) for n in numbers)
        table.add_row(
            escape(name),
            f"[{color}]{state}[/]",
            *cells,
            escape(view["last"]),
            *([escape(board.rows[name].counts)] * counting),
        )
    if problem:
        table.caption = problem
    elif not board.rows:
        table.caption = "waiting for the first message…"
    elif board.bad:
        table.caption = f"{board.bad} messages could not be parsed"
    return table


def show(
    board: Board,
    endpoint: str,
    *,
    streams: list[str] | None = None,
    seconds: float | None = None,
    as_json: bool = False,
    server_key: str | None = None,
    secret_key: str | None = None,
    going: Callable[[], bool] = lambda: True,
) -> None:
    """Shows the messages of `endpoint` on standard output: as a live table, or as lines if that is not a terminal.

    Args:
        board: filled with what was received.
        endpoint: a zmq sink's address.
        streams: show only these.
        seconds: stop after this time.
        as_json: print one JSON object per second.
        server_key: see `Connection`.
        secret_key: see `Connection`.
        going: stops as soon as it returns False.

    Raises:
        ConfigError: see `Connection`.
    """
    connection = Connection(endpoint, streams, server_key, secret_key)
    socket = connection.socket
    told = ""
    try:
        if as_json or not sys.stdout.isatty():
            for until in _ticks(seconds, 1.0, going):
                _receive(socket, board, until)
                connection.look()
                if connection.problem != told:
                    told = connection.problem
                    print(f"streamd: watch: {endpoint}: {told or 'connected'}", file=sys.stderr)
                now = time.monotonic()
                views = [board.rows[name].view(now) for name in sorted(board.rows)]
                if as_json:
                    print(json.dumps({"boot_id": board.boot_id, "streams": views}), flush=True)
                else:
                    for v in views:
                        print(
                            f"{v['stream']:<20} {v['state']:<10} {v['reason']:<14} {v['fps']:>6} fps "
                            f"p50 {v['p50_ms']} p99 {v['p99_ms']} ms dropped {v['dropped']} {v['last']}"
                            + (f" | {v['counts']}" if "counts" in v else ""),
                            flush=True,
                        )
            return
        from rich.live import Live

        with Live(_table(board, endpoint), auto_refresh=False, screen=False) as live:
            for until in _ticks(seconds, 0.5, going):
                _receive(socket, board, until)
                connection.look()
                live.update(_table(board, endpoint, connection.problem), refresh=True)
    finally:
        connection.close()


def run(args: argparse.Namespace) -> int:
    """Shows the table until interrupted."""
    if args.key and not args.server_key:
        raise ConfigError("watch: --key: needs --server-key, the daemon's public key")
    with contextlib.suppress(KeyboardInterrupt):
        show(
            Board(), args.endpoint, streams=args.stream, seconds=args.seconds, as_json=args.json,
            server_key=_key(args.server_key), secret_key=_secret(args.key),
        )  # fmt: skip
    return 0
