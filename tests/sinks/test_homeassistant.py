"""Home Assistant's discovery over a real mosquitto, read as Home Assistant reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from streamd.events.record import Media
from streamd.sinks.envelope import Outgoing
from tests.events.journals import until
from tests.frames import detections, status
from tests.sinks.brokers import Listener, Server
from tests.sinks.delivery import rig
from tests.sinks.homeassistant import Entities
from tests.sinks.test_mqtt import camera, settings


def test_a_camera_that_an_earlier_run_had_is_cleared(tmp_path: Path, broker: Server) -> None:
    both = settings(broker, home_assistant={})
    with rig(tmp_path / "j", both, [camera("gate", "drive"), camera("old")]) as running:
        running.board.post(status("gate"))
        running.board.post(status("old"))
        until(lambda: len(Entities.retained(broker.port).devices) == 3)
    with rig(tmp_path / "j", both, [camera("gate", "yard")]) as running:
        running.board.post(status("gate"))
        until(lambda: len(Entities.retained(broker.port).devices) == 2)
        until(lambda: "zone_yard_count" in Entities.retained(broker.port).components("gate"))
        assert "zone_drive_count" not in Entities.retained(broker.port).components("gate")
        listener = Listener(broker.port, "streamd/#")
        until(lambda: len(listener.messages) >= 3)
        assert not [topic for topic in listener.last() if "/old/" in topic]
        listener.close()


def test_what_other_clients_left_does_not_stop_the_sink(tmp_path: Path, broker: Server) -> None:
    evil = {
        "homeassistant/device/streamd_5Fbox/deep/config": b'{"components": ' + b"[" * 100_000,
        "homeassistant/device/streamd_5Fbox/latin/config": b'{"components": "\xff"}',
        "homeassistant/device/streamd_5Fbox/odd/config": b'{"components": {"a": 1, "b": {"platform": []}}}',
        "streamd/box/streams/<b>/availability": b"x" * 100_000,
        "streamd/box/streams//availability": b"online",
    }
    other = Listener(broker.port, "#")
    for topic, payload in evil.items():
        other.client.publish(topic, payload, qos=1, retain=True).wait_for_publish(10)
    with rig(tmp_path / "j", settings(broker, home_assistant={}), [camera("gate")]) as running:
        running.board.post(status("gate"))
        until(lambda: all(other.last().get(topic) == b"" for topic in evil), 30)
        assert running.thread.problem is None
        assert "homeassistant/device/streamd_5Fbox/stream_gate/config" in other.last()
    other.close()


def test_home_assistant_discovers_every_entity_and_reads_its_state(tmp_path: Path, broker: Server) -> None:
    listener = Listener(broker.port, "homeassistant/#", "streamd/#")
    watching = Entities()
    with rig(
        tmp_path / "j", settings(broker, home_assistant={}), [camera("front.door", "drive", line="gate_1")]
    ) as running:
        running.board.post(status("front.door"))
        counts = {
            "lines": {"gate_1": {"crossings": {"in": {"person": 2, "car": 1}, "out": {}}, "uncertain": {}}},
            "zones": {"drive": {"occupancy": 2, "labels": {"person": 2}, "stale": False}},
        }
        running.thread.put(Outgoing(replace(detections("front.door"), counts=counts), "b"))
        until(lambda: listener.of("/counts") and len([t for t in listener.last() if t.endswith("/config")]) == 2)
        for topic, payload, _ in listener.messages:
            watching.receive(topic, payload)
        states = watching.states()
        assert states["streamd_box_front.door_zone_drive_occupied"] == "ON"
        assert states["streamd_box_front.door_zone_drive_count"] == "2"
        assert states["streamd_box_front.door_line_gate_1_in"] == "3"
        assert states["streamd_box_front.door_line_gate_1_out"] == "0"
        assert states["streamd_box_front.door_state"] == "live"
        assert states["streamd_box_connection"] == "online"
        assert watching.available("streamd_box_front.door_zone_drive_count")
        # Home Assistant restarts: its birth message brings discovery again.
        before = len([t for t, _, _ in listener.messages if t.endswith("/config")])
        listener.client.publish("homeassistant/status", "online")
        until(lambda: len([t for t, _, _ in listener.messages if t.endswith("/config")]) == before + 2)
        running.board.post(status("front.door", "BACKOFF", "refused"))
        until(lambda: listener.last()["streamd/box/streams/front.door/availability"] == b"offline")
        for topic, payload, _ in listener.messages:
            watching.receive(topic, payload)
        assert not watching.available("streamd_box_front.door_zone_drive_count")
        assert watching.available("streamd_box_front.door_state"), "tells why"
    listener.close()


def test_events_reach_home_assistant(tmp_path: Path, broker: Server) -> None:
    listener = Listener(broker.port, "homeassistant/#", "streamd/#")
    watching = Entities()
    with rig(tmp_path / "j", settings(broker, home_assistant={}), [camera("s0", "gate")]) as running:
        running.submit(1)
        running.wait_delivered(1)
        until(lambda: listener.events() and len([t for t in listener.last() if t.endswith("/config")]) == 2)
    for topic, payload, _ in listener.messages:
        watching.receive(topic, payload)
    seen = json.loads(watching.states()["streamd_box_s0_event"])
    assert (seen["event_type"], seen["label"]) == ("line_crossed", "person")
    listener.close()


def test_the_last_snapshot_is_an_image_in_home_assistant_until_it_is_deleted(
    tmp_path: Path, broker: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamd.sinks.mqtt.LOOK_S", 0.05)
    listener = Listener(broker.port, "homeassistant/#", "streamd/#")
    watching = Entities()
    topic = "streamd/box/streams/s0/snapshot"
    pictures = [tmp_path / f"{i}.jpg" for i in range(2)]
    with rig(tmp_path / "j", settings(broker, home_assistant={}), [camera("s0", "gate", snapshot=True)]) as running:
        running.journal.listen_media(running.thread.put_media)
        running.submit(1)
        for i, path in enumerate(pictures):
            path.write_bytes(cv2.imencode(".jpg", np.full((48, 64, 3), 90 * i, np.uint8))[1].tobytes())
            running.journal.link("e0", "snapshot", Media(str(path), "pending"))
            running.journal.link("e0", "snapshot", Media(str(path)))
            wanted = path.read_bytes()
            until(lambda jpeg=wanted: listener.last().get(topic) == jpeg)  # type: ignore[misc]
        until(lambda: any("stream_s0" in name for name in listener.last()))
        for name, payload, _ in listener.messages:
            watching.receive(name, payload)
        assert watching.image("streamd_box_s0_snapshot") == pictures[1].read_bytes()
        # A broker that has lost it is sent it again.
        broker.kill()
        (tmp_path / "mosquitto.db").unlink()
        until(lambda: running.thread.unreachable is not None)
        broker.start()
        until(lambda: len(listener.of("/snapshot")) >= 3, 20)
        assert listener.last()[topic] == pictures[1].read_bytes()
        running.journal.delete("s0", 0, 1 << 62)
        until(lambda: listener.last()[topic] == b"", 20)
        assert not pictures[1].exists()
    listener.close()


def test_a_removed_zone_is_taken_from_home_assistant(tmp_path: Path, broker: Server) -> None:
    listener = Listener(broker.port, "homeassistant/device/#")
    with rig(tmp_path / "j", settings(broker, home_assistant={}), [camera("gate", "a", "b")]) as running:
        until(lambda: len(listener.messages) == 2)
        running.thread.set_streams([camera("gate", "a", snapshot=True)])
        until(lambda: len(listener.messages) == 4)
    between, final = (json.loads(payload)["components"] for _, payload, _ in listener.messages[2:])
    assert between["zone_b_count"] == {"platform": "sensor"}, "which removes the entity"
    assert "zone_b_count" not in final
    assert "snapshot" in final
    first = json.loads(listener.messages[0][1])["components"] | json.loads(listener.messages[1][1])["components"]
    assert "event" in first
    assert "snapshot" not in first, "no rule took any"
    listener.close()
