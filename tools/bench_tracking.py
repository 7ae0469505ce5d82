#!/usr/bin/env python3
"""What tracking costs between the network and the sinks: microseconds of CPU a frame with `tracking: {}` and without.

    streamd detect VIDEO --model MODEL --conf 0.1 --json > BOXES.jsonl
    python tools/bench_tracking.py BOXES.jsonl [--streams 16] [--conf 0.25] [--threads N] [--cold MB] [--numpy] [--json]
    python tools/bench_tracking.py BOXES.jsonl --decoders 16 [--picture 416x240] [--seconds 4] [--short-us 20]

Runs the daemon's own postprocess stage on the boxes of the recorded frames as a GPU hands them over (suppressed on the
device, above the threshold of the row), a batch of one frame of each stream at a time, and then encodes the messages as
the thread of a sink does. Each stream begins elsewhere in the recording. `--threads` start as many threads that take
the interpreter lock whenever they can get it, as the decoders' do; `ms` is then how long a batch takes on the clock.
`--cold` writes so much memory before each batch and before its messages, as decoders fill the caches with pictures.

With `--decoders`, so many threads decode a clip with PyAV as fast as they may, the stage takes a batch whenever there
are enough frames, and a sink's thread encodes: frames a second of all of it together, and CPU a frame. That is where it
shows whether a call should let go of the interpreter lock (`--short-us`: one expected to take longer does)."""

from __future__ import annotations

import argparse
import io
import json
import queue
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from streamd.analysis.tracking import native, open_tracker
from streamd.analysis.tracking.bytetrack import ByteTrack, ByteTrackSettings
from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.null import NullBackend, NullSettings
from streamd.flow.batcher import Batcher
from streamd.flow.pipeline import Pipeline, _Work
from streamd.flow.ring import Bell
from streamd.flow.settings import StreamSettings
from streamd.flow.stream import StreamOutput
from streamd.heads import DetectSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head
from streamd.runtime.analytics import Analytics
from streamd.runtime.switching import SWITCH_INTERVAL_S
from streamd.sinks.envelope import MessageBuilder, Outgoing
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.metrics import Metrics
from streamd.types import Box, Candidates, Detections, Frame, Letterbox, ModelInfo, Picture

INPUT = 640
"""Width and height of the network's input."""
PERIOD_NS = 40_000_000
"""Between two frames of a stream."""


class Recording:
    """The boxes of recorded messages, in pixels of the network's input.

    Args:
        path: one detections message a line.

    Raises:
        ValueError: no line of the file is one.
    """

    def __init__(self, path: Path) -> None:
        messages = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
        messages = [message for message in messages if "detections" in message]
        if not messages:
            raise ValueError(f"{path}: no detections message; expected the output of streamd detect --json, one a line")
        self.width, self.height = messages[0]["width"], messages[0]["height"]
        self.letterbox = Letterbox.fit(Box(0, 0, self.width, self.height), INPUT, INPUT)
        box = self.letterbox
        scale, pad = box.content_width / self.width, np.array([box.pad_x, box.pad_y] * 2, np.float32)
        named = {each["class_id"]: each["label"] for message in messages for each in message["detections"]}
        self.labels = tuple(named.get(i, f"class {i}") for i in range(max(named, default=0) + 1))
        self.frames: list[Candidates] = []
        for message in messages:
            found = message["detections"]
            corners = np.array([each["box"] for each in found], np.float32).reshape(-1, 4)
            self.frames.append(
                Candidates(
                    corners * np.float32(scale) + pad,
                    np.array([each["score"] for each in found], np.float32),
                    np.array([each["class_id"] for each in found], np.int32),
                    True,
                )
            )

    def above(self, conf: float) -> list[Candidates]:
        """The boxes that the device hands over at this threshold."""
        return [found.take(found.score >= conf) for found in self.frames]


class _Device(NullBackend):
    """Hands over recorded boxes."""

    found: Sequence[Candidates] = ()

    def collect(self, slot: Any) -> Any:
        """See `Backend.collect`."""
        return self.found

    def device_times(self, slot: Any) -> dict[str, float]:
        """See `Backend.device_times`."""
        return {}


class Row:
    """One pipeline from the network to the sinks, called by hand.

    Args:
        recording: what the network finds.
        streams: how many; a batch has one frame of each.
        conf: lowest score that is published.
        tracking: whether boxes are tracked.
        numpy: the tracker does without its compiled step.
    """

    def __init__(self, recording: Recording, streams: int, conf: float, *, tracking: bool, numpy: bool) -> None:
        detect, model = DetectSettings(conf=conf), ModelInfo("bench", "0" * 64, recording.labels)
        metrics, self.out = Metrics(CollectorRegistry()), list[Detections]()
        self._device = _Device(NullSettings(), ModelSettings(path="x"), batch=BatchSettings(max=streams))
        self._device.start()
        analytics = step = None
        if tracking:
            analytics = Analytics(
                ByteTrackSettings(), detect, AnalyticsMetrics(CollectorRegistry()), lambda *_: None, boot_id="bench"
            )
            step, detect = analytics.step(model), analytics.detect
            step._tracker = ByteTrack(ByteTrackSettings()) if numpy else open_tracker(ByteTrackSettings())
        post = Postprocess(open_head(None, self._device.spec, detect), detect, recording.labels)
        self._pipeline = Pipeline(
            self._device, Batcher(streams, 0, Bell()), post, model, metrics, analysis=step
        )  # fmt: skip
        self._names = [f"s{i}" for i in range(streams)]
        for name in self._names:
            if analytics is not None:
                analytics.add(StreamSettings(id=name, kind="bench"))
            self._pipeline.add(StreamOutput(name, metrics, model, self.out.append))
        self._found = recording.above(detect.conf)
        self._letterboxes, self._size = [recording.letterbox] * streams, (recording.width, recording.height)
        self._seq = 0

    def batch(self) -> _Work:
        """The next frame of each stream, with what the device says of it."""
        count, seq, every = len(self._found), self._seq, len(self._names)
        at = [(seq + i * count // every) % count for i in range(every)]
        self._device.found = [self._found[i] for i in at]
        self._seq += 1
        now, then = time.monotonic_ns(), 1 + seq * PERIOD_NS
        picture = Picture(None, "nv12", *self._size)  # type: ignore[arg-type]
        frames = [
            Frame(name, picture, *self._size, then, then, now, then, seq=seq, begins=seq > 0 and i == 0)
            for name, i in zip(self._names, at, strict=True)
        ]
        return _Work(self._device.slots[0], frames, [], self._letterboxes, now, now, now)

    def post(self, work: _Work) -> None:
        """What the postprocess thread does with a batch."""
        self._pipeline._free.get()  # the slot, which the stage gives back
        self._pipeline._do_postprocess(work)


def measure(row: Row, batches: int, streams: int, others: npt.NDArray[np.uint64]) -> dict[str, float]:
    """Medians: microseconds of CPU a frame of the postprocess stage and of encoding, milliseconds a batch. `others` is
    memory that is written before both."""
    builder, post, sink, wall = MessageBuilder("bench"), [], [], []
    size = boxes = 0
    for i in range(batches + batches // 4):
        work = row.batch()
        row.out.clear()
        others += 1
        clock, cpu = time.perf_counter(), time.thread_time()
        row.post(work)
        spent, clock = time.thread_time() - cpu, time.perf_counter() - clock
        others += 1
        middle = time.thread_time()
        made = [builder.detections(Outgoing(detections, "bench")) for detections in row.out]
        done = time.thread_time()
        if i >= batches // 4:
            post.append(spent)
            sink.append(done - middle)
            wall.append(clock)
            size += sum(len(message.payload) for message in made)
            boxes += sum(len(detections.score) for detections in row.out)
    frames = batches * streams
    return {
        "postprocess": round(float(np.median(post)) / streams * 1e6, 1),
        "sink": round(float(np.median(sink)) / streams * 1e6, 1),
        "ms": round(float(np.median(wall)) * 1e3, 2),
        "boxes": round(boxes / frames, 1),
        "bytes": round(size / frames),
    }


def clip(width: int, height: int, frames: int = 60) -> bytes:
    """A clip of H.264 in which everything moves."""
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "tune": "zerolatency"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        y, x = np.mgrid[:height, :width]
        for i in range(frames):
            picture = np.stack([x * 2 + 5 * i, y * 2 - 3 * i, x + y + 7 * i], axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


class Decoders:
    """Threads that decode a clip again and again, until `close`.

    Args:
        data: the clip.
        threads: how many.
    """

    def __init__(self, data: bytes, threads: int) -> None:
        self._data, self._stop = data, threading.Event()
        self._ready, self._room = threading.Semaphore(0), threading.Semaphore(4 * threads)
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def take(self, frames: int) -> None:
        """Waits for so many frames."""
        for _ in range(frames):
            self._ready.acquire()
        self._room.release(frames)

    def close(self) -> None:
        """Ends the threads."""
        self._stop.set()
        self._room.release(1_000_000)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            with av.open(io.BytesIO(self._data)) as container:
                container.streams.video[0].thread_count = 1
                for _ in container.decode(video=0):
                    self._room.acquire()
                    self._ready.release()
                    if self._stop.is_set():
                        break


def flow(row: Row, data: bytes, decoders: int, streams: int, seconds: float) -> dict[str, float]:
    """Frames a second from the decoders to encoded messages, and microseconds of CPU a frame of the whole process."""
    builder, made = MessageBuilder("bench"), queue.SimpleQueue[list[Detections] | None]()

    def encode() -> None:
        while (some := made.get()) is not None:
            for detections in some:
                builder.detections(Outgoing(detections, "bench"))

    sink, source = threading.Thread(target=encode, daemon=True), Decoders(data, decoders)
    sink.start()
    frames, begin, cpu, spent = 0, 0.0, 0.0, 0.0
    warm = time.perf_counter() + seconds / 4
    while not begin or time.perf_counter() < begin + seconds:
        source.take(streams)
        if not begin and time.perf_counter() >= warm:
            frames, begin, cpu, spent = 0, time.perf_counter(), time.process_time(), 0.0
        work, now = row.batch(), time.perf_counter()
        row.post(work)
        spent += time.perf_counter() - now
        made.put(row.out[:])
        row.out.clear()
        frames += streams
    passed, cpu = time.perf_counter() - begin, time.process_time() - cpu
    source.close()
    made.put(None)
    sink.join()
    return {
        "frames/s": round(frames / passed),
        "cpu": round(cpu / frames * 1e6, 1),
        "ms": round(spent / frames * streams * 1e3, 2),
    }


def compare_flows(rows: dict[str, Row], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The rows in turns: medians, and the median of the ratios of their rates."""
    width, height = map(int, args.picture.split("x"))
    data, runs = clip(width, height), list[dict[str, dict[str, float]]]()
    for i in range(args.rounds):
        # In one order, then in the other: a machine that becomes slower or faster affects both alike.
        turn = list(rows.items())[:: -1 if i % 2 else 1]
        runs.append({name: flow(row, data, args.decoders, args.streams, args.seconds) for name, row in turn})
    found = {
        name: {key: round(float(np.median([run[name][key] for run in runs])), 2) for key in runs[0][name]}
        for name in rows
    }
    ratios = [run["with"]["frames/s"] / run["without"]["frames/s"] for run in runs]
    more = [run["with"]["cpu"] - run["without"]["cpu"] for run in runs]
    found["more"] = {
        "frames/s": round(float(np.median(ratios)), 3),
        "cpu": round(float(np.median(more)), 1),
        "ms": round(found["with"]["ms"] - found["without"]["ms"], 2),
    }
    return found


def main() -> int:
    """Measures and prints."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("boxes", type=Path, help="the output of streamd detect --json with --conf 0.1")
    p.add_argument("--streams", type=int, default=16)
    p.add_argument("--conf", type=float, default=0.25, help="lowest score that is published")
    p.add_argument("--batches", type=int, default=150, help="of each row in each round")
    p.add_argument("--rounds", type=int, default=3, help="the best counts: everything else only adds")
    p.add_argument("--threads", type=int, default=0, help="others that want the interpreter lock")
    p.add_argument("--cold", type=float, default=0, help="megabytes written before each batch: empties the caches")
    p.add_argument("--decoders", type=int, default=0, help="threads that decode: measures the rate of all together")
    p.add_argument("--picture", default="416x240", help="size of what they decode")
    p.add_argument("--seconds", type=float, default=4.0, help="of each run with --decoders")
    p.add_argument("--switch-ms", type=float, help="switch interval of the interpreter; with --decoders, the daemon's")
    p.add_argument("--short-us", type=float, default=native.SHORT_NS / 1e3, help="a longer step lets go of the lock")
    p.add_argument("--numpy", action="store_true", help="without the tracker's compiled step")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    try:
        recording = Recording(args.boxes)
    except (OSError, ValueError, KeyError) as error:
        print(f"bench_tracking: {error}", file=sys.stderr)
        return 2
    stop = threading.Event()
    native.SHORT_NS = args.short_us * 1e3
    if args.switch_ms or args.decoders:
        sys.setswitchinterval((args.switch_ms or SWITCH_INTERVAL_S * 1e3) / 1e3)

    def compete() -> None:
        while not stop.is_set():
            for _ in range(2000):
                pass
            time.sleep(0.0002)

    for _ in range(args.threads):
        threading.Thread(target=compete, daemon=True).start()
    rows = {
        name: Row(recording, args.streams, args.conf, tracking=name == "with", numpy=args.numpy)
        for name in ("without", "with")
    }
    found: dict[str, dict[str, float]] = {}
    if args.decoders:
        found = compare_flows(rows, args)
    others = np.zeros(round(args.cold * (1 << 17)), np.uint64)
    for _ in range(0 if args.decoders else args.rounds):
        for name, row in rows.items():
            now = measure(row, args.batches, args.streams, others)
            found[name] = {key: min(value, found.get(name, now)[key]) for key, value in now.items()}
    stop.set()
    if not args.decoders:
        found["more"] = {key: round(value - found["without"][key], 2) for key, value in found["with"].items()}
    if args.json:
        print(json.dumps(found))
        return 0
    columns = list(found["with"])
    print(f"{'tracking':10}" + "".join(f"{column:>13}" for column in columns))
    for name, values in found.items():
        print(f"{name:10}" + "".join(f"{values[column]:>13}" for column in columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
