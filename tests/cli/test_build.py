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
from streamd.cli.build import _batches, _job, add_parser
from streamd.cli.gate import PlanGate, add_gate_options, gate_of
from streamd.engine.model import sha256_of
from streamd.engine.onnx.reader import read_onnx
from streamd.engine.sidecar import Provenance, Sidecar, read_sidecar
from streamd.engine.tensorrt.driver import find_gpu
from streamd.errors import BackendError, ConfigError, GateError
from streamd.models.pictures import Feeder, Pictures
from streamd.types import ModelSpec, TensorSpec
from tests.conftest import shared
from tests.engine.onnx_models import conv_relu, qdq, unsupported
from tests.engine.trt import trt_here
from tests.models.nets import detector, joined_sigmoid

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
    done = build(shared(SMALL), "--out", folder / "m.plan", "--head", "yolov5_sigmoid")
    assert done.returncode == 0, done.stderr
    assert "fp16" in done.stdout
    assert "accuracy: not checked" in done.stdout
    assert names(folder) == ["m.plan", "m.plan.json"]
    sidecar = read_sidecar(folder / "m.plan")
    assert sidecar.head == {"kind": "yolov5_sigmoid"}
    made = sidecar.provenance
    assert made is not None
    assert (made.precision, made.profile, made.source) == ("fp16", (1, 1, 1), Path(SMALL).name)


def test_qdq_model_with_a_profile(folder: Path) -> None:
    model = qdq(folder / "q.onnx")
    done = build(model, "--out", folder / "q.engine", "--batch", "1", "2", "8", "--profiles", "2", "--workspace", "64")
    assert done.returncode == 0, done.stderr
    made = read_sidecar(folder / "q.engine").provenance
    assert made is not None
    assert (made.precision, made.profile, made.method) == ("int8", (1, 2, 8), "explicit Q/DQ")
    assert f"FP16 was not compared: the float model that it was made from is not beside {model}; " in done.stdout
    sidecar = {"version": 1, "provenance": {"source": "yard.onnx"}}
    model.with_name("q.onnx.json").write_text(json.dumps(sidecar))
    done = build(model, "--out", folder / "q.engine", "--batch", "1", "2", "8")
    assert f"the float model yard.onnx is not beside {model}; --float-model names it" in done.stdout


def test_an_existing_plan_survives_every_refusal(folder: Path) -> None:
    out = folder / "m.plan"
    out.write_bytes(b"the plan that works")
    whole = conv_relu(folder / "m.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    unsupported(folder / "bad.onnx")
    before = names(folder)
    assert "truncated or damaged" in message(build(folder / "cut.onnx", "--out", out), 3)
    assert "is empty" in message(build(folder / "empty.onnx", "--out", out), 3)
    assert "does not exist" in message(build(folder / "absent.onnx", "--out", out), 3)
    text = message(build(folder / "bad.onnx", "--out", out, "--precision", "fp32"), 3)
    assert "first_bad (Det)" in text
    assert out.read_bytes() == b"the plan that works"
    assert names(folder) == before


def test_undecoded_rows_need_a_declared_head(folder: Path) -> None:
    """A plan decodes on the device, where nothing would notice that boxes are relative to cells."""
    model = joined_sigmoid(detector(folder / "heads.onnx"), folder / "m.onnx")
    assert read_onnx(model).ends_in_sigmoid
    assert not read_onnx(folder / "heads.onnx").ends_in_sigmoid
    assert "declare --head yolov5_sigmoid" in message(build(model, "--out", folder / "m.plan"), 3)
    assert not (folder / "m.plan").exists()


def test_arguments_that_make_no_sense(folder: Path) -> None:
    model = conv_relu(folder / "m.onnx")
    out = folder / "m.plan"
    assert "must end in .plan or .engine or .trt" in message(build(model, "--out", folder / "m.bin"), 2)
    assert "absent" in message(build(model, "--out", folder / "absent" / "m.plan"), 2)
    assert "--batch 4 2 1" in message(build(model, "--out", out, "--batch", "4", "2", "1"), 2)
    assert "streamd quantize" in message(build(model, "--out", out, "--precision", "int8"), 2)
    done = build(model, "--out", out, "--profiles", "0")
    assert done.returncode == 2
    assert "--profiles: must be at least 1" in done.stderr
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
    done = build(
        shared(SMALL), "--out", folder / "m.plan", "--eval-images", images, "--head", "yolov5_sigmoid"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy not checked: this machine cannot run the plan" in done.stdout
    made = read_sidecar(folder / "m.plan").provenance
    assert made is not None
    assert "accuracy not checked" in str(made.method)
    assert not made.accuracy


# Calibration pictures


SPEC = ModelSpec("m", "", "m", TensorSpec("images", (-1, 3, 64, 64), "float32"), (), (), scale=1 / 255)


def test_calibration_gets_whole_batches_and_names_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(shared("images/coco_val128/images").iterdir())[:5]:
        shutil.copy(path, tmp_path)
    (tmp_path / "000.jpg").write_bytes(b"not an image")
    batches = list(_batches(Feeder(SPEC), Pictures(str(tmp_path), 100), 2))
    assert [b.shape for b in batches] == [(2, 3, 64, 64)] * 2
    assert all(b.min() >= 0 and b.max() <= 1 and b.std() > 0.05 for b in batches)
    assert "000.jpg" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="one batch of 8"):
        list(_batches(Feeder(SPEC), Pictures(str(tmp_path), 100), 8))


def calibration_of(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> Any:
    """What the options come to on TensorRT 8.5.3, which is not here: only its version and abilities are asked."""
    from types import SimpleNamespace

    from streamd.engine.tensorrt import driver, job
    from streamd.engine.tensorrt.version import Trt

    flags = SimpleNamespace(FP16=0, INT8=1)
    module = SimpleNamespace(
        BuilderFlag=flags, NetworkDefinitionCreationFlag=SimpleNamespace(), IInt8EntropyCalibrator2=0
    )
    monkeypatch.setattr(job, "load_trt", lambda: Trt(module, "tensorrt", (8, 5, 3, 1)))
    monkeypatch.setattr(driver, "find_gpu", lambda ordinal: driver.Gpu(0, "NVIDIA H200", (9, 0), "580.1"))
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return _job(parser.parse_args(["build", *map(str, arguments)]))


def test_calibration_is_known_by_model_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv_relu(tmp_path / "m.onnx")
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(shared("images/coco_val128/images").iterdir())[:2]:
        shutil.copy(path, folder)
    options = (model, "--out", tmp_path / "m.plan", "--calibrate-images", folder)
    job = calibration_of(monkeypatch, *options)
    assert (job.recipe.precision, job.method) == ("int8", "implicit entropy calibration")
    key = job.options.calibration.sha256
    assert key == calibration_of(monkeypatch, *options).options.calibration.sha256 == job.recipe.calibration_sha256
    keys = {key, calibration_of(monkeypatch, *options, "--calibrate-batch", "2").options.calibration.sha256}
    next(folder.iterdir()).write_bytes(b"changed")
    keys.add(calibration_of(monkeypatch, *options).options.calibration.sha256)
    conv_relu(model, seed=1)
    keys.add(calibration_of(monkeypatch, *options).options.calibration.sha256)
    assert len(keys) == 4


def test_a_cache_alone_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache = conv_relu(tmp_path / "m.onnx"), tmp_path / "c.cache"
    plans = set()
    for content in (b"scales", b"other scales"):
        cache.write_bytes(content)
        job = calibration_of(monkeypatch, model, "--out", tmp_path / "m.plan", "--calibration-cache", cache)
        plans.add(job.recipe.key)
        assert job.options.calibration.model_sha256 == job.spec.sha256 == job.recipe.model_sha256 == sha256_of(model)
    assert len(plans) == 2


@pytest.mark.parametrize("given", ["absent", "."])
def test_no_pictures_to_calibrate_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    model = conv_relu(tmp_path / "m.onnx")
    (tmp_path / "empty").mkdir()
    where = tmp_path / "empty" / given
    with pytest.raises(ConfigError):
        calibration_of(monkeypatch, model, "--out", tmp_path / "m.plan", "--calibrate-images", where)


# The gate


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
        ("--eval-images", str(tmp_path), "--reference", str(tmp_path / "absent")),
    ):
        with pytest.raises(ConfigError):
            gate_of(options(*bad))


def on_cpu(few: Path, *, labelled: bool, max_drop: float, least: float | None, force: bool = False) -> PlanGate:
    """The gate with an ONNX file in the plan's place: everything but the plan's own engine is the real thing."""
    labels = str(few / "labels") if labelled else None
    return PlanGate(str(few / "images"), labels, None, max_drop, least, force, {"kind": "openvino"})


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
    gate = on_cpu(few, labelled=labelled, max_drop=0.0, least=1.0)
    sidecar, verdict = gate.check(model, made(), _Job(model))  # type: ignore[arg-type]
    assert sidecar.provenance is not None
    if labelled:
        accuracy = sidecar.provenance.accuracy
        assert accuracy["map"] == accuracy["map_float"] > 0.1
        assert "yolov5n_heads.onnx has" in verdict
    else:
        assert sidecar.provenance.agreement == 1.0
    assert not sidecar.provenance.forced


@pytest.mark.parametrize("labelled", [True, False])
def test_the_gate_refuses_unless_forced(
    few: Path, wrecked: Path, labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "cannot_run", lambda job: None)
    job: Any = _Job(shared(DETECTOR))
    gate = on_cpu(few, labelled=labelled, max_drop=0.01, least=None)
    with pytest.raises(GateError, match="nothing was written") as caught:
        gate.check(wrecked, made(), job)
    assert caught.value.exit_code == 7
    forced = on_cpu(few, labelled=labelled, max_drop=0.01, least=None, force=True)
    sidecar, verdict = forced.check(wrecked, made(), job)
    assert sidecar.provenance is not None
    assert sidecar.provenance.forced
    assert "--force although" in verdict


def test_the_plan_is_measured_on_its_own_engine(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "cannot_run", lambda job: None)
    engine = {"kind": "openvino", "device": "GPU.7"}
    gate = PlanGate(str(few / "images"), None, None, 0.01, None, True, engine)
    job: Any = _Job(shared(DETECTOR))
    # The reference does not need that device; the plan does, and force is no remedy for an engine that fails.
    with pytest.raises(BackendError, match=r"GPU\.7"):
        gate.check(shared(DETECTOR), made(), job)


@pytest.mark.parametrize("force", [False, True])
def test_a_reference_that_finds_nothing_proves_nothing(few: Path, force: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "cannot_run", lambda job: None)
    model = onnx.load(str(shared(DETECTOR)))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values * 0, tensor.name))
    onnx.save(model, str(few / "blind.onnx"))
    job: Any = _Job(few / "blind.onnx")
    gate = on_cpu(few, labelled=True, max_drop=1.0, least=None, force=force)
    if not force:
        with pytest.raises(GateError):
            gate.check(few / "blind.onnx", made(), job)
        return
    sidecar, verdict = gate.check(few / "blind.onnx", made(), job)
    assert sidecar.provenance is not None
    assert sidecar.provenance.forced
    assert not sidecar.provenance.accuracy
    assert "not measured" in verdict


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
