"""The other end of a daemon's control socket."""

from __future__ import annotations

import os
import socket
from typing import TypeVar

import msgspec

from streamd.fleet.records import DaemonReport, Order
from streamd.runtime.control.server import MOST_BYTES, ControlError, Failure, Request

__all__ = ["ControlClient", "ControlError"]


class _Report(msgspec.Struct):
    ok: DaemonReport | None = None
    error: Failure | None = None


class _Done(msgspec.Struct):
    ok: dict[str, object] | None = None
    error: Failure | None = None


_Answer = TypeVar("_Answer", _Report, _Done)


class ControlClient:
    """One connection. Not for several threads; after an `OSError`, make another one.

    Args:
        path: of the socket.
        timeout_s: longest wait for an answer, seconds.

    Raises:
        OSError: nobody listens there.
    """

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = 2.0) -> None:
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(os.fspath(path))
        except BaseException:
            self._socket.close()
            raise

    def exchange(self, order: Order | None) -> DaemonReport:
        """Gives an order, or none, and returns the daemon's report.

        Raises:
            ControlError: the daemon refuses it.
            OSError: the daemon does not answer.
        """
        answer = self._ask(Request("exchange", order), _Report)
        assert answer.ok is not None
        return answer.ok

    def reload(self) -> None:
        """Has the configuration read again.

        Raises:
            ControlError: it is refused (`config`).
            OSError: the daemon does not answer.
        """
        self._ask(Request("reload"), _Done)

    def stop(self) -> None:
        """Asks the daemon to drain and end.

        Raises:
            OSError: the daemon does not answer.
        """
        self._ask(Request("stop"), _Done)

    def close(self) -> None:
        """Disconnects."""
        self._socket.close()

    def _ask(self, request: Request, kind: type[_Answer]) -> _Answer:
        self._socket.sendall(msgspec.json.encode(request) + b"\n")
        pieces = [self._rest]
        while b"\n" not in pieces[-1]:
            piece = self._socket.recv(1 << 20)
            if not piece:
                raise ConnectionResetError("the daemon has closed the connection")
            pieces.append(piece)
            if sum(map(len, pieces)) > MOST_BYTES:
                raise ControlError("too_large", f"the answer has more than {MOST_BYTES >> 20} MiB")
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        try:
            answer = msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError as error:
            raise ControlError("protocol", f"not an answer that this version knows: {error}") from error
        if answer.error is not None:
            raise ControlError(answer.error.code, answer.error.message)
        return answer
