"""The plan cache: what fits, what is rebuilt and why, who builds, and that nothing half-written is ever seen."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.sidecar import Provenance, Sidecar, read_sidecar, sidecar_path, write_sidecar
from streamd.engine.tensorrt import TensorRtSettings, plans
from streamd.engine.tensorrt.builder import plan_for
from streamd.engine.tensorrt.driver import Gpu
from streamd.engine.tensorrt.plans import Recipe, StagedPlan, building, check_plan, find_plan, writable_folder
from streamd.engine.tensorrt.version import Trt
from streamd.errors import ConfigError, ModelError
from tests.engine.onnx_models import conv_relu
from tests.engine.trt import trt_here

RECIPE = Recipe("a" * 64, "fp16", (1, 8, 16), "8.5.3.1", "NVIDIA H200 (compute capability 9.0)", (640, 640))
H200, OTHER = Gpu(0, "NVIDIA H200", (9, 0), "580.1"), Gpu(0, "NVIDIA T4", (7, 5), "580.1")


def trt(*version: int, rtx: bool = False) -> Trt:
    return Trt(None, "tensorrt_rtx" if rtx else "tensorrt", version)


def put(path: Path, recipe: Recipe = RECIPE, *, source: str = "m.onnx", body: bytes = b"plan", **changes: Any) -> Path:
    """A plan file with the sidecar that a build by this recipe would have."""
    made = {
        "source": source,
        "source_sha256": recipe.model_sha256,
        "precision": recipe.precision,
        "profile": recipe.profile,
        "tensorrt": recipe.tensorrt,
        "gpu": recipe.gpu,
        "key": recipe.key,
    }
    path.write_bytes(body)
    provenance = Provenance.model_validate(made | changes)
    write_sidecar(path, Sidecar.model_validate({"sha256": hashlib.sha256(body).hexdigest(), "provenance": provenance}))
    return path


# What fits


def test_every_part_of_a_recipe_is_in_its_key() -> None:
    changed: dict[str, Any] = {
        "model_sha256": "b" * 64, "precision": "int8", "profile": (1, 8, 32), "tensorrt": "8.6.1.6", "gpu": "T4",
        "input_size": (640, 480), "profiles": 2, "workspace_mb": 512, "calibration_sha256": "c" * 64,
        "revision": 0, "float_sha256": "d" * 64, "effort": 1,
    }  # fmt: skip
    assert set(changed) == set(RECIPE.__dataclass_fields__)
    keys = {replace(RECIPE, **{name: value}).key for name, value in changed.items()}
    assert len(keys | {RECIPE.key}) == len(changed) + 1


def test_plans_from_before_a_field_existed_keep_their_key() -> None:
    # Computed before Recipe.effort existed.
    assert replace(RECIPE, revision=1).key == "fd86afe1749a58571fc0819061c62d951a6db5702171745df608a6c09c98f4c0"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_sha256": "b" * 64}, "the model has changed"),
        ({"tensorrt": "10.3.0.26"}, "built by TensorRT 8.5.3.1, installed is 10.3.0.26"),
        ({"gpu": "NVIDIA T4 (compute capability 7.5)"}, "built for NVIDIA H200 .*, this GPU is NVIDIA T4"),
        ({"precision": "int8"}, "precision fp16, wanted int8"),
        ({"profile": (1, 2, 4)}, "batches of 1/8/16, wanted 1/2/4"),
        ({"effort": 1}, "effort TensorRT's own, wanted 1"),
        ({"workspace_mb": 64}, "other options"),
    ],
)
def test_a_plan_that_differs_is_not_used_and_the_reason_is_told(tmp_path: Path, change: Any, says: str) -> None:
    plan = put(tmp_path / "m.plan")
    assert find_plan(RECIPE, "m.onnx", [tmp_path]) == (plan, "")
    found, reason = find_plan(replace(RECIPE, **change), "m.onnx", [tmp_path])
    assert found is None
    assert "m.plan" in reason
    assert re.search(says, reason)


def test_plans_of_other_models_and_files_that_are_not_finished_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "other.plan", source="other.onnx")
    put(tmp_path / ".hidden.plan")
    (tmp_path / "bare.plan").write_bytes(b"x")
    (tmp_path / "broken.plan").write_bytes(b"x")
    (tmp_path / "broken.plan.json").write_text("{")
    found, reason = find_plan(RECIPE, "m.onnx", [tmp_path / "absent", tmp_path])
    assert (found, reason) == (None, "no plan has been built yet")


def test_a_truncated_plan_is_not_used(tmp_path: Path) -> None:
    plan = put(tmp_path / "m.plan", body=b"0123456789")
    plan.write_bytes(b"01234")
    found, reason = find_plan(RECIPE, "m.onnx", [tmp_path])
    assert found is None
    assert "not the file that its sidecar describes" in reason


# A plan that was named


@pytest.mark.parametrize(
    ("changes", "here", "gpu", "says"),
    [
        ({}, trt(8, 5, 3, 1), H200, None),
        ({}, trt(8, 5, 3, 1), None, None),
        ({}, trt(8, 6, 1, 6), H200, "built by TensorRT 8.5.3.1, this is 8.6.1.6"),
        ({}, trt(1, 7, 1, 116, rtx=True), None, "this is RTX 1.7.1.116"),
        ({}, trt(8, 5, 3, 1), OTHER, "was built for NVIDIA H200"),
        ({"tensorrt": "10.1.0 (version compatible)"}, trt(10, 3, 0), H200, None),
        ({"tensorrt": "10.3.0 (version compatible)"}, trt(10, 1, 0), H200, "built by TensorRT 10.3.0"),
        ({"gpu": plans.ANY_AMPERE}, trt(8, 5, 3, 1), H200, None),
        ({"gpu": plans.ANY_AMPERE}, trt(8, 5, 3, 1), OTHER, "compute capability 8.0 or later"),
        ({"tensorrt": "RTX 1.7", "gpu": plans.ANY_RTX}, trt(1, 7, rtx=True), OTHER, None),
    ],
)
def test_a_named_plan_is_checked(tmp_path: Path, changes: Any, here: Trt, gpu: Any, says: str | None) -> None:
    plan = put(tmp_path / "m.plan", **changes)
    if says is None:
        check_plan(plan, here, gpu)
        return
    with pytest.raises(ModelError, match=says):
        check_plan(plan, here, gpu)


def test_a_named_plan_that_was_cut_short(tmp_path: Path) -> None:
    plan = put(tmp_path / "m.plan", body=bytes(1000))
    plan.write_bytes(bytes(999))
    with pytest.raises(ModelError, match=r"m\.plan: is not the file that its sidecar describes"):
        check_plan(plan, trt(8, 5, 3, 1), H200)


def test_a_plan_without_a_sidecar_is_taken_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "m.plan").write_bytes(b"plan")
    with capture_logs() as logs:
        check_plan(tmp_path / "m.plan", trt(8, 5, 3, 1), H200)
    assert [entry["log_level"] for entry in logs] == ["warning"]


# Where plans are kept


def test_the_first_folder_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert writable_folder([tmp_path / "file" / "x", tmp_path / "new" / "deep"]) == tmp_path / "new" / "deep"
    with pytest.raises(ConfigError, match=r"engine\.cache_dir"):
        writable_folder([tmp_path / "file" / "x"])


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    model = tmp_path / "models" / "m.onnx"
    assert plans.plan_folders(model, None) == [tmp_path / "models", tmp_path / "xdg" / "streamd"]
    assert plans.plan_folders(model, "/elsewhere") == [Path("/elsewhere")]
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/streamd:/var/cache/other")
    assert plans.plan_folders(model, None)[1] == Path("/var/cache/streamd")


# Whole or not at all


def test_a_staged_plan_replaces_only_when_committed(tmp_path: Path) -> None:
    out = put(tmp_path / "m.plan", body=b"old")
    before = sidecar_path(out).read_text()
    with pytest.raises(RuntimeError, match="gate"), StagedPlan(out) as staged:
        staged.write(memoryview(b"new"), Sidecar(version=1))
        assert staged.path.suffix == ".plan", "it must be known as a plan to be evaluated"
        raise RuntimeError("gate")
    assert (out.read_bytes(), sidecar_path(out).read_text()) == (b"old", before)
    with StagedPlan(out) as staged:
        staged.write(memoryview(b"new"), Sidecar(version=1))
        staged.commit()
    assert out.read_bytes() == b"new"
    assert read_sidecar(out).sha256 == hashlib.sha256(b"new").hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.plan", "m.plan.json"]
    assert out.stat().st_mode == sidecar_path(out).stat().st_mode


FULL = """
import resource, sys
from pathlib import Path
from streamd.engine.tensorrt.plans import StagedPlan
from streamd.errors import StreamdError
from streamd.engine.sidecar import Sidecar
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    with StagedPlan(Path(sys.argv[1])) as staged:
        staged.write(memoryview(bytes(1 << 20)), Sidecar(version=1))
        staged.commit()
except StreamdError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_a_disk_that_fills_up_while_writing(tmp_path: Path) -> None:
    out = put(tmp_path / "m.plan", body=b"old")
    done = subprocess.run([sys.executable, "-c", FULL, str(out)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"ModelError: plan {out}: 1 MiB cannot be written")
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.plan", "m.plan.json"]


@pytest.mark.parametrize("out", ["absent/m.plan", "."])
def test_an_output_that_cannot_be_is_refused_at_once(tmp_path: Path, out: str) -> None:
    with pytest.raises(ConfigError, match="plan "):
        StagedPlan(tmp_path / out)


def test_two_builders_take_turns(tmp_path: Path) -> None:
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        entered.wait(5)
        # Locks of one process on separate handles exclude each other as those of two processes do.
        with building(tmp_path, "m.plan"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with building(tmp_path, "m.plan"):
        entered.set()
        thread.join(0.3)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


# The real thing


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    trt_here()
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def ask(model: Path, batch: int | None = 4, **settings: Any) -> tuple[Path, list[str]]:
    """The plan, and why it was built where it was."""
    with capture_logs() as logs:
        plan = plan_for(
            ModelSettings(path=str(model)), TensorRtSettings.model_validate(settings), BatchSettings(max=batch)
        )
    return plan, [str(e["reason"]) for e in logs if e["event"].startswith("building an engine plan")]


def test_builds_once_and_reuses(home: Path) -> None:
    model = conv_relu(home / "m.onnx")
    plan, why = ask(model)
    assert why == ["no plan has been built yet"]
    assert plan.parent == home
    stamp = plan.stat().st_mtime_ns
    assert ask(model) == (plan, [])
    assert plan.stat().st_mtime_ns == stamp
    made = read_sidecar(plan).provenance
    assert made is not None
    assert made.profile == (1, 2, 4)
    assert ask(plan)[0] == plan, "and it can be named itself"


def test_rebuilds_with_a_reason(home: Path) -> None:
    model = conv_relu(home / "m.onnx")
    first, _ = ask(model)
    conv_relu(model, seed=1)
    second, why = ask(model)
    assert second != first
    assert len(why) == 1
    assert "the model has changed" in why[0]
    third, why = ask(model, batch=2)
    assert len(why) == 1
    assert "batches of 1/2/4, wanted 1/1/2" in why[0]
    assert third not in (first, second)
    fourth, why = ask(model, precision="fp32")
    assert fourth not in (first, second, third)
    assert len(why) == 1
    assert ask(model) == (second, []), "the others are still good for what they were built for"


def test_a_damaged_cached_plan_is_built_again(home: Path) -> None:
    model = conv_relu(home / "m.onnx")
    plan, _ = ask(model)
    whole = plan.read_bytes()
    plan.write_bytes(whole[: len(whole) // 2])
    again, why = ask(model)
    assert again == plan
    assert "not the file that its sidecar describes" in why[0]
    assert plan.stat().st_size == len(whole)


def test_a_plan_of_streamd_build_beside_the_model_is_found(home: Path) -> None:
    model = conv_relu(home / "m.onnx")
    plan, _ = ask(model)
    plan.rename(home / "mine.engine")
    sidecar_path(plan).rename(home / "mine.engine.json")
    assert ask(model) == (home / "mine.engine", [])


def test_cache_dir(home: Path, tmp_path: Path) -> None:
    model = conv_relu(home / "m.onnx")
    plan, _ = ask(model, cache_dir=str(tmp_path / "cache"))
    assert plan.parent == tmp_path / "cache"
    assert [p.name for p in home.iterdir()] == ["m.onnx"]


def test_class_names_follow_the_models_sidecar(home: Path) -> None:
    model = conv_relu(home / "m.onnx")
    plan, _ = ask(model)
    assert read_sidecar(plan).labels is None
    write_sidecar(model, Sidecar(version=1, labels=("cat", "dog")))
    assert ask(model) == (plan, [])
    renewed = read_sidecar(plan)
    assert renewed.labels == ("cat", "dog")
    assert renewed.sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()


def test_a_fixed_batch_bounds_the_configuration(home: Path) -> None:
    model = conv_relu(home / "m.onnx", batch=2)
    with pytest.raises(ModelError, match="fixed at 2"):
        ask(model, batch=4)
    made = read_sidecar(ask(model, batch=None)[0]).provenance
    assert made is not None
    assert made.profile == (2, 2, 2)


BUILDER = """
import sys
from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.tensorrt import TensorRtSettings
from streamd.engine.tensorrt.builder import plan_for
from streamd.telemetry.logs import configure
configure("info", "json")
print(plan_for(ModelSettings(path=sys.argv[1]), TensorRtSettings(), BatchSettings(max=4)))
"""


def test_processes_that_start_together_build_once(home: Path) -> None:
    model = conv_relu(home / "m.onnx")
    command = [sys.executable, "-c", BUILDER, str(model)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    results = [process.communicate(timeout=100) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1
    events = [json.loads(line)["event"] for _, err in results for line in err.splitlines() if line.startswith("{")]
    assert sum(e.startswith("building an engine plan") for e in events) == 1
    assert not [p.name for p in home.iterdir() if p.name.startswith(".") and not p.name.endswith(".lock")]
