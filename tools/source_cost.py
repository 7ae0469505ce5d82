#!/usr/bin/env python3
"""Measures what reading a stream costs, step by step: CPU time of the reading threads, microseconds a frame.

    python tools/source_cost.py CLIP [--streams 16] [--decode nvdec] [--seconds 3]

Rows, each with what is above it:
  demux    PyAV reads packets
  decode   PyAV decodes them; each picture is dropped at once
  source   streamd's source makes frames of them
  runner   the stream's runner numbers and counts them and puts them into a ring, which drops the oldest

Each row reads all streams at once, a thread each, as fast as it can, from one file in a loop. The difference between
two rows is the cost of a step. `waits` is how often a thread gave up the processor, for the interpreter lock or the
device."""

from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import structlog

from streamd.flow.ring import Ring
from streamd.flow.runner import StreamRunner
from streamd.runtime.switching import SWITCH_INTERVAL_S
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_open import open_container
from streamd.sources.av_source import AvSource
from streamd.sources.hardware import HardwareDecoder
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Frame

WARM_UP_S, RING = 1.0, 4
LIMIT_S = 120.0
"""For all decoders to be created."""


class Reading:
    """One stream, and the thread that reads it."""

    thread: threading.Thread

    def __init__(self, settings: AvStreamSettings, device: int | None) -> None:
        self.settings, self.device = settings, device
        self.over = threading.Event()

    @property
    def frames(self) -> int:
        """How many there were so far."""
        raise NotImplementedError

    def cpu_s(self) -> float:
        """CPU time of the thread so far, seconds."""
        assert self.thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self.thread.ident))

    def stop(self) -> None:
        """Ends."""
        self.over.set()
        self.thread.join()


class Looping(Reading):
    """A thread that counts what one of the functions below yields."""

    def __init__(
        self, steps: Callable[[Reading], Iterator[None]], settings: AvStreamSettings, device: int | None
    ) -> None:
        super().__init__(settings, device)
        self._count = 0
        self._steps = steps
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        over = self.over.is_set
        for _ in self._steps(self):
            self._count += 1
            if over():
                return

    @property
    def frames(self) -> int:
        """See `Reading`."""
        return self._count


def demux(reading: Reading) -> Iterator[None]:
    """Packets."""
    with open_container(reading.settings, live=False, device=None) as container:
        while True:
            for packet in container.demux(container.streams.video[0]):
                if packet.size:
                    yield
            container.seek(0)


def decode(reading: Reading) -> Iterator[None]:
    """Pictures."""
    with open_container(reading.settings, live=False, device=reading.device) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        decoder = HardwareDecoder(stream.codec_context)
        while True:
            for packet in container.demux(stream):
                for _ in decoder.decode(packet) if packet.size else ():
                    yield
            container.seek(0)
            decoder.flush_buffers()


def source(reading: Reading) -> Iterator[None]:
    """Frames."""
    found = AvSource(reading.settings, device=reading.device)
    found.open()
    for _ in found.frames():
        yield
        if reading.over.is_set():
            found.close()


class Running(Reading):
    """A stream's runner, with its thread."""

    def __init__(self, settings: AvStreamSettings, device: int | None) -> None:
        super().__init__(settings, device)
        ring: Ring[Frame] = Ring(RING)
        self._metrics = StreamMetrics(settings.id)
        self._runner = StreamRunner(
            settings.id, lambda: AvSource(settings, device=device), ring, self._metrics, lambda status: None
        )
        self._runner.start()
        [self.thread] = [t for t in threading.enumerate() if t.name == f"source-{settings.id}"]

    @property
    def frames(self) -> int:
        """See `Reading`."""
        return self._metrics.received

    def stop(self) -> None:
        """See `Reading`."""
        self._runner.stop()
        self.thread.join()


def row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All streams through the step `name`.

    Raises:
        SystemExit: a stream gives no frame.
    """
    device = 0 if args.decode == "nvdec" else None
    url = str(Path(args.clip).resolve())
    readings: list[Reading] = []
    for i in range(args.streams):
        settings = AvStreamSettings(id=f"s{i}", url=url, pace="asap", loop=True, decode=args.decode)
        if name == "runner":
            readings.append(Running(settings, device))
        else:
            readings.append(Looping(STEPS[name], settings, device))
    try:
        deadline = time.monotonic() + LIMIT_S
        while not all(reading.frames for reading in readings):
            if time.monotonic() > deadline or not all(reading.thread.is_alive() for reading in readings):
                raise SystemExit(f"source_cost: {args.clip}: a stream gives no {name}; see the error above")
            time.sleep(0.05)
        time.sleep(WARM_UP_S)
        begin, frames, cpu = time.monotonic(), [r.frames for r in readings], [r.cpu_s() for r in readings]
        waits = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        time.sleep(args.seconds)
        seconds = time.monotonic() - begin
        count = sum(r.frames - n for r, n in zip(readings, frames, strict=True))
        spent = sum(r.cpu_s() - n for r, n in zip(readings, cpu, strict=True))
        waits = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - waits
    finally:
        for reading in readings:
            reading.stop()
    return {
        "step": name, "frames_s": round(count / seconds), "cpu_us": round(spent / count * 1e6, 1),
        "waits": round(waits / count, 2),
    }  # fmt: skip


STEPS: dict[str, Callable[[Reading], Iterator[None]]] = {"demux": demux, "decode": decode, "source": source}


def main() -> None:
    """Prints a line for each row."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("clip")
    p.add_argument("--streams", type=int, default=1)
    p.add_argument("--decode", choices=("software", "nvdec"), default="software")
    p.add_argument("--seconds", type=float, default=3.0, help="of each row")
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    found = []
    for name in (*STEPS, "runner"):
        found.append(row(name, args))
        print(json.dumps(found[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
