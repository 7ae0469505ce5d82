"""The engine's three stages around one backend: preprocess, infer, postprocess, each on its own thread.

Slots are the flow control. A batch is taken from the rings only once a slot is free, so that frames are chosen as late
as possible and are fresh. Nothing can pile up between the stages, because the number of slots is fixed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import structlog

from streamd.errors import FrameError, StreamdError
from streamd.flow.batcher import Batcher
from streamd.flow.contracts import Backend
from streamd.flow.ring import Closed, Ring
from streamd.flow.stage import StageThread
from streamd.flow.stream import Analysis, Result, StreamOutput
from streamd.telemetry.metrics import Metrics
from streamd.types import (
    Boxes,
    Detections,
    Found,
    FoundBatch,
    Frame,
    Letterbox,
    ModelInfo,
    PartOfBlock,
    StageTimes,
)

log = structlog.get_logger(__name__)


class Postprocess(Protocol):
    """Decodes a collected batch."""

    def batch(self, outputs: Any, letterboxes: Sequence[Letterbox], /) -> Sequence[Found]:
        """What is in each frame of a batch's outputs."""


@dataclass(slots=True)
class _Work:
    """One batch in flight."""

    slot: Any
    """None where there is nothing to look at."""
    frames: list[Frame]
    """To look at."""
    order: list[Frame]
    """All frames, also those that are not looked at, as they are to be published; empty where all are."""
    boxes: Sequence[Letterbox] = ()
    batched_ns: int = 0
    preprocessed_ns: int = 0
    inferred_ns: int = 0

    @property
    def all(self) -> list[Frame]:
        """Every frame."""
        return self.order or self.frames


_NOTHING = Boxes(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))


class Pipeline:
    """Runs batches from `batcher` through `engine` and publishes each frame's detections.

    Args:
        engine: a started backend.
        batcher: source of the batches; when it ends, the pipeline ends.
        postprocess: decodes a collected batch.
        model: identity of the model, part of every message.
        metrics: counters and times.
        name: tells the queues of several pipelines apart in the metrics.
        analysis: processes every batch before it is published; None for no analysis.
        logs: log a failed stage; False where the caller tells `error` itself.
    """

    def __init__(
        self,
        engine: Backend[Any],
        batcher: Batcher,
        postprocess: Postprocess,
        model: ModelInfo,
        metrics: Metrics,
        name: str = "",
        analysis: Analysis | None = None,
        *,
        logs: bool = True,
    ) -> None:
        self._logs = logs
        self._engine = engine
        self._batcher = batcher
        self._postprocess = postprocess
        self._model = model
        self._metrics = metrics
        self._analysis = analysis
        self._outputs: Mapping[str, StreamOutput] = {}
        """By stream. Replaced, never changed: the postprocess thread reads it without a lock."""
        self._outputs_lock = threading.Lock()
        self.error: BaseException | None = None
        """What ended the pipeline early."""
        self.done = threading.Event()
        """Set once the last stage has ended, for any reason."""
        count = len(engine.slots)
        self._free: Ring[Any] = Ring(count, "block")
        for slot in engine.slots:
            self._free.put(slot)
        self._ready: Ring[_Work] = Ring(count, "block", on_drop=self._discarded)
        self._running: Ring[_Work] = Ring(count, "block", on_drop=self._discarded)
        # Each is observed by the postprocess thread alone.
        self._decode_time, self._queue_time, self._preprocess_time, self._infer_time, self._postprocess_time = (
            metrics.stage_duration.tally(stage) for stage in ("decode", "queue", "preprocess", "infer", "postprocess")
        )
        if analysis is not None:
            self._track_time = metrics.stage_duration.tally("track")
        self._device_time = {name: metrics.device_duration.labels(stage=name) for name in ("preprocess", "infer")}
        self._count = count
        metrics.add_in_flight(self.in_flight)
        metrics.queue_depth.labels(queue=f"infer{name}").set_function(lambda: len(self._ready))
        metrics.queue_depth.labels(queue=f"postprocess{name}").set_function(lambda: len(self._running))
        self._stages: list[StageThread[Any]] = [
            StageThread(
                "preprocess",
                take=self._next_batch,
                work=self._do_preprocess,
                close=self._ready.close,
                fail=self._fail,
            ),
            StageThread("infer", take=self._ready.get, work=self._do_infer, close=self._running.close, fail=self._fail),
            StageThread(
                "postprocess",
                take=self._running.get,
                work=self._do_postprocess,
                close=self.done.set,
                fail=self._fail,
            ),
        ]

    def add(self, output: StreamOutput) -> None:
        """Adds a stream. To be called before its first frame."""
        with self._outputs_lock:
            self._outputs = {**self._outputs, output.name: output}

    def remove(self, stream: str) -> None:
        """Removes the stream. To be called after its last frame."""
        with self._outputs_lock:
            self._outputs = {name: output for name, output in self._outputs.items() if name != stream}

    def in_flight(self) -> int:
        """Batches between preprocess and postprocess."""
        return self._count - len(self._free)

    def start(self) -> None:
        """Starts the stages."""
        for stage in self._stages:
            stage.start()

    def join(self, timeout: float) -> bool:
        """Waits until every stage has ended; False where `timeout` seconds passed first."""
        deadline = time.monotonic() + timeout
        return all(stage.join(max(0.0, deadline - time.monotonic())) for stage in self._stages)

    def stuck(self, limit_s: float) -> str | None:
        """The name of a stage that has worked on one item for longer than `limit_s` seconds, or None."""
        for stage in self._stages:
            if stage.busy_for() > limit_s:
                return stage.name
        return None

    def _fail(self, stage: str, error: BaseException) -> None:
        """A failed stage ends the pipeline: every ring is closed, so that no other thread waits forever."""
        if self.error is None:
            self.error = error
        # What is no error of ours is a fault of code, a plugin's perhaps: only the stack says whose.
        trace = None if isinstance(error, StreamdError) else error
        if self._logs or trace is not None:
            log.error("stage failed", stage=stage, error=str(error), kind=type(error).__name__, exc_info=trace)
        for ring in (self._ready, self._running):
            ring.close(discard=True, reason="stage_failed")
        self._free.close()

    def _drop(self, frames: Sequence[Frame], reason: str) -> None:
        for frame in frames:
            self._metrics.stream(frame.stream).drop(reason)

    def _discarded(self, work: _Work, reason: str) -> None:
        self._drop(work.all, reason)

    def _next_batch(self) -> _Work:
        slot = self._free.get()
        frames = self._batcher.take()
        return _Work(slot, frames, self._batcher.order, batched_ns=time.monotonic_ns())

    def _do_preprocess(self, work: _Work) -> None:
        try:
            if work.frames:
                self._fill(work)
        except BaseException:
            self._drop(work.all, "stage_failed")
            raise
        if not work.frames:
            self._free.put(work.slot)
            work.slot = None
            if not work.order:
                return
        work.preprocessed_ns = time.monotonic_ns()
        self._hand_on(self._ready, work)

    def _fill(self, work: _Work) -> None:
        """One bad frame must not affect the others: each frame is tried alone, then the good ones together."""
        with contextlib.suppress(FrameError):
            work.boxes = self._engine.preprocess(work.slot, work.frames)
            return
        for frame in list(work.frames):
            try:
                self._engine.preprocess(work.slot, [frame])
            except FrameError as error:
                work.frames.remove(frame)
                if work.order:
                    work.order.remove(frame)
                self._metrics.stream(frame.stream).frame_error = str(error)
                self._drop([frame], "frame_error")
                log.warning("frame dropped", stream=frame.stream, seq=frame.seq, error=str(error))
        if work.frames:
            work.boxes = self._engine.preprocess(work.slot, work.frames)

    def _do_infer(self, work: _Work) -> None:
        try:
            if work.slot is not None:
                self._engine.infer(work.slot)
        except BaseException:
            self._drop(work.all, "stage_failed")
            raise
        self._hand_on(self._running, work)

    def _hand_on(self, ring: Ring[_Work], work: _Work) -> None:
        try:
            ring.put(work)
        except Closed:
            self._drop(work.all, "stage_failed")
            raise

    def _do_postprocess(self, work: _Work) -> None:
        published = 0
        try:
            results, found = self._looked(work) if work.slot is not None else ([], None)
            inferred_ns = work.inferred_ns or time.monotonic_ns()
            if results:
                self._observe_batch(work, inferred_ns)
            if work.order:
                results = self._in_order(work, results)
            if self._analysis is not None:
                self._analysis.step(results, None if work.order else found)
                self._track_time.observe((time.monotonic_ns() - inferred_ns) / 1e9, len(results))
            for result in results:
                if work.order and not result.looked:
                    result.output.pass_over(result.frame, result.counts)
                else:
                    self._publish(work, result, inferred_ns)
                published += 1
        except BaseException:
            self._drop(work.all[published:], "stage_failed")
            raise
        if work.frames:
            self._metrics.batch_size.observe(len(work.frames))

    def _looked(self, work: _Work) -> tuple[list[Result], FoundBatch | None]:
        """What the network found in each frame of a batch, and the same of all frames if it is in one block. The slot
        is free afterwards."""
        outputs = self._engine.collect(work.slot)
        inferred_ns = time.monotonic_ns()
        outputs_of = self._outputs
        results: list[Result] = []
        each = self._postprocess.batch(outputs, work.boxes)
        found = each if isinstance(each, FoundBatch) else None
        if found is not None and self._analysis is not None and not work.order:
            # The analysis chooses which are published.
            results = [Result(outputs_of[frame.stream], frame, _NOTHING) for frame in work.frames]
        elif found is not None:
            begin = 0
            for frame, end in zip(work.frames, found.bounds[1:], strict=True):
                results.append(Result(outputs_of[frame.stream], frame, PartOfBlock(found, begin, end)))
                begin = end
        else:
            for frame, one in zip(work.frames, each, strict=True):
                output = outputs_of[frame.stream]
                if one.rejected:
                    output.reject(one.rejected)
                boxes = Boxes(one.xyxy, one.score, one.class_id)
                results.append(Result(output, frame, boxes, details=one.details))
        for name, seconds in self._engine.device_times(work.slot).items():
            self._device_time[name].observe(seconds)
        # The outputs are views of the slot's buffers: it is free only now. If another stage has failed, nobody takes
        # the slot, but this batch is still published.
        with contextlib.suppress(Closed):
            self._free.put(work.slot)
        work.inferred_ns = inferred_ns
        return results, found

    def _in_order(self, work: _Work, results: list[Result]) -> list[Result]:
        """The results with those of the frames that were not looked at, which have no boxes."""
        found = {id(result.frame): result for result in results}
        outputs_of = self._outputs
        return [found.get(id(frame)) or Result(outputs_of[frame.stream], frame, _NOTHING) for frame in work.order]

    def _observe_batch(self, work: _Work, inferred_ns: int) -> None:
        """The values that all its frames share."""
        frames = len(work.frames)
        self._preprocess_time.observe((work.preprocessed_ns - work.batched_ns) / 1e9, frames)
        self._infer_time.observe((inferred_ns - work.preprocessed_ns) / 1e9, frames)

    def _publish(self, work: _Work, result: Result, inferred_ns: int) -> None:
        frame = result.frame
        times = StageTimes(
            frame.captured_ns, frame.decoded_ns, work.batched_ns, work.preprocessed_ns, inferred_ns,
            time.monotonic_ns(),
        )  # fmt: skip
        detections = Detections(
            frame.stream, frame.epoch, frame.seq, frame.pts_ns, frame.wall_ns, frame.width, frame.height,
            times, self._model, result.boxes, frame.clock, result.counts, result.details, result.attributes,
            result.output.unlooked, None if frame.view is None else frame.view.why,
        )  # fmt: skip
        result.output.publish(frame, detections)
        self._decode_time.observe((times.decoded - times.captured) / 1e9)
        self._queue_time.observe((times.batched - times.decoded) / 1e9)
        self._postprocess_time.observe((times.postprocessed - times.inferred) / 1e9)
