"""How thoroughly TensorRT searches: what reaches its builder, and what plans say of it.

TensorRT-RTX has TensorRT's setting and builds without a GPU, so the levels are tried on its builder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from streamd.cli.build import _summary
from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.sidecar import read_sidecar
from streamd.engine.tensorrt import TensorRtSettings, builder, driver, job, network
from streamd.engine.tensorrt.builder import plan_for
from streamd.engine.tensorrt.job import BuildOptions, Job, prepare, settle_effort
from streamd.engine.tensorrt.version import OWN_EFFORT, Trt, vendor_logger
from streamd.errors import ConfigError
from tests.engine.onnx_models import conv_relu, qdq
from tests.engine.test_builder import RTX, T8, T10, T11
from tests.engine.trt import trt_here

H200 = driver.Gpu(0, "NVIDIA H200", (9, 0), "580.1")


@pytest.fixture(scope="module")
def trt() -> Trt:
    return trt_here()


def as_tensorrt(made: Job, effort: int | None) -> Job:
    """The job as if RTX's builder were TensorRT's, with an effort."""
    options, recipe = replace(made.options, effort=effort), replace(made.recipe, effort=effort)
    return replace(made, trt=replace(made.trt, name="tensorrt"), options=options, recipe=recipe)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a version that cannot be installed here the installed one."""

    def install(which: Trt) -> None:
        monkeypatch.setattr(job, "load_trt", lambda: which)
        monkeypatch.setattr(driver, "find_gpu", lambda ordinal: H200)

    return install


# What a version makes of it


@pytest.mark.parametrize("which", [T8, T10, T11, RTX], ids=str)
def test_unset_is_the_versions_own(which: Trt) -> None:
    assert settle_effort(which, None) is None


@pytest.mark.parametrize("which", [T10, T11], ids=str)
def test_levels_are_what_was_asked_for(which: Trt) -> None:
    assert [settle_effort(which, n) for n in range(6)] == [0, 1, 2, 3, 4, 5]


def test_tensorrt_8_5_has_its_own_and_two_below() -> None:
    assert [settle_effort(T8, n) for n in range(4)] == [1, 1, 2, None]
    for more in (4, 5):
        with pytest.raises(ConfigError, match=rf"effort {more}: not supported by TensorRT 8\.5\.3\.1; needs .* 8\.6"):
            settle_effort(T8, more)


def test_without_the_flag_nothing_is_below() -> None:
    bare = replace(T8, module=SimpleNamespace(BuilderFlag=SimpleNamespace(), IBuilderConfig=SimpleNamespace()))
    with pytest.raises(ConfigError, match=r"effort 1: not supported by TensorRT 8\.5\.3\.1"):
        settle_effort(bare, 1)
    assert settle_effort(bare, OWN_EFFORT) is None


def test_rtx_makes_no_other_plan() -> None:
    assert [settle_effort(RTX, n) for n in range(6)] == [None] * 6


def test_one_key_for_each_plan(on: Any, tmp_path: Path) -> None:
    model = conv_relu(tmp_path / "m.onnx")

    def keys() -> list[str]:
        return [prepare(model, BuildOptions(effort=n)).recipe.key for n in (None, *range(6))]

    on(T10)
    assert len(set(keys())) == 7
    on(RTX)
    assert len(set(keys())) == 1
    on(T8)
    own, least, quick, heuristic, same = [prepare(model, BuildOptions(effort=n)).recipe.key for n in (None, 0, 1, 2, 3)]
    assert own == same
    assert least == quick
    assert len({own, quick, heuristic}) == 3


# What reaches the builder


def configured(made: Job) -> Any:
    """The builder's configuration for a job, from the real builder."""
    logger = vendor_logger()
    of = made.trt.module.Builder(logger)
    net, _parser = network._parse(made, of, logger)
    return network._configure(made, of, net)[0]


def test_each_level_reaches_the_real_builder(trt: Trt, tmp_path: Path) -> None:
    made = prepare(conv_relu(tmp_path / "m.onnx"), BuildOptions(precision="fp32"))
    assert configured(as_tensorrt(made, None)).builder_optimization_level == OWN_EFFORT
    assert [configured(as_tensorrt(made, n)).builder_optimization_level for n in range(6)] == [0, 1, 2, 3, 4, 5]
    assert vendor_logger().take_errors() == []


@pytest.mark.parametrize(
    ("asked", "flags", "sources"),
    [(None, [], 0b11000), (0, [2], 0b1000), (1, [2], 0b1000), (2, [2], 0b11000), (3, [], 0b11000)],
)
def test_tensorrt_8_5_gets_its_flag_and_its_tactics(
    on: Any, tmp_path: Path, asked: int | None, flags: list[int], sources: int
) -> None:
    on(T8)
    found: list[int] = []
    assert T8.module.BuilderFlag.ENABLE_TACTIC_HEURISTIC == 2
    masks: list[int] = []
    config = SimpleNamespace(set_flag=found.append, set_tactic_sources=masks.append)
    made = prepare(conv_relu(tmp_path / "m.onnx"), BuildOptions(effort=asked))
    network._set_effort(made, config)
    network._own_tactics(made, config)
    assert found == flags
    assert masks == [sources]
    assert not hasattr(config, "builder_optimization_level")


def test_rtx_builds_the_same_plan_at_every_level(trt: Trt, tmp_path: Path) -> None:
    """If a later RTX does not, it has effort levels (`Trt.has_effort_levels`)."""
    if not trt.is_rtx:
        pytest.skip("TensorRT is installed instead of RTX")
    made = prepare(qdq(tmp_path / "m.onnx"), BuildOptions())
    plans = [bytes(network.build_one(as_tensorrt(made, n))[0]) for n in (None, *range(6))]
    assert plans.count(plans[0]) == 7


# What is told


def test_the_plan_and_the_command_say_it(trt: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = as_tensorrt(prepare(conv_relu(tmp_path / "m.onnx"), BuildOptions(precision="fp32")), 1)
    plan, sidecar = network.build_one(made)
    assert sidecar.provenance is not None
    assert sidecar.provenance.effort == 1
    out = tmp_path / "m.plan"
    out.write_bytes(plan)
    _summary(made, out, sidecar, "")
    assert f"for {made.recipe.gpu}, effort 1, built in " in capsys.readouterr().out
    own = sidecar.provenance.model_copy(update={"effort": None})
    _summary(made, out, sidecar.model_copy(update={"provenance": own}), "")
    assert "effort" not in capsys.readouterr().out


def test_a_build_at_another_effort_is_told_once(on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "build_one", lambda job: None)
    model = conv_relu(tmp_path / "m.onnx")

    def told(which: Trt, asked: int | None) -> list[tuple[str, Any, Any]]:
        on(which)
        with capture_logs() as logs:
            builder.build(prepare(model, BuildOptions(effort=asked)))
        return [(e["event"].partition(":")[0], e["effort"], e.get("used")) for e in logs]

    nearest, ignored = "this TensorRT has no such effort; the nearest is used", "effort is ignored"
    assert [told(T8, n) for n in (0, 1)] == [[(nearest, 0, 1)], []]
    assert [told(T8, n) for n in (None, 2, 3)] == [[]] * 3
    assert [told(T10, n) for n in (None, *range(6))] == [[]] * 7
    assert [told(RTX, n) for n in (1, 5)] == [[(ignored, 1, None)], [(ignored, 5, None)]]
    assert [told(RTX, n) for n in (None, 3)] == [[]] * 2


def test_efforts_do_not_share_a_timing_cache(on: Any, tmp_path: Path) -> None:
    """A cached choice of a short search would end a longer one."""
    on(T10)
    model = conv_relu(tmp_path / "m.onnx")
    names = [builder._timing_name(prepare(model, BuildOptions(effort=n))) for n in (None, 0, 5)]
    assert names == [f"streamd-tensorrt-10.16.1.11{suffix}.timing" for suffix in ("", "-effort0", "-effort5")]


def test_the_daemons_own_plan(trt: Trt, tmp_path: Path) -> None:
    model, batch = ModelSettings(path=str(conv_relu(tmp_path / "m.onnx"))), BatchSettings(max=2)
    own = plan_for(model, TensorRtSettings(cache_dir=str(tmp_path)), batch)
    with capture_logs() as logs:
        plan = plan_for(model, TensorRtSettings(cache_dir=str(tmp_path), effort=1), batch)
    made = read_sidecar(plan).provenance
    assert made is not None
    if trt.is_rtx:
        assert plan == own, "which is what an effort would have built"
        assert made.effort is None
    else:
        assert made.effort == settle_effort(trt, 1)
        assert any("effort TensorRT's own, wanted" in e["reason"] for e in logs if "reason" in e)
    with pytest.raises(ValidationError, match="effort"):
        TensorRtSettings(effort=6)
