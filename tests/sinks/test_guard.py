"""Sinks of other packages that tell nonsense: metrics and health of the daemon are answered all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from streamd.events.upkeep import Outcome
from streamd.flow.status import StatusBoard
from streamd.runtime.health import health_of
from streamd.sinks import Readers, Sink
from streamd.sinks.envelope import Message
from streamd.sinks.events import EventSink, JournalEvent
from streamd.sinks.guard import GuardedSink
from streamd.sinks.thread import SinkThread
from streamd.telemetry.metrics import Metrics

NOTHING: Any = None


class Told(Sink):
    """Has the readers that a test says."""

    def __init__(self, readers: Any) -> None:
        self._readers = readers

    def open(self) -> None: ...

    def send(self, message: Message) -> str | None: ...

    def close(self) -> None: ...

    @property
    def readers(self) -> Any:
        return self._readers


class Away(EventSink):
    """Is as unreachable as a test says."""

    def __init__(self, unreachable: Any) -> None:
        self._unreachable = unreachable

    def open(self) -> None: ...

    def send(self, message: Message) -> str | None: ...

    def close(self) -> None: ...

    @property
    def unreachable(self) -> Any:
        return self._unreachable

    def takes_events(self) -> bool:
        return False

    def deliver(self, events: Sequence[JournalEvent]) -> list[Outcome]:
        return []


@pytest.mark.parametrize("readers", [5, Readers(NOTHING, {}), Readers("x", {})])  # type: ignore[arg-type]
def test_readers_that_are_none_fail_no_metrics(readers: Any) -> None:
    metrics = Metrics(CollectorRegistry())
    sink = GuardedSink("out", Told(readers), metrics)
    sink.open()
    assert b'streamd_sink_subscribers{sink="out"} 0.0' in generate_latest(metrics.registry)
    sink.poll()
    assert b'streamd_sink_subscribers{sink="out"} 0.0' in generate_latest(metrics.registry)


@pytest.mark.parametrize("told", [False, True, 5, b"away"])
def test_a_reason_that_is_no_text_is_told_as_such(told: Any) -> None:
    thread = SinkThread("out", Away(told), 8, StatusBoard(), Metrics(CollectorRegistry()), 60, boot_id="b")
    thread.open()
    body = health_of(None, "b", [thread], None, [], None)
    assert body["sinks"] == {"out": f"Away.unreachable is {told!r}; expected None or a reason"}
    assert thread.close(1)
