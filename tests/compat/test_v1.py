"""Message version 1 is a promise: clients from its time read every later daemon, with everything on."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.behaviour.daemon import Running, daemon, until
from tests.compat.v1 import decoder
from tests.test_examples import example, node_client

V1 = Path(__file__).parent / "v1"
MIDDLE = "[[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]]"


@pytest.fixture
def everything(tmp_path: Path) -> Iterator[Running]:
    """Tracks, a zone, a line, events, statuses, both encodings."""
    config = f"""
model: {{path: none}}
engine: {{kind: "null"}}
tracking: {{publish_weak: true}}
events: {{state_dir: state}}
sinks:
  - {{kind: zmq, bind: "ipc://{tmp_path}/json", heartbeat_s: 0.5}}
  - {{kind: zmq, bind: "ipc://{tmp_path}/msgpack", encoding: msgpack, heartbeat_s: 0.5}}
streams:
  - id: a
    kind: synthetic
    fps: 25
    zones: [{{name: middle, anchor: center, points: {MIDDLE}, loiter_s: 1}}]
    lines: [{{name: across, points: [[0.5, 0.0], [0.5, 1.0]]}}]
  - {{id: b, kind: synthetic, fps: 25}}
  - {{id: gone, url: "{tmp_path}/none.mp4"}}
"""
    with daemon(tmp_path, config) as running:
        yield running


def test_the_strict_decoder_of_the_time_takes_every_message(everything: Running, tmp_path: Path) -> None:
    context: Any = zmq.Context()
    sockets = {}
    for encoding in ("json", "msgpack"):
        socket = sockets[encoding] = context.socket(zmq.SUB)
        socket.subscribe(b"streamd/1/")
        socket.connect(f"ipc://{tmp_path}/{encoding}")
    extra = context.socket(zmq.SUB)
    extra.subscribe(b"streamd/event/1/")
    extra.connect(f"ipc://{tmp_path}/json")
    seen: dict[str, list[Any]] = {"json": [], "msgpack": []}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and min(map(len, seen.values())) < 100:
        for encoding, socket in sockets.items():
            while socket.poll(50):
                seen[encoding].append(decoder.decode(socket.recv_multipart()))
                if len(seen[encoding]) % 50 == 0:
                    break
    for messages in seen.values():
        frames = [m for m in messages if isinstance(m, decoder.DetectionsMessage) and m.stream == "a"]
        assert len(frames) > 20
        for one, other in pairwise(frames):
            assert other.seq == one.seq + 1 + other.dropped
        assert all(len(m.detections) == 1 for m in frames[10:])
        assert {m.stream for m in messages if isinstance(m, decoder.StatusMessage)} == {"a", "b", "gone"}
    assert extra.poll(10_000), "events were on, beside version 1"
    assert extra.recv_multipart()[0] == b"streamd/event/1/a"
    context.destroy(linger=0)


def test_the_subscribers_of_the_time_see_frames_and_no_events(everything: Running, tmp_path: Path) -> None:
    simple, follow = tmp_path / "simple", tmp_path / "follow"
    endpoint = f"ipc://{tmp_path}/json"
    with (
        example(simple, sys.executable, V1 / "subscribe.py", endpoint) as first,
        example(follow, sys.executable, V1 / "follow.py", endpoint) as second,
    ):
        until(lambda: len(re.findall(r"^a \d+ thing 0\.90 at \[", simple.read_text(), re.MULTILINE)) > 20, 60)
        until(lambda: len(re.findall(r"^a: \d+", follow.read_text(), re.MULTILINE)) > 5, 60)
        until(lambda: "gone: is FAILED" in follow.read_text(), 20)
        assert first.poll() is None
        assert second.poll() is None
    for out in (simple, follow):
        assert "Traceback" not in out.read_text()
    assert "lost in transit" not in follow.read_text()


def test_the_node_subscriber_of_the_time(everything: Running, tmp_path: Path) -> None:
    command = node_client(V1, tmp_path / "node")
    out = tmp_path / "out"
    with example(out, *command, f"ipc://{tmp_path}/json") as process:
        until(lambda: len(re.findall(r"^a: \d+ .*thing 0\.9", out.read_text(), re.MULTILINE)) > 20, 60)
        until(lambda: "gone: is FAILED" in out.read_text(), 20)
        assert process.poll() is None
