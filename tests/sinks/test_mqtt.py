"""The MQTT sink with a real mosquitto that is killed, stalled, restarted and full, and a real client that listens."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from streamd.analysis.rules.settings import LineSettings, ZoneSettings
from streamd.flow.settings import StreamSettings
from streamd.sinks.envelope import Outgoing, OutgoingClasses
from streamd.sinks.mqtt import MqttSettings
from streamd.sources.synthetic import SyntheticStreamSettings
from streamd.types import Attribute
from tests.events.journals import event, until
from tests.frames import detections, status
from tests.messages import checked
from tests.sinks.brokers import Gate, Listener, Server, certificate, executable, free_port, in_order, mosquitto
from tests.sinks.delivery import assert_in_order, interrupted, rig


def settings(broker: Server, **more: Any) -> MqttSettings:
    return MqttSettings(broker=f"127.0.0.1:{broker.port}", node="box", keepalive_s=5, **more)


class BrokerReader:
    """Starts a broker and listens to everything that the sink publishes."""

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self.broker = self._stack.enter_context(mosquitto(folder))
        self.listener = Listener(self.broker.port, "streamd/#")

    def begin(self, sink: Any) -> None:
        self.sink = sink
        until(lambda: sink.poll() or sink._link.connected)

    def all(self, count: int) -> list[Any]:
        def messages() -> list[Any]:
            self.sink.poll()
            return [
                checked([f"streamd/1/{topic.split('/')[3]}/{topic.split('/')[4]}".encode(), payload])
                for topic, payload, _ in self.listener.messages
                if topic.endswith(("/detections", "/status"))
            ]

        until(lambda: len(messages()) >= count)
        return messages()

    def events(self, count: int) -> list[dict[str, Any]]:
        until(lambda: len(self.listener.events()) >= count)
        return self.listener.events()

    def close(self) -> None:
        self.listener.close()
        self._stack.close()


def contract(folder: Path) -> tuple[MqttSettings, BrokerReader]:
    """See tests/sinks/test_contract.py."""
    reader = BrokerReader(folder)
    return settings(reader.broker, detections=True), reader


SQUARE = ((0.1, 0.1), (0.9, 0.1), (0.9, 0.9))


def camera(id_: str, *zones: str, line: str | None = None, snapshot: bool = False) -> StreamSettings:
    return SyntheticStreamSettings(
        id=id_,
        zones=tuple(ZoneSettings(name=zone, points=SQUARE, snapshot=snapshot) for zone in zones),
        lines=()
        if line is None
        else (LineSettings(name=line, points=((0.1, 0.1), (0.9, 0.9)), directions=("in", "out")),),
    )


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_events_arrive_in_order_as_cloudevents(tmp_path: Path, broker: Server, protocol: Any) -> None:
    listener = Listener(broker.port, "streamd/box/streams/+/events")
    with rig(tmp_path / "j", settings(broker, protocol=protocol)) as running:
        running.submit(500)
        running.wait_delivered(500)
        until(lambda: len(listener.messages) >= 500)
    assert in_order(listener.events()) == {f"s{i}": list(range(1, 126)) for i in range(4)}
    first = listener.events()[0]
    assert first["source"] == "/streamd/yard"
    assert first["type"] == "streamd.event.instant"
    assert not any(retained for _, _, retained in listener.messages)
    listener.close()


def killed(folder: Path, broker: Server, count: int, events: int) -> list[dict[str, Any]]:
    """Delivers so many events to a broker that is killed so often in mid-delivery; all arrive, and in order."""
    listener = Listener(broker.port, "streamd/box/streams/+/events", qos=0)
    gate = Gate(broker.port)
    gate.open()

    def down() -> None:
        gate.close()
        broker.kill()

    def up() -> None:
        broker.start()
        listener.wait_subscribed()
        gate.open()

    with rig(folder, settings(broker).model_copy(update={"broker": f"127.0.0.1:{gate.port}"})) as running:
        interrupted(running, count, events, down=down, up=up, arrived=lambda: len(listener.messages))
        until(lambda: len({e["id"] for e in listener.events()}) == events, 20)
    assert_in_order(listener.events(), events)
    listener.close()
    gate.close()
    return listener.events()


def test_a_broker_that_is_killed_again_and_again_loses_no_event(tmp_path: Path, broker: Server) -> None:
    killed(tmp_path / "j", broker, 2, 400)


def test_a_stalled_broker_is_noticed_and_gets_everything_later(tmp_path: Path, broker: Server) -> None:
    listener = Listener(broker.port, "streamd/box/streams/+/events")
    with rig(tmp_path / "j", settings(broker)) as running:
        running.submit(10)
        running.wait_delivered(10)
        broker.signal(signal.SIGSTOP)
        running.submit(30)
        running.journal.flush()
        assert running.counts().accepted == 40
        until(lambda: running.thread.unreachable is not None, 30)
        broker.signal(signal.SIGCONT)
        running.wait_delivered(40, 60)
        until(lambda: sum(map(len, in_order(listener.events()).values())) == 40)
    listener.close()


def test_what_waits_survives_a_restart_of_the_daemon(tmp_path: Path, broker: Server) -> None:
    listener = Listener(broker.port, "streamd/box/streams/+/events")
    where = settings(broker)
    with rig(tmp_path / "j", where) as running:
        running.submit(5)
        running.wait_delivered(5)
    broker.kill()
    with rig(tmp_path / "j", where) as running:
        until(lambda: running.thread.unreachable is not None)
        running.submit(20)
        running.journal.flush()
        assert running.counts().queued == 20
    broker.start()
    listener.wait_subscribed()
    with rig(tmp_path / "j", where) as running:
        running.wait_delivered(25)
    until(lambda: len(listener.events()) >= 25)
    assert len({e["id"] for e in listener.events()}) == 25
    listener.close()


def test_an_event_that_waits_too_long_expires_and_is_counted(
    tmp_path: Path, broker: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamd.events.chores.RETAIN_S", 0.1)
    broker.kill()
    with rig(tmp_path / "j", settings(broker, max_queued=10)) as running:
        running.submit(50)
        until(lambda: running.counts().expired == 40, 30)
        found = running.counts()
        assert (found.accepted, found.queued, found.delivered) == (50, 10, 0)
        broker.start()
        running.wait_delivered(10, 60)
        assert running.counts() == (50, 0, 10, 0, 40, 0)


def test_what_was_deleted_is_not_delivered(tmp_path: Path, broker: Server) -> None:
    broker.kill()
    with rig(tmp_path / "j", settings(broker)) as running:
        running.submit(20, streams=2)
        running.journal.flush()
        running.journal.delete("s0", 0, 1 << 62)
        broker.start()
        listener = Listener(broker.port, "streamd/box/streams/+/events")
        running.wait_delivered(10, 60)
        until(lambda: len(listener.messages) >= 10)
        assert {e["data"]["stream"] for e in listener.events()} == {"s1"}
        assert running.counts() == (20, 0, 10, 0, 0, 10)
        listener.close()


def test_a_broker_that_refuses_a_topic_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic readwrite streamd/box/availability\n")
    with mosquitto(tmp_path, f"acl_file {tmp_path}/acl") as broker, rig(tmp_path / "j", settings(broker)) as running:
        running.submit(3)
        until(lambda: running.thread.unreachable is not None)
        assert "refuses events of s0: Not authorized" in (running.thread.unreachable or "")
        assert running.counts().queued == 3


@pytest.mark.parametrize("limit", ["max_packet_size 6000", "message_size_limit 5000"])
def test_an_event_too_large_for_the_broker_is_refused_and_the_next_delivered(tmp_path: Path, limit: str) -> None:
    with mosquitto(tmp_path, limit) as broker, rig(tmp_path / "j", settings(broker)) as running:
        running.submit(2, streams=1)
        running.journal.submit(event("big", stream="s0", details={"text": "x" * 9000}))
        running.submit(2, streams=1)
        running.wait_delivered(4)
        assert running.counts() == (5, 0, 4, 1, 0, 0)


def test_login_and_last_will(tmp_path: Path) -> None:
    password = tmp_path / "passwords"
    subprocess.run(
        [executable("mosquitto_passwd", "mosquitto"), "-c", "-b", str(password), "cam", "s3cret-word"], check=True
    )
    with mosquitto(tmp_path, f"password_file {password}", anonymous=False) as broker:
        login = {"username": "cam", "password": "wrong"}
        with rig(tmp_path / "j", settings(broker, login=login)) as running:
            until(lambda: running.thread.unreachable is not None)
            assert "refuses the connection: Not authorized; check login" in (running.thread.unreachable or "")
        login["password"] = "s3cret-word"
        with rig(tmp_path / "j", settings(broker, login=login)) as running:
            until(lambda: running.value("streamd_sink_up") == 1)
            running.submit(1)
            running.wait_delivered(1)


def test_the_broker_s_certificate_is_verified(tmp_path: Path) -> None:
    both, port = certificate(tmp_path, "localhost"), free_port()
    lines = (f"listener {port} 127.0.0.1", f"cafile {both}.crt", f"certfile {both}.crt", f"keyfile {both}")
    with mosquitto(tmp_path, *lines) as broker:
        with rig(tmp_path / "a", settings(broker, tls={})) as running:
            until(lambda: running.thread.unreachable is not None)
            assert "CERTIFICATE_VERIFY_FAILED" in (running.thread.unreachable or "")
        with rig(tmp_path / "b", settings(broker, tls={"ca": f"{both}.crt"})) as running:
            running.submit(50)
            running.wait_delivered(50)


def test_availability_of_daemon_and_cameras(tmp_path: Path, broker: Server) -> None:
    listener = Listener(broker.port, "streamd/#")
    base = "streamd/box"
    with rig(tmp_path / "j", settings(broker), [camera("gate"), camera("yard.1")]) as running:
        running.board.post(status("gate"))
        running.board.post(status("yard.1", "BACKOFF", "refused"))
        until(lambda: f"{base}/streams/yard.1/availability" in listener.last())
        late = Listener(broker.port, "streamd/#")
        until(lambda: len(late.messages) >= 5)
        found = late.last()
        assert found[f"{base}/availability"] == b"online"
        assert found[f"{base}/streams/gate/availability"] == b"online"
        assert found[f"{base}/streams/yard.1/availability"] == b"offline"
        assert json.loads(found[f"{base}/streams/gate/status"])["state"] == "LIVE"
        assert all(retained for _, _, retained in late.messages)
        # A reload without a camera removes what is retained of it.
        running.thread.set_streams([camera("gate")])
        until(lambda: listener.last()[f"{base}/streams/yard.1/status"] == b"")
        running.board.post(status("yard.1", "ENDED"))
        late.close()
    until(lambda: listener.last()[f"{base}/availability"] == b"offline")
    assert listener.last()[f"{base}/streams/yard.1/availability"] == b""
    # The last will: a daemon that is killed says nothing itself.
    abrupt = rig(tmp_path / "j2", settings(broker))
    running = abrupt.__enter__()
    until(lambda: listener.last()[f"{base}/availability"] == b"online")
    running.thread._sink._sink._link._drop()  # type: ignore[attr-defined]
    until(lambda: listener.of(f"{base}/availability")[-2:] == [b"offline", b"online"], 20)
    abrupt.__exit__(None, None, None)
    listener.close()


def test_an_address_that_nobody_answers_costs_no_start(tmp_path: Path) -> None:
    where = MqttSettings(broker=f"127.0.0.1:{free_port()}")
    began = time.monotonic()
    with rig(tmp_path / "j", where) as running:
        assert time.monotonic() - began < 5
        until(lambda: running.thread.unreachable is not None)
        assert "Connection refused" in (running.thread.unreachable or "")
        assert running.thread.problem is None, "not a reason to be unready"


def test_frames_are_lost_and_told_while_the_broker_is_away(tmp_path: Path, broker: Server) -> None:
    listener = Listener(broker.port, "streamd/box/streams/s/detections")
    with rig(tmp_path / "j", settings(broker, detections=True)) as running:
        until(lambda: running.value("streamd_sink_up") == 1)
        running.thread.put(Outgoing(detections(seq=0), "b"))
        until(lambda: len(listener.messages) == 1)
        with contextlib.closing(Listener(broker.port, "streamd/box/streams/s/classified")) as classified:
            said = Attribute("colour", "red", 0.9, 0, 1)
            running.thread.put_classes(OutgoingClasses(detections(seq=0), [0], [said], "b"))
            until(lambda: len(classified.messages) == 1)
        assert json.loads(classified.messages[0][1])["objects"][0]["attribute"]["label"] == "red"
        broker.kill()
        until(lambda: running.thread.unreachable is not None)
        for seq in range(1, 6):
            running.thread.put(Outgoing(detections(seq=seq), "b"))
        until(lambda: running.value("streamd_sink_dropped_total", reason="error") == 5)
        broker.start()
        until(lambda: running.thread.unreachable is None, 30)
        until(lambda: listener.client.is_connected(), 20)
        running.thread.put(Outgoing(detections(seq=6), "b"))
        until(lambda: len(listener.messages) >= 2)
    assert json.loads(listener.messages[-1][1])["dropped"] == 5
    listener.close()
