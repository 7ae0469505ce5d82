"""From a worker's relay through the parent's sink to a subscriber, with real sockets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from streamd.errors import SinkError
from streamd.sinks import open_sink
from streamd.sinks.envelope import MessageBuilder, OutgoingClasses
from streamd.sinks.jsonl import JsonlSettings
from streamd.sinks.message import DetectionsMessage, StatusMessage, decode
from streamd.telemetry.metrics import Metrics
from streamd.testing.sending import Sender
from streamd.types import Attribute, StreamCounts
from streamd.workers.forward import Forwarder
from streamd.workers.ledger import WORKER_DIED, Ledger
from streamd.workers.relay import HWM, RELAY_FULL, RelaySink
from streamd.workers.report import Report
from tests.behaviour.daemon import until
from tests.frames import detections, status


class Line:
    """A relay and the forwarder it reaches, which writes a file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "out.jsonl"
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        sink = open_sink(JsonlSettings(path=str(self.path), status=True))
        self.endpoint = f"ipc://{folder}/relay"
        self.forwarder = Forwarder("j", sink, self.endpoint, "json", self.metrics, heartbeat_s=0.2, boot_id="fleet")
        self.forwarder.open()
        self.relays: list[Sender] = []

    def relay(self, life: int) -> Sender:
        relay = Sender(RelaySink(self.endpoint, life=life), boot_id="fleet")
        relay.open()
        self.relays.append(relay)
        return relay

    def messages(self) -> list[DetectionsMessage | StatusMessage]:
        # Whole lines: the last one may be half written.
        lines = self.path.read_bytes().rpartition(b"\n")[0].splitlines()
        kinds = [b"status" if b'"state"' in line else b"detections" for line in lines]
        found = [decode([b"streamd/1/x/" + kind, line]) for kind, line in zip(kinds, lines, strict=True)]
        return [message for message in found if isinstance(message, (DetectionsMessage, StatusMessage))]

    def states(self) -> list[str]:
        return [m.state for m in self.messages() if isinstance(m, StatusMessage)]

    def seqs(self) -> list[tuple[int, int]]:
        return [(m.seq, m.dropped) for m in self.messages() if isinstance(m, DetectionsMessage)]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    for relay in made.relays:
        relay.close()
    made.forwarder.close(5)


def test_messages_pass_and_are_counted(line: Line) -> None:
    line.forwarder.start()
    relay = line.relay(1)
    for seq in range(20):
        assert relay.publish(detections(seq=seq)) is None
    relay.status(status(), StreamCounts(20, 20))
    until(lambda: len(line.messages()) == 21, 5)
    assert line.seqs() == [(seq, 0) for seq in range(20)]
    assert line.forwarder.passed("s") == (20, 0, 20)
    assert line.forwarder.passed("unknown") == (0, -1, 0)
    until(lambda: line.registry.get_sample_value("streamd_sink_messages_total", {"sink": "j"}) == 20, 5)


def test_what_a_classifier_says_passes_as_it_is(line: Line) -> None:
    line.forwarder.start()
    found = OutgoingClasses(detections(seq=4), [0], [Attribute("colour", "red", 0.9, 4, 1)], "fleet")
    line.relay(1).send(MessageBuilder("fleet").classified(found))
    until(lambda: line.path.read_bytes().endswith(b"\n"), 5)
    assert line.path.read_bytes().splitlines() == [found.payload("json")]
    assert line.forwarder.passed("s") == (0, -1, 0)


def test_a_status_that_nobody_tells_any_more_is_held_until_a_newer_worker_speaks(line: Line) -> None:
    line.forwarder.start()
    old, new = line.relay(1), line.relay(2)
    old.status(status(), StreamCounts())
    until(lambda: line.states() == ["LIVE"], 5)
    line.forwarder.hold(1, [(status(state="BACKOFF", reason=WORKER_DIED), StreamCounts(5, 5))])
    until(lambda: line.states().count("BACKOFF") >= 3, 5, "as a heartbeat")
    old.status(status(), StreamCounts())  # was still under way
    old.publish(detections(seq=3))  # detections are never old news
    until(lambda: line.seqs(), 5)
    assert set(line.states()[1:]) == {"BACKOFF"}
    new.status(status(state="CONNECTING"), StreamCounts())
    until(lambda: line.states()[-1] == "CONNECTING", 5)
    count = len(line.states())
    time.sleep(0.6)
    assert len(line.states()) == count
    line.forwarder.hold(2, [(status(state="ENDED"), StreamCounts())])
    until(lambda: line.states().count("ENDED") >= 2, 5)
    line.forwarder.release(["s"])
    time.sleep(0.3)
    count = len(line.states())
    time.sleep(0.6)
    assert len(line.states()) == count


def test_a_parent_that_does_not_read_costs_messages_that_are_told(line: Line) -> None:
    relay = line.relay(1)
    sent, seq = 0, 0
    while relay.publish(detections(seq=seq)) is None:
        sent, seq = sent + 1, seq + 1
        assert sent < 20 * HWM, "the road is bounded"
    assert relay.publish(detections(seq=seq + 1)) == RELAY_FULL
    line.forwarder.start()
    until(lambda: line.forwarder.passed("s")[0] == sent, 20)
    relay.publish(detections(seq=seq + 2))
    until(lambda: line.forwarder.passed("s")[0] == sent + 1, 5)
    assert line.seqs()[-1] == (seq + 2, 2)


def test_how_long_messages_wait_for_a_slow_sink_is_told(line: Line) -> None:
    def wait_s() -> float:
        return line.registry.get_sample_value("streamd_sink_relay_seconds", {"sink": "j"}) or 0.0

    class Slow:
        def __init__(self, sink: Any) -> None:
            self._sink = sink

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sink, name)

        def send(self, message: Any) -> Any:
            time.sleep(0.02)
            return self._sink.send(message)

    line.forwarder._sink._sink = Slow(line.forwarder._sink._sink)  # type: ignore[assignment]
    line.forwarder.start()
    relay = line.relay(1)
    for seq in range(100):
        relay.publish(detections(seq=seq))
    until(lambda: wait_s() > 1.2, 10)
    until(lambda: line.forwarder.passed("s")[0] == 100, 10)
    until(lambda: wait_s() == 0, 5, "nothing waits any more")


def test_a_sink_that_fails_is_counted_and_tried_again(line: Line) -> None:
    class Full:
        readers = None

        def __getattr__(self, name: str) -> Any:
            def fail(*_: Any) -> None:
                raise SinkError("the disk is full")

            return fail if name == "send" else lambda *_: None

    line.forwarder._sink._sink = Full()  # type: ignore[assignment]
    line.forwarder.start()
    relay = line.relay(1)
    for seq in range(3):
        relay.publish(detections(seq=seq))
    until(lambda: line.registry.get_sample_value("streamd_sink_errors_total", {"sink": "j"}) == 3, 5)
    assert line.registry.get_sample_value("streamd_sink_dropped_total", {"sink": "j", "reason": "error"}) == 3


def report(received: int, published: int, dropped: dict[str, int] | None = None) -> Report:
    return Report(0, 1, 1, None, [status()], {"s": StreamCounts(received, published, dropped or {}, 0)}, [])


def test_a_stream_goes_on_from_what_its_worker_told_last(line: Line) -> None:
    ledger = Ledger([line.forwarder])
    assert ledger.past("s") is None
    ledger.take(report(10, 7, {"ring_full": 1}), lambda _: True)
    past = ledger.past("s")
    assert past is not None
    assert past.counts == StreamCounts(10, 7, {"ring_full": 1, WORKER_DIED: 2}, 0)
    assert past.epoch == 0


def test_a_stream_goes_on_from_what_was_passed_on_where_that_is_newer(line: Line) -> None:
    ledger = Ledger([line.forwarder])
    ledger.take(report(10, 7, {"ring_full": 1}), lambda _: True)
    line.forwarder.start()
    relay = line.relay(1)
    for seq in (*range(8), *range(9, 15)):
        relay.publish(detections(seq=seq))
    until(lambda: line.forwarder.passed("s")[0] == 14, 5)
    past = ledger.past("s")
    assert past is not None
    assert past.counts == StreamCounts(15, 14, {"ring_full": 1}, 0)


def test_losing_and_finishing(line: Line) -> None:
    ledger = Ledger([line.forwarder])
    ledger.take(report(10, 10), lambda _: True)
    line.forwarder.start()
    ledger.lose(1, ["s", "never spoke"], "worker 0 died", 1.5)
    assert [(s.state, s.reason, s.retry_in_s) for s in ledger.statuses(["s", "never spoke"])] == [
        ("BACKOFF", WORKER_DIED, 1.5)
    ] * 2
    until(lambda: line.states().count("BACKOFF") >= 2, 5)
    ledger.remove(["s"])
    until(lambda: "ENDED" in line.states(), 5)
    assert not ledger.over("s"), "somebody took it out: it may come back"
    ledger.take(report(10, 10), lambda _: True)
    ledger.finish(1, ["s"])
    assert ledger.over("s")
    assert not ledger.failed("s")
