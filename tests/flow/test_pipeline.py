"""The three stages: order, overlap, failure and drain, over the null backend and real drawn frames."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.null import NullBackend, NullSettings
from streamd.errors import BackendError, FrameError
from streamd.flow.batcher import Batcher
from streamd.flow.pipeline import Pipeline
from streamd.flow.ring import Bell, Closed, Ring
from streamd.flow.stream import StreamOutput
from streamd.heads import DetectSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head
from streamd.telemetry.metrics import Metrics
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Detections, Frame, Letterbox
from tests.frames import MODEL, frames


class Rig:
    """A pipeline over one ring a stream, fed by the test."""

    def __init__(
        self,
        backend: NullBackend | None = None,
        streams: Sequence[str] = ("a",),
        max_age_s: float | None = None,
        **settings: Any,
    ) -> None:
        self.backend = backend or NullBackend(
            NullSettings(**settings), ModelSettings(path="x"), batch=BatchSettings(max=4)
        )
        self.backend.start()
        self.metrics = Metrics(CollectorRegistry())
        bell = Bell()
        batcher = Batcher(self.backend.spec.max_batch, 0, bell)
        self.rings: dict[str, Ring[Frame]] = {}
        for name in streams:
            counters = self.metrics.stream(name)
            self.rings[name] = Ring(64, on_drop=self._dropper(counters), bell=bell)
            batcher.add(name, self.rings[name], max_age_s=max_age_s)
        batcher.seal()
        detect = DetectSettings()
        post = Postprocess(open_head(None, self.backend.spec, detect), detect, ("thing",))
        self.out: list[Detections] = []
        self.pipeline = Pipeline(self.backend, batcher, post, MODEL, self.metrics)
        for name in streams:
            self.pipeline.add(StreamOutput(name, self.metrics, MODEL, self.out.append))

    @staticmethod
    def _dropper(counters: StreamMetrics) -> Callable[[Frame, str], None]:
        return lambda _, reason: counters.drop(reason)

    def feed(self, count: int) -> None:
        for name, ring in self.rings.items():
            for frame in frames(name, count):
                self.metrics.stream(name).received += 1
                ring.put(frame)

    def finish(self, timeout: float = 30) -> None:
        for ring in self.rings.values():
            ring.close()
        assert self.pipeline.join(timeout)
        for ring in self.rings.values():
            ring.close(discard=True)

    def balance(self, name: str) -> int:
        counts = self.metrics.stream(name).counts()
        return counts.received - counts.published - sum(counts.dropped.values())


def test_every_frame_comes_out_in_order() -> None:
    rig = Rig(streams=("a", "b"))
    rig.pipeline.start()
    rig.feed(20)
    rig.finish()
    for name in ("a", "b"):
        assert [d.seq for d in rig.out if d.stream == name] == list(range(20))
        assert rig.balance(name) == 0
    times = [t for d in rig.out for t in [d.times]]
    assert all(list(t) == sorted(t) for t in times)
    assert rig.pipeline.done.is_set()


def test_boxes_that_cannot_be_are_counted_for_their_stream() -> None:
    class Odd(NullBackend):
        """One box of every other frame of a batch has no size."""

        def collect(self, slot: Any) -> Any:
            (rows,) = super().collect(slot)
            rows = rows.repeat(2, axis=1)
            rows[::2, 1, 2] = rows[::2, 1, 0]
            return (rows,)

    rig = Rig(Odd(NullSettings(), ModelSettings(path="x"), batch=BatchSettings(max=1)))
    with capture_logs() as logs:
        rig.pipeline.start()
        rig.feed(5)
        rig.finish()
    assert [len(d.score) for d in rig.out] == [1] * 5
    assert rig.metrics.stream("a").invalid_boxes == {"size": 5}
    said = [entry for entry in logs if "invalid boxes" in entry["event"]]
    assert [(entry["stream"], entry["size"]) for entry in said] == [("a", 1)], "once a stream and reason"
    text = generate_latest(rig.metrics.registry).decode()
    assert 'streamd_invalid_boxes_total{reason="size",stream="a"} 5.0' in text


def test_batches_grow_while_the_engine_is_busy() -> None:
    rig = Rig(latency_ms=20, slots=1)
    rig.feed(12)
    rig.pipeline.start()
    rig.finish()
    assert len(rig.out) == 12
    assert rig.backend._started <= 4  # the first takes what is there, and each other one four


def test_stages_overlap() -> None:
    """With three slots the device is never idle: while a batch is collected, the next runs, and one is preprocessed."""
    count = 20
    begun, running = ([threading.Event() for _ in range(count)] for _ in range(2))

    class Watched(NullBackend):
        def preprocess(self, slot: Any, frames_: Sequence[Frame]) -> Sequence[Letterbox]:
            begun[frames_[0].seq].set()
            return super().preprocess(slot, frames_)

        def infer(self, slot: Any) -> None:
            super().infer(slot)
            running[self._started - 1].set()

        def collect(self, slot: Any) -> Any:
            assert running[min(self._collected + 1, count - 1)].wait(20), "inference waits for what is collected"
            assert begun[min(self._collected + 2, count - 1)].wait(20), "preprocessing waits for what is collected"
            return super().collect(slot)

    rig = Rig(Watched(NullSettings(slots=3), ModelSettings(path="x"), batch=BatchSettings(max=1)))
    rig.feed(count)
    rig.pipeline.start()
    rig.finish()
    assert rig.pipeline.error is None
    assert len(rig.out) == count


def test_a_failing_stage_ends_the_pipeline_and_every_frame_is_accounted_for() -> None:
    rig = Rig(fail_after=3)
    rig.feed(40)
    rig.pipeline.start()
    assert rig.pipeline.done.wait(30)
    rig.finish()
    assert isinstance(rig.pipeline.error, BackendError)
    assert rig.balance("a") == 0
    assert rig.metrics.stream("a").dropped


def test_what_is_being_collected_while_another_stage_fails_is_published() -> None:
    """Else a batch is in no count: it was collected, and the ring that its slot goes back to is closed."""

    class Failing(NullBackend):
        collecting, failed = threading.Event(), threading.Event()

        def infer(self, slot: Any) -> None:
            if self._started == 1:
                assert self.collecting.wait(30)
                raise BackendError("at the second batch")
            super().infer(slot)

        def collect(self, slot: Any) -> Any:
            self.collecting.set()
            assert self.failed.wait(30)
            return super().collect(slot)

    rig = Rig(Failing(NullSettings(), ModelSettings(path="x"), batch=BatchSettings(max=4)))
    fail = rig.pipeline._fail

    def told(stage: str, error: BaseException) -> None:
        fail(stage, error)
        Failing.failed.set()

    for stage in rig.pipeline._stages:
        stage._fail = told
    rig.feed(12)
    rig.pipeline.start()
    assert rig.pipeline.done.wait(30)
    rig.finish()
    assert [d.seq for d in rig.out] == [0, 1, 2, 3]
    assert rig.balance("a") == 0


@pytest.mark.parametrize("where", ["alone", "together"])
def test_a_backend_that_fails_at_the_second_try_of_a_batch_with_a_bad_frame(where: str) -> None:
    class Failing(NullBackend):
        calls = 0

        def preprocess(self, slot: Any, batch: Sequence[Frame]) -> Sequence[Letterbox]:
            self.calls += 1
            if self.calls in (1, 2):
                raise FrameError("bad")
            if self.calls == {"alone": 3, "together": 6}[where]:
                raise BackendError("gone")
            return super().preprocess(slot, batch)

    rig = Rig(Failing(NullSettings(), ModelSettings(path="x"), batch=BatchSettings(max=4)))
    rig.feed(4)
    rig.pipeline.start()
    assert rig.pipeline.done.wait(30)
    rig.finish()
    assert rig.metrics.stream("a").dropped == {"frame_error": 1, "stage_failed": 3}
    assert rig.balance("a") == 0


@pytest.mark.parametrize("error", [KeyError("boom"), BackendError("gone")], ids=["a fault of code", "an error of ours"])
def test_a_stage_that_fails_unexpectedly_leaves_its_stack(error: Exception) -> None:
    class Failing(NullBackend):
        def infer(self, slot: Any) -> None:
            raise error

    rig = Rig(Failing(NullSettings(), ModelSettings(path="x"), batch=BatchSettings(max=4)))
    with capture_logs() as lines:
        rig.feed(1)
        rig.pipeline.start()
        assert rig.pipeline.done.wait(30)
    rig.finish()
    [line] = [line for line in lines if line["event"] == "stage failed"]
    assert (line["stage"], line["kind"]) == ("infer", type(error).__name__)
    assert line["exc_info"] is (error if isinstance(error, KeyError) else None)


def test_frames_are_counted_when_nobody_takes_their_detections_any_more() -> None:
    rig = Rig()

    def closed(_: Detections) -> None:
        raise Closed

    rig.pipeline.add(StreamOutput("a", rig.metrics, MODEL, closed))
    rig.feed(4)
    rig.pipeline.start()
    assert rig.pipeline.done.wait(30)
    rig.finish()
    assert rig.metrics.stream("a").dropped == {"stage_failed": 4}


def test_an_engine_that_slows_down_and_recovers() -> None:
    """While it is slow old frames are dropped and none comes late; once it is not, none is dropped, with no restart."""

    class Changing(NullBackend):
        wait_s = 0.25

        def infer(self, slot: Any) -> None:
            super().infer(slot)
            slot.ready_at += self.wait_s

    backend = Changing(NullSettings(slots=1), ModelSettings(path="x"), batch=BatchSettings(max=2))
    rig = Rig(backend, max_age_s=0.1)
    counters = rig.metrics.stream("a")
    counters.objective_s = 0.3
    rig.pipeline.start()
    seq = iter(range(100_000))

    def feed(count: int) -> None:
        for _ in range(count):
            (frame,) = frames("a", 1)
            frame.seq = next(seq)
            frame.captured_ns = frame.decoded_ns = time.monotonic_ns()
            counters.received += 1
            rig.rings["a"].put(frame)
            time.sleep(0.005)

    while counters.dropped.get("too_old", 0) < 50:
        feed(10)
    assert all(d.times.batched - d.times.decoded <= 0.1e9 + 1e7 for d in rig.out)
    Changing.wait_s = 0.0
    while not rig.out or rig.out[-1].times.postprocessed - rig.out[-1].times.captured > 0.05e9:
        feed(10)
    dropped, late, first = counters.counts().dropped, counters.late, next(seq) + 1
    feed(100)
    rig.finish()
    assert rig.balance("a") == 0
    assert sum(counters.counts().dropped.values()) - sum(dropped.values()) <= 5  # a pause of a busy machine
    assert counters.late <= late + 5
    assert len([d for d in rig.out if d.seq >= first]) >= 95
    assert counters.objective()[1] == counters.late + sum(counters.counts().dropped.values())


def test_a_bad_frame_costs_itself_alone() -> None:
    class Picky(NullBackend):
        def preprocess(self, slot: Any, frames_: Sequence[Frame]) -> Sequence[Letterbox]:
            for frame in frames_:
                if frame.stream == "a" and frame.seq == 2:
                    raise FrameError("frame 2 of a is bad")
            return super().preprocess(slot, frames_)

    backend = Picky(NullSettings(), ModelSettings(path="x"), batch=BatchSettings(max=4))
    rig = Rig(backend, streams=("a", "b"))
    rig.feed(6)
    rig.pipeline.start()
    rig.finish()
    assert [d.seq for d in rig.out if d.stream == "a"] == [0, 1, 3, 4, 5]
    assert [d.seq for d in rig.out if d.stream == "b"] == list(range(6))
    assert rig.metrics.stream("a").dropped == {"frame_error": 1}
    assert rig.pipeline.error is None


def test_a_hang_is_seen_and_idleness_is_none() -> None:
    rig = Rig(hang_after=0)
    rig.pipeline.start()
    time.sleep(0.1)
    assert rig.pipeline.stuck(0.05) is None
    rig.feed(1)
    deadline = time.monotonic() + 5
    while rig.pipeline.stuck(0.05) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rig.pipeline.stuck(0.05) == "postprocess"
    rig.backend.close()
    rig.finish()


def test_pictures_are_let_go() -> None:
    """A frame's picture must not live on in a stage that waits for the next one."""
    rig = Rig()
    rig.pipeline.start()

    class Native:
        """Stands where the decoder's picture would; a picture itself takes no weak reference."""

    frame = frames("a", 1)[0]
    frame.picture = dataclasses.replace(frame.picture, native=Native())  # type: ignore[arg-type]
    gone = threading.Event()
    weakref.finalize(frame.picture.native, gone.set)
    rig.rings["a"].put(frame)
    del frame
    deadline = time.monotonic() + 5
    while not gone.is_set() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    assert gone.is_set()
    rig.finish()
