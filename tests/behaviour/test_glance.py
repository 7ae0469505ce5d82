"""Streams whose frames are not all looked at, with workers and without: through ZeroMQ, a real MQTT broker and NATS."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.behaviour.daemon import daemon
from tests.clips import write_clip
from tests.runtime.test_glance_daemon import BEGINS, ENDS, FRAMES, yard
from tests.sinks.brokers import Listener, free_port, mosquitto, nats_server
from tests.sinks.test_nats import Subscriber

STREAMS = ("a", "b")


class Everything:
    """Keeps every message of a ZeroMQ publisher, looked at or not."""

    def __init__(self, endpoint: str) -> None:
        self.messages: list[dict[str, Any]] = []
        self._stop = threading.Event()
        self._endpoint = endpoint
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.linger = 0
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.subscribe(b"streamd/")
            socket.connect(self._endpoint)
            while not self._stop.is_set() or socket.poll(500):
                if socket.poll(100):
                    topic, payload = socket.recv_multipart()[:2]
                    message = json.loads(payload)
                    assert topic.startswith(b"streamd/glance/1/") == ("seq" in message and "detections" not in message)
                    self.messages.append(message)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)


def by_stream(messages: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The messages of frames of each stream, as they came."""
    out: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for message in messages:
        if "seq" in message and "width" in message:
            out[message["stream"]].append(message)
    return out


@pytest.mark.parametrize("workers", [1, 2], ids=["one process", "workers"])
def test_every_frame_has_one_message_in_each_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    clip = write_clip(tmp_path / "yard.mp4", frames=FRAMES, size=(320, 180), gop=50, draw=yard)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    # Played once, at its own pace: the first ten seconds are for learning, and for subscribers to come.
    look = "{when: motion, at_least_every_s: 1, skip_followed: false}"
    streams = "".join(f"  - {{id: {name}, url: {clip}, pace: realtime, look: {look}}}\n" for name in STREAMS)
    with mosquitto(tmp_path) as broker, nats_server(tmp_path) as nats:
        listener, subscriber = Listener(broker.port, "streamd/#"), Subscriber(nats.port, "streamd.>")
        everything = Everything(endpoint)
        frames = "detections: true, glances: true, ring: 4096"
        config = (
            f'model: {{path: none}}\nengine: {{kind: "null"}}\ntracking: {{}}\nworkers: {workers}\n'
            f"events: {{state_dir: {tmp_path}/state}}\n"
            f"sinks:\n  - {{kind: zmq, bind: '{endpoint}', encoding: json, ring: 4096}}\n"
            f"  - {{kind: mqtt, broker: '127.0.0.1:{broker.port}', {frames}}}\n"
            f"  - {{kind: nats, servers: ['127.0.0.1:{nats.port}'], {frames}}}\nstreams:\n{streams}"
        )
        with daemon(tmp_path, config) as running:
            assert running.process.wait(90) == 0, "both streams have ended"
            summaries = {name: running.summary(name) for name in STREAMS}
        everything.close()
        listener.close()
        subscriber.close()
    received = {
        "zmq": everything.messages,
        "mqtt": [json.loads(payload) for _, payload, _ in listener.messages if payload[:1] == b"{"],
        "nats": [json.loads(payload) for _, payload in subscriber.messages if payload[:1] == b"{"],
    }
    for sink, messages in received.items():
        found = by_stream(messages)
        assert {*found} == {*STREAMS}, sink
        for stream, told in found.items():
            seqs = [message["seq"] for message in told]
            # A subscriber or a connection may be late for the first seconds, all of which are looked at.
            assert seqs == list(range(seqs[0], FRAMES)), (sink, stream, "in order, each once")
            assert seqs[0] < 250, (sink, stream)
            still = [m["seq"] for m in told if "detections" not in m]
            assert not {*range(BEGINS, ENDS)} & {*still}, (sink, stream, "motion is looked at")
            assert len(still) > (FRAMES - 250 - (ENDS - BEGINS)) / 2, (sink, stream)
            assert all(m["dropped"] == 0 for m in told[1:] if "detections" in m), (sink, stream)
            # On a slow machine, frames without motion may have to stand back.
            assert {m["why"] for m in told if "detections" not in m} <= {"still", "busy"}
    for summary in summaries.values():
        assert (summary["received"], summary["published"], summary.get("dropped")) == (FRAMES, FRAMES, None)
