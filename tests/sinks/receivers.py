"""A real HTTP receiver that answers what a test says."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.sinks.brokers import free_port


class Request(NamedTuple):
    """What arrived."""

    path: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """What to answer."""

    status: int = 204
    headers: Mapping[str, str] = MappingProxyType({})
    after_s: float = 0.0
    drip: bool = False
    """One byte of the answer at a time, for ever."""
    hang_up: bool = False
    """Closes the connection without an answer."""


class Receiver:
    """Serves until closed; can be taken down and up again on the same port.

    Args:
        answer: called with each request; by default all is well.
        context: for TLS.
    """

    def __init__(
        self, answer: Callable[[Request], Answer] | None = None, *, context: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[Request] = []
        self.accepted: list[dict[str, Any]] = []
        """Events that were answered with 2xx."""
        self.answer = answer or (lambda _: Answer())
        self.connections = 0
        self.port = free_port()
        self._context = context
        self._server: ThreadingHTTPServer | None = None
        self.up()

    def up(self) -> None:
        """Begins to serve."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                receiver.connections += 1
                super().setup()

            def log_message(self, *_: Any) -> None: ...

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                receiver.requests.append(request)
                answer = receiver.answer(request)
                time.sleep(answer.after_s)
                if answer.hang_up:
                    self.close_connection = True
                    return
                if answer.drip:
                    try:
                        while True:
                            self.wfile.write(b"H")
                            time.sleep(0.05)
                    except OSError:
                        self.close_connection = True
                        return
                if 200 <= answer.status < 300 and "cloudevents" in self.headers["Content-Type"]:
                    receiver.accepted.append(json.loads(body))
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.status != 204:
                    self.send_header("Content-Length", "0")
                self.end_headers()

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True

            def handle_error(self, *_: Any) -> None: ...

        self._server = Server(("127.0.0.1", self.port), Handler)
        if self._context is not None:
            self._server.socket = self._context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Refuses connections. Idempotent."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
