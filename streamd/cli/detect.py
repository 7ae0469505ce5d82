"""`streamd detect INPUT…`: detects once in images, folders, videos and URLs, through the daemon's own stages."""

from __future__ import annotations

import argparse
import queue
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from streamd.analysis.rules.settings import LineSettings, ZoneSettings
from streamd.analysis.tracking.bytetrack import ByteTrackSettings
from streamd.cli.annotate import Annotator, same_file
from streamd.cli.console import ENGINE, add_head_option, enumerated, options_told, positive
from streamd.cli.overlay import Overlay
from streamd.cli.rules import add_rule_options, rules_of
from streamd.cli.rules import check as check_rules_of
from streamd.config import is_url
from streamd.engine import BUILTIN, EngineConfig, ModelSettings, open_backend
from streamd.errors import ConfigError, SourceError, StreamdError
from streamd.flow.batcher import Batcher
from streamd.flow.pipeline import Pipeline
from streamd.flow.ring import Bell, Closed, Ring
from streamd.flow.stream import StreamOutput
from streamd.heads import DetectSettings
from streamd.heads.detector import open_detector
from streamd.runtime.analytics import Analytics
from streamd.security.redact import credentials, redact, remember
from streamd.security.text import plain
from streamd.sinks.encoding import detections_message, encoder
from streamd.sinks.envelope import Gaps
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings, check_url
from streamd.sources.images import SUFFIXES, VIDEO_SUFFIXES, list_images, read_image
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.logs import configure
from streamd.telemetry.metrics import Metrics
from streamd.types import Detections, Frame

MAX_PENDING = 64
"""Most frames that are read but not yet shown."""
STAGES = ("decode", "queue", "preprocess", "infer", "postprocess", "total")


def add_detect_options(p: argparse.ArgumentParser) -> None:
    """Adds the options for thresholds and classes."""
    p.add_argument("--conf", type=float, default=0.25, help="lowest score (default 0.25)")
    p.add_argument("--iou", type=float, default=0.45, help="NMS IoU threshold (default 0.45)")
    p.add_argument("--max-det", type=int, default=300, help="most detections per frame (default 300)")
    p.add_argument("--classes", nargs="+", metavar="CLASS", help="report only these classes, by name or number")


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "detect",
        help="detect objects in images, folders, videos or URLs",
        description="Detects objects once, as the daemon would, and prints what was found and the time of each stage.",
    )
    p.add_argument("inputs", metavar="INPUT", nargs="+", help="image, folder of images, video file or URL")
    p.add_argument(
        "--model", default=f"{BUILTIN}road6",
        help=f"ONNX model, OpenVINO .xml or TensorRT plan (default {BUILTIN}road6: people and road vehicles)",
    )  # fmt: skip
    add_detect_options(p)
    p.add_argument("--labels", help="text file with one class name per line")
    add_head_option(p)
    p.add_argument("--engine", choices=("auto", "openvino", "tensorrt"), default="auto", help=ENGINE)
    p.add_argument("--recursive", action="store_true", help="also the images in folders below a folder")
    p.add_argument("--track", action="store_true", help="give the objects of videos ids; --save also draws their paths")
    add_rule_options(p)
    p.add_argument("--save", metavar="DIR", help="write images and videos with boxes drawn to DIR")
    p.add_argument(
        "--json", action="store_true", help="print one JSON message per frame on standard output, and nothing else"
    )
    p.add_argument("--limit", type=positive, metavar="N", help="read at most N frames of each input")


@dataclass
class _Input:
    given: str
    is_video: bool
    images: list[Path] = field(default_factory=list)
    stream: str = "detect"
    read: bool = False  # a frame of it


def _expand(inputs: Sequence[str], *, recursive: bool = False) -> list[_Input]:
    found = []
    for given in inputs:
        path = Path(given)
        if is_url(given) or given.startswith("/dev/video"):
            found.append(_Input(given, True))
        elif path.is_dir():
            found.append(_Input(given, False, list_images(path, recursive=recursive)))
        elif path.suffix.lower() in SUFFIXES:
            found.append(_Input(given, False, [path]))
        else:
            found.append(_Input(given, True))
    return found


def _source(item: _Input, zones: Sequence[ZoneSettings] = (), lines: Sequence[LineSettings] = ()) -> AvStreamSettings:
    return AvStreamSettings(
        id=item.stream, url=item.given, pace="asap", decode="software", zones=tuple(zones), lines=tuple(lines)
    )


def detect_settings(args: argparse.Namespace) -> DetectSettings:
    """Detection settings from parsed options.

    Raises:
        ConfigError: a value out of range.
    """
    from pydantic import ValidationError

    try:
        return DetectSettings(
            conf=args.conf, iou=args.iou, max_det=args.max_det, classes=tuple(args.classes) if args.classes else None
        )
    except ValidationError as error:
        raise ConfigError(options_told(error)) from error


class Run:
    """One detection run: reads in its own thread, yields results in the caller's.

    Args:
        inputs: images, folders of them, videos, URLs.
        model: the detector.
        detect: thresholds and classes.
        engine: kind of the backend.
        head: kind of the head; None: as the sidecar declares, otherwise from the output shapes.
        keep: also return the frames, for drawing.
        limit: most frames to read from each input.
        recursive: also the images in folders below a folder.
        track: give objects ids, in each input by itself. All inputs must be videos.
        zones: to count in, with `track`.
        lines: to count at, with `track`.

    Raises:
        ConfigError: a URL cannot be one, an image is to be tracked, or a zone or line wants a class that the model does
            not have.
        StreamdError: the model or the backend cannot be opened.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        model: ModelSettings,
        detect: DetectSettings,
        *,
        engine: str = "auto",
        head: str | None = None,
        keep: bool = False,
        limit: int | None = None,
        recursive: bool = False,
        track: bool = False,
        zones: Sequence[ZoneSettings] = (),
        lines: Sequence[LineSettings] = (),
    ) -> None:
        from pydantic import TypeAdapter

        remember(secret for given in inputs for secret in credentials(given))
        self.keep, self.limit = keep, limit
        self.inputs = _expand(inputs, recursive=recursive)
        for item in self.inputs:
            if item.is_video:
                check_url(item.given)
        if track and (images := [item.given for item in self.inputs if not item.is_video]):
            raise ConfigError(f"{images[0]}: images cannot be tracked; expected a video file or URL")
        settings = TypeAdapter(EngineConfig).validate_python({"kind": engine})
        self.backend = open_backend(settings, model)
        registry = CollectorRegistry()
        self.metrics = Metrics(registry)
        self.analytics: Analytics | None = None
        """Tracks and counts of every input; None where nothing is tracked."""
        if track:
            tracker, counts = ByteTrackSettings(), AnalyticsMetrics(registry)
            self.analytics = Analytics(tracker, detect, counts, lambda *_: None, boot_id="detect")
        decoded = detect if self.analytics is None else self.analytics.detect
        try:
            detector = open_detector(self.backend.spec, head, decoded)
        except ConfigError as error:  # which names the field of a configuration
            raise ConfigError(str(error).replace("model.detect.classes:", "--classes:")) from error
        self.model = detector.model
        check_rules_of(zones, lines, self.model.labels)
        step = None if self.analytics is None else self.analytics.step(self.model)
        self.backend.start(detector.plan)
        bell = Bell()
        self.ring: Ring[Frame] = Ring(8, "block", bell=bell)
        batcher = Batcher(self.backend.spec.max_batch, 0.0, bell)
        batcher.add("detect", self.ring)
        batcher.seal()
        self.results: queue.SimpleQueue[Detections | None] = queue.SimpleQueue()
        self.pipeline = Pipeline(
            self.backend, batcher, detector.postprocess, self.model, self.metrics, analysis=step, logs=False
        )
        for number, item in enumerate(self.inputs):
            # Each video is a stream of its own, so that no track goes on from one to the next.
            if self.analytics is not None:
                item.stream = f"detect-{number}"
                self.analytics.add(_source(item, zones, lines))
            self.pipeline.add(StreamOutput(item.stream, self.metrics, self.model, self.results.put))
        self.pending: dict[int, tuple[Frame | None, str, float | None]] = {}
        # Drawing may be slower than detecting: frames waiting to be drawn must not pile up.
        self.room = threading.Semaphore(MAX_PENDING)
        self.errors: list[StreamdError] = []
        self.reader = threading.Thread(target=self._read, name="read", daemon=True)
        self.watcher = threading.Thread(target=self._let_go, name="watch", daemon=True)

    def _frames(self, item: _Input) -> Iterator[tuple[Frame, str, float | None]]:
        """(frame, input, frames a second of a video or None for an image)"""
        if not item.is_video:
            for path in item.images:
                try:
                    yield read_image(path), str(path), None
                except SourceError as error:
                    self.errors.append(error)
            return
        source = open_source(_source(item))
        try:
            info = source.open()
            for frame in source.frames():
                yield frame, item.given, None if info.still else info.fps or 25.0
                if info.still:
                    break
        finally:
            source.close()

    def _read(self) -> None:
        seq = 0
        try:
            for item in self.inputs:
                try:
                    for n, (frame, name, fps) in enumerate(self._frames(item)):
                        if self.limit is not None and n >= self.limit:
                            break
                        frame.stream, frame.seq, item.read = item.stream, seq, True
                        self.room.acquire()
                        # The picture is kept only if it will be drawn on.
                        self.pending[seq] = (frame if self.keep else None, name, fps)
                        seq += 1
                        self.ring.put(frame)
                except SourceError as error:
                    self.errors.append(error)
        except Closed:
            pass
        finally:
            self.ring.close()
            self.pipeline.done.wait()
            self.results.put(None)

    def _let_go(self) -> None:
        """A failed pipeline accepts no more frames: the reader must not wait for it."""
        self.pipeline.done.wait()
        self.ring.close(discard=True)
        self.room.release(MAX_PENDING)

    def results_of(self) -> Iterator[tuple[Detections, Frame | None, str, float | None]]:
        """(detections, frame if kept, input, frame rate of a video) in order."""
        self.pipeline.start()
        self.reader.start()
        self.watcher.start()
        while (detections := self.results.get()) is not None:
            yield detections, *self.pending.pop(detections.seq)
            self.room.release()
        if self.analytics is not None:
            self.analytics.close()

    def counts(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Each tracked input of which frames were read, and its `RuleEngine.counters`. After the last result."""
        streams = self.analytics.streams if self.analytics is not None else {}
        read = [item for item in self.inputs if item.read and item.stream in streams]
        counted = ((item.given, streams[item.stream].rules) for item in read)
        return [(given, rules.counters()) for given, rules in counted if rules is not None]

    def close(self) -> None:
        """Stops the stages and frees the engine."""
        self.room.release(MAX_PENDING)
        self.ring.close(discard=True)
        self.pipeline.join(10)
        self.backend.close()


def _times(d: Detections) -> tuple[float, ...]:
    t = d.times
    pairs = (
        (t.captured, t.decoded),
        (t.decoded, t.batched),
        (t.batched, t.preprocessed),
        (t.preprocessed, t.inferred),
        (t.inferred, t.postprocessed),
        (t.captured, t.postprocessed),
    )
    return tuple((b - a) / 1e6 for a, b in pairs)


def _short_names(inputs: Sequence[_Input]) -> dict[str, str]:
    """Inputs by the names that fit into a line: the file's own, unless two have the same. Of a URL, all of it."""
    paths = [
        path for item in inputs for path in (map(str, item.images) if item.images else [item.given]) if not is_url(path)
    ]
    count = Counter(Path(path).name for path in set(paths))
    return {path: Path(path).name for path in paths if count[Path(path).name] == 1}


def _summary(d: Detections, name: str) -> str:
    """One line. `name`: of the input, to be shown."""
    counts = Counter(d.model.labels[class_id] for class_id in d.class_id.tolist())
    seen = plain(enumerated(counts)) or "nothing"
    return f"{redact(name)} #{d.seq}: {d.width}×{d.height} {seen}"


def _print_table(rows: list[tuple[float, ...]], wall_s: float) -> None:
    data = np.array(rows)
    print(f"\n{len(rows)} frames in {wall_s:.2f} s: {len(rows) / wall_s:.1f} frames/s", file=sys.stderr)
    print(f"{'ms':<12}{'mean':>9}{'p50':>9}{'p99':>9}", file=sys.stderr)
    for i, stage in enumerate(STAGES):
        column = data[:, i]
        p50, p99 = np.percentile(column, [50, 99])
        print(f"{stage:<12}{column.mean():>9.2f}{p50:>9.2f}{p99:>9.2f}", file=sys.stderr)


def _annotator(folder: str, inputs: Sequence[_Input], overlay: Overlay | None = None) -> Annotator:
    """Writes into `folder`.

    Raises:
        ConfigError: it is one of the inputs: the next run would take what this one wrote for input. Or it has the
            name of a picture or video.
    """
    for item in inputs:
        if not item.is_video and same_file(folder, item.given):
            raise ConfigError(f"--save {folder}: is the folder of the images; choose another")
    if Path(folder).suffix.lower() in {*SUFFIXES, *VIDEO_SUFFIXES} and not Path(folder).is_dir():
        raise ConfigError(f"--save {folder}: expected a folder; each file in it is named as its input")
    files = [path for item in inputs for path in (item.images or ([Path(item.given)] if item.is_video else []))]
    return (
        Annotator(Path(folder), files)
        if overlay is None
        else Annotator(Path(folder), files, overlay.draw, overlay.write)
    )


def run(args: argparse.Namespace) -> int:
    """Detects, and prints or saves the results. Inputs that cannot be read are named; the others go on."""
    import time

    configure("warning")
    zones, lines = rules_of(args)
    track = bool(args.track or zones or lines)
    model = ModelSettings(path=args.model, labels=args.labels)
    job = Run(
        args.inputs, model, detect_settings(args), engine=args.engine, head=args.head, keep=bool(args.save),
        limit=args.limit, recursive=args.recursive, track=track, zones=zones, lines=lines,
    )  # fmt: skip
    overlay = Overlay(zones, lines) if track else None
    annotator = _annotator(args.save, job.inputs, overlay) if args.save else None
    encode, gaps = encoder("json"), Gaps()
    rows: list[tuple[float, ...]] = []
    shown = _short_names(job.inputs)
    started = time.monotonic()
    try:
        for detections, frame, name, fps in job.results_of():
            rows.append(_times(detections))
            if args.json:
                message = detections_message(
                    detections, "detect", gaps.before("detect", detections.seq), source=redact(name)
                )
                sys.stdout.buffer.write(encode(message) + b"\n")
            else:
                print(_summary(detections, shown.get(name, name)))
            if annotator is not None and frame is not None:
                annotator.add(frame, detections, name, fps=fps)
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # nobody reads on: what was found until then decides
    finally:
        job.close()
        if annotator is not None:
            annotator.close()
    if job.pipeline.error is not None:
        raise job.pipeline.error
    if rows:
        _print_table(rows, time.monotonic() - started)
    if annotator is not None:
        print(f"saved: {annotator.written()}", file=sys.stderr)
    for error in job.errors:
        print(f"streamd: {redact(str(error))}", file=sys.stderr)
    return job.errors[0].exit_code if job.errors else 0
