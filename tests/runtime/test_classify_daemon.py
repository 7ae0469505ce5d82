"""A whole daemon with a classifier: from files to messages and events."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamd.cli import main
from streamd.config.loader import load
from streamd.errors import ConfigError
from streamd.runtime.daemon import Daemon
from streamd.runtime.reload import difference
from streamd.telemetry.notify import Notifier
from tests.clips import write_clip
from tests.engine.onnx_models import colours

LIMIT_S = 60.0
MIXED = {"red": (160, 60, 60), "green": (60, 160, 60)}


def painted(colour: tuple[int, int, int]) -> Callable[..., av.VideoFrame]:
    def draw(width: int, height: int, index: int, pix_fmt: str = "yuv420p") -> av.VideoFrame:
        image = np.full((height, width, 3), colour, np.uint8)
        return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)

    return draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("daemon")
    colours(made / "colours.onnx")
    for name, colour in MIXED.items():
        write_clip(made / f"{name}.mp4", size=(160, 120), draw=painted(colour), frames=250)
    return made


def config(folder: Path, *, threshold: float = 0.5, tracking: str = "tracking: {}", more: str = "") -> Path:
    file = folder / "c.yaml"
    file.write_text(f"""
model: {{path: none}}
engine: {{kind: "null"}}
{tracking}
metrics: {{listen: null}}
events: {{state_dir: state}}
recorder: {{keep: 0}}
classifiers:
  - {{name: colour, model: {{path: colours.onnx}}, classes: [thing], min_size: 8, threshold: {threshold},
     refresh_s: 0.2, budget: 50%, engine: {{kind: openvino}}{more}}}
streams:
  - {{id: red, url: red.mp4, loop: true, pace: realtime, policy: block, max_age_ms: 0}}
  - {{id: green, url: green.mp4, loop: true, pace: realtime, policy: block, max_age_ms: 0}}
sinks: [{{kind: jsonl, path: out.jsonl}}]
""")
    return file


class Running:
    """A daemon in this process, and the lines that it has written."""

    def __init__(self, folder: Path, file: Path) -> None:
        self._out = folder / "out.jsonl"
        self._out.unlink(missing_ok=True)
        self.daemon = Daemon(load(file).config, notifier=Notifier({}))
        self._thread = threading.Thread(target=self.daemon.run, kwargs={"handle_signals": False}, daemon=True)
        self._thread.start()

    def lines(self) -> list[dict[str, Any]]:
        if not self._out.exists():
            return []
        whole = self._out.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def wait(self, condition: Callable[[list[dict[str, Any]]], object]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition(self.lines()):
            assert time.monotonic() < deadline
            assert self._thread.is_alive()
            time.sleep(0.05)

    def stop(self) -> None:
        self.daemon.stop()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def run(folder: Path) -> Iterator[Callable[[Path], Running]]:
    every: list[Running] = []

    def start(file: Path) -> Running:
        every.append(Running(folder, file))
        return every[-1]

    yield start
    for each in every:
        each.stop()


def frames(lines: list[dict[str, Any]], stream: str) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("stream") == stream and "detections" in line]


def said(line: dict[str, Any]) -> list[str]:
    return [f"{a['classifier']} {a['label']}" for d in line["detections"] for a in d.get("attributes", [])]


def test_messages_and_events_tell_the_colour_and_no_frame_waits(folder: Path, run: Any) -> None:
    file = config(folder)
    zone = "zones: [{name: all, points: [[0, 0], [1, 0], [1, 1], [0, 1]]}]"
    file.write_text(file.read_text().replace("id: red,", f"id: red, {zone},"))
    running = run(file)

    def both(lines: list[dict[str, Any]]) -> bool:
        return all([f"colour {name}"] in map(said, frames(lines, name)) for name in MIXED)

    running.wait(both)
    before = {name: frames(running.lines(), name)[-1] for name in MIXED}
    for name, line in before.items():
        (detection,) = line["detections"]
        told = detection["attributes"][0]
        assert told["observed_seq"] < line["seq"]
        assert told["score"] == pytest.approx(1.0, abs=0.01), name
    # A higher threshold than any crop reaches: from then on nothing is told, on the same connection.
    file.write_text(file.read_text().replace("threshold: 0.5", "threshold: 1.0"))
    running.daemon.reload(load(file).config, number=1)
    running.wait(lambda lines: all(said(frames(lines, name)[-1]) == [] for name in MIXED))
    file.write_text(file.read_text().replace("threshold: 1.0", "threshold: 0.5"))
    running.daemon.reload(load(file).config, number=2)
    running.wait(lambda lines: all(said(frames(lines, name)[-1]) for name in MIXED))
    file.write_text(file.read_text().replace("classes: [thing]", "classes: [car]"))
    with pytest.raises(ConfigError, match="has no class 'car'"):
        running.daemon.reload(load(file).config, number=3)
    running.stop()
    lines = running.lines()
    for name, line in before.items():
        assert frames(lines, name)[-1]["epoch"] == line["epoch"]
        assert [each["seq"] for each in frames(lines, name)] == list(range(len(frames(lines, name))))
    (end,) = [line for line in lines if line.get("kind") == "end"]
    assert end["details"]["attributes"]["colour"]["label"] == "red"


def test_without_tracking_it_is_told_in_messages_of_its_own(folder: Path, run: Any) -> None:
    running = run(config(folder, tracking=""))
    running.wait(lambda lines: {"red", "green"} <= {line["stream"] for line in lines if "objects" in line})
    for line in running.lines():
        if "objects" in line:
            assert [each["attribute"]["label"] for each in line["objects"]] == [line["stream"]]
            assert line["objects"][0]["attribute"]["observed_seq"] == line["observed_seq"]
        assert not any("attributes" in each for each in line.get("detections", ()))


def test_only_what_belongs_to_the_model_needs_a_restart(folder: Path) -> None:
    def fixed(old: str, new: str) -> list[Any]:
        file = config(folder)
        before = load(file).config
        file.write_text(file.read_text().replace(old, new))
        return list(difference(before, load(file).config).fixed)

    assert fixed("threshold: 0.5", "threshold: 0.7, top_k: 2, margin: 0.1, streams: [red], memory_mb: 1") == []
    assert fixed("budget: 50%", "budget: 7") == []
    assert fixed("colours.onnx}", "colours.onnx, resize: letterbox}") == [("classifiers", 0, "model", "resize")]
    assert fixed("name: colour", "name: color") == [("classifiers",)]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (", streams: [blue]", "blue is not the id of a stream"),
        ("}\n  - {name: colour, model: {path: b.onnx}, classes: [0]", "colour is the name of 2 classifiers"),
        *[
            (f", budget: {budget}", "budget: expected a number of crops a second, or a share of the time such as 5%")
            for budget in ("0%", "0.0%", "0", "-1", "nan", "101%", "true", "5 %", "[1]")
        ],
    ],
)
def test_what_cannot_be_is_told_with_its_place(folder: Path, more: str, problem: str) -> None:
    file = config(folder, more=more)
    file.write_text(file.read_text().replace("budget: 50%,", "" if "budget" in more else "budget: 50%,"))
    with pytest.raises(ConfigError, match=problem) as error:
        load(file)
    assert "classifiers" in str(error.value)


def test_check_opens_the_classifiers_and_tells_of_gpu_memory(folder: Path, capsys: Any) -> None:
    file = config(folder, more=", streams: [red]")
    text = file.read_text()
    assert main(["check", str(file)]) == 0
    assert "note" not in capsys.readouterr().out
    file.write_text(text.replace("colours.onnx", "nowhere.onnx"))
    assert main(["check", str(file)]) == 3
    assert "classifier colour: model" in capsys.readouterr().out
    file.write_text(text.replace("classes: [thing]", "classes: [cat]"))
    assert main(["check", str(file)]) == 2
    assert "classifier colour: classes: the model has no class 'cat'" in capsys.readouterr().out
    file.write_text(text.replace('kind: "null"', "kind: tensorrt"))
    assert main(["check", "--no-model", str(file)]) == 0
    told = capsys.readouterr().out
    assert "note: classifier colour: pictures of red may be in GPU memory" in told
    file.write_text(text.replace('kind: "null"', "kind: tensorrt").replace("id: red,", "id: red, decode: software,"))
    assert main(["check", "--no-model", str(file)]) == 0
    assert "note" not in capsys.readouterr().out
