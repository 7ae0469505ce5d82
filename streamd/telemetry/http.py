"""One small HTTP server: /metrics for Prometheus, /healthz and /readyz for supervisors, and further routes.

No client can block it: a request must arrive within ten seconds and 16 KiB, a response must be accepted within ten
seconds, and if every worker is busy, the oldest connection that has not sent its request yet is closed, or the one that
has not accepted its response for longest. Routes whose handlers take time leave workers to /metrics and the checks,
which are answered also where no thread can be started.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from streamd.errors import SinkError, is_passing
from streamd.telemetry.access import Login, Tls
from streamd.telemetry.reserve import ReserveThread
from streamd.telemetry.routes import Check, Handler, Request, Response
from streamd.telemetry.shared import SharedAnswer

log = structlog.get_logger(__name__)

REQUEST_TIMEOUT_S = 10.0
"""Time limit for the TLS handshake and the whole request, and again for each piece of the response."""
MAX_REQUEST_BYTES = 16_384
MAX_THREADS = 16
MAX_STREAMS = 8
"""Most endless responses at the same time: the other workers stay free for Prometheus."""

MAX_HANDLERS = 10
"""Most handlers of further routes at the same time: one may wait for a picture, or read a large journal."""
ROOM_TRIES = 3
"""How often to make room for a connection, half a second each, before it is closed."""
NO_ROOM_S = 0.1
"""Between two attempts to accept a connection for which there is no descriptor or memory."""
ACCEPT_S = 1.0
"""A connection that has had its response for this long without accepting it is closed if every worker is busy."""


class _TooLarge(Exception):
    """The request is longer than the limit."""


class _Wire(io.RawIOBase):
    """A socket that is read and written against a deadline, however slowly the peer sends or receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._left = MAX_REQUEST_BYTES
        self.renew()

    def renew(self) -> None:
        """Restarts the deadline for the next step."""
        self._deadline = time.monotonic() + REQUEST_TIMEOUT_S

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            raise _TooLarge
        self._wait()
        count = self._connection.recv_into(buffer, min(len(buffer), self._left))
        self._left -= count
        return count

    def write(self, data: Any) -> int:
        view = memoryview(data)
        sent = 0
        while sent < len(view):
            self._wait()
            sent += self._connection.send(view[sent:])
        return sent


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], family: int, tls: Tls | None, login: Login | None) -> None:
        self.address_family = family
        self.routes: dict[str, Handler] = {}
        self.own: frozenset[str] = frozenset()
        """Routes that are always answered."""
        self.tls, self.login = tls, login
        self.slots = threading.BoundedSemaphore(MAX_THREADS)
        self.streams = threading.BoundedSemaphore(MAX_STREAMS)
        self.handlers = threading.BoundedSemaphore(MAX_HANDLERS)
        self._waiting: collections.OrderedDict[int, socket.socket] = collections.OrderedDict()
        """Connections that have not sent their request yet, oldest first."""
        self._accepting: collections.OrderedDict[int, tuple[float, socket.socket]] = collections.OrderedDict()
        """Connections that are being sent their response, and since when."""
        self._waiting_lock = threading.Lock()
        self.reserve = ReserveThread(self.process_request_thread)
        super().__init__(address, _Handler)

    def find(self, path: str) -> Handler | None:
        """The handler of `path`, or of its longest registered prefix that ends in a slash."""
        handler = self.routes.get(path)
        while handler is None and path:
            path = path[: path.rfind("/", 0, len(path) - 1) + 1]
            handler = self.routes.get(path) if path else None
        return handler

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError as error:
            if is_passing(error):
                time.sleep(NO_ROOM_S)  # the connection still waits: the loop would ask again at once, all the time
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.slots.acquire(blocking=False):
            for _ in range(ROOM_TRIES):
                self._make_room()
                if self.slots.acquire(timeout=0.5):
                    break
            else:
                self.shutdown_request(request)
                return
        try:
            if self.tls is not None:
                request = self.tls.wrap(request)  # no handshake yet: the worker does it
            with self._waiting_lock:
                self._waiting[id(request)] = request
            try:
                super().process_request(request, client_address)
            except RuntimeError as error:  # no further thread is allowed
                if not is_passing(error) or not self.reserve.take(request, client_address):
                    raise
        except BaseException:
            self.asked(request)
            self.slots.release()
            raise  # the base class closes the connection

    def _make_room(self) -> None:
        with self._waiting_lock:
            oldest = next(iter(self._waiting.values()), None)
            if oldest is None:
                since, oldest = next(iter(self._accepting.values()), (0.0, None))
                if oldest is None or time.monotonic() - since < ACCEPT_S:
                    return
            # Wakes its worker, which then ends. socket's own method: ssl's would send the rest unencrypted.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(oldest, socket.SHUT_RDWR)
            self._waiting.pop(id(oldest), None)
            self._accepting.pop(id(oldest), None)

    @contextlib.contextmanager
    def accepting(self, request: Any) -> Iterator[None]:
        """A connection is sent its response within the block."""
        with self._waiting_lock:
            self._accepting[id(request)] = time.monotonic(), request
        try:
            yield
        finally:
            with self._waiting_lock:
                self._accepting.pop(id(request), None)

    def asked(self, request: Any) -> None:
        """Marks a connection as no longer idle: its request has been read."""
        with self._waiting_lock:
            self._waiting.pop(id(request), None)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def shutdown_request(self, request: Any) -> None:
        self.asked(request)  # before it is closed and its descriptor reused
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a client that disconnected or did not use TLS is not worth a log line."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "streamd"
    sys_version = ""
    request_version = "HTTP/1.0"
    requestline = ""
    command = ""

    def setup(self) -> None:
        self.connection = self.request
        self._wire = _Wire(self.connection)
        self.rfile = io.BufferedReader(self._wire)
        self.wfile = self._wire  # type: ignore[assignment]
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.settimeout(REQUEST_TIMEOUT_S)
            self.connection.do_handshake()

    def handle(self) -> None:
        try:
            super().handle()
        except _TooLarge:
            self._wire.renew()
            self.send_error(431)

    def do_GET(self) -> None:
        self.server.asked(self.request)
        self._wire.renew()
        login = self.server.login
        if login is not None and not login.allows(self.headers.get("Authorization", "")):
            if "Authorization" in self.headers:
                log.warning("metrics port: wrong user name or password", client=self.client_address[0])
            challenge = {"WWW-Authenticate": 'Basic realm="streamd", charset="UTF-8"'}
            self._answer(Response(b"user name and password required\n", code=401, headers=challenge))
            return
        path, _, query = self.path.partition("?")
        path = unquote(path)
        handler = self.server.find(path)
        if handler is None:
            known = ", ".join(sorted(self.server.routes))
            self._answer(Response(f"not found; available: {known}\n".encode(), code=404))
            return
        own = path in self.server.own
        if not own and (self.server.reserve.here or not self.server.handlers.acquire(blocking=False)):
            self._answer(Response(b"too many requests; try again later\n", code=503, headers={"Retry-After": "2"}))
            return
        try:
            response = handler(Request(path, dict(parse_qsl(query, keep_blank_values=True)), self.headers))
        except Exception:
            log.exception("metrics port: a handler failed", path=path)
            response = Response(b"internal error; see the log\n", code=500)
        finally:
            if not own:
                self.server.handlers.release()
        self._answer(response)

    do_HEAD = do_GET

    def _answer(self, response: Response) -> None:
        body = response.body
        if isinstance(body, bytes):
            self._head(response, {"Content-Length": str(len(body))})
            if self.command != "HEAD":
                with self.server.accepting(self.request):
                    self.wfile.write(body)
            return
        try:
            if not self.server.streams.acquire(blocking=False):
                self._answer(Response(b"too many viewers; try again later\n", code=503, headers={"Retry-After": "5"}))
                return
            try:
                self._head(response, {})
                for piece in body if self.command != "HEAD" else ():
                    self._wire.renew()
                    self.wfile.write(piece)
            finally:
                self.server.streams.release()
        finally:
            if (close := getattr(body, "close", None)) is not None:
                close()

    def _head(self, response: Response, more: Mapping[str, str]) -> None:
        self.send_response(response.code)
        common = {"Content-Type": response.kind, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        for name, value in {**common, **response.headers, **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """No access log: regular scrapes are not informative."""


class HttpServer:
    """An HTTP server that runs until it is closed.

    Args:
        listen: HOST:PORT, port 0 for a free one.
        registry: metrics for /metrics.
        health: check behind /healthz (200 or 503).
        ready: check behind /readyz (200 or 503).
        tls: certificate and key; None for plain HTTP.
        login: credentials required for every route; None for open access.

    Raises:
        SinkError: the address cannot be bound; names it and the reason.
    """

    def __init__(
        self,
        listen: str,
        registry: CollectorRegistry,
        health: Check,
        ready: Check,
        *,
        tls: Tls | None = None,
        login: Login | None = None,
    ) -> None:
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")

        shared = SharedAnswer()

        def metrics(request: Request) -> Response:
            try:
                encode, kind = choose_encoder(request.headers.get("Accept", ""))
            except Exception:  # noqa: BLE001 - an invalid version: treated as if none had been requested
                encode, kind = choose_encoder("")
            return Response(shared.get(kind, lambda: encode(registry)), kind)

        def verdict(check: Check) -> Handler:
            def answer(_: Request) -> Response:
                good, body = check()
                return Response(json.dumps(body).encode() + b"\n", "application/json", 200 if good else 503)

            return answer

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = _Server((host, int(port)), family, tls, login)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such port"
            raise SinkError(
                f"metrics.listen: cannot listen on {listen}: {reason}; choose another address, or port 0 "
                "for any (does another streamd run here?)"
            ) from error
        self.route("/metrics", metrics)
        self.route("/healthz", verdict(health))
        self.route("/readyz", verdict(ready))
        self._server.own = frozenset(self._server.routes)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="http", daemon=True)

    def route(self, path: str, handler: Handler) -> None:
        """Serves `path` with `handler`; can be called at any time. A path ending in a slash covers everything below.

        The server takes care of login, TLS, limits, HEAD and errors. The longest matching path wins.
        """
        self._server.routes[path] = handler

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Starts answering."""
        self._server.reserve.start()
        self._thread.start()

    def close(self) -> None:
        """Stops the server. Idempotent."""
        if self._thread.is_alive():
            with contextlib.suppress(OSError):
                self._server.socket.shutdown(socket.SHUT_RDWR)  # its thread does not wait out its 0.2 s
            self._server.shutdown()
            self._thread.join(5)
        self._server.reserve.close()
        self._server.server_close()
