"""Streams that come, change and go, with real runners, rings and instances; the test is the main loop."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from streamd.config import Config
from streamd.engine.null import NullBackend
from streamd.errors import SourceError
from streamd.flow.status import StatusBoard
from streamd.runtime import instance as instance_module
from streamd.runtime import streams as streams_module
from streamd.runtime.instance import ModelInstance
from streamd.runtime.reload import difference
from streamd.runtime.streams import Streams
from streamd.telemetry.metrics import Metrics
from streamd.types import Detections, StreamCounts, StreamPast


def config(*streams: dict[str, Any]) -> Config:
    drawn = {"kind": "synthetic", "width": 16, "height": 16, "fps": 100}
    return Config.model_validate({
        "model": {"path": "none"}, "engine": {"kind": "null", "device": [0, 1]},
        "streams": [drawn | stream for stream in streams], "sinks": [{"kind": "jsonl", "path": "-"}],
    })  # fmt: skip


class Made:
    """Two instances and their streams."""

    def __init__(self, *streams: dict[str, Any]) -> None:
        self.config = config(*streams)
        self.metrics, self.board = Metrics(CollectorRegistry()), StatusBoard()
        self.changes: queue.SimpleQueue[None] = queue.SimpleQueue()
        """Told of every status and every frame."""
        self.board.listen(lambda _: self.changes.put(None))
        self.published: list[Detections] = []
        self.instances = [
            ModelInstance(
                self.config, self.config.engine.for_device(i), i, several=True, live=True, metrics=self.metrics
            )
            for i in (0, 1)
        ]
        self.streams = Streams(self.instances, self.metrics, self.board, lambda: self.changes.put(None), self._publish)

    def _publish(self, detections: Detections) -> None:
        self.published.append(detections)
        self.changes.put(None)

    def start(self) -> None:
        for stream in self.config.streams:
            self.streams.add(stream)
        for instance in self.instances:
            instance.pipeline.start()
        self.streams.start()

    def change(self, *streams: dict[str, Any]) -> list[str]:
        """As a reload; the FAILED streams that are started anew."""
        new = config(*streams)
        failed = self.streams.change(difference(self.config, new), 5.0)
        self.config = new
        return failed

    def until(self, *wanted: str) -> None:
        """Ticks until no change is under way and the board says so of all streams: `a:LIVE:0` with the epoch."""
        deadline = time.monotonic() + 10
        while self.streams.changing or self.states() != sorted(wanted):
            assert time.monotonic() < deadline, (self.states(), wanted)
            self.streams.tick()
            try:
                self.changes.get(timeout=0.02)
            except queue.Empty:
                continue

    def states(self) -> list[str]:
        return sorted(f"{s.stream}:{s.state}:{s.epoch}" for s in self.board.all())

    def close(self) -> None:
        self.streams.stop()
        deadline = time.monotonic() + 10
        for instance in self.instances:
            if instance.pipeline.error is None and self.started:
                assert instance.pipeline.join(10)
        assert self.streams.join(deadline)
        for instance in self.instances:
            instance.close()

    @property
    def started(self) -> bool:
        return any(s.state != "CONNECTING" for s in self.board.all())


@pytest.fixture
def closing() -> Iterator[list[Made]]:
    made: list[Made] = []
    yield made
    for each in made:
        each.close()


A, B, C = {"id": "a"}, {"id": "b"}, {"id": "c"}
FAILS = {"id": "f", "fail_after": 2, "reconnect": {"attempts": 1, "initial_s": 0.01}}


@pytest.mark.parametrize(
    ("before", "after", "first", "then", "failed"),
    [
        ([A, B], [A, B], "a:LIVE:0 b:LIVE:0", "a:LIVE:0 b:LIVE:0", []),
        ([A], [A, B], "a:LIVE:0", "a:LIVE:0 b:LIVE:0", []),
        ([A, B], [B], "a:LIVE:0 b:LIVE:0", "b:LIVE:0", []),
        ([A, B], [A, B | {"width": 32}], "a:LIVE:0 b:LIVE:0", "a:LIVE:0 b:LIVE:1", []),
        ([A, B], [A, B | {"priority": 3}], "a:LIVE:0 b:LIVE:0", "a:LIVE:0 b:LIVE:0", []),
        ([A, B], [B | {"width": 32}, C], "a:LIVE:0 b:LIVE:0", "b:LIVE:1 c:LIVE:0", []),
    ],
    ids=["same", "added", "removed", "changed", "adapted", "all-at-once"],
)
def test_a_change_touches_the_streams_that_differ(
    closing: list[Made], before: list[Any], after: list[Any], first: str, then: str, failed: list[str]
) -> None:
    made = Made(*before)
    closing.append(made)
    made.start()
    made.until(*first.split())
    assert made.change(*after) == failed
    made.until(*then.split())
    assert len(made.streams) == len(after)
    assert made.streams.live_seen == {stream["id"] for stream in after}
    assert sum(instance.streams for instance in made.instances) == len(after)


def test_a_failed_stream_is_started_again_by_any_change(closing: list[Made]) -> None:
    made = Made(A, FAILS)
    closing.append(made)
    made.start()
    deadline = time.monotonic() + 10
    while made.metrics.stream("f").state != "FAILED" and time.monotonic() < deadline:
        made.changes.get(timeout=10)
    epoch = next(s.epoch for s in made.board.all() if s.stream == "f")
    assert made.change(A, FAILS) == ["f"]
    while next(s.epoch for s in made.board.all() if s.stream == "f") <= epoch and time.monotonic() < deadline:
        made.streams.tick()
        made.changes.get(timeout=10)
    assert next(s.epoch for s in made.board.all() if s.stream == "f") > epoch


def test_a_stream_that_comes_back_continues_where_it_ended(closing: list[Made]) -> None:
    made = Made(A, B)
    closing.append(made)
    made.start()
    made.until("a:LIVE:0", "b:LIVE:0")
    made.change(A)
    made.until("a:LIVE:0")
    last = made.metrics.stream("b").received
    made.change(A, B)
    made.until("a:LIVE:0", "b:LIVE:1")
    seqs = [d.seq for d in made.published if d.stream == "b"]
    assert seqs == sorted(set(seqs))
    assert made.metrics.stream("b").received > last


@pytest.mark.parametrize(
    ("streams", "served"),
    [
        ([A, B, C], [2, 1]),
        ([A | {"device": 1}, B | {"device": 1}], [0, 2]),
        ([A | {"device": 1}, B | {"device": 1}, C], [1, 2]),
    ],
)
def test_a_stream_goes_to_its_device_or_to_the_one_with_the_fewest(
    closing: list[Made], streams: list[Any], served: list[int]
) -> None:
    made = Made(*streams)
    closing.append(made)
    made.start()
    assert [instance.streams for instance in made.instances] == served
    made.until(*(f"{s['id']}:LIVE:0" for s in streams))


def test_a_stream_of_another_process_continues_with_its_counts(closing: list[Made]) -> None:
    made = Made(A)
    closing.append(made)
    made.streams.remember({"a": StreamPast(4, StreamCounts(100, 90, {"stale": 10}, 2))})
    assert made.metrics.stream("a").removed
    made.start()
    made.until("a:LIVE:5")
    assert not made.metrics.stream("a").removed
    assert made.metrics.stream("a").received > 100


@pytest.mark.parametrize("good", [0, 1])
def test_the_end_of_all_streams_seals_them(closing: list[Made], good: int) -> None:
    made = Made(FAILS, *[A | {"count": 3}] * good)
    closing.append(made)
    made.start()
    deadline = time.monotonic() + 10
    while not made.streams.sealed and time.monotonic() < deadline:
        made.streams.tick()
        try:
            made.changes.get(timeout=0.02)
        except queue.Empty:
            continue
    assert made.streams.sealed
    assert made.streams.all_failed == (not good)
    for instance in made.instances:
        assert instance.pipeline.join(5)


class OnGpu(NullBackend):
    """Hardware decoders hand their frames over to it."""

    device = 3
    reader: Any = None

    def surface_reader(self) -> Any:
        return self.reader


@pytest.mark.parametrize("reads", [False, True])
def test_frames_stay_on_the_gpu_where_what_needs_a_glance_can_have_it(
    monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    monkeypatch.setattr(
        instance_module, "open_backend", lambda engine, model, *, batch, live: OnGpu(engine, model, batch=batch)
    )
    monkeypatch.setattr(OnGpu, "reader", object() if reads else None)
    opened: dict[str, int | None] = {}

    def open_source(settings: Any, *, device: int | None, held: int, packets: Any) -> Any:
        opened[settings.id] = device
        raise SourceError("internal", "no need of one", permanent=True)

    monkeypatch.setattr(streams_module, "open_source", open_source)
    made = Made({"id": "a"}, {"id": "b", "look": {"when": "motion"}}, {"id": "c", "camera_health": {"enabled": True}})
    try:
        made.start()
        made.until("a:FAILED:0", "b:FAILED:0", "c:FAILED:0")
    finally:
        made.close()
    assert opened == {"a": 3, "b": 3 if reads else None, "c": 3}
