"""The Redis sink with a real redis-server that is killed, stalled, restarted and full."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from streamd.sinks.envelope import CLASSIFIED, COUNTS, DETECTIONS, EVENT, GLANCE, STATUS, Outgoing, OutgoingGlance
from streamd.sinks.redis import RedisSettings, key
from streamd.types import Glanced, Look
from tests.events.journals import T0, event, until
from tests.frames import detections, status
from tests.messages import checked
from tests.sinks.brokers import Server, certificate, redis_server
from tests.sinks.delivery import assert_in_order, interrupted, rig


def settings(server: Server, **more: Any) -> RedisSettings:
    return RedisSettings(server=f"127.0.0.1:{server.port}", **more)


def client(port: int, **more: Any) -> Any:
    return redis.Redis(port=port, socket_timeout=30, **more)


def stored(connection: Any, pattern: str = "streamd:event:1:*") -> list[dict[str, Any]]:
    """Every event in the Redis streams, in order of each."""
    found = []
    for name in sorted(connection.scan_iter(pattern)):
        for _, fields in connection.xrange(name):
            body = json.loads(fields[b"event"])
            assert fields[b"id"].decode() == body["id"]
            assert name.decode() == f"streamd:event:1:{body['subject']}"
            found.append(body)
    return found


class ServerReader:
    """Starts a server and receives everything that the sink publishes."""

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self.server = self._stack.enter_context(redis_server(folder))
        self.client = self._stack.enter_context(contextlib.closing(client(self.server.port)))
        self.channels = self._stack.enter_context(contextlib.closing(self.client.pubsub()))
        self.channels.psubscribe("streamd:1:*")
        self.found: list[Any] = []

    def begin(self, sink: Any) -> None:
        self.sink = sink
        until(lambda: sink.poll() or sink.takes_events())

    def all(self, count: int) -> list[Any]:
        def enough() -> bool:
            self.sink.poll()
            while (message := self.channels.get_message(timeout=0.01)) is not None:
                if message["type"] == "pmessage":
                    _, _, stream, kind = message["channel"].decode().split(":")
                    self.found.append(checked([f"streamd/1/{stream}/{kind}".encode(), message["data"]]))
            return len(self.found) >= count

        until(enough)
        return self.found

    def events(self, count: int) -> list[dict[str, Any]]:
        return stored(self.client)

    def close(self) -> None:
        self._stack.close()


def contract(folder: Path) -> tuple[RedisSettings, ServerReader]:
    """See tests/sinks/test_contract.py."""
    reader = ServerReader(folder)
    return settings(reader.server, detections=True), reader


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with redis_server(tmp_path) as running:
        yield running


def test_keys_are_the_topics_with_colons() -> None:
    assert key("streamd", EVENT, "gate.1") == "streamd:event:1:gate.1"
    assert key("site:box", STATUS, "gate") == "site:box:1:gate:status"
    assert [key("s", kind, "a") for kind in (COUNTS, DETECTIONS)] == ["s:counts:1:a", "s:1:a:detections"]
    assert [key("s", kind, "a") for kind in (CLASSIFIED, GLANCE)] == ["s:classified:1:a", "s:glance:1:a"]


def killed(folder: Path, server: Server, times: int, events: int) -> list[dict[str, Any]]:
    """Delivers so many events to a server that is killed so often in mid-delivery; each is there once, and in order."""
    with rig(folder, settings(server)) as running:
        interrupted(running, times, events, down=server.kill, up=server.start)
    with contextlib.closing(client(server.port)) as connection:
        found = stored(connection)
    assert_in_order(found, events)
    assert len(found) == events, "what was sent twice is there once"
    return found


def test_a_server_that_is_killed_again_and_again_has_each_event_once(tmp_path: Path, server: Server) -> None:
    killed(tmp_path / "j", server, 3, 600)


def test_what_a_stalled_server_added_without_an_answer_is_not_added_again(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamd.sinks.redis.ANSWER_S", 1.0)
    with rig(tmp_path / "j", settings(server)) as running:
        running.submit(4)
        running.wait_delivered(4)
        server.signal(signal.SIGSTOP)
        running.submit(4)
        until(lambda: running.thread.unreachable is not None)
        server.signal(signal.SIGCONT)
        running.wait_delivered(8)
    with contextlib.closing(client(server.port)) as connection:
        assert len(stored(connection)) == 8


def test_a_full_server_delays_events_and_says_so(tmp_path: Path, server: Server) -> None:
    with contextlib.closing(client(server.port)) as connection:
        connection.config_set("maxmemory-policy", "noeviction")
        connection.config_set("maxmemory", "1")
        with rig(tmp_path / "j", settings(server)) as running:
            running.submit(4)
            until(lambda: "maxmemory" in (running.thread.unreachable or ""))
            assert running.counts().queued == 4
            connection.config_set("maxmemory", "0")
            running.wait_delivered(4)
        assert len(stored(connection)) == 4


def test_old_entries_make_room(tmp_path: Path, server: Server) -> None:
    with rig(tmp_path / "j", settings(server, max_len=100)) as running:
        running.submit(1500, streams=1)
        running.wait_delivered(1500, 60)
    with contextlib.closing(client(server.port)) as connection:
        assert 100 <= connection.xlen("streamd:event:1:s0") <= 300  # whole nodes of 100 go
        assert stored(connection)[-1]["data"]["event_seq"] == 1500


def test_login_and_tls(tmp_path: Path) -> None:
    pem = certificate(tmp_path, "localhost")
    lines = ("port 0", "tls-port {port}", f"tls-cert-file {pem}.crt", f"tls-key-file {pem}", "tls-auth-clients no",
             "user cam on >s3cret-word ~* &* +@all", "user default off")  # fmt: skip
    with redis_server(tmp_path, *lines) as server:
        tls, login = {"ca": f"{pem}.crt"}, {"username": "cam", "password": "wrong-word"}
        with rig(tmp_path / "j", settings(server, tls=tls, **login)) as running:
            until(lambda: "invalid username-password" in (running.thread.unreachable or ""))
            assert "wrong-word" not in (running.thread.unreachable or "")
            assert (running.thread.unreachable or "").endswith("; check username and password")
        with rig(tmp_path / "j", settings(server, tls=tls)) as running:
            until(lambda: "the server refuses the login: " in (running.thread.unreachable or ""))
        with rig(tmp_path / "j", settings(server, tls=tls, **{**login, "password": "s3cret-word"})) as running:
            running.submit(2)
            running.wait_delivered(2)
        with rig(tmp_path / "j", settings(server, tls={}, **login)) as running:
            until(lambda: "certificate verify failed" in (running.thread.unreachable or ""))


def test_frames_are_lost_and_told_while_the_server_is_away(tmp_path: Path, server: Server) -> None:
    with rig(tmp_path / "j", settings(server, detections=True)) as running:
        until(lambda: running.thread._sink.takes_events())
        server.kill()
        running.board.post(status("s"))
        until(lambda: running.thread.unreachable is not None)
        for seq in range(5):
            running.thread.put(Outgoing(detections(seq=seq), "b"))
        until(lambda: running.value("streamd_sink_dropped_total", reason="error") == 5)


def test_an_event_of_another_type_of_key_is_told(tmp_path: Path, server: Server) -> None:
    with contextlib.closing(client(server.port)) as connection:
        connection.set("streamd:event:1:s0", "taken")
        with rig(tmp_path / "j", settings(server)) as running:
            running.journal.submit(event("e", stream="s0"))
            until(lambda: "wrong kind of value" in (running.thread.unreachable or ""))
            connection.delete("streamd:event:1:s0")
            running.wait_delivered(1)


def test_events_that_wait_behind_a_refused_one_are_added_once(tmp_path: Path, server: Server) -> None:
    with contextlib.closing(client(server.port)) as connection:
        connection.set("streamd:event:1:s1", "taken")
        with rig(tmp_path / "j", settings(server)) as running:
            running.submit(20, streams=2)
            until(lambda: "wrong kind of value" in (running.thread.unreachable or ""))
            until(lambda: connection.xlen("streamd:event:1:s0") == 10)
            until(lambda: running.counts().delivered == 1)  # the second event of all is in the way
            connection.delete("streamd:event:1:s1")
            running.wait_delivered(20)
        assert [connection.xlen(f"streamd:event:1:s{n}") for n in range(2)] == [10, 10]


def test_frames_that_the_network_did_not_look_at_are_published_on_request(tmp_path: Path, server: Server) -> None:
    with contextlib.closing(client(server.port)) as connection, contextlib.closing(connection.pubsub()) as channels:
        channels.psubscribe("streamd:glance:1:*")
        assert channels.get_message(timeout=5)["type"] == "psubscribe"
        assert GLANCE not in settings(server).wants
        still = Look(False, "still")
        with rig(tmp_path / "j", settings(server, glances=True)) as running:
            until(lambda: running.thread._sink.takes_events())
            running.thread.put_glance(
                OutgoingGlance(Glanced("s", 0, 7, None, T0, 64, 48, "arrival", still, 3, T0, 4), "b")
            )
            told = channels.get_message(timeout=20)
        assert told["channel"] == b"streamd:glance:1:s"
        assert json.loads(told["data"])["seq"] == 7
