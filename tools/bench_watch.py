"""Measures the daemon's resources during a benchmark: CPU, memory, the interpreter lock, the device's time."""

from __future__ import annotations

import contextlib
import http.client
import os
import struct
import subprocess
import tempfile
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from streamd.sinks.message import DetectionsMessage

LISTED = 12
Sums = dict[str, tuple[float, float]]
"""(sum, count) of histograms."""


class Window:
    """The frames published in a time window, by the daemon's own time stamps.

    A message that the subscriber receives late counts for the time at which it was published.

    Args:
        begin: unix seconds.
        seconds: how long.
    """

    STAGES = ("decode", "queue", "preprocess", "infer", "postprocess")

    def __init__(self, begin: float, seconds: float) -> None:
        self._begin, self._seconds = begin, seconds
        self.frames = self.dropped = 0
        self.per_stream: dict[str, int] = {}
        self.by_minute: list[list[float]] = [[]]
        """Milliseconds from capture to publish."""
        self.stages: dict[str, list[float]] = {name: [] for name in self.STAGES}

    @property
    def minutes(self) -> int:
        """Number of minutes that have begun."""
        return len(self.by_minute)

    def take(self, message: DetectionsMessage) -> bool:
        """Counts a message that belongs to it; True once one comes from after its end."""
        at = message.published_at - self._begin
        if at < 0:
            return False
        if at >= self._seconds:
            return True
        while at // 60 >= len(self.by_minute):
            self.by_minute.append([])
        self.by_minute[int(at // 60)].append(message.latency_ms.total)
        for name, values in self.stages.items():
            values.append(getattr(message.latency_ms, name))
        self.per_stream[message.stream] = self.per_stream.get(message.stream, 0) + 1
        self.frames += 1
        self.dropped += message.dropped
        return False

    def latencies(self) -> list[float]:
        """Latencies of all minutes."""
        return [ms for minute in self.by_minute for ms in minute]


class Tree:
    """The daemon and every process that it has started.

    Args:
        pid: the daemon's.
    """

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)

    def _each(self) -> Iterator[psutil.Process]:
        yield self.root
        yield from self.root.children(recursive=True)

    @property
    def over(self) -> bool:
        """True once the daemon has ended."""
        try:
            return bool(self.root.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:  # somebody has waited for it
            return True

    def cpu(self) -> float:
        """CPU seconds so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self._each())

    def rss(self) -> float:
        """Resident megabytes; of several processes what they share counts once."""
        processes = list(self._each())
        if len(processes) == 1:
            return float(self.root.memory_info().rss / 1e6)
        return float(sum(process.memory_full_info().pss for process in processes) / 1e6)

    def busiest(self) -> int:
        """The pid of the process with most CPU time: of several workers, one."""
        return int(max(self._each(), key=lambda process: sum(process.cpu_times()[:2])).pid)

    def threads(self) -> dict[str, float]:
        """CPU seconds so far by type of thread: source-…, sink-…, and each stage by its name, over all processes.

        The parent of worker processes counts as one type, `parent`.
        """
        ticks = os.sysconf("SC_CLK_TCK")
        processes = list(self._each())
        found: dict[str, float] = {}
        for process in processes:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{process.pid}/task").iterdir():
                    name = (task / "comm").read_text().strip().split("-")[0]
                    if process is self.root and len(processes) > 1:
                        name = "parent"
                    fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
                    found[name] = found.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / ticks
        return found


class GilWatch:
    """The fraction of time for which a process's interpreter lock is held, measured by py-spy; needs permission to
    trace.

    Args:
        command: py-spy's path; empty for no watch.
        pid: of the process.
        seconds: how long.
    """

    RATE = 200

    def __init__(self, command: str, pid: int, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._file = Path(tempfile.gettempdir()) / f"gil-{pid}.txt"
        if command:
            options = ["--gil", "--nonblocking", "--rate", str(self.RATE), "--duration", str(max(1, int(seconds)))]
            self._process = subprocess.Popen(
                [command, "record", *options, "--format", "raw", "--output", str(self._file), "--pid", str(pid)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def held(self) -> tuple[float, dict[str, float]] | None:
        """The part, from 0 to 1, and how it is made up of the lines that held the lock most; None where that failed."""
        if self._process is None:
            return None
        self._process.wait(30)
        try:
            text = self._file.read_text()
            self._file.unlink()
            return held_by(text, self.RATE * max(1, int(self._seconds)))
        except (OSError, ValueError):
            return None


def held_by(stacks: str, samples: int) -> tuple[float, dict[str, float]]:
    """Reads py-spy's raw format: a line a stack, outermost frame first, and how often it was seen.

    Args:
        stacks: the text.
        samples: how many were taken, those with nobody holding the lock included.

    Returns:
        The part of the time in which it was held; and that of the innermost frames that held it most.
    """
    found: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, times = line.rpartition(" ")
        found[stack.rsplit(";", 1)[-1]] += int(times)
    most = {frame: round(times / samples, 3) for frame, times in found.most_common(LISTED)}
    return round(found.total() / samples, 3), most


class PageViewer:
    """A viewer of the page's pictures of all streams, which discards them.

    Args:
        port: of the metrics.
        streams: whose.
        fps: pictures a second of each stream; the page has a limit for all together.
        width: largest width in pixels.
    """

    def __init__(self, port: int, streams: Iterable[str], fps: float, width: int = 480) -> None:
        self._where = f"{port}/pictures?streams={','.join(streams)}&fps={fps:g}&width={width}"
        self.pictures = self.empty = self.bytes = 0
        """Records with a picture so far, without one, and bytes of JPEG."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._where}", timeout=60) as answer:
                while len(head := answer.read(8)) == 8:
                    told, picture = struct.unpack("!II", head)
                    answer.read(told)
                    self.bytes += len(answer.read(picture))
                    if told:
                        self.pictures += picture > 0
                        self.empty += picture == 0
        except (OSError, http.client.HTTPException):
            pass  # the daemon has ended


def sums(port: int) -> Sums:
    """(sum, count) of the batch size, and of the device's seconds by stage, as the daemon exports them."""
    names = ("streamd_batch_size", "streamd_device_duration_seconds")
    found: dict[str, list[float]] = {}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name in names else ():
            kind = sample.name.removeprefix(family.name)
            if kind in ("_sum", "_count"):
                pair = found.setdefault(sample.labels.get("stage", "batch"), [0.0, 0.0])
                pair[kind == "_count"] += sample.value
    return {key: (total, count) for key, (total, count) in found.items()}


def means(before: Sums, after: Sums) -> dict[str, float]:
    """Frames a batch, and milliseconds of the device a batch, between two readings of `sums`."""
    found = {}
    for key, (total, count) in after.items():
        total, count = total - before.get(key, (0, 0))[0], count - before.get(key, (0, 0))[1]
        if count:
            found[key] = round(total / count * (1 if key == "batch" else 1e3), 3)
    return found
