"""One small HTTP port: /metrics for Prometheus, /healthz and /readyz for whoever restarts us."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from streamd.errors import SinkError

Check = Callable[[], tuple[bool, dict[str, Any]]]
"""(is all well, what to say)"""

REQUEST_TIMEOUT_S = 10.0
MAX_THREADS = 16


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, address: tuple[str, int], family: int, routes: dict[str, Callable[[Any], tuple[int, str, bytes]]]
    ):
        self.address_family = family
        self.routes = routes
        self.slots = threading.BoundedSemaphore(MAX_THREADS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        # A client that holds connections open must not make us start threads without end.
        if not self.slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "streamd"
    sys_version = ""
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        route = self.server.routes.get(self.path.split("?", 1)[0])
        if route is None:
            self._answer(404, "text/plain; charset=utf-8", b"try /metrics, /healthz or /readyz\n")
            return
        self._answer(*route(self))

    do_HEAD = do_GET

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """No access log: a scrape every few seconds says nothing."""


class HttpServer:
    """Serves until closed.

    Args:
        listen: HOST:PORT, port 0 for a free one.
        registry: what /metrics shows.
        health: verdict of /healthz (200 or 503).
        ready: verdict of /readyz (200 or 503).

    Raises:
        SinkError: the address cannot be bound; says which and why.
    """

    def __init__(self, listen: str, registry: CollectorRegistry, health: Check, ready: Check) -> None:
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")

        def metrics(handler: Any) -> tuple[int, str, bytes]:
            encode, kind = choose_encoder(handler.headers.get("Accept", ""))
            return 200, kind, encode(registry)

        def verdict(check: Check) -> Callable[[Any], tuple[int, str, bytes]]:
            def answer(_: Any) -> tuple[int, str, bytes]:
                good, body = check()
                return 200 if good else 503, "application/json", json.dumps(body).encode() + b"\n"

            return answer

        routes = {"/metrics": metrics, "/healthz": verdict(health), "/readyz": verdict(ready)}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = _Server((host, int(port)), family, routes)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such port"
            raise SinkError(f"metrics.listen: cannot listen on {listen}: {reason}; choose another address") from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Starts answering."""
        self._thread.start()

    def close(self) -> None:
        """Stops answering. Idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(5)
        self._server.server_close()
