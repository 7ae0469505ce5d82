"""INT8 or FP16 by measured time: which float model counts, which plan is kept, and what its sidecar says."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from streamd.engine.model import model_file
from streamd.engine.onnx.reader import read_onnx
from streamd.engine.sidecar import Provenance, Sidecar, read_sidecar
from streamd.engine.tensorrt import driver, job, network, plans
from streamd.engine.tensorrt.builder import build
from streamd.engine.tensorrt.fastest import build_fastest, choose, verdict
from streamd.engine.tensorrt.job import BuildOptions, Job, find_float, prepare, settle_precision
from streamd.engine.tensorrt.version import Trt
from streamd.errors import BackendError, ConfigError, ModelError
from tests.engine.onnx_models import conv_relu
from tests.engine.test_builder import RTX, T8, T11
from tests.engine.trt import trt_here

ROAD6, ROAD6_FLOAT = model_file("builtin:road6"), model_file("builtin:road6_float")
H200 = driver.Gpu(0, "NVIDIA H200", (9, 0), "580.1")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """The demo's quantized model, in a folder with the float model that it was made from."""
    for path in (ROAD6, ROAD6_FLOAT):
        shutil.copy(path, tmp_path)
        shutil.copy(f"{path}.json", tmp_path)
    return tmp_path / ROAD6.name


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trt], None]:
    """Prepares jobs for a GPU and a TensorRT that are not installed; nothing is built."""

    def use(trt: Trt) -> None:
        monkeypatch.setattr(job, "load_trt", lambda: trt)
        monkeypatch.setattr(driver, "find_gpu", lambda _: H200)

    return use


# The float model


def test_the_float_model_that_the_sidecar_names_is_found_beside_it(pair: Path) -> None:
    found = find_float(read_onnx(pair), None)
    assert found is not None
    assert (found.path, found.sha256) == (pair.with_name("road6_float.onnx"), read_onnx(ROAD6_FLOAT).sha256)


@pytest.mark.parametrize("change", ["absent", "another", "damaged", "no sidecar"])
def test_no_other_model_is_taken_for_it(pair: Path, change: str) -> None:
    beside = pair.with_name("road6_float.onnx")
    if change == "absent":
        beside.unlink()
    elif change == "another":
        conv_relu(beside)
    elif change == "damaged":
        beside.write_bytes(beside.read_bytes()[:1000])
    else:
        Path(f"{pair}.json").unlink()
    assert find_float(read_onnx(pair), None) is None


def test_the_user_may_name_it(pair: Path) -> None:
    pair.with_name("road6_float.onnx").unlink()
    found = find_float(read_onnx(pair), ROAD6_FLOAT)
    assert found is not None
    assert found.path == ROAD6_FLOAT


def test_what_the_user_names_has_to_be_it(pair: Path, tmp_path: Path) -> None:
    quantized = read_onnx(pair)
    for wrong in (conv_relu(tmp_path / "other.onnx"), pair):
        with pytest.raises(ConfigError, match=rf"float model {wrong}: is not the model \(road6_float.onnx\) that"):
            find_float(quantized, wrong)
    with pytest.raises(ConfigError, match="is a float model itself; leave it out"):
        find_float(read_onnx(ROAD6_FLOAT), pair)


# The choice of what is built


@pytest.mark.parametrize(
    ("which", "asked", "expected"),
    [
        (T8, "auto", ("fastest", "the faster of INT8 and FP16")),
        (T11, "auto", ("fastest", "the faster of INT8 and FP16")),
        (T8, "int8", ("int8", "explicit Q/DQ")),
        (T8, "fp16", ("fp16", "FP16 flag, from road6_float.onnx")),
        (T11, "fp16", ("fp16", "converted to float16, from road6_float.onnx")),
        (RTX, "fp32", ("fp32", "as exported, from road6_float.onnx")),
        (T8, "mixed", ("mixed", "INT8 or FP16 by layer, by measured time")),
    ],
)
def test_precision_of_a_quantized_model_whose_float_model_is_at_hand(
    pair: Path, which: Trt, asked: Any, expected: tuple[str, str]
) -> None:
    quantized = read_onnx(pair)
    options = BuildOptions(precision=asked)
    assert settle_precision(which, quantized, options, find_float(quantized, None)) == expected


def test_half_precision_without_it_says_what_is_missing(pair: Path) -> None:
    with pytest.raises(ConfigError, match=r"put road6_float\.onnx into its folder, or name it \(--float-model"):
        settle_precision(T8, read_onnx(pair), BuildOptions(precision="fp16"), None)


def test_nothing_is_compared_without_a_gpu(pair: Path, gpu: Callable[[Trt], None], monkeypatch: Any) -> None:
    gpu(RTX)
    monkeypatch.setattr(driver, "find_gpu", lambda _: None)
    assert prepare(pair, BuildOptions()).recipe.precision == "int8"


def test_the_float_model_is_part_of_a_plans_identity(pair: Path, gpu: Callable[[Trt], None]) -> None:
    gpu(T8)
    compared = prepare(pair, BuildOptions()).recipe
    int8 = prepare(pair, BuildOptions(precision="int8")).recipe
    assert (compared.precision, int8.precision, int8.float_sha256) == ("fastest", "int8", None)
    pair.with_name("road6_float.onnx").unlink()
    alone = prepare(pair, BuildOptions())
    assert alone.recipe == int8, "a plan that was built before the float model was there still fits"
    mixed = prepare(pair, BuildOptions(precision="mixed")).recipe
    with_float = prepare(pair, BuildOptions(precision="mixed", float_model=ROAD6_FLOAT)).recipe
    assert mixed.key != with_float.key


def test_a_plan_keeps_the_key_that_it_had_before_float_models_counted() -> None:
    recipe = plans.Recipe("m", "int8", (1, 8, 16), "8.5.3.1", "NVIDIA H200", (640, 640), revision=1)
    assert recipe.key == "5fee4fb1f0b82d55758c9494d117e2ceac026187bdc3e8c8702dd8d168c0cf73"


# What TensorRT reads


def float_layers() -> tuple[str, ...]:
    """Of the bundled INT8 model."""
    made = read_sidecar(ROAD6).provenance
    assert made is not None
    return made.float_layers


def test_half_precision_and_mixed_read_the_float_models_weights(pair: Path, gpu: Callable[[Trt], None]) -> None:
    gpu(T8)
    float_bytes = ROAD6_FLOAT.read_bytes()
    assert network._load(prepare(pair, BuildOptions(precision="fp16"))) == (float_bytes, {})
    data, ranges = network._load(prepare(pair, BuildOptions(precision="mixed")))
    assert data == float_bytes
    made = onnx.load_from_string(float_bytes).graph
    names = {name for node in made.node for name in node.output} | {t.name for t in made.input}
    # All but those of layers in float, the last ones among them.
    convolutions = [node.input[0] for node in made.node if node.op_type == "Conv"]
    known = [name for name in convolutions if name in ranges]
    assert len(known) >= len(convolutions) - 3 - len(float_layers())
    assert names & set(ranges) >= set(known)
    assert network._load(prepare(pair, BuildOptions(precision="int8")))[0] != float_bytes


def test_ranges_of_joined_tensors_have_the_float_models_names(pair: Path, gpu: Callable[[Trt], None]) -> None:
    gpu(T8)
    _, ranges = network._load(prepare(pair, BuildOptions(precision="mixed")))
    nodes = onnx.load(ROAD6_FLOAT).graph.node
    read = {name for node in nodes if node.name not in float_layers() for name in node.input}
    joined = [n.output[0] for n in nodes if n.op_type == "Concat" and n.output[0] in read]
    assert len(joined) >= 8
    assert all(ranges[name] > 0 for name in joined)


# Which plan is kept


def compared(pair: Path, int8: float, fp16: float, build: Any = None) -> tuple[Any, Sidecar, list[str]]:
    """`build_fastest` with a builder that returns the precision's name, and given times at the best batch."""
    built: list[str] = []

    def one(each: Job) -> tuple[Any, Sidecar]:
        built.append(each.recipe.precision)
        if build is not None:
            build(each)
        made = Provenance(precision=each.recipe.precision, method=each.method, key=each.recipe.key, build_seconds=2.0)
        return each.recipe.precision.encode(), Sidecar(version=1, provenance=made)

    def measured(each: Job, made: Mapping[str, Any]) -> dict[str, dict[int, float]]:
        assert made == {"int8": b"int8", "fp16": b"fp16"}
        return {"int8": {1: 9.0, 8: int8, 16: 9.0}, "fp16": {1: 1.0, 8: fp16, 16: 1.0}}

    plan, sidecar = build_fastest(prepare(pair, BuildOptions()), one, measured)
    return plan, sidecar, built


@pytest.mark.parametrize(
    ("int8", "fp16", "kept"), [(1.0, 2.0, "int8"), (2.0, 1.0, "fp16"), (0.98, 1.0, "fp16"), (0.96, 1.0, "int8")]
)
def test_the_faster_plan_is_kept(pair: Path, gpu: Callable[[Trt], None], int8: float, fp16: float, kept: str) -> None:
    gpu(T8)
    plan, sidecar, built = compared(pair, int8, fp16)
    assert (plan, built) == (kept.encode(), ["int8", "fp16"])
    made = sidecar.provenance
    assert made is not None
    assert made.precision == kept
    assert made.key == prepare(pair, BuildOptions()).recipe.key, "found again by what was asked for"
    assert made.build_seconds == 4.0
    assert made.compared_ms == {
        "int8": {"1": 9.0, "8": int8, "16": 9.0}, "fp16": {"1": 1.0, "8": fp16, "16": 1.0},
    }  # fmt: skip


def test_if_one_cannot_be_built_the_other_is_kept(pair: Path, gpu: Callable[[Trt], None]) -> None:
    gpu(T8)

    def fails(each: Job) -> None:
        if each.recipe.precision == "int8":
            raise BackendError("TensorRT 8.5.3: Myelin error")

    plan, sidecar, _ = compared(pair, 1.0, 9.0, fails)
    assert plan == b"fp16"
    assert sidecar.provenance is not None
    assert sidecar.provenance.compared_ms == {}


def test_if_neither_can_be_built_the_first_reason_is_told(pair: Path, gpu: Callable[[Trt], None]) -> None:
    gpu(T8)

    def fails(each: Job) -> None:
        raise BackendError(f"{each.recipe.precision} fails")

    with pytest.raises(BackendError, match="int8 fails"):
        compared(pair, 1.0, 1.0, fails)


def test_a_difference_in_precision_is_told_as_what_was_asked_for() -> None:
    recipe = plans.Recipe("m", "int8", (1, 8, 16), "8.5.3.1", str(H200), (640, 640))
    made = Provenance(
        source_sha256="m", precision="fp16", profile=(1, 8, 16), tensorrt="8.5.3.1", gpu=str(H200),
        compared_ms={"int8": {"8": 2.0}, "fp16": {"8": 1.0}},
    )  # fmt: skip
    assert recipe.differs(made) == "precision fastest, wanted int8"
    assert "precision" not in replace(recipe, precision="fastest").differs(made)


def test_the_times_are_told_in_one_line() -> None:
    said = verdict({"int8": {"16": 3.0, "1": 0.5}, "fp16": {"16": 2.0, "1": 1.0}})
    assert said == "time per batch, INT8 / FP16: 0.50 / 1.00 ms at 1, 3.00 / 2.00 ms at 16 (0.50 to 1.50 of FP16's)"


def test_the_size_that_plans_are_made_for_decides() -> None:
    times = {"int8": {1: 1.0, 8: 3.0}, "fp16": {1: 2.0, 8: 2.0}}
    assert (choose(times, 1), choose(times, 8)) == ("int8", "fp16")


def test_what_cannot_be_parsed_is_the_float_model_and_it_is_named(pair: Path) -> None:
    import onnx

    trt_here()
    made = prepare(pair, BuildOptions(precision="fp16"))
    path = pair.with_name(ROAD6_FLOAT.name)
    model = onnx.load(str(path))
    next(node for node in model.graph.node if node.op_type == "Conv").input[1] = "nowhere"
    onnx.save(model, str(path))
    with pytest.raises(ModelError, match=rf"model .*{ROAD6_FLOAT.name}: .* cannot parse it: "):
        build(made)


def test_the_builder_builds_half_precision_from_the_float_model(pair: Path) -> None:
    trt_here()
    plan, sidecar = build(prepare(pair, BuildOptions(precision="fp16")))
    assert plan.nbytes > 0
    made = sidecar.provenance
    assert made is not None
    assert (made.precision, made.source, made.float_layers) == ("fp16", "road6.onnx", ())
    assert made.method == "converted to float16, from road6_float.onnx"
    assert sidecar.labels == ("person", "bicycle", "car", "motorcycle", "bus", "truck")
