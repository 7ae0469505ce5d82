"""The port for Prometheus and for whoever restarts us."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter

from streamd.errors import SinkError
from streamd.telemetry import http as module
from streamd.telemetry.access import Login, Tls
from streamd.telemetry.http import ACCEPT_S, MAX_HANDLERS, MAX_STREAMS, MAX_THREADS, REQUEST_TIMEOUT_S, HttpServer
from streamd.telemetry.routes import Request, Response


class State:
    good = True


def serve(**options: Any) -> HttpServer:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    made = HttpServer("127.0.0.1:0", registry, lambda: (True, {"ok": True}), lambda: (True, {}), **options)
    made.start()
    return made


@pytest.fixture
def server() -> Iterator[tuple[HttpServer, State]]:
    registry, state = CollectorRegistry(), State()
    Counter("things", "Things.", registry=registry).inc(3)
    made = HttpServer("127.0.0.1:0", registry, lambda: (state.good, {"ok": state.good}), lambda: (False, {"ready": 0}))
    made.start()
    yield made, state
    made.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits that a test can wait for."""
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 1.0)


def get(server: HttpServer, path: str, **headers: str) -> tuple[int, str, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def raw(server: HttpServer, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(data)
    return connection


def all_of(connection: socket.socket) -> bytes:
    out = b""
    try:
        while block := connection.recv(65536):
            out += block
    except ConnectionResetError:
        pass
    return out


def test_routes(server: tuple[HttpServer, State]) -> None:
    http, state = server
    code, kind, body = get(http, "/metrics")
    assert (code, b"things_total 3.0" in body) == (200, True)
    assert kind.startswith("text/plain")
    assert get(http, "/metrics", Accept="application/openmetrics-text")[1].startswith("application/openmetrics-text")
    assert (get(http, "/healthz")[0], json.loads(get(http, "/healthz?x=1")[2])) == (200, {"ok": True})
    state.good = False
    assert get(http, "/healthz")[0] == 503
    assert get(http, "/readyz")[0] == 503
    assert get(http, "/other")[0] == 404
    assert get(http, "/metrics/")[0] == 404


def test_a_port_in_use_is_named(server: tuple[HttpServer, State]) -> None:
    address = f"127.0.0.1:{server[0].port}"
    with pytest.raises(SinkError, match=f"cannot listen on {address}: Address already in use"):
        HttpServer(address, CollectorRegistry(), lambda: (True, {}), lambda: (True, {}))


def test_further_routes_by_path_and_prefix(server: tuple[HttpServer, State]) -> None:
    http, _ = server

    def echo(request: Request) -> Response:
        body = f"{request.path} {dict(request.query)} {request.headers['X-Y']}".encode()
        return Response(body, "text/html", 203, {"X-Z": "1"})

    http.route("/page/", echo)
    http.route("/page/one", lambda _: Response(b"one"))
    assert get(http, "/page/", **{"X-Y": "v"}) == (203, "text/html", b"/page/ {} v")
    assert get(http, "/page/a/b%20c?x=1&x=2&y=", **{"x-y": "v"})[2] == b"/page/a/b c {'x': '2', 'y': ''} v"
    assert get(http, "/page/one")[2] == b"one"
    assert get(http, "/page/one/more")[0] == 203
    assert get(http, "/page")[0] == get(http, "/pages/")[0] == 404
    http.route("/", lambda _: Response(b"root"))
    assert get(http, "/pages/x")[2] == b"root"
    assert get(http, "/page/one")[2] == b"one"


def test_a_handler_that_fails_is_a_500_and_a_log_line(server: tuple[HttpServer, State]) -> None:
    def fails(_: Request) -> Response:
        raise KeyError("x")

    server[0].route("/bad", fails)
    with structlog.testing.capture_logs() as logs:
        code, _, body = get(server[0], "/bad")
    assert (code, body) == (500, b"internal error; see the log\n")
    assert [line["path"] for line in logs] == ["/bad"]


def test_answers_without_an_end_are_bounded_and_closed(server: tuple[HttpServer, State]) -> None:
    http, _ = server
    closed = threading.Semaphore(0)
    go = threading.Event()

    def pieces() -> Iterator[bytes]:
        try:
            while True:
                yield b"piece\n"
                go.wait(0.02)
        finally:
            closed.release()

    http.route("/endless", lambda _: Response(pieces()))
    head = raw(http, b"HEAD /endless HTTP/1.0\r\n\r\n")
    assert all_of(head).startswith(b"HTTP/1.0 200")
    assert closed.acquire(timeout=0) is False  # never started, so there is nothing to close
    viewers = [raw(http, b"GET /endless HTTP/1.0\r\n\r\n") for _ in range(MAX_STREAMS)]
    for viewer in viewers:
        assert viewer.recv(15).startswith(b"HTTP/1.0 200")
    assert get(http, "/endless")[0] == 503
    assert get(http, "/metrics")[0] == 200
    for viewer in viewers:
        viewer.close()
    for _ in viewers:
        assert closed.acquire(timeout=10)
    deadline = time.monotonic() + 5
    while True:
        with raw(http, b"GET /endless HTTP/1.0\r\n\r\n") as again:
            if again.recv(12) == b"HTTP/1.0 200":
                return
        assert time.monotonic() < deadline


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_idle_connections_make_room_for_whoever_asks(
    secured: bool, certificate: tuple[Path, Path], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times as many idle connections as there are workers, and every request is answered at once."""
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 60.0)
    http = serve(tls=Tls(*map(str, certificate)) if secured else None)
    held = [raw(http, b"" if i % 2 else b"GET /metr") for i in range(4 * MAX_THREADS)]
    started = time.monotonic()
    for _ in range(5):
        if secured:
            trust = ssl.create_default_context(cafile=str(certificate[0]))
            with trust.wrap_socket(raw(http), server_hostname="localhost") as asker:
                asker.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                assert all_of(asker).startswith(b"HTTP/1.0 200")
        else:
            assert get(http, "/healthz")[0] == 200
    assert time.monotonic() - started < 10
    assert (
        sum(t.name.startswith("Thread-") and "process_request" in t.name for t in threading.enumerate()) <= MAX_THREADS
    )
    for connection in held:
        connection.close()
    http.close()


def test_a_request_that_drips_is_cut(server: tuple[HttpServer, State], quick: None) -> None:
    with raw(server[0]) as connection:
        started = time.monotonic()
        try:
            while time.monotonic() - started < 20:
                connection.sendall(b"G")
                time.sleep(0.1)
        except OSError:
            pass
        assert time.monotonic() - started < 15


def test_handlers_that_take_time_leave_workers_to_the_checks(server: tuple[HttpServer, State]) -> None:
    """Pictures of a camera that has none, or questions to a large journal."""
    http, _ = server
    release, begun = threading.Event(), threading.Semaphore(0)

    def slow(_: Request) -> Response:
        begun.release()
        release.wait(30)
        return Response(b"late")

    http.route("/slow", slow)
    asking = [raw(http, b"GET /slow HTTP/1.0\r\n\r\n") for _ in range(3 * MAX_THREADS)]
    for _ in range(MAX_HANDLERS):
        assert begun.acquire(timeout=20)
    began = time.monotonic()
    assert get(http, "/healthz")[0] == 200
    assert time.monotonic() - began < 3
    release.set()
    answers = [all_of(connection) for connection in asking]
    assert sum(b"late" in answer for answer in answers) >= MAX_HANDLERS
    assert sum(b"503" in answer for answer in answers) >= MAX_THREADS


def test_answers_that_nobody_takes_make_room(server: tuple[HttpServer, State]) -> None:
    http, _ = server
    http.route("/large", lambda _: Response(bytes(16 << 20)))
    stalled = [raw(http, b"GET /large HTTP/1.0\r\n\r\n") for _ in range(MAX_THREADS)]
    deadline = time.monotonic() + 20
    while len(http._server._accepting) < MAX_THREADS and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    assert get(http, "/healthz")[0] == 200
    assert ACCEPT_S / 2 < time.monotonic() - began < REQUEST_TIMEOUT_S / 2
    for connection in stalled:
        connection.close()


_NO_THREADS = """
import re, resource, sys, threading
from prometheus_client import CollectorRegistry
from streamd.telemetry.http import HttpServer
from streamd.telemetry.routes import Response
http = HttpServer("127.0.0.1:0", CollectorRegistry(), lambda: (True, {}), lambda: (True, {}))
http.route("/picture", lambda _: Response(b"x"))
http.start()
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 20),) * 2)  # the stack of a thread takes more
try:
    threading.Thread(target=print).start()
except RuntimeError:
    print(http.port, flush=True)
sys.stdin.read()
http.close()
"""


def test_the_checks_are_answered_where_no_thread_can_be_started() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _NO_THREADS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2)]
        for path in ("/healthz", "/metrics", "/readyz"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
                assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/picture", timeout=20)
        for connection in idle:
            assert connection.recv(1) == b"", "it has kept the others waiting"
            connection.close()
        child.stdin.close()  # type: ignore[union-attr]
        assert child.wait(20) == 0


def test_an_answer_that_nobody_takes_is_cut(server: tuple[HttpServer, State], quick: None) -> None:
    ended = threading.Event()

    def pieces() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(1 << 20)
        finally:
            ended.set()

    server[0].route("/endless", lambda _: Response(pieces()))
    with raw(server[0], b"GET /endless HTTP/1.0\r\n\r\n"):
        assert ended.wait(15)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"a" * 70_000 + b" HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\n" + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.0\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
    ],
    ids=["path", "header", "headers"],
)
def test_requests_are_bounded(server: tuple[HttpServer, State], request_: bytes) -> None:
    with raw(server[0]) as connection:
        try:
            connection.sendall(request_)
        except OSError:
            return  # cut while we were sending
        # 414 or 431, unless what was left unread made the kernel reset the connection first.
        assert all_of(connection)[:12] in (b"", b"HTTP/1.0 431", b"HTTP/1.0 414")
    assert get(server[0], "/healthz")[0] == 200


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"POST /metrics HTTP/1.0\r\n\r\n", b"501"),
        (b"\x00\xff\xfe\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
        (b"GET /%ff%00 HTTP/1.0\r\n\r\n", b"404"),
        (b"\x16\x03\x01\x02\x00\x01\x00", b""),
    ],
)
def test_what_is_no_request_does_no_harm(
    server: tuple[HttpServer, State], text: bytes, code: bytes, quick: None
) -> None:
    with raw(server[0], text) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert code in all_of(connection)
    assert get(server[0], "/healthz")[0] == 200


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_login_guards_every_route() -> None:
    http = serve(login=Login("prometheus", "gehe:im €"))
    http.route("/page/", lambda _: Response(b"page"))
    for path in ("/metrics", "/healthz", "/readyz", "/page/", "/nothing"):
        assert get(http, path)[0] == 401
    with structlog.testing.capture_logs() as logs:
        for wrong in (
            basic("prometheus:gehe:im"), basic("Prometheus:gehe:im €"), basic(""), "Basic ***", "Basic ä", "Bearer x",
            "", basic("prometheus:gehe:im €").replace("Basic", "Digest"),
        ):  # fmt: skip
            assert get(http, "/metrics", Authorization=wrong.encode().decode("latin-1"))[0] == 401
    assert logs
    assert "gehe" not in str(logs)
    assert get(http, "/metrics", Authorization=basic("prometheus:gehe:im €"))[0] == 200
    assert get(http, "/page/", Authorization=basic("prometheus:gehe:im €").replace("Basic", "basic"))[2] == b"page"
    with raw(http, b"GET /metrics HTTP/1.0\r\n\r\n") as connection:
        assert b'WWW-Authenticate: Basic realm="streamd"' in all_of(connection)
    http.close()


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"), "one")


def named(http: HttpServer, trusted: Path) -> str:
    """The common name of the certificate that the port shows."""
    context = ssl.create_default_context(cafile=str(trusted))
    with context.wrap_socket(raw(http), server_hostname="localhost") as connection:
        shown: Any = connection.getpeercert()
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b"things_total 3.0" in all_of(connection)
        return str(shown["subject"][0][0][1])


def test_tls_and_a_certificate_renewed_in_place(tmp_path: Path) -> None:
    first, key = make_certificate(tmp_path, "first")
    second, second_key = make_certificate(tmp_path, "second")
    http = serve(tls=Tls(str(first), str(key)))
    assert named(http, first) == "first"
    with raw(http, b"GET /metrics HTTP/1.0\r\n\r\n") as plain:
        assert b"things" not in all_of(plain)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        old.wrap_socket(raw(http))
    kept = first.read_bytes()
    first.write_bytes(b"not a certificate")
    (tmp_path / "kept.pem").write_bytes(kept)
    assert named(http, tmp_path / "kept.pem") == "first"
    first.unlink()
    os.mkfifo(first)  # who opens it would wait for a writer, and the port with them
    assert named(http, tmp_path / "kept.pem") == "first"
    second.replace(first)
    second_key.replace(key)
    assert named(http, first) == "second"
    http.close()


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    good, key = certificate
    _, other = make_certificate(tmp_path, "other")
    with pytest.raises(SinkError, match=r"none\.pem cannot be read: No such file"):
        Tls(str(tmp_path / "none.pem"), str(key))
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "no file"), (Path("/dev/zero"), "no file"), (tmp_path, "a folder")):
        with pytest.raises(SinkError, match=f"metrics.tls: {path} is {what}; expected a PEM file"):
            Tls(str(good), str(path))
    with pytest.raises(SinkError, match=r"metrics\.tls: .*KEY_VALUES_MISMATCH"):
        Tls(str(good), str(other))
    locked = tmp_path / "locked.key"
    subprocess.run(["openssl", "ec", "-in", key, "-aes256", "-passout", "pass:longenough", "-out", locked],
                   check=True, capture_output=True)  # fmt: skip
    with pytest.raises(SinkError, match="without a passphrase"):
        Tls(str(good), str(locked))
