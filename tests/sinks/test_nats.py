"""The NATS sink with a real nats-server that is killed, stalled, restarted and full."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import nats
import nkeys
import pytest
from hypothesis import given

from streamd.security.redact import redact
from streamd.settings import NAME_PATTERN
from streamd.sinks.envelope import CLASSIFIED, COUNTS, DETECTIONS, EVENT, STATUS, Outgoing
from streamd.sinks.nats import NatsSettings, stream_of, subject
from tests.events.journals import event, until
from tests.frames import detections, status
from tests.messages import checked
from tests.sinks.brokers import Server, in_order, nats_server
from tests.sinks.delivery import assert_in_order, interrupted, rig
from tests.sinks.natskeys import Key, credentials


def settings(server: Server, **more: Any) -> NatsSettings:
    return NatsSettings(servers=(f"127.0.0.1:{server.port}",), **more)


def stored(port: int) -> list[dict[str, Any]]:
    """Every event in JetStream, in order."""

    async def read() -> list[dict[str, Any]]:
        client = await nats.connect(f"nats://127.0.0.1:{port}")
        stream = client.jetstream()
        found: list[dict[str, Any]] = []
        with contextlib.suppress(nats.errors.TimeoutError):
            info = await stream.stream_info("STREAMD")
            subscription = await stream.subscribe("streamd.event.1.>", ordered_consumer=True)
            while len(found) < info.state.messages:
                message = await subscription.next_msg(5)
                body = json.loads(message.data)
                assert message.headers is not None
                assert message.headers["Nats-Msg-Id"] == body["id"]
                assert stream_of(message.subject.split(".")[-1]) == body["subject"]
                found.append(body)
        await client.close()
        return found

    return asyncio.run(read())


class Subscriber:
    """A real client that receives core NATS in a thread."""

    def __init__(self, port: int, pattern: str) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self._ready, self._stop = threading.Event(), False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(port, pattern)), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    async def _run(self, port: int, pattern: str) -> None:
        client = await nats.connect(f"nats://127.0.0.1:{port}")

        async def take(message: Any) -> None:
            self.messages.append((message.subject, message.data))

        await client.subscribe(pattern, cb=take)
        await client.flush()
        self._ready.set()
        while not self._stop:
            await asyncio.sleep(0.02)
        await client.close()

    def close(self) -> None:
        """Leaves."""
        self._stop = True
        self._thread.join(10)


class ServerReader:
    """Starts a server and receives everything that the sink publishes."""

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self.server = self._stack.enter_context(nats_server(folder))
        self.subscriber = Subscriber(self.server.port, "streamd.1.>")

    def begin(self, sink: Any) -> None:
        self.sink = sink
        until(lambda: sink.poll() or sink.takes_events())

    def all(self, count: int) -> list[Any]:
        def messages() -> list[Any]:
            self.sink.poll()
            found = []
            for name, payload in list(self.subscriber.messages):
                _, _, token, kind = name.split(".")
                found.append(checked([f"streamd/1/{stream_of(token)}/{kind}".encode(), payload]))
            return found

        until(lambda: len(messages()) >= count)
        return messages()

    def events(self, count: int) -> list[dict[str, Any]]:
        return stored(self.server.port)

    def close(self) -> None:
        self.subscriber.close()
        self._stack.close()


def contract(folder: Path) -> tuple[NatsSettings, ServerReader]:
    """See tests/sinks/test_contract.py."""
    reader = ServerReader(folder)
    return settings(reader.server, detections=True), reader


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with nats_server(tmp_path) as running:
        yield running


@given(st.from_regex(NAME_PATTERN, fullmatch=True))
def test_every_stream_id_is_one_token_that_leads_back_to_it(stream: str) -> None:
    for kind, place in ((EVENT, 3), (COUNTS, 3), (CLASSIFIED, 3), (DETECTIONS, 2), (STATUS, 2)):
        tokens = subject("streamd", kind, stream).split(".")
        assert len(tokens) == 4
        assert stream_of(tokens[place]) == stream
        assert not set(subject("streamd", kind, stream)) & set(" *>\t")


def test_subjects_are_the_topics_with_dots() -> None:
    assert subject("streamd", EVENT, "gate.1") == "streamd.event.1.gate%2E1"
    assert subject("site.box", STATUS, "gate") == "site.box.1.gate.status"


def killed(folder: Path, server: Server, times: int, events: int) -> list[dict[str, Any]]:
    """Delivers so many events to a server that is killed so often in mid-delivery; each is there once, and in order."""
    with rig(folder, settings(server)) as running:
        interrupted(running, times, events, down=server.kill, up=server.start)
    found = stored(server.port)
    assert_in_order(found, events)
    assert len(found) == events, "what was sent twice is there once"
    return found


def test_a_server_that_is_killed_again_and_again_has_each_event_once(tmp_path: Path, server: Server) -> None:
    killed(tmp_path / "j", server, 2, 400)


def test_a_stalled_server_is_noticed_and_gets_everything_later(tmp_path: Path, server: Server) -> None:
    with rig(tmp_path / "j", settings(server)) as running:
        running.submit(10)
        running.wait_delivered(10)
        server.signal(signal.SIGSTOP)
        running.submit(30)
        until(lambda: running.thread.unreachable is not None, 40)
        server.signal(signal.SIGCONT)
        running.wait_delivered(40, 60)
        until(lambda: running.thread.unreachable is None)
    assert sum(map(len, in_order(stored(server.port)).values())) == 40


def test_a_full_stream_is_named_and_keeps_the_order(tmp_path: Path, server: Server) -> None:
    async def change(most: int) -> None:
        client = await nats.connect(f"nats://127.0.0.1:{server.port}")
        stream = client.jetstream()
        config = {"name": "STREAMD", "subjects": ["streamd.event.1.>"], "max_msgs": most, "discard": "new"}
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await stream.update_stream(**config)  # type: ignore[arg-type]
            await client.close()
            return
        await stream.add_stream(**config)  # type: ignore[arg-type]
        await client.close()

    asyncio.run(change(5))
    with rig(tmp_path / "j", settings(server)) as running:
        running.submit(12, streams=1)
        until(
            lambda: (
                "JetStream refuses streamd.event.1.s0: maximum messages exceeded" in (running.thread.unreachable or "")
            )
        )
        until(lambda: running.counts().delivered == 5)
        asyncio.run(change(100))
        running.wait_delivered(12)
        until(lambda: running.thread.unreachable is None)
    assert in_order(stored(server.port)) == {"s0": list(range(1, 13))}


def test_a_server_without_jetstream_is_named(tmp_path: Path) -> None:
    with nats_server(tmp_path, jetstream=False) as server:
        with rig(tmp_path / "j", settings(server)) as running:
            until(lambda: running.thread.unreachable is not None, 20)
            assert "JetStream is not enabled; start the server with -js" in (running.thread.unreachable or "")
        subscriber = Subscriber(server.port, "streamd.1.>")
        with rig(tmp_path / "j2", settings(server, events=False)) as running:
            until(lambda: running.value("streamd_sink_up") == 1 and running.thread._sink._sink._client is not None)  # type: ignore[attr-defined]
            running.board.post(status("s.1"))
            until(lambda: subscriber.messages)
        assert subscriber.messages[0][0] == "streamd.1.s%2E1.status"
        subscriber.close()


def test_login(tmp_path: Path) -> None:
    with nats_server(tmp_path, 'authorization { user: cam, password: "s3cret-word" }') as server:
        login = {"username": "cam", "password": "wrong"}
        with rig(tmp_path / "j", settings(server, login=login)) as running:
            until(lambda: running.thread.unreachable is not None, 20)
            told = "Authorization Violation; check login, token, nkey or credentials"
            assert running.thread.unreachable == f"nats sink: 127.0.0.1:{server.port}: {told}"
        login["password"] = "s3cret-word"
        with rig(tmp_path / "j", settings(server, login=login)) as running:
            running.submit(1)
            running.wait_delivered(1)


def test_an_event_too_large_for_the_server_is_refused_and_the_next_delivered(tmp_path: Path) -> None:
    with nats_server(tmp_path, "max_payload: 4096") as server, rig(tmp_path / "j", settings(server)) as running:
        running.journal.submit(event("big", stream="s0", details={"text": "x" * 8000}))
        running.submit(1)
        running.wait_delivered(1)
        assert running.counts() == (2, 0, 1, 1, 0, 0)


def test_frames_are_lost_and_told_while_the_server_is_away(tmp_path: Path, server: Server) -> None:
    with rig(tmp_path / "j", settings(server, detections=True)) as running:
        until(lambda: running.thread._sink.takes_events())
        subscriber = Subscriber(server.port, "streamd.1.s.detections")
        running.thread.put(Outgoing(detections(seq=0), "b"))
        until(lambda: len(subscriber.messages) == 1)
        subscriber.close()
        server.kill()
        until(lambda: running.thread.unreachable is not None)
        for seq in range(1, 6):
            running.thread.put(Outgoing(detections(seq=seq), "b"))
        until(lambda: running.value("streamd_sink_dropped_total", reason="error") == 5)
        server.start()
        subscriber = Subscriber(server.port, "streamd.1.s.detections")
        until(lambda: running.thread.unreachable is None, 30)
        running.thread.put(Outgoing(detections(seq=6), "b"))
        until(lambda: subscriber.messages)
        assert json.loads(subscriber.messages[0][1])["dropped"] == 5
        subscriber.close()


def test_login_with_an_nkey(tmp_path: Path) -> None:
    known, other = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_USER)
    with nats_server(tmp_path, f"authorization {{ users: [ {{ nkey: {known.public} }} ] }}") as server:
        with rig(tmp_path / "j", settings(server, nkey=other.seed)) as running:
            until(lambda: "authorization violation" in (running.thread.unreachable or "").lower())
            assert other.seed not in (running.thread.unreachable or "")
        with rig(tmp_path / "j", settings(server, nkey=known.seed)) as running:
            running.submit(2)
            running.wait_delivered(2)


def test_login_with_credentials(tmp_path: Path) -> None:
    lines, text = credentials()
    foreign = credentials()[1]
    with nats_server(tmp_path, *lines) as server:
        with rig(tmp_path / "j", settings(server, credentials=foreign)) as running:
            until(lambda: "authorization violation" in (running.thread.unreachable or "").lower())
        assert redact(f"line: {foreign.splitlines()[1]}") == "line: ***"
        with rig(tmp_path / "j", settings(server, credentials=text)) as running:
            running.submit(2)
            running.wait_delivered(2)


@pytest.mark.parametrize(
    ("values", "path", "message"),
    [
        ({"token": "t", "nkey": "SU" + "A" * 56}, "nkey", "give either token or nkey"),
        ({"token": "t", "login": {"username": "a", "password": "b"}}, "token", "give either login or token"),
        ({"nkey": "UDXXX"}, "nkey", "expected the seed of a user's nkey"),
        ({"credentials": "/etc/box.creds"}, "credentials", r"expected the content of a \.creds file"),
    ],
)
def test_logins_that_cannot_be_used_are_named(values: dict[str, Any], path: str, message: str) -> None:
    found = list(NatsSettings(servers=("127.0.0.1",), **values).check())
    assert [where for where, _ in found] == [(path,)]
    assert re.match(message, found[0][1])
