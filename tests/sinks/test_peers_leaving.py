"""Peers that leave and come again: what they leave behind, who answers for it, and who is counted."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import zmq
from prometheus_client import CollectorRegistry

from streamd.sinks.guard import GuardedSink
from streamd.sinks.hosts import ABUSE_COSTS, CONNECTIONS_A_SECOND, MOST_HOSTS, Hosts
from streamd.sinks.peers import DIFFERENT_TOPIC_BYTES, FAIR_BYTES, FAIR_TOPIC_BYTES, MESSAGES, Peer
from streamd.sinks.sockets import received_by
from streamd.sinks.zmq import ZmqSettings, ZmqSink
from streamd.telemetry.metrics import Metrics
from streamd.testing.sending import Sender
from streamd.types import StreamCounts
from tests.frames import detections, status
from tests.sinks.scene import Scene, connected, refused, until
from tests.sinks.zmtp import RawPeer, frame


def test_a_host_that_connects_again_and_again_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    hosts = Hosts(2 * ABUSE_COSTS + 2)
    assert all(hosts.connected("a") for _ in range(2))
    hosts.abused("a")
    hosts.abused("a")
    assert not hosts.connected("a")
    assert hosts.connected("b")
    now[0] += 1.1 / CONNECTIONS_A_SECOND
    assert hosts.connected("a")
    for _ in range(10):
        hosts.abused("c")
    assert -2 * ABUSE_COSTS - 2 <= hosts._of("c")._left < -2 * ABUSE_COSTS, "it owes, but not for ever"
    assert not hosts.connected("c")
    for n in range(MOST_HOSTS + 10):
        hosts.connected(f"2001:db8:0:{n:x}::/64")
    assert len(hosts._used) == MOST_HOSTS


def test_a_host_may_not_connect_and_leave_in_a_loop(scene: Scene) -> None:
    sink = scene.sink(bind="tcp://0.0.0.0:*", max_subscribers=20)
    deadline = time.monotonic() + 20
    watched = sink._peers
    while "again" not in refused(sink):
        hosts = {host: allowance.used for host, allowance in watched._hosts._used.items()}
        assert time.monotonic() < deadline, (refused(sink), watched._all_input.used, hosts)
        # Many at a time: one after the other, a busy machine might make no more of them than are allowed.
        peers = []
        for _ in range(15):
            with contextlib.suppress(OSError):
                peers.append(RawPeer(sink.endpoint, handshake=False))
        made = len(peers)
        until(lambda made=made: connected(sink) >= made or refused(sink), sink)  # else none would be counted
        for peer in peers:
            peer.close()
        until(lambda: connected(sink) == 0, sink)
    assert refused(sink).keys() == {"again"}
    other = RawPeer(sink.endpoint, source="127.0.0.2")
    assert not other.closed(sink, 0.3)
    other.close()


def _leave(sink: Sender, peer: RawPeer, topics: int) -> None:
    """The peer subscribes while the sink does not look, and leaves."""
    letters = b"abcdefghijklmnopqrstuvwxyz0123456789"
    with contextlib.suppress(OSError):
        peer.subscribe(*(bytes(letters[n // 36**k % 36] for k in range(3)) for n in range(topics)))
    peer.close()
    deadline = time.monotonic() + 20
    while connected(sink):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_a_peer_leaves_behind_does_not_pile_up(scene: Scene) -> None:
    """libzmq keeps each subscription until it is read, and adds a cancellation when the peer leaves."""
    sink = scene.sink()
    _leave(sink, scene.peer(sink), 40_000)
    polls = 0
    while sink._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
        sink.poll()
        polls += 1
    assert 0 < polls < 60, "80,000 are to be read"
    assert not refused(sink) or refused(sink) == {"input": 1}


def test_a_peer_does_not_answer_for_the_one_that_had_its_descriptor_before(scene: Scene) -> None:
    sink = scene.sink()
    sink.status(status("a"), StreamCounts())
    first = scene.peer(sink)
    until(lambda: connected(sink) == 1, sink)
    (descriptor,) = sink._peers._peers
    _leave(sink, first, 2 * MESSAGES)
    second = scene.peer(sink)
    second.subscribe(b"streamd/")
    assert not second.closed(sink, 0.5)
    assert set(sink._peers._peers) == {descriptor}, "else this test has shown nothing"
    assert not refused(sink)
    # Its own subscriptions count once those have been read.
    with contextlib.suppress(OSError):
        for n in range(10):
            second.subscribe(*(b"%d" % (1000 * n + k) for k in range(1000)))
    assert second.closed(sink)


def test_a_peer_is_closed_also_where_no_descriptor_is_left(scene: Scene) -> None:
    sink = scene.sink()
    peer = scene.peer(sink)
    until(lambda: connected(sink) == 1, sink)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as newest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (newest.fileno() + 8, hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(open(os.devnull))  # noqa: SIM115 - it is to be left open
        with contextlib.suppress(OSError):
            for _ in range(1000):
                peer.send(frame(b"x" * 1000, 1) * 100)
        assert peer.closed(sink)
        assert refused(sink) == {"input": 1}
    finally:
        for file in taken:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_whose_end_was_not_heard_of_is_not_counted_for_ever(scene: Scene) -> None:
    sink = scene.sink()
    peer = scene.peer(sink)
    until(lambda: connected(sink) == 1, sink)
    watched = sink._peers
    # As if libzmq had not told of the ends of two: one's descriptor is free, the other's is another connection's now.
    (descriptor,) = watched._peers
    with socket.socket() as other, watched._lock:
        watched._peers[99_999] = Peer("127.0.0.1", 1, topics={b"streamd"}, topic_bytes=7)
        watched._peers[other.fileno()] = Peer("127.0.0.1", 2)
        watched._all_topic_bytes += 7
        watched._different_bytes += 7
        watched._different[b"streamd"] += 1
    assert connected(sink) == 3
    until(lambda: connected(sink) == 1, sink)
    assert set(watched._peers) == {descriptor}
    assert watched._all_topic_bytes == watched._different_bytes == 0
    assert not watched._different
    assert not peer.closed(sink, 0.1)


def test_what_a_camera_sends_is_no_input_of_the_peer_that_had_its_descriptor(scene: Scene) -> None:
    """libzmq gives a descriptor back before it tells of it: for a moment it is another connection's."""
    sink = scene.sink()
    peer = scene.peer(sink)
    until(lambda: connected(sink) == 1, sink)
    watched = sink._peers
    (ended,) = watched._peers.values()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as camera:
        reading, _ = server.accept()
        with reading:
            for _ in range(30):
                camera.sendall(bytes(100_000))
                left = 100_000
                while left:
                    left -= len(reading.recv(left))
            before = watched._all_input._left
            with watched._lock:
                watched._peers[reading.fileno()] = replace(ended)
            time.sleep(0.3)  # several checks
            assert received_by(reading.fileno()) >= 3_000_000
            assert watched._all_input._left >= before - FAIR_BYTES - 1000, "the peer's own bytes may be counted"
            assert not refused(sink)
            with watched._lock:
                watched._peers.pop(reading.fileno(), None)
    assert not peer.closed(sink, 0.1)


class Failing(ZmqSink):
    fail = False

    def poll(self) -> None:
        if self.fail:
            self.fail = False
            raise RuntimeError("a bug")
        super().poll()


def test_the_metrics_tell_who_is_connected_now(scene: Scene) -> None:
    """Also while the sink's thread does not come to tell it, is broken, or has opened the sink again."""
    metrics = Metrics(CollectorRegistry())
    sink = Failing(ZmqSettings(bind="tcp://127.0.0.1:*", max_subscribers=2, linger_s=0))
    guarded = GuardedSink("open", sink, metrics)

    def told() -> float | None:
        return metrics.registry.get_sample_value("streamd_sink_subscribers", {"sink": "open"})

    def refusals() -> float:
        return metrics.registry.get_sample_value("streamd_sink_refused_total", {"sink": "open", "reason": "limit"}) or 0

    assert told() is None
    guarded.open()
    endpoint = Sender(sink)
    peers = [scene.peer(endpoint) for _ in range(2)]
    until(lambda: told() == 2, endpoint)
    for peer in peers:
        peer.close()
    deadline = time.monotonic() + 20
    while told():  # nobody polls the sink meanwhile
        assert time.monotonic() < deadline
        time.sleep(0.005)
    peers = [scene.peer(endpoint) for _ in range(2)]
    with contextlib.suppress(OSError):
        scene.peer(endpoint, handshake=False)
    until(lambda: refused(endpoint) == {"limit": 1} and told() == 2, endpoint)
    sink.fail = True
    guarded.poll()
    assert guarded.problem is not None
    assert told() == 0
    assert refusals() == 1, "told before it was closed"
    until(lambda: guarded.problem is None, guarded)
    assert told() == 0
    peers = [scene.peer(endpoint) for _ in range(2)]
    with contextlib.suppress(OSError):
        scene.peer(endpoint, handshake=False)
    until(lambda: refusals() == 2, guarded)
    guarded.close()
    assert told() == 0


@pytest.mark.timeout(400)
def test_hundreds_of_hosts_do_not_keep_messages_from_those_who_are_there(scene: Scene) -> None:
    # The limits are for seconds of work, most of it libzmq's, with a twelfth of a processor.
    sink = scene.sink(bind="tcp://0.0.0.0:*")
    good = scene.subscriber(sink, b"streamd/1/good")
    until(lambda: sink.publish(detections("good-begin")) or good.poll(10), sink)  # it has been heard
    over = threading.Event()
    last = [0]

    def attack(first: int) -> None:
        for n in itertools.count(first, 2):
            if over.is_set():
                return
            last[0] = n
            with contextlib.suppress(OSError):
                peer = RawPeer(sink.endpoint, source=f"127.{1 + n // 250 % 200}.{1 + n % 250}.9")
                peer.subscribe(*(b"%d/%d" % (n, k) for k in range(900)))
                peer.close()

    attackers = [threading.Thread(target=attack, args=(first,)) for first in range(2)]
    for attacker in attackers:
        attacker.start()
    sent = 0
    got: list[int] = []

    def take(wait_ms: int) -> bool:
        if not good.poll(wait_ms):
            return False
        topic, payload = good.recv_multipart()
        if topic == b"streamd/1/good/detections":
            got.append(json.loads(payload)["seq"])
        return True

    deadline = time.monotonic() + 240
    try:
        while sent < 300 or refused(sink).get("busy", 0) < 20:
            assert time.monotonic() < deadline, (sent, refused(sink))
            sink.publish(detections("good", seq=sent))
            sent += 1
            sink.poll()
            while take(5):
                pass
    finally:
        over.set()
        for attacker in attackers:
            attacker.join()
    while len(got) < sent and take(10_000):
        pass
    assert got == list(range(sent))
    assert last[0] > 100, "each from an address of its own"
    assert connected(sink) >= 1


class Visitors:
    """Hosts that subscribe to 900 topics each, of which no other has any."""

    def __init__(self, sink: Sender, hosts: int, *, stay: bool) -> None:
        self._endpoint, self._stay = sink.endpoint, stay
        self.came: list[RawPeer] = []
        self._threads = [threading.Thread(target=self._visit, args=(n,)) for n in range(hosts)]
        for thread in self._threads:
            thread.start()

    def _visit(self, n: int) -> None:
        topics = random.Random(n).randbytes(7200)
        with contextlib.suppress(OSError):  # it may be refused, or closed meanwhile
            peer = RawPeer(self._endpoint, source=f"127.1.{1 + n}.9")
            self.came.append(peer)
            peer.subscribe(*(topics[at : at + 8] for at in range(0, 7200, 8)))
            if not self._stay:
                peer.close()

    def coming(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)


def _longest_call(sink: Sender, until: Callable[[], bool]) -> float:
    """Processor time of one, in seconds: others take none of it."""
    longest = 0.0
    began = time.monotonic()
    calls: list[Callable[[], object]] = [lambda: sink.publish(detections("other")), sink.poll]
    while time.monotonic() < began + 1 or not until():
        assert time.monotonic() < began + 60
        for call in calls:
            before = time.thread_time()
            call()
            longest = max(longest, time.thread_time() - before)
        time.sleep(0.01)
    return longest


def test_hosts_that_came_and_left_while_the_sink_waited_cost_no_call_much_time(scene: Scene) -> None:
    """For each that leaves, libzmq searches the topics of all, in whatever call comes next."""
    sink = scene.sink(bind="tcp://0.0.0.0:*")
    visitors = Visitors(sink, 100, stay=False)
    time.sleep(1.0)  # as if it had no processor
    longest = _longest_call(sink, lambda: not visitors.coming() and connected(sink) == 0)
    assert len(visitors.came) >= 50, "they are let in, in turn"
    assert longest < 0.5, "2 s if all are worked off at once"


def test_hosts_that_leave_together_cost_no_call_much_time(scene: Scene) -> None:
    sink = scene.sink(bind="tcp://0.0.0.0:*")
    visitors = Visitors(sink, 60, stay=True)
    longest = _longest_call(sink, lambda: not visitors.coming() and "topics" in refused(sink))
    staying = len(sink._peers._peers)
    assert refused(sink).keys() == {"topics"}
    assert sink._peers._different_bytes <= DIFFERENT_TOPIC_BYTES + staying * (FAIR_TOPIC_BYTES + 8)
    for peer in visitors.came:
        peer.close()
    longest = max(longest, _longest_call(sink, lambda: connected(sink) == 0))
    assert longest < 0.5, "3 s if each has all its topics"


def test_a_connection_is_counted_once_however_many_had_its_descriptor_before(scene: Scene) -> None:
    """What libzmq tells is heard later: the descriptor that it names may be another connection's by then."""
    sink = scene.sink(bind="tcp://0.0.0.0:*", max_subscribers=20)
    watched = sink._peers
    with watched._lock:
        for _ in range(60):
            peer = RawPeer(sink.endpoint, handshake=False)
            peer.socket.shutdown(socket.SHUT_WR)
            while peer.socket.recv(100):
                pass  # until libzmq has closed it
            peer.close()
        last = RawPeer(sink.endpoint, source="127.0.0.2", handshake=False)
        last.socket.recv(1)  # it was accepted
    assert not last.closed(sink, 0.5)
    (known,) = watched._peers.values()
    assert known.host == "127.0.0.2"
    assert watched._hosts._of("127.0.0.2").used <= 1
    assert watched._all_input.used <= 0
    assert not refused(sink)
