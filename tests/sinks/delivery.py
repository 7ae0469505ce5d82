"""A sink with its thread and a journal, without the rest of the daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from streamd.events.cursors import CursorCounts
from streamd.events.journal import Journal
from streamd.flow.settings import StreamSettings
from streamd.flow.status import StatusBoard
from streamd.sinks import SinkSettings, open_sink
from streamd.sinks.thread import SinkThread
from streamd.telemetry.metrics import Metrics
from tests.events.journals import event, journal, until
from tests.sinks.brokers import in_order


class Rig:
    """What a daemon has around one sink.

    Args:
        journal: open.
        settings: of the sink.
        streams: configured.
    """

    def __init__(self, journal: Journal, settings: SinkSettings, streams: Sequence[StreamSettings] = ()) -> None:
        self.journal, self.board, self.registry = journal, StatusBoard(), CollectorRegistry()
        self.thread = SinkThread(
            "out", open_sink(settings), settings.ring, self.board, Metrics(self.registry), settings.heartbeat_s,
            boot_id="b", encoding=settings.payload_encoding, wants=settings.wants, owed=settings.owed,
        )  # fmt: skip
        self.thread.open()
        self.thread.set_streams(streams)
        self.thread.attach(journal, "yard")
        self.thread.start()
        self._sent = 0

    def submit(self, count: int, streams: int = 4) -> None:
        """So many events, spread over streams s0, s1, …"""
        for i in range(self._sent, self._sent + count):
            assert self.journal.submit(event(f"e{i}", stream=f"s{i % streams}"))
        self._sent += count

    def value(self, name: str, **labels: str) -> float:
        """A metric of the sink."""
        return self.registry.get_sample_value(name, {"sink": "out", **labels}) or 0.0

    def counts(self) -> CursorCounts:
        """As the metrics show them; they add up at any time."""
        names = ("delivered", "refused", "expired", "deleted")
        done = [int(self.value("streamd_sink_events_settled_total", outcome=name)) for name in names]
        return CursorCounts(
            int(self.value("streamd_sink_events_accepted_total")), int(self.value("streamd_sink_events_queued")), *done
        )

    def wait_delivered(self, count: int, timeout: float = 30.0) -> None:
        """Waits until so many events are delivered, by the journal's account."""
        until(lambda: self.counts().delivered >= count, timeout)
        found = self.counts()
        assert found.accepted == found.queued + found.delivered + found.refused + found.expired + found.deleted

    def close(self) -> None:
        """As at the end of a daemon."""
        self.journal.flush()
        assert self.thread.close(10)


@contextlib.contextmanager
def rig(folder: Path, settings: SinkSettings, streams: Sequence[StreamSettings] = ()) -> Iterator[Rig]:
    """A sink that runs, with its journal in `folder`, until the block ends."""
    with journal(folder) as opened:
        made = Rig(opened, settings, streams)
        try:
            yield made
        finally:
            made.close()


def interrupted(
    running: Rig,
    times: int,
    events: int,
    *,
    down: Callable[[], Any],
    up: Callable[[], Any],
    arrived: Callable[[], int] | None = None,
    noticed: Callable[[str], bool] = bool,
) -> None:
    """Submits so many events while the receiver goes down so often, each time in mid-delivery; all are delivered.

    Args:
        running: the sink, and nothing submitted yet.
        times: how often.
        events: a multiple of twice as much, and of the four streams.
        down: takes the receiver down.
        up: brings it back.
        arrived: the number of events that have reached it; by default those that the journal counts as delivered.
        noticed: whether the sink's words for what keeps its receiver mean that it is down.
    """
    each = events // (2 * times)
    for round_ in range(times):
        running.submit(each)
        some = round_ * 2 * each + each // 4
        until(lambda wanted=some: (arrived() if arrived else running.counts().delivered) >= wanted, 120)  # type: ignore[misc]
        down()
        running.submit(each)
        until(lambda: noticed(running.thread.unreachable or ""), 30)
        up()
    running.wait_delivered(events, 240)
    until(lambda: running.value("streamd_sink_up") == 1)
    assert running.counts() == (events, 0, events, 0, 0, 0)


def assert_in_order(found: list[dict[str, Any]], events: int) -> None:
    """All events of `interrupted` have arrived, those of each stream in order by their first arrival."""
    assert in_order(found) == {f"s{i}": list(range(1, events // 4 + 1)) for i in range(4)}
