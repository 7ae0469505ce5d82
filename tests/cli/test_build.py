"""`streamd build` as its users meet it, and the gate behind it."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from streamd.cli import gate as gate_module
from streamd.cli.build import Pictures
from streamd.cli.gate import Gate, add_gate_options, agreement, gate_of
from streamd.engine import ModelSettings
from streamd.engine.tensorrt.driver import find_gpu
from streamd.engine.tensorrt.onnxfile import read_onnx
from streamd.errors import ConfigError, GateError
from streamd.models.evaluate import Boxes
from streamd.sidecar import Provenance, Sidecar, read_sidecar
from streamd.types import ModelSpec, TensorSpec
from tests.clips import write_clip
from tests.conftest import shared
from tests.engine.onnx_models import conv_relu, qdq, unsupported
from tests.engine.trt import trt_here

SMALL = "models/yolov5lite_e_relu_320.onnx"
DETECTOR = "models/yolov5n_heads.onnx"


def build(*arguments: str | Path, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamd", "build", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def message(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line of a refusal."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("streamd: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    trt_here()
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_float_model(folder: Path) -> None:
    done = build(shared(SMALL), "--out", folder / "m.plan")
    assert done.returncode == 0, done.stderr
    assert "fp16" in done.stdout
    assert "accuracy: not checked" in done.stdout
    assert names(folder) == ["m.plan", "m.plan.json"]
    made = read_sidecar(folder / "m.plan").provenance
    assert made is not None
    assert (made.precision, made.profile, made.source) == ("fp16", (1, 1, 1), Path(SMALL).name)


def test_qdq_model_with_a_profile(folder: Path) -> None:
    model = qdq(folder / "q.onnx")
    done = build(model, "--out", folder / "q.engine", "--batch", "1", "2", "8", "--profiles", "2", "--workspace", "64")
    assert done.returncode == 0, done.stderr
    made = read_sidecar(folder / "q.engine").provenance
    assert made is not None
    assert (made.precision, made.profile, made.method) == ("int8", (1, 2, 8), "explicit Q/DQ")


def test_an_existing_plan_survives_every_refusal(folder: Path) -> None:
    out = folder / "m.plan"
    out.write_bytes(b"the plan that works")
    whole = conv_relu(folder / "m.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    unsupported(folder / "bad.onnx")
    before = names(folder)
    assert "cut short or damaged" in message(build(folder / "cut.onnx", "--out", out), 3)
    assert "is empty" in message(build(folder / "empty.onnx", "--out", out), 3)
    assert "does not exist" in message(build(folder / "absent.onnx", "--out", out), 3)
    text = message(build(folder / "bad.onnx", "--out", out, "--precision", "fp32"), 3)
    assert "first_bad (Det)" in text
    assert out.read_bytes() == b"the plan that works"
    assert names(folder) == before


def test_arguments_that_make_no_sense(folder: Path) -> None:
    model = conv_relu(folder / "m.onnx")
    out = folder / "m.plan"
    assert ".plan, .engine, .trt" in message(build(model, "--out", folder / "m.bin"), 2)
    assert "absent" in message(build(model, "--out", folder / "absent" / "m.plan"), 2)
    assert "--batch 4 2 1" in message(build(model, "--out", out, "--batch", "4", "2", "1"), 2)
    assert "streamd quantize" in message(build(model, "--out", out, "--precision", "int8"), 2)
    assert "--profiles" in message(build(model, "--out", out, "--profiles", "0"), 2)
    assert "--eval-images" in message(build(model, "--out", out, "--labels", folder), 2)
    assert "from an ONNX model" in message(build(write(folder / "x.plan"), "--out", out), 2)
    assert not out.exists()


def write(path: Path) -> Path:
    path.write_bytes(b"x")
    return path


def test_where_the_plan_cannot_run_the_gate_says_so(folder: Path) -> None:
    if find_gpu(0) is not None:
        pytest.skip("this machine has a GPU: the gate runs")
    images = shared("images/coco_val128/images")
    done = build(shared(SMALL), "--out", folder / "m.plan", "--eval-images", images)
    assert done.returncode == 0, done.stderr
    assert "accuracy not checked, for this machine cannot run the plan" in done.stdout
    made = read_sidecar(folder / "m.plan").provenance
    assert made is not None
    assert "accuracy not checked" in str(made.method)
    assert not made.accuracy


# Calibration pictures


SPEC = ModelSpec("m", "", "m", TensorSpec("images", (-1, 3, 64, 64), "float32"), (), (), scale=1 / 255)


def test_pictures_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted(shared("images/coco_val128/images").iterdir())[:5]:
        shutil.copy(path, tmp_path)
    (tmp_path / "000.jpg").write_bytes(b"not an image")
    batches = list(Pictures(str(tmp_path), SPEC, 100, 2).batches())
    assert [b.shape for b in batches] == [(2, 3, 64, 64)] * 2
    assert all(b.min() >= 0 and b.max() <= 1 and b.std() > 0.05 for b in batches)
    assert "000.jpg" in capsys.readouterr().err
    assert len(list(Pictures(str(tmp_path), SPEC, 2, 2).batches())) == 1


def test_pictures_from_a_video_are_spread(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=50)
    batches = list(Pictures(str(clip), SPEC, 100, 1).batches())
    # Two a second of two seconds.
    assert 3 <= len(batches) <= 5


def test_the_key_of_pictures_follows_their_content(tmp_path: Path) -> None:
    for path in sorted(shared("images/coco_val128/images").iterdir())[:2]:
        shutil.copy(path, tmp_path)
    pictures = Pictures(str(tmp_path), SPEC, 2, 1)
    key = pictures.sha256("model")
    assert key == Pictures(str(tmp_path), SPEC, 2, 1).sha256("model")
    others = {pictures.sha256("other"), Pictures(str(tmp_path), SPEC, 2, 2).sha256("model")}
    next(tmp_path.iterdir()).write_bytes(b"changed")
    assert len(others | {key, pictures.sha256("model")}) == 4


# The gate


def boxes(*rows: tuple[float, float, float, float, int]) -> Boxes:
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Boxes("i", 100, 100, table[:, :4], np.ones(len(rows), np.float32), table[:, 4].astype(np.int32))


@pytest.mark.parametrize(
    ("found", "share"),
    [
        (boxes((0, 0, 10, 10, 0), (20, 20, 40, 40, 1)), 1.0),
        (boxes((0, 0, 10, 10, 0)), 0.5),
        (boxes((0, 0, 10, 10, 1), (20, 20, 40, 40, 1)), 0.5),
        (boxes((0, 0, 10, 4, 0), (20, 20, 40, 40, 1)), 0.5),
        (boxes((0, 0, 10, 10, 0), (0, 0, 10, 9, 0)), 0.5),
        (boxes(), 0.0),
    ],
)
def test_agreement(found: Boxes, share: float) -> None:
    assert agreement([boxes((0, 0, 10, 10, 0), (20, 20, 40, 40, 1))], [found]) == (share, 2)


def test_agreement_on_nothing() -> None:
    assert agreement([boxes()], [boxes((0, 0, 10, 10, 0))]) == (1.0, 0)


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_gate_options(parser)
    return parser.parse_args(arguments, argparse.Namespace(device=0))


def test_gate_options(tmp_path: Path) -> None:
    assert gate_of(options()) is None
    assert gate_of(options("--eval-images", str(tmp_path))) is not None
    for bad in (
        ("--labels", str(tmp_path)),
        ("--eval-images", str(tmp_path / "absent")),
        ("--eval-images", str(tmp_path), "--max-drop", "2"),
    ):
        with pytest.raises(ConfigError):
            gate_of(options(*bad))


class OnCpu(Gate):
    """The gate with an ONNX file in the plan's place: everything but the engine is the real thing."""

    def _engines(self, plan: Path, reference: str) -> list[tuple[ModelSettings, dict[str, Any]]]:
        return [(ModelSettings(path=str(p)), {"kind": "openvino"}) for p in (reference, plan)]


class _Job:
    def __init__(self, path: Path) -> None:
        self.onnx = read_onnx(path)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Sixteen labelled images."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for path in sorted(shared("images/coco_val128/images").iterdir())[:16]:
        shutil.copy(path, tmp_path / "images")
        label = shared("images/coco_val128/labels") / f"{path.stem}.txt"
        if label.exists():
            shutil.copy(label, tmp_path / "labels")
    return tmp_path


@pytest.fixture
def wrecked(few: Path) -> Path:
    """The model with noise on its weights."""
    model = onnx.load(str(shared(DETECTOR)))
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 4:
            noise = random.standard_normal(values.shape).astype(np.float32) * values.std()
            tensor.CopyFrom(numpy_helper.from_array(values + noise, tensor.name))
    onnx.save(model, str(few / "wrecked.onnx"))
    return few / "wrecked.onnx"


def made() -> Sidecar:
    return Sidecar.model_validate({"provenance": Provenance.model_validate({"method": "test"})})


@pytest.mark.parametrize("labelled", [True, False])
def test_the_gate_lets_the_same_model_through(few: Path, labelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "cannot_run", lambda job: None)
    model = shared(DETECTOR)
    gate = OnCpu(str(few / "images"), str(few / "labels") if labelled else None, None, 0.0, 1.0, False)
    sidecar, verdict = gate.check(model, made(), _Job(model))  # type: ignore[arg-type]
    assert sidecar.provenance is not None
    if labelled:
        accuracy = sidecar.provenance.accuracy
        assert accuracy["map"] == accuracy["map_reference"] > 0.1
        assert "a drop of 0.0000" in verdict
    else:
        assert sidecar.provenance.agreement == 1.0
    assert not sidecar.provenance.forced


@pytest.mark.parametrize("labelled", [True, False])
def test_the_gate_refuses_unless_forced(
    few: Path, wrecked: Path, labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "cannot_run", lambda job: None)
    job: Any = _Job(shared(DETECTOR))
    gate = OnCpu(str(few / "images"), str(few / "labels") if labelled else None, None, 0.005, 0.85, False)
    with pytest.raises(GateError, match="nothing was written") as caught:
        gate.check(wrecked, made(), job)
    assert caught.value.exit_code == 7
    forced = OnCpu(gate.images, gate.labels, None, 0.005, 0.85, True)
    sidecar, verdict = forced.check(wrecked, made(), job)
    assert sidecar.provenance is not None
    assert sidecar.provenance.forced
    assert verdict.endswith("forced")


def test_the_help_names_every_option() -> None:
    text = build("--help").stdout
    for option in ("--batch", "--timing-cache", "--version-compatible", "--calibrate-images", "--max-drop", "--force"):
        assert option in text


def test_the_sidecar_is_json_without_paths_of_this_machine(folder: Path) -> None:
    model = conv_relu(folder / "m.onnx")
    assert build(model, "--out", folder / "m.plan").returncode == 0
    text = (folder / "m.plan.json").read_text()
    assert json.loads(text)["version"] == 1
    assert str(folder) not in text
