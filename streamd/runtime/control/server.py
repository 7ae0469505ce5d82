"""The control socket: JSON lines over a Unix socket that only this user can reach."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from streamd.errors import ConfigError
from streamd.fleet.records import DaemonReport, Order
from streamd.flow.threads import NamedThread
from streamd.security.redact import redact

log = structlog.get_logger(__name__)

MOST_BYTES = 8 << 20
"""Of a line. A report of 1,000 streams has about 0.5 MB."""
MOST_CONNECTIONS = 4
IDLE_S = 60.0
"""A client that says nothing for this long is disconnected."""


class Request(msgspec.Struct):
    """One line of a client."""

    op: str
    order: Order | None = None


class Failure(msgspec.Struct):
    """Why a request was not carried out."""

    code: str
    message: str


class Answer(msgspec.Struct, omit_defaults=True):
    """One line of the server: either `ok` or `error`."""

    ok: DaemonReport | dict[str, Any] | None = None
    error: Failure | None = None


class ControlError(Exception):
    """A request was not carried out.

    Args:
        code: bad_request, too_large, bad_order, config, stopping.
        message: what is wrong.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class ControlServer:
    """Listens until it is closed.

    Args:
        path: of the socket. One that a dead daemon has left is replaced.
        exchange: takes an order, and reports.
        reload: reads the configuration again.
        stop: asks the daemon to drain and end.

    Raises:
        ConfigError: the socket cannot be made, or a daemon listens there.
    """

    def __init__(
        self,
        path: Path,
        exchange: Callable[[Order | None], DaemonReport],
        reload: Callable[[], None],
        stop: Callable[[], None],
    ) -> None:
        self._path, self._exchange, self._reload, self._stop = path, exchange, reload, stop
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopping = False
        self._socket = _listen(path)
        self._inode = path.stat().st_ino
        NamedThread(self._accept, "control").start()

    def close(self) -> None:
        """Disconnects everybody and removes the socket."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if not self._stopping:
                    log.error("control socket failed", path=str(self._path), error=str(error))
                return
            with self._lock:
                allowed = len(self._connections) < MOST_CONNECTIONS and _peer(connection) in (os.geteuid(), 0)
                if allowed:
                    self._connections.add(connection)
            if not allowed:
                connection.close()
                continue
            NamedThread(lambda c=connection: self._serve(c), "control-client").start()  # type: ignore[misc]

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(IDLE_S)
        rest = bytearray()
        try:
            while piece := connection.recv(1 << 16):
                rest += piece
                if len(rest) > MOST_BYTES:
                    message = f"a line has more than {MOST_BYTES >> 20} MiB"
                    connection.sendall(_encode(Answer(error=Failure("too_large", message))))
                    return
                while (end := rest.find(b"\n")) >= 0:
                    line = bytes(rest[:end])
                    del rest[: end + 1]
                    connection.sendall(_encode(self._answer(line)))
        except OSError:
            pass  # it has gone, or says nothing
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _answer(self, line: bytes) -> Answer:
        try:
            return Answer(ok=self._carry_out(line))
        except ControlError as error:
            return Answer(error=Failure(error.code, redact(error.message)))
        except Exception as error:
            log.error("control request failed", error=str(error), exc_info=error)
            return Answer(error=Failure("internal", redact(f"{type(error).__name__}: {error}")))

    def _carry_out(self, line: bytes) -> DaemonReport | dict[str, Any]:
        try:
            request = msgspec.json.decode(line, type=Request)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ControlError("bad_request", f'expected {{"op": …}}: {error}') from error
        if request.op == "exchange":
            try:
                return self._exchange(request.order)
            except ConfigError as error:
                raise ControlError("bad_order", str(error)) from error
        if request.op == "reload":
            try:
                self._reload()
            except ConfigError as error:
                raise ControlError("config", str(error)) from error
            return {}
        if request.op == "stop":
            self._stop()
            return {}
        raise ControlError("bad_request", f"there is no op {request.op[:40]!r}; there are exchange, reload, stop")


def _encode(answer: Answer) -> bytes:
    return msgspec.json.encode(answer) + b"\n"


def _peer(connection: socket.socket) -> int:
    """The user on the other side."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def _listen(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.parent.stat()
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise ConfigError(f"--socket {path}: its folder can be written by others; expected mode 0700 and own user")
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                if probe.connect_ex(str(path)) == 0:
                    raise ConfigError(f"--socket {path}: another daemon listens there; stop it, or take another path")
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(MOST_CONNECTIONS)
    except OSError as error:
        raise ConfigError(f"--socket {path}: cannot listen: {error}; a path has at most 107 bytes") from error
    return listener
