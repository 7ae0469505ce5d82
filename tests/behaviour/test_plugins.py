"""Kinds of other packages that fail in every way: what is beside them goes on, and the log names the package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.daemon import Running, daemon, until
from tests.behaviour.packages import install

CODE = """
import time
from typing import Literal

import numpy as np

from streamd.analysis.tracking.iou import IouSettings, IouTracker
from streamd.sinks import Sink, SinkSettings
from streamd.sources.synthetic import SyntheticSource, SyntheticStreamSettings


class ShyTracker(IouTracker):
    def step(self, observations):
        raise ValueError("no licence for tracking")


class ShySettings(IouSettings):
    kind: Literal["shy"] = "shy"

    def open(self):
        return ShyTracker(self)


class Deaf(Sink):
    def open(self): pass
    def send(self, message): return self.answer()
    def close(self): pass


class DeafSettings(SinkSettings):
    kind: Literal["deaf"] = "deaf"
    how: Literal["raises", "blocks", "lies", "at_start", "wants"]

    @property
    def wants(self):
        return {"detections"} if self.how == "wants" else super().wants

    def open(self):
        sink = Deaf()
        answers = {"raises": lambda: {}["box"], "blocks": lambda: time.sleep(10), "lies": lambda: True}
        sink.answer = answers.get(self.how)
        if self.how == "at_start":
            sink.open = lambda: {}["licence"]
        return sink


class Odd(SyntheticSource):
    def __init__(self, settings):
        super().__init__(settings)
        self.how = settings.how

    def frames(self):
        for frame in super().frames():
            if self.how == "raises":
                raise ValueError("no licence for reading")
            if self.how == "flat":
                frame.width = frame.height = 0
            if self.how == "array":
                frame.picture.native = np.zeros((64, 64, 3), np.uint8)
            if self.how == "numbers":
                self.skipped += 0.5
            if self.how == "stuck":
                self.deadline = time.monotonic() + 0.2
                time.sleep(10)
            yield frame

    def close(self):
        super().close()
        if self.how == "closing":
            raise ValueError("no licence for closing")
        if self.how == "closing_late":
            time.sleep(10)


class OddSettings(SyntheticStreamSettings):
    kind: Literal["odd"] = "odd"
    how: Literal["raises", "flat", "array", "numbers", "closing", "closing_late", "stuck"]

    def check(self):
        yield from super().check()
        if self.id == "unchecked":
            raise ValueError("no licence for checking")

    def open(self, *, device=None, held=8):
        return Odd(self)
"""
ENTRIES = """
[streamd.sinks]
deaf = faulty_kinds:DeafSettings
[streamd.sources]
odd = faulty_kinds:OddSettings
[streamd.trackers]
shy = faulty_kinds:ShySettings
iou = faulty_kinds:ShySettings
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the package, as pip would leave it."""
    install(tmp_path, "faulty-kinds", "0.7", code=CODE, entries=ENTRIES, monkeypatch=monkeypatch)


def streams(*odd: str) -> str:
    more = "".join(f"  - {{id: {how}, kind: odd, how: {how}, width: 64, height: 64, fps: 20}}\n" for how in odd)
    return (
        'model: {path: none}\nengine: {kind: "null"}\ndrain_s: 3\nstreams:\n'
        "  - {id: good, kind: synthetic, width: 64, height: 64, fps: 20}\n" + more
    )


def arrive(running: Running, stream: str, frames: int) -> bool:
    return running.value("streamd_frames_published_total", stream=stream) >= frames


def blamed(logs: list[dict[str, Any]], words: str) -> bool:
    """Whether a line of the log has these words and names the package."""
    return any(
        words in str(line) and "faulty-kinds 0.7" in str(line) and "install another" in str(line) for line in logs
    )


def test_sources_that_fail_leave_the_others_alone(tmp_path: Path) -> None:
    config = streams("raises", "flat", "array", "numbers", "closing", "closing_late", "stuck")
    config += "sinks: [{kind: jsonl, path: out.jsonl}]\n"
    with daemon(tmp_path, config) as running:
        until(lambda: running.value("streamd_frames_published_total", stream="good") >= 20)
        assert running.stop() == 0
        logs = running.log()
    for stream in ("good", "closing", "closing_late"):
        told = running.summary(stream)
        assert told["published"] == told["received"] > 0
    assert running.summary("raises")["received"] == running.summary("flat")["received"] == 0
    assert blamed(logs, "no licence for reading, in ") or blamed(logs, "ValueError: no licence for reading")
    assert blamed(logs, "it yielded a frame of 0 x 0 pixels with an upright picture of 64 x 64")
    assert blamed(logs, "it yielded a picture whose native is a ndarray")
    assert blamed(logs, "its source's skipped is 0.5; expected an int of at least 0, as before")
    assert blamed(logs, "ValueError: no licence for closing")
    stuck = [str(line.get("detail")) for line in logs if line.get("reason") == "stuck"]
    assert "in the package faulty-kinds 0.7 does not return and cannot be interrupted" in stuck[0]
    assert any(e["event"] == "source does not close in time" and e["package"] == "faulty-kinds 0.7" for e in logs)


def test_a_reload_stops_a_source_that_cannot_be_closed(tmp_path: Path) -> None:
    with daemon(tmp_path, streams("closing", "closing_late")) as running:
        for stream in ("good", "closing", "closing_late"):
            until(partial(arrive, running, stream, 3))
        running.reload(streams())
        before = running.value("streamd_frames_published_total", stream="good")
        until(lambda: running.value("streamd_frames_published_total", stream="good") >= before + 10)
        assert running.stop() == 0


def test_sinks_and_a_tracker_that_fail_cost_no_frame(tmp_path: Path) -> None:
    config = streams() + "tracking: {kind: shy}\nsinks:\n  - {kind: jsonl, path: out.jsonl}\n"
    config += "".join(f"  - {{kind: deaf, how: {how}, name: {how}}}\n" for how in ("raises", "blocks", "lies"))
    with daemon(tmp_path, config) as running:
        until(lambda: running.value("streamd_sink_messages_total", sink="jsonl0") >= 30)
        assert running.stop() == 0
        logs = running.log()
    told = running.summary("good")
    dropped = told.get("dropped") or {}
    assert dropped.keys() <= {"shutdown"}
    assert told["published"] + sum(dropped.values()) == told["received"] >= 30
    assert blamed(logs, "no licence for tracking")
    assert blamed(logs, "KeyError: 'box'")
    assert blamed(logs, "Deaf.send returned True; expected None or a reason")
    reopened = [line for line in logs if line["event"] == "sink reopened" and line["sink"] == "raises"]
    assert len(reopened) <= 2, "it waits longer each time, although it can be opened"
    (late,) = [line for line in logs if line["event"] == "sink did not close in time"]
    assert (late["sink"], late["package"]) == ("blocks", "faulty-kinds 0.7")


@pytest.mark.parametrize(
    ("config", "code", "words"),
    [
        (lambda: streams() + "sinks: [{kind: deaf, how: wants}]\n", 2, "sinks[0]: sink kind deaf of the package"),
        (
            lambda: streams("raises").replace("id: raises", "id: unchecked"),
            2,
            "streams[1]: stream kind odd of the package faulty-kinds 0.7 failed to check (ValueError: no licence for",
        ),
        (lambda: streams() + "tracking: {kind: iou}\n", 0, "tracker kind iou is streamd's own; that of the package"),
    ],
)
def test_check_tells_what_can_be_told_before(tmp_path: Path, config: Callable[[], str], code: int, words: str) -> None:
    file = tmp_path / "streamd.yaml"
    file.write_text(config())
    command = [sys.executable, "-m", "streamd", "check", "--no-model", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stdout + done.stderr
    assert words in done.stdout
    assert "faulty-kinds 0.7" in done.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sink_that_cannot_be_opened_ends_the_start_with_one_line(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "streamd.yaml"
    file.write_text(
        streams() + "sinks: [{kind: deaf, how: at_start}]\nmetrics: {listen: null}\n" + f"workers: {workers}\n"
    )
    command = [sys.executable, "-m", "streamd", "run", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 6
    (line,) = [each for each in done.stderr.splitlines() if "licence" in each]
    assert "sink kind deaf of the package faulty-kinds 0.7 failed to open the sink deaf0 (KeyError: 'licence'" in line
    assert "Traceback" not in done.stderr
