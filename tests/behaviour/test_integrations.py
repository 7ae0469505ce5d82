"""Events and counts through the whole daemon, with workers and without, to a real broker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.behaviour.daemon import daemon, until
from tests.behaviour.test_events import MIDDLE
from tests.sinks.brokers import Listener, in_order, mosquitto
from tests.sinks.homeassistant import Entities


@pytest.mark.parametrize("more", ["", "workers: 2\n"], ids=["one process", "workers"])
def test_an_event_and_its_zone_reach_home_assistant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    with mosquitto(tmp_path) as broker:
        listener = Listener(broker.port, "streamd/#", "homeassistant/#")
        watching = Entities()
        config = (
            f'model: {{path: none}}\nengine: {{kind: "null"}}\nevents: {{state_dir: state}}\n{more}'
            f"sinks: [{{kind: mqtt, broker: '127.0.0.1:{broker.port}', node: box, home_assistant: {{}}}}]\nstreams:\n"
            f"  - {{kind: synthetic, width: 64, height: 64, fps: 25, id: a, {MIDDLE}}}\n"
            f"  - {{kind: synthetic, width: 64, height: 64, fps: 25, id: b, {MIDDLE}}}\n"
        )

        def states() -> dict[str, str]:
            for topic, payload, _ in list(listener.messages):
                watching.receive(topic, payload)
            return watching.states()

        with daemon(tmp_path, config) as running:
            for stream in ("a", "b"):
                zone = f"streamd_box_{stream}_zone_middle_occupied"
                until(lambda id_=zone: states().get(id_) == "ON", 90)  # type: ignore[misc]
                assert watching.available(zone)
            until(
                lambda: running.value("streamd_sink_events_settled_total", sink="mqtt0", outcome="delivered") == 2, 20
            )
            assert running.value("streamd_sink_events_queued", sink="mqtt0") == 0
            assert not [topic for topic in listener.last() if topic.endswith("/detections")], "off by default"
            assert running.stop() == 0
        until(lambda: in_order(listener.events()) == {"a": [1, 2], "b": [1, 2]}, 20, "the ends at the stop")
        assert [e["type"] for e in listener.events() if e["subject"] == "a"] == [
            "streamd.event.begin", "streamd.event.end",
        ]  # fmt: skip
        assert listener.last()["streamd/box/availability"] == b"offline"
        assert json.loads(listener.last()["streamd/box/streams/a/status"])["stream"] == "a"
        listener.close()
