"""`streamd watch ENDPOINT`: a live table of what a daemon publishes."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from streamd.cli.board import Board, table
from streamd.cli.console import duration
from streamd.errors import ConfigError, SinkError
from streamd.security.trust import read_text
from streamd.sinks.attributes import ClassifiedMessage
from streamd.sinks.curve import KEY_PATTERN, read_keys, secure_client
from streamd.sinks.message import MAX_MESSAGE_BYTES, TOPIC_PREFIX, GlanceMessage, decode

SILENCE_S = 3.0
"""After so long without a connection, it is said that nobody answers."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "watch",
        help="show a live table of a daemon's streams",
        description="Shows the state, reason, rate, latency and drops of each stream, and the counts of its zones and "
        "lines, from the messages of a zmq sink. Press Ctrl-C to stop.",
    )
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
        self._reached, self._began = False, time.monotonic()
        self.problem = ""
        """Why nothing arrives; empty if that is unknown, or the daemon was reached."""
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
                self._reached, self.problem = True, ""
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

        if not self._reached and not self.problem and time.monotonic() > self._began + SILENCE_S:
            self.problem = "no answer yet; is streamd running, with a zmq sink at this address?"

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
                message = decode(parts)
            except SinkError:
                board.bad += 1
                continue
            if not isinstance(message, (ClassifiedMessage, GlanceMessage)):
                board.add(message, time.monotonic())


def _ticks(seconds: float | None, period: float, going: Callable[[], bool]) -> Iterator[float]:
    end = None if seconds is None else time.monotonic() + seconds
    while going() and (end is None or time.monotonic() < end):
        yield min(time.monotonic() + period, end or float("inf"))


def _can_redraw() -> bool:
    """Whether standard output is a terminal on which a table can be drawn again in its place."""
    if not sys.stdout.isatty():
        return False
    from rich import get_console

    return not get_console().is_dumb_terminal


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
    """Shows the messages of `endpoint` on standard output: as a live table, or as lines where that cannot be drawn.

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
        if as_json or not _can_redraw():
            for until in _ticks(seconds, 1.0, going):
                _receive(socket, board, until)
                connection.look()
                if connection.problem != told:
                    told = connection.problem
                    print(f"streamd: watch: {endpoint}: {told or 'connected'}", file=sys.stderr)
                now = time.monotonic()
                if as_json:
                    views = [board.rows[name].view(now) for name in sorted(board.rows)]
                    print(json.dumps({"boot_id": board.boot_id, "streams": views}), flush=True)
                    continue
                for row in board.sorted():
                    v = row.view(now)
                    p50, p99 = ("-" if v[key] is None else v[key] for key in ("p50_ms", "p99_ms"))
                    print(
                        f"{v['stream']:<20} {row.condition:<10} {v['reason']:<14} {v['fps']:>6} fps "
                        f"p50 {p50} p99 {p99} ms dropped {v['dropped']} {row.note(now)}"
                        + (f" | {v['counts']}" if "counts" in v else ""),
                        flush=True,
                    )
            return
        from rich import get_console
        from rich.live import Live

        console = get_console()

        def drawn() -> Any:
            # A terminal echoes ^C behind the last line: where that wrapped, the end would be drawn a line too low.
            return table(board, endpoint, connection.problem, max(1, console.width - len("^C")))

        with Live(drawn(), console=console, auto_refresh=False, screen=False) as live:
            for until in _ticks(seconds, 0.5, going):
                _receive(socket, board, until)
                connection.look()
                live.update(drawn(), refresh=True)
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
