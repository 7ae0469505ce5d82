"""The contract suites notice a kind that breaks its contract, and say what is missing to run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

CODE = """
from typing import Literal

from streamd.analysis.tracking.iou import IouSettings, IouTracker
from streamd.engine.openvino import OpenVinoBackend, OpenVinoSettings
from streamd.heads.yolov8 import Yolov8, Yolov8Settings
from streamd.sinks.jsonl import JsonlSettings, JsonlSink
from streamd.sources.synthetic import SyntheticSource, SyntheticStreamSettings


class BadSource(SyntheticSource):
    def frames(self):
        for frame in super().frames():
            frame.roi = None
            yield frame


class BadSourceSettings(SyntheticStreamSettings):
    kind: Literal["bad"] = "bad"

    def open(self, *, device=None, held=8):
        return BadSource(self)


class BadBackend(OpenVinoBackend):
    def collect(self, slot):
        return [output * (1 + slot.index) for output in super().collect(slot)]


class BadEngineSettings(OpenVinoSettings):
    kind: Literal["bad"] = "bad"

    def open(self, model, *, batch, live=False):
        return BadBackend(self, model, batch=batch, live=live)


class BadHead(Yolov8):
    def candidates(self, outputs, index):
        return super().candidates(outputs, 0)


class BadHeadSettings(Yolov8Settings):
    kind: Literal["bad"] = "bad"

    def open(self, spec, options):
        return BadHead(spec, options)


class BadTracker(IouTracker):
    def step(self, observations):
        return [super(BadTracker, self).step([each])[0] for each in reversed(observations)]


class BadTrackerSettings(IouSettings):
    kind: Literal["bad"] = "bad"

    def open(self):
        return BadTracker(self)


class BadSink(JsonlSink):
    count = 0

    def send(self, message):
        self.count += 1
        return None if self.count % 3 == 0 else super().send(message)


class BadSinkSettings(JsonlSettings):
    kind: Literal["bad"] = "bad"

    def open(self):
        return BadSink(self)
"""
ENTRIES = "".join(
    f"[streamd.{part}s.1]\nbad = bad_kinds:Bad{part.title()}Settings\n"
    for part in ("source", "engine", "head", "tracker", "sink")
)
HEADER = """
import bad_kinds
from streamd.testing.engines import EngineContract
from streamd.testing.heads import HeadContract
from streamd.testing.sinks import SinkContract
from streamd.testing.sources import COUNT, SourceContract
from streamd.testing.trackers import TrackerContract
from tests.heads import test_yolov8
from tests.sinks.test_jsonl import FileReader

"""
SOURCE = """
class TestBad(SourceContract):
    kind = "bad"
    def contract(self, folder, paced, **settings):
        fps = 25 if paced else 0
        return bad_kinds.BadSourceSettings(id="s", width=192, height=108, fps=fps, count=COUNT, **settings)
"""
ENGINE = """
class TestBad(EngineContract):
    kind = "bad"
"""
HEAD = """
from dataclasses import replace
class TestBad(HeadContract):
    kind = "bad"
    def cases(self):
        def declared(case):
            def encode(batch, index):
                model, outputs = case.encode(batch, index)
                return replace(model, head={"kind": "bad"}), outputs
            return replace(case, encode=encode, recognised=False)
        return [declared(case) for case in test_yolov8.contract_cases()]
"""
TRACKER = """
class TestBad(TrackerContract):
    kind = "bad"
"""
SINK = """
class TestBad(SinkContract):
    kind = "bad"
    def contract(self, folder):
        return bad_kinds.BadSinkSettings(path=str(folder / "o"), status=True), FileReader(folder / "o")
"""


def run(folder: Path, tests: str, entries: str = ENTRIES) -> str:
    """Installs the package, as pip would leave it, and runs the tests; returns what pytest says."""
    info = folder / "bad_kinds-0.1.dist-info"
    info.mkdir()
    (folder / "bad_kinds.py").write_text(CODE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-kinds\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(entries)
    (folder / "test_bad.py").write_text(HEADER + tests)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join((str(folder), str(ROOT)))
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    done = subprocess.run(
        [*command, "test_bad.py"], capture_output=True, text=True, cwd=folder, env=environment, timeout=110
    )
    assert done.returncode == 1, done.stdout[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("tests", "failing"),
    [
        (SOURCE, {"test_crop_travels_with_the_frame"}),
        (
            ENGINE,
            {
                "test_slots_do_not_disturb_each_other",
                "test_stages_of_different_slots_run_on_three_threads",
            },
        ),
        (HEAD, {"test_objects_come_back"}),
        (TRACKER, {"test_a_batch_gives_what_each_stream_gives_alone"}),
        (SINK, {"test_detections_arrive_whole_and_in_order", "test_gaps_are_told"}),
    ],
    ids=["source", "engine", "head", "tracker", "sink"],
)
def test_a_kind_that_breaks_its_contract_fails(tmp_path: Path, tests: str, failing: set[str]) -> None:
    said = run(tmp_path, tests)
    assert failing <= set(re.findall(r"^FAILED test_bad\.py::TestBad::(\w+)", said, re.MULTILINE)), said[-3000:]
    assert " passed" in said


def test_a_failed_assertion_shows_its_values(tmp_path: Path) -> None:
    assert re.search(r"^E +assert \[0, 1, 3, 4, ", run(tmp_path, SINK), re.MULTILINE)


OTHER = """
class TestBad(SinkContract):
    kind = "jsonl"
    def contract(self, folder):
        return bad_kinds.BadTrackerSettings(), FileReader(folder / "o")
"""


@pytest.mark.parametrize(
    ("tests", "entries", "words"),
    [
        (
            SINK.replace('"bad"', '"worse"'),
            ENTRIES,
            r"sink kind worse: expected one of zmq, .* \(its package must be inst",
        ),
        (SINK.replace("kind =", "sort ="), ENTRIES, r'TestBad: name the kind to be tested, as in kind = "udp"'),
        (OTHER, ENTRIES, r"TestBad\.contract gives BadTrackerSettings, not JsonlSettings"),
        (
            TRACKER,
            ENTRIES.replace("trackers.1", "trackers"),
            r"put the entry point into the group streamd\.trackers\.1",
        ),
        (
            TRACKER,
            ENTRIES.replace("trackers.1", "trackers.2"),
            r"bad-kinds 0\.1, which was written for version 2 of the",
        ),
    ],
    ids=["not installed", "no kind", "another kind", "no version", "another version"],
)
def test_what_is_missing_is_said(tmp_path: Path, tests: str, entries: str, words: str) -> None:
    assert re.search(words, run(tmp_path, tests, entries))
