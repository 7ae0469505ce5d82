"""Peers without a key that take all they can: connections, subscriptions, memory, other subscribers' bandwidth."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

from streamd.sinks.hosts import Allowance, host_of
from streamd.sinks.peers import INPUT_BYTES, MESSAGES, TOPIC_BYTES, TOPICS
from streamd.testing.sending import Sender
from streamd.types import StreamCounts
from tests.conftest import ROOT
from tests.frames import detections, status
from tests.sinks.scene import Scene, connected, refused, until
from tests.sinks.zmtp import GREETING, RawPeer, frame


def streams(subscriber: Any, sink: Sender, seconds: float) -> list[str]:
    """The streams of the statuses that arrive while the sink is polled ten times a second."""
    found = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        sink.poll()
        while subscriber.poll(20):
            found.append(subscriber.recv_multipart()[0].split(b"/")[2].decode())
    return found


def test_an_allowance_is_a_burst_and_a_rate() -> None:
    allowance = Allowance(10, 1000)
    assert allowance.use(10)
    assert not allowance.use(10)
    time.sleep(0.05)  # at least 50 have been added, of which 10 are kept
    assert allowance.use(9)
    assert not allowance.use(9)
    time.sleep(0.05)
    assert not allowance.take(11), "more than there may ever be: nothing is used"
    assert allowance.whole
    assert allowance.take(10)
    assert not allowance.whole


@pytest.mark.parametrize(
    ("name", "host"),
    [
        (("10.0.0.7", 1), "10.0.0.7"),
        (("::ffff:10.0.0.7", 1, 0, 0), "10.0.0.7"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        ("", ""),
    ],
)
def test_whom_a_connection_belongs_to(name: Any, host: str) -> None:
    assert host_of(name) == host


def test_connections_beyond_the_limit_are_closed_and_a_free_place_is_given_again(scene: Scene) -> None:
    sink = scene.sink(max_subscribers=3)
    first = [scene.peer(sink, handshake=n > 0) for n in range(3)]
    until(lambda: connected(sink) == 3, sink)
    with contextlib.suppress(OSError):  # it may be closed before `connect` has returned
        assert scene.peer(sink, handshake=False).closed(sink)
    assert refused(sink) == {"limit": 1}
    first[0].close()
    until(lambda: connected(sink) == 2, sink)
    sink.status(status("a"), StreamCounts())
    subscriber = scene.subscriber(sink, b"")
    assert streams(subscriber, sink, 0.5) == ["a"]
    assert not first[1].closed(sink, 0.1)


def test_one_host_does_not_take_all_places(scene: Scene) -> None:
    sink = scene.sink(bind="tcp://0.0.0.0:*", max_subscribers=20)
    mine = [RawPeer(sink.endpoint, handshake=False) for _ in range(16)]
    until(lambda: connected(sink) == 16, sink)
    other = RawPeer(sink.endpoint, source="127.0.0.2")
    with contextlib.suppress(OSError):  # it may be closed before `connect` has returned
        mine.append(RawPeer(sink.endpoint, handshake=False))
        assert mine[-1].closed(sink)
    assert not other.closed(sink, 0.3)
    assert refused(sink) == {"host": 1}
    for peer in (*mine, other):
        peer.close()


def test_connections_leave_descriptors_for_the_rest_of_the_daemon(scene: Scene) -> None:
    sink = scene.sink(max_subscribers=10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as newest:
        limit = newest.fileno() + 80
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    peers = []
    try:
        for _ in range(60):  # each takes two of ours
            with contextlib.suppress(OSError):
                peers.append(RawPeer(sink.endpoint, handshake=False))
            # One after the other: else our own ends take what libzmq needs to accept a connection at all.
            sink.poll()
            time.sleep(0.005)
        until(lambda: refused(sink).get("descriptors", 0) > 0, sink)
        while peers:
            peers.pop().close()
        until(lambda: connected(sink) == 0, sink)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for peer in peers:
            peer.close()


@pytest.mark.parametrize("size", [8, 250])
def test_too_many_topics_end_the_connection(scene: Scene, size: int) -> None:
    sink = scene.sink()
    subscriber = scene.subscriber(sink, b"streamd/1/a/")
    peer = scene.peer(sink)
    most = min(TOPICS, TOPIC_BYTES // size)
    peer.subscribe(*(b"%0*d" % (size, n) for n in range(most)))
    assert not peer.closed(sink, 0.5)
    peer.socket.setblocking(True)
    peer.subscribe(b"x" * size)
    assert peer.closed(sink)
    assert refused(sink) == {"topics": 1}
    sink.publish(detections("a"))
    assert subscriber.poll(5000)


def test_cancelled_topics_do_not_count(scene: Scene) -> None:
    sink = scene.sink()
    peer = scene.peer(sink)
    peer.subscribe(*(b"%d" % n for n in range(TOPICS)))
    peer.subscribe(*(b"%d" % n for n in range(100)), cancel=True)
    peer.subscribe(*(b"again%d" % n for n in range(100)))
    assert not peer.closed(sink, 1.0)
    assert not refused(sink)


def test_subscribing_again_and_again_repeats_no_status_and_ends_the_connection(scene: Scene) -> None:
    sink = scene.sink()
    for name in "abc":
        sink.status(status(name), StreamCounts())
    subscriber = scene.subscriber(sink, b"streamd/1/")
    assert streams(subscriber, sink, 0.3) == ["a", "b", "c"]
    peer = scene.peer(sink)
    topic = b"streamd/1/"

    def subscribe() -> None:
        with contextlib.suppress(OSError):
            for _ in range(MESSAGES):
                peer.subscribe(*[topic] * 10)
                peer.subscribe(topic, cancel=True)

    thread = threading.Thread(target=subscribe)
    thread.start()
    began = time.monotonic()
    heard = streams(subscriber, sink, 0.5)
    until(lambda: refused(sink) in ({"rate": 1}, {"input": 1}), sink)  # whichever is noticed first
    heard += streams(subscriber, sink, 0.5)
    thread.join(20)
    assert not thread.is_alive()
    # Once a second at most, whoever subscribes.
    assert len(heard) <= 3 * (time.monotonic() - began + 1)


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:*", "ipc://{}/z"])
def test_a_message_without_an_end_ends_the_connection(scene: Scene, tmp_path: Path, bind: str) -> None:
    sink = scene.sink(bind=bind.format(tmp_path))
    peer = scene.peer(sink)
    part = frame(b"x" * 1000, 1) * 100
    sent = 0
    # What goes through before the sink's thread has its turn is a matter of the machine: gigabytes a second over ipc.
    deadline, ended = time.monotonic() + 20, False
    try:
        while time.monotonic() < deadline:
            peer.send(part)
            sent += len(part)
    except OSError:
        ended = True
    assert ended
    assert sent > INPUT_BYTES
    assert peer.closed(sink)
    assert refused(sink) == {"input": 1}


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:*", "ipc://{}/z"])
def test_heartbeats_and_a_wall_of_topics_are_no_attack(scene: Scene, tmp_path: Path, bind: str) -> None:
    sink = scene.sink(bind=bind.format(tmp_path))
    names = [f"camera{n}" for n in range(300)]
    for name in names:
        sink.status(status(name), StreamCounts())
    subscriber = scene.context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.HEARTBEAT_IVL, 20)
    subscriber.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20_000)
    for name in names:
        subscriber.subscribe(f"streamd/1/{name}/status")
        subscriber.subscribe(f"streamd/1/{name}/detections")
    subscriber.connect(sink.endpoint)
    found: set[str] = set()
    deadline = time.monotonic() + 20
    while len(found) < len(names) and time.monotonic() < deadline:
        found.update(streams(subscriber, sink, 0.1))
    assert found == set(names)
    assert not refused(sink)


_HEARTBEATS = """
import time
from streamd.sinks.zmq import ZmqSettings
from tests.sinks.zmtp import RawPeer, frame
sink = ZmqSettings(bind="tcp://127.0.0.1:*", linger_s=0).open()
sink.open()
for _ in range(3):
    peer = RawPeer(sink.endpoint)
    try:
        for n in range(200):
            peer.send(b"".join(frame(b"\\1%d" % k) + frame(b"\\4PING\\0\\1abc", 4) for k in range(100)))
    except OSError:
        pass  # it was more than a peer may send
    peer.close()
    time.sleep(0.3)
    for _ in range(20):
        sink.poll()
        time.sleep(0.01)
sink.close()
print("alive")
"""


def test_a_peer_that_leaves_among_its_subscriptions_and_heartbeats_does_not_end_the_daemon() -> None:
    done = subprocess.run([sys.executable, "-c", _HEARTBEATS], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.endswith("alive\n"), done.stderr


def test_the_queue_of_a_stalled_subscriber_is_limited_in_bytes(scene: Scene) -> None:
    sink = scene.sink(hwm=1000, hwm_mb=4)
    assert sink._socket.getsockopt(zmq.SNDHWM) == 1000
    stalled = scene.peer(sink)
    stalled.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.subscribe(b"")
    until(lambda: connected(sink) == 1, sink)
    until(lambda: any(p.topics for p in sink._peers._peers.values()), sink)
    sent = 0
    while sink.publish(detections(seq=sent, boxes=300)) is None:
        sent += 1
        assert sent < 1000
    size = sink._largest
    assert sink._socket.getsockopt(zmq.SNDHWM) == 4_000_000 // size < 1000
    # What the kernel's buffers hold comes on top.
    assert 4_000_000 < (sent + 1) * size < 4_000_000 + (8 << 20)
    # With a second subscriber, each has half.
    scene.subscriber(sink, b"")
    sink.poll()
    assert sink._socket.getsockopt(zmq.SNDHWM) == 2_000_000 // size


def test_it_ends_with_peers_in_every_state(scene: Scene) -> None:
    sink = scene.sink()
    silent, half, whole = (scene.peer(sink, handshake=n == 2) for n in range(3))
    half.send(GREETING[:20])
    whole.subscribe(b"")
    until(lambda: connected(sink) == 3, sink)
    names = {t.name for t in threading.enumerate()}
    assert "zmq-peers" in names
    sink.close()
    assert "zmq-peers" not in {t.name for t in threading.enumerate()}
    sink.open()
    assert connected(sink) == 0
    assert silent.socket.recv(100) is not None


def test_peers_at_an_ipc_address_are_limited_too(scene: Scene, tmp_path: Path) -> None:
    sink = scene.sink(bind=f"ipc://{tmp_path}/z", max_subscribers=2)
    peers = []
    for _ in range(3):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(f"{tmp_path}/z")
        peers.append(peer)
    until(lambda: refused(sink) == {"limit": 1}, sink)
    until(lambda: connected(sink) == 2, sink)
    for peer in peers:
        peer.close()
