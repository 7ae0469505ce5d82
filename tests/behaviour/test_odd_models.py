"""Heads and engines of other packages that return something odd: the daemon ends with one line that names the package,
before anything odd is published. Odd times of a device end nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.daemon import daemon, until
from tests.behaviour.packages import install

CODE = """
from typing import Literal

import numpy as np

from streamd.engine.null import NullBackend, NullSettings
from streamd.heads.end_to_end import EndToEndSettings
from streamd.types import Candidates, Details


class OddHeadSettings(EndToEndSettings):
    kind: Literal["odd"] = "odd"
    how: str

    def open(self, spec, options):
        head = super().open(spec, options)
        answers = {
            "nothing": lambda found, detect: None,
            "again": lambda found, detect: np.zeros(2, np.intp),
            "more": lambda outputs, index, kept, letterbox: Details(keypoints=np.ones((2, 17, 3), np.float32)),
            "nan": lambda outputs, index, kept, letterbox: Details(keypoints=np.full((1, 17, 3), np.nan, np.float32)),
        }

        class Odd(type(head)):
            def suppress(self, found, detect):
                return answers[settings.how](found, detect)

            def details(self, outputs, index, kept, letterbox):
                return answers[settings.how](outputs, index, kept, letterbox)

        settings = self
        head.__class__ = Odd
        head.nms, head.detailed, head.plan = self.how in ("nothing", "again"), self.how in ("more", "nan"), None
        return head


class OddBackend(NullBackend):
    def __init__(self, settings, model, *, batch):
        super().__init__(settings, model, batch=batch)
        self.how = settings.how

    def collect(self, slot):
        (outputs,) = super().collect(slot)
        rows = outputs[:, 0]
        if self.how == "class":
            return [Candidates(r[None, :4], r[4:5], np.array([7], np.int32)) for r in rows]
        if self.how == "one":
            return [Candidates(r[None, :4], r[4:5], np.zeros(1, np.int32)) if r is rows[0] else None for r in rows]
        if self.how == "double":
            return [outputs.astype(np.float64)]
        return [outputs]

    def device_times(self, slot):
        return {"upload": 0.1} if self.how == "times" else {}


class OddEngineSettings(NullSettings):
    kind: Literal["odd"] = "odd"
    how: str

    @property
    def devices(self):
        return {"no_devices": None, "empty": (), "text": ("0",)}.get(self.how, (0,))

    @property
    def shares_gpu(self):
        return "perhaps" if self.how == "shares" else False

    def for_device(self, ordinal):
        return {}["licence"] if self.how == "elsewhere" else None if self.how == "nowhere" else self

    def aside(self):
        return 3 if self.how == "beside" else self

    def open(self, model, *, batch, live=False):
        return OddBackend(self, model, batch=batch)
"""
ENTRIES = (
    "[streamd.heads]\nodd = faulty_models:OddHeadSettings\n[streamd.engines]\nodd = faulty_models:OddEngineSettings\n"
)


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the package, as pip would leave it."""
    install(tmp_path, "faulty-models", "0.3", code=CODE, entries=ENTRIES, monkeypatch=monkeypatch)


def config(head: str = "", engine: str = "") -> str:
    model = f"{{path: none, head: {{kind: odd, how: {head}}}}}" if head else "{path: none}"
    runs = f"{{kind: odd, how: {engine}}}" if engine else '{kind: "null"}'
    return (
        f"model: {model}\nengine: {runs}\ndrain_s: 3\nsinks: [{{kind: jsonl, path: out.jsonl}}]\nstreams:\n"
        "  - {id: good, kind: synthetic, width: 64, height: 64, fps: 20}\n"
    )


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"head": "nothing"}, "its suppress returned indices of type NoneType; expected a NumPy array of intp"),
        ({"head": "again"}, "its suppress returned 2 indices of which some are the same; expected each box once"),
        ({"head": "more"}, "its details returned keypoints (2, 17, 3); expected (1, K, 3)"),
        ({"head": "nan"}, "its details returned keypoints with NaN or infinity"),
        ({"engine": "class"}, "its collect returned for frame 0 of the batch classes 7 to 7; expected 0 to 0"),
        ({"engine": "double"}, "its collect returned the output detections of type float64; expected a NumPy array of"),
    ],
)
def test_the_daemon_ends_with_one_line_that_names_the_package(
    tmp_path: Path, kinds: dict[str, str], words: str
) -> None:
    with daemon(tmp_path, config(**kinds)) as running:
        assert running.process.wait(20) == 5
        logs = running.log()
    (line,) = [each for each in logs if each["event"] == "stage failed"]
    assert words in line["error"]
    (noun,) = kinds
    assert f"{noun} kind odd of the package faulty-models 0.3 cannot be used: " in line["error"]
    assert published(tmp_path) == []


def test_odd_times_of_a_device_are_left_out(tmp_path: Path) -> None:
    with daemon(tmp_path, config(engine="times")) as running:
        until(lambda: running.value("streamd_frames_published_total", stream="good") >= 20)
        assert running.stop() == 0
        (line,) = [each for each in running.log() if each["event"] == "device times left out"]
    assert "engine kind odd of the package faulty-models 0.3 cannot be used: its device_times returned" in line["error"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no_devices", "cannot be used: its devices are None; expected a tuple of one or more numbers"),
        ("empty", "cannot be used: its devices are (); expected a tuple of one or more numbers"),
        ("text", "cannot be used: its devices are ('0',); expected a tuple of one or more numbers"),
        ("shares", "cannot be used: its shares_gpu is 'perhaps'; expected True, False or 'auto'"),
        ("elsewhere", "failed to call for_device(0) (KeyError: 'licence', in site/faulty_models.py, line "),
        ("nowhere", "cannot be used: its for_device(0) returned None; expected streamd.engine.EngineSettings"),
        ("beside", "cannot be used: its aside() returned 3; expected streamd.engine.EngineSettings"),
    ],
)
def test_odd_devices_are_an_error_of_the_configuration(tmp_path: Path, how: str, words: str) -> None:
    file = tmp_path / "streamd.yaml"
    file.write_text(config(engine=how))
    command = [sys.executable, "-m", "streamd", "check", "--no-model", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stdout + done.stderr
    assert "engine: engine kind odd of the package faulty-models 0.3 " + words in done.stdout


def test_odd_devices_of_a_classifier_are_an_error_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "streamd.yaml"
    classifier = "{name: kind, model: {path: none}, classes: [thing], engine: {kind: odd, how: beside}}"
    file.write_text(f"{config()}classifiers: [{classifier}]\ntracking: {{kind: iou}}\n")
    command = [sys.executable, "-m", "streamd", "check", "--no-model", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    words = (
        "classifiers[0].engine: engine kind odd of the package faulty-models 0.3 cannot be used: its aside() returned 3"
    )
    assert words in done.stdout, done.stdout + done.stderr


def published(folder: Path) -> list[Any]:
    lines = (folder / "out.jsonl").read_text().splitlines()
    return [each for each in map(json.loads, lines) if each.get("detections")]
