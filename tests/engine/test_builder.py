"""Building engine plans: settled choices, the real parser and builder, and what happens to broken models.

TensorRT-RTX builds without a GPU, so these run wherever it (or TensorRT with a GPU) is installed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from streamd.engine.onnx.half import to_half
from streamd.engine.onnx.reader import OnnxFile, OnnxNode, read_onnx
from streamd.engine.sidecar import Sidecar, read_sidecar, write_sidecar
from streamd.engine.tensorrt import version
from streamd.engine.tensorrt.builder import build, build_into
from streamd.engine.tensorrt.calibrator import Calibration, make_calibrator, read_cache
from streamd.engine.tensorrt.job import BuildOptions, prepare, settle_precision, settle_profile
from streamd.engine.tensorrt.version import Trt, load_trt, parse_version, tidy
from streamd.errors import BackendError, ConfigError, ModelError
from tests.conftest import shared
from tests.engine.onnx_models import conv_relu, detr_final, outside_weights, qdq, save, two_stage, unsupported, weight
from tests.engine.trt import trt_here


@pytest.fixture(scope="module")
def trt() -> Trt:
    return trt_here()


LEVELS = "builder_optimization_level"


def stand_in(name: Any, number: tuple[int, ...], flags: str, network: str, has: str, config: str = LEVELS) -> Trt:
    """A version that cannot be installed here: the names its Python module has, as listed from the real ones."""

    def names(text: str) -> Any:
        return SimpleNamespace(**{n: i for i, n in enumerate(text.split())})

    module = SimpleNamespace(
        BuilderFlag=names(flags), NetworkDefinitionCreationFlag=names(network), IBuilderConfig=names(config)
    )
    for item in has.split():
        setattr(module, item, object())
    return Trt(module, name, number)


CALIBRATOR, HARDWARE = "IInt8EntropyCalibrator2", "HardwareCompatibilityLevel"
T8 = stand_in(
    "tensorrt", (8, 5, 3, 1), "FP16 INT8 ENABLE_TACTIC_HEURISTIC", "EXPLICIT_BATCH EXPLICIT_PRECISION", CALIBRATOR, ""
)
T8.module.TacticSource = SimpleNamespace(
    CUBLAS=0, CUBLAS_LT=1, CUDNN=2, EDGE_MASK_CONVOLUTIONS=3, JIT_CONVOLUTIONS=4
)  # fmt: skip
T10 = stand_in(
    "tensorrt",
    (10, 16, 1, 11),
    "FP16 INT8 VERSION_COMPATIBLE",
    "EXPLICIT_BATCH STRONGLY_TYPED",
    f"{CALIBRATOR} {HARDWARE}",
)
T11 = stand_in("tensorrt", (11, 4, 0, 106), "VERSION_COMPATIBLE", "STRONGLY_TYPED", HARDWARE)
RTX = stand_in("tensorrt_rtx", (1, 7, 1, 116), "VERSION_COMPATIBLE", "STRONGLY_TYPED", HARDWARE)


@pytest.mark.parametrize(
    ("which", "flags", "implicit", "typed", "versions", "hardware", "one_each"),
    [
        (T8, 1, True, False, False, False, True),
        (T10, 0, True, False, True, True, False),
        (T11, 1, False, True, True, True, False),
        (RTX, 1, False, True, False, False, False),
    ],
    ids=str,
)
def test_abilities(
    which: Trt, flags: int, implicit: bool, typed: bool, versions: bool, hardware: bool, one_each: bool
) -> None:
    found = (which.network_flags, which.has_implicit_int8, which.always_strongly_typed)
    assert found == (flags, implicit, typed)
    assert (which.has_version_compatible, which.has_hardware_compatible, which.profile_per_context) == (
        versions, hardware, one_each,
    )  # fmt: skip


def test_where_the_effort_can_be_chosen() -> None:
    assert [which.has_effort_levels for which in (T8, T10, T11, RTX)] == [False, True, True, False]
    assert [which.has_tactic_heuristic for which in (T8, T10, T11, RTX)] == [True, False, False, False]
    # 8.6 still has the flag of 8.5.
    both = stand_in("tensorrt", (8, 6, 1, 6), "FP16 INT8 ENABLE_TACTIC_HEURISTIC", "EXPLICIT_BATCH", CALIBRATOR)
    assert (both.has_effort_levels, both.has_tactic_heuristic) == (True, False)


def test_versions_are_numbers() -> None:
    assert parse_version("10.3.0.26+cuda12") == (10, 3, 0, 26)
    assert parse_version("10.3.0.post26") == (10, 3, 0)
    assert parse_version("8.5.3.1") < parse_version("8.5.10")


def test_vendor_messages_lose_their_source_lines() -> None:
    assert tidy("2: [builder.cpp::buildSerializedNetwork::751] Error Code 2: Internal Error\n (x failed. )") == (
        "2: Error Code 2: Internal Error (x failed. )"
    )


def test_no_tensorrt_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        # None in sys.modules is how Python itself says "not importable".
        monkeypatch.setitem(sys.modules, name, None)
    load_trt.cache_clear()
    try:
        with pytest.raises(BackendError, match=r"pip install 'streamd\[trt\]'"):
            load_trt()
    finally:
        load_trt.cache_clear()


# What the file says


def test_onnx_file_is_read_without_onnx() -> None:
    file = read_onnx(shared("models/yolov5n_heads.onnx"))
    assert [(t.name, t.shape, t.dtype) for t in file.inputs] == [("images", (-1, 3, 640, 640), "float32")]
    assert not file.quantized
    assert len(file.nodes) == 315
    assert str(file.nodes[0]) == "/model.0/conv/Conv (Conv)"


def test_onnx_file_quantized_metadata_and_weights(tmp_path: Path) -> None:
    assert read_onnx(qdq(tmp_path / "q.onnx")).quantized
    file = read_onnx(conv_relu(tmp_path / "m.onnx", batch=4, names="{0: 'a'}"))
    assert file.metadata == {"names": "{0: 'a'}"}
    assert file.inputs[0].shape == (4, 3, 32, 32)
    assert file.sha256 == file.file_sha256


def test_weights_outside_the_file_count(tmp_path: Path) -> None:
    path = outside_weights(tmp_path / "m.onnx")
    before = read_onnx(path)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    after = read_onnx(path)
    assert before.file_sha256 == after.file_sha256
    assert before.sha256 != after.sha256
    data.unlink()
    with pytest.raises(ModelError, match=r"m\.onnx\.data"):
        read_onnx(path)


def test_every_cut_of_an_onnx_file_is_noticed(tmp_path: Path) -> None:
    whole = conv_relu(tmp_path / "m.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    # The last field is the operator set: without it there still is a graph, and the parser is the one to complain.
    graph_end = whole.rindex(b"out") + 3
    for length in range(graph_end):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            read_onnx(path)


# What is settled before building


@pytest.mark.parametrize(
    ("fixed", "batch", "most", "expected"),
    [
        (-1, None, None, (1, 8, 16)),
        (-1, None, 1, (1, 1, 1)),
        (-1, None, 5, (1, 3, 5)),
        (4, None, None, (4, 4, 4)),
        (4, None, 2, (4, 4, 4)),
        (-1, (1, 16, 32), None, (1, 16, 32)),
        (4, (4, 4, 4), None, (4, 4, 4)),
    ],
)
def test_profile(fixed: int, batch: Any, most: int | None, expected: tuple[int, int, int]) -> None:
    assert settle_profile(Path("m"), fixed, batch, most) == expected


@pytest.mark.parametrize(
    ("fixed", "batch", "most", "error"),
    [
        (4, None, 8, ModelError),
        (4, (1, 2, 4), None, ModelError),
        (-1, (0, 1, 2), None, ConfigError),
        (-1, (1, 4, 2), None, ConfigError),
    ],
)
def test_profile_refused(fixed: int, batch: Any, most: int | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        settle_profile(Path("m"), fixed, batch, most)


FLOAT = OnnxFile(Path("m.onnx"), "", "", (), (OnnxNode("c", "Conv"),), {})
QUANTIZED = replace(FLOAT, nodes=(OnnxNode("q", "QuantizeLinear"),))
IMAGES = Calibration("key", batches=lambda: iter(()))


@pytest.mark.parametrize(
    ("which", "file", "options", "expected"),
    [
        (T8, FLOAT, BuildOptions(), ("fp16", "FP16 flag")),
        (T11, FLOAT, BuildOptions(), ("fp16", "converted to float16")),
        (T8, QUANTIZED, BuildOptions(), ("int8", "explicit Q/DQ")),
        (RTX, QUANTIZED, BuildOptions(precision="int8"), ("int8", "explicit Q/DQ")),
        (T10, FLOAT, BuildOptions(precision="fp32"), ("fp32", "as exported")),
        (T8, FLOAT, BuildOptions(calibration=IMAGES), ("int8", "implicit entropy calibration")),
        (T10, FLOAT, BuildOptions(precision="int8", calibration=IMAGES), ("int8", "implicit entropy calibration")),
    ],
)
def test_precision(which: Trt, file: OnnxFile, options: BuildOptions, expected: tuple[str, str]) -> None:
    assert settle_precision(which, file, options) == expected


@pytest.mark.parametrize(
    ("which", "file", "options", "says"),
    [
        (T8, FLOAT, BuildOptions(precision="int8"), "calibrate-images"),
        (T11, FLOAT, BuildOptions(precision="int8"), "streamd quantize"),
        (RTX, FLOAT, BuildOptions(calibration=IMAGES), "no implicit calibration"),
        (T8, QUANTIZED, BuildOptions(precision="fp16"), "float model"),
        (T10, QUANTIZED, BuildOptions(precision="fp32"), "float model"),
        (T8, QUANTIZED, BuildOptions(calibration=IMAGES), "calibrated already"),
        (T8, FLOAT, BuildOptions(precision="fp16", calibration=IMAGES), "int8 only"),
    ],
)
def test_precision_refused(which: Trt, file: OnnxFile, options: BuildOptions, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settle_precision(which, file, options)


# Calibration caches


def test_a_calibration_cache_is_used_only_for_what_it_was_made_from(tmp_path: Path) -> None:
    cache = tmp_path / "c.cache"
    asked = Calibration("key", 2, lambda: iter(()), cache)
    assert read_cache(asked) is None
    cache.write_bytes(b"scales")
    assert read_cache(asked) is None, "a cache of unknown origin"
    (tmp_path / "c.cache.json").write_text(json.dumps({"key": "key"}))
    assert read_cache(asked) == b"scales"
    assert read_cache(replace(asked, sha256="other")) is None
    assert read_cache(replace(asked, sha256="other", batches=None)) == b"scales", "nothing to compare it with"
    (tmp_path / "c.cache.json").write_text(json.dumps({"key": "key", "model": "one"}))
    assert read_cache(Calibration("other", 2, None, cache, "one")) == b"scales"
    with pytest.raises(ConfigError, match=r"made from another model or other images; give --calibrate-images"):
        read_cache(Calibration("other", 2, None, cache, "two"))
    with pytest.raises(ConfigError, match="calibrate-images"):
        read_cache(Calibration("key", 2, None, tmp_path / "absent"))


def test_calibrator_is_refused_where_there_is_none(trt: Trt) -> None:
    if trt.has_implicit_int8:
        calibrator = make_calibrator(trt, IMAGES)
        assert (calibrator.get_batch_size(), calibrator.get_batch(["images"])) == (8, None)
        return
    with pytest.raises(BackendError, match="streamd quantize"):
        make_calibrator(trt, IMAGES)


# Half precision for builders without flags


def outputs(model: Any, images: Any) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, {session.get_inputs()[0].name: images})
    return found


def test_half_converts_the_network_and_leaves_the_decoding(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto

    path = two_stage(tmp_path / "m.onnx")
    converted = to_half(path)
    model = onnx.load_from_string(converted)
    onnx.checker.check_model(model, full_check=True)
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert types == {
        "w_half": TensorProto.FLOAT16,
        "v_half": TensorProto.FLOAT16,
        "scales": TensorProto.FLOAT,
        "big": TensorProto.FLOAT,
    }
    images = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    (a,), (b,) = outputs(str(path), images), outputs(converted, images)
    assert b.dtype == np.float32
    np.testing.assert_allclose(a, b, rtol=0.02)
    # 1000.3 × a sigmoid in float16 would be a multiple of 0.5 from 512 on.
    assert np.unique(b[b > 512] * 2 % 1).size > 100


@pytest.mark.parametrize("name", ["yolov5n_heads", "yolov5lite_e_relu_320"])
def test_half_of_real_models(name: str) -> None:
    path = shared(f"models/{name}.onnx")
    converted = to_half(path)
    assert len(converted) < 0.6 * path.stat().st_size
    size = 320 if name.endswith("320") else 640
    images = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    for a, b in zip(outputs(str(path), images), outputs(converted, images), strict=True):
        assert np.abs(a - b).max() < 0.004 * np.abs(a).max() + 0.01


def test_half_restores_an_output_inside_the_network(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [
        helper.make_node("Conv", ["images", "w"], ["out"], name="conv0", pads=[1] * 4),
        helper.make_node("Conv", ["out", "v"], ["unused"], name="conv1"),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"w": weight(), "v": weight(1, (4, 8, 1, 1))})
    images = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    (a,), (b,) = outputs(str(path), images), outputs(to_half(path), images)
    assert b.dtype == np.float32
    np.testing.assert_allclose(a, b, atol=0.01)


# The real builder


def test_builds_and_describes(trt: Trt, tmp_path: Path) -> None:
    model = conv_relu(tmp_path / "m.onnx", names="{0: 'cat', 1: 'dog'}")
    write_sidecar(model, Sidecar(version=1, color="BGR", head={"kind": "yolov8"}))
    out = tmp_path / "m.plan"
    build_into(prepare(model, BuildOptions(batch=(1, 2, 4))), out)
    sidecar = read_sidecar(out)
    assert (sidecar.labels, sidecar.color, sidecar.head) == (("cat", "dog"), "BGR", {"kind": "yolov8"})
    assert sidecar.scale == pytest.approx(1 / 255)
    made = sidecar.provenance
    assert made is not None
    assert (made.precision, made.profile, made.source) == ("fp16", (1, 2, 4), "m.onnx")
    assert made.source_sha256 == read_onnx(model).sha256
    assert trt.version_text in str(made.tensorrt)
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.onnx.json", "m.plan", "m.plan.json"}


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16"])
def test_builds_a_real_detector(trt: Trt, precision: Any) -> None:
    plan, sidecar = build(prepare(shared("models/yolov5n_heads.onnx"), BuildOptions(precision=precision)))
    assert plan.nbytes > 1 << 20
    assert sidecar.provenance is not None
    assert sidecar.provenance.precision == {"auto": "fp16"}.get(precision, precision)


def test_half_plan_is_smaller(trt: Trt) -> None:
    model = shared("models/yolov5n_heads.onnx")
    sizes = [build(prepare(model, BuildOptions(precision=p)))[0].nbytes for p in ("fp16", "fp32")]
    assert sizes[0] < 0.8 * sizes[1]


def test_builds_qdq(trt: Trt, tmp_path: Path) -> None:
    plan, sidecar = build(prepare(qdq(tmp_path / "q.onnx"), BuildOptions()))
    assert plan.nbytes > 0
    assert sidecar.provenance is not None
    assert (sidecar.provenance.precision, sidecar.provenance.method) == ("int8", "explicit Q/DQ")


def test_dynamic_input_size_needs_one(trt: Trt, tmp_path: Path) -> None:
    import onnx

    path = conv_relu(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    for i in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[i].dim_param = f"d{i}"
    onnx.save(model, str(path))
    job = prepare(path, BuildOptions(input_size=(64, 96), precision="fp32"))
    assert job.recipe.input_size == (64, 96)
    assert build(job)[0].nbytes > 0


def test_unsupported_operators_are_all_named(trt: Trt, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        build(prepare(unsupported(tmp_path / "bad.onnx"), BuildOptions(precision="fp32")))
    text = str(caught.value)
    assert "bad.onnx" in text
    assert "first_bad (Det)" in text
    assert "second_bad (Det)" in text
    assert "\n" not in text


def test_a_graph_the_parser_cannot_take(trt: Trt, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(conv_relu(tmp_path / "m.onnx")))
    model.graph.node[0].input[1] = "nowhere"
    onnx.save(model, str(tmp_path / "odd.onnx"))
    with pytest.raises(ModelError, match=r"odd\.onnx: TensorRT.* cannot parse it: .+"):
        build(prepare(tmp_path / "odd.onnx", BuildOptions(precision="fp32")))


def test_an_input_for_the_size_is_no_input_of_the_plan(trt: Trt, tmp_path: Path) -> None:
    """RT-DETR's and D-FINE's own exports. The builder refuses a network with two inputs."""
    job = prepare(detr_final(tmp_path / "m.onnx"), BuildOptions(precision="fp32", batch=(1, 2, 2)))
    assert build(job)[0].nbytes > 0


def test_no_gpu_to_build_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from streamd.engine.tensorrt import driver, job

    monkeypatch.setattr(job, "load_trt", lambda: T8)
    if driver.find_gpu(0) is not None:
        monkeypatch.setattr(driver, "find_gpu", lambda ordinal: None)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        prepare(conv_relu(tmp_path / "m.onnx"), BuildOptions())


def test_modes_the_version_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from streamd.engine.tensorrt import driver, job

    monkeypatch.setattr(job, "load_trt", lambda: T8)
    gpu = driver.Gpu(0, "NVIDIA H200", (9, 0), "580.1")
    monkeypatch.setattr(driver, "find_gpu", lambda ordinal: gpu)
    model = conv_relu(tmp_path / "m.onnx")
    for options in (BuildOptions(version_compatible=True), BuildOptions(hardware_compatible=True)):
        with pytest.raises(ConfigError, match=r"8\.6"):
            prepare(model, options)
    assert prepare(model, BuildOptions()).recipe.gpu == "NVIDIA H200 (compute capability 9.0)"


def test_the_timing_cache_is_written_and_a_foreign_one_is_passed_over(trt: Trt, tmp_path: Path) -> None:
    cache = tmp_path / "t.timing"
    cache.write_bytes(foreign := b"not a timing cache at all")
    options = BuildOptions(precision="fp32", timing_cache=cache)
    assert build(prepare(conv_relu(tmp_path / "m.onnx"), options))[0].nbytes > 0
    assert (cache.read_bytes() != foreign) == trt.has_timing_cache


def test_vendor_errors_are_kept_for_the_caller(trt: Trt) -> None:
    logger = version.vendor_logger()
    logger.take_errors()
    logger.log(trt.module.ILogger.ERROR, "x.cpp:1: broken")
    assert logger.take_errors() == ["broken"]
    assert logger.take_errors() == []
