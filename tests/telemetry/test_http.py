"""The port for Prometheus and for whoever restarts us."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from streamd.errors import SinkError
from streamd.telemetry.http import MAX_THREADS, HttpServer


class State:
    good = True


@pytest.fixture
def server() -> Iterator[tuple[HttpServer, State]]:
    registry, state = CollectorRegistry(), State()
    Counter("things", "Things.", registry=registry).inc(3)
    made = HttpServer("127.0.0.1:0", registry, lambda: (state.good, {"ok": state.good}), lambda: (False, {"ready": 0}))
    made.start()
    yield made, state
    made.close()


def get(server: HttpServer, path: str, **headers: str) -> tuple[int, str, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


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


def test_a_port_in_use_is_named(server: tuple[HttpServer, State]) -> None:
    address = f"127.0.0.1:{server[0].port}"
    with pytest.raises(SinkError, match=f"cannot listen on {address}: Address already in use"):
        HttpServer(address, CollectorRegistry(), lambda: (True, {}), lambda: (True, {}))


def test_idle_connections_do_not_pile_up(server: tuple[HttpServer, State]) -> None:
    http, _ = server
    held: list[Any] = [socket.create_connection(("127.0.0.1", http.port)) for _ in range(MAX_THREADS + 20)]
    time.sleep(0.3)
    for connection in held:
        connection.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert get(http, "/healthz")[0] == 200
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail("the port never answered again")
