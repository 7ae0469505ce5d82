"""The stem of a Q/DQ model in float: nothing else changes, and what it computes is the float model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from streamd.engine.model import model_file
from streamd.engine.onnx.stem import float_stem
from streamd.engine.onnx.weights import in_float
from streamd.engine.tensorrt import builder, network
from streamd.engine.tensorrt.job import BuildOptions, prepare
from streamd.engine.tensorrt.version import Trt
from tests.engine.onnx_models import qdq
from tests.engine.test_builder import outputs
from tests.engine.trt import trt_here

ROAD6 = model_file("builtin:road6")


def pair(name: str) -> list[Any]:
    scales = [f"{name}_s", f"{name}_z"]
    return [
        helper.make_node("QuantizeLinear", [name, *scales], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", *scales], [f"{name}_dq"]),
    ]


def small(channels: int = 3, more: tuple[Any, ...] = (), out: tuple[str, ...] = ("out",)) -> bytes:
    """One quantised convolution over the picture."""
    weights = np.random.default_rng(0).normal(size=(2, channels, 3, 3)).astype(np.float32)
    constants = {"w": weights, "bias": np.array([1, 2], np.float32)}
    for name in ("images", "w"):
        constants |= {f"{name}_s": np.float32(0.05), f"{name}_z": np.int8(0)}
    conv = helper.make_node("Conv", ["images_dq", "w_dq", "bias"], ["out"], name="stem", pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [*pair("images"), *pair("w"), conv, *more], "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, channels, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in out],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, doc_string="kept")
    content: bytes = model.SerializeToString()
    return content


def nodes(content: bytes) -> list[tuple[str, list[str]]]:
    return [(n.op_type, list(n.input)) for n in onnx.load_from_string(content).graph.node]


def test_the_pairs_on_picture_and_weights_go() -> None:
    found = float_stem(small())
    model = onnx.load_from_string(found)
    onnx.checker.check_model(model)
    assert model.doc_string == "kept"
    assert nodes(found) == [("Conv", ["images", "w", "bias"])]
    assert model.graph.node[0].name == "stem"
    assert list(model.graph.node[0].attribute[0].ints) == [1, 1, 1, 1]
    images = np.random.default_rng(1).random((1, 3, 8, 8), np.float32)
    whole, quantised = outputs(found, images)[0], outputs(small(), images)[0]
    assert 0 < np.abs(whole - quantised).max() < 0.5


def test_a_pair_that_something_else_reads_stays() -> None:
    second = helper.make_node("Relu", ["images_dq"], ["relu"])
    found = float_stem(small(more=(second,), out=("out", "relu")))
    assert nodes(found) == [
        ("QuantizeLinear", ["images", "images_s", "images_z"]),
        ("DequantizeLinear", ["images_q", "images_s", "images_z"]),
        ("Conv", ["images", "w", "bias"]),
        ("Relu", ["images_dq"]),
    ]
    assert nodes(float_stem(small(out=("out", "w_dq"))))[:2] == nodes(small())[2:4]


def test_what_is_no_stem_stays() -> None:
    wide, unpaired = small(channels=5), onnx.load_from_string(small())
    unpaired.graph.node[4].input[0] = "images"
    for content in (wide, unpaired.SerializeToString(), float_stem(small()), b"", b"no model", small()[:-7]):
        assert float_stem(content) == content


def sliced(compact: bool, more: tuple[Any, ...] = (), out: tuple[str, ...] = ("out",)) -> bytes:
    """A quantised convolution over every second pixel of every second line, joined: YOLOX's stem.

    Args:
        compact: values move in INT8, so that the halves of a pair are on either side; otherwise there are two pairs.
        more: further nodes.
        out: what the graph gives out.
    """
    weights = np.random.default_rng(0).normal(size=(2, 12, 3, 3)).astype(np.float32)
    constants: dict[str, Any] = {"w": weights, "bias": np.array([1, 2], np.float32), "steps": np.array([2, 2])}
    constants |= {"ends": np.array([8, 8]), "axes": np.array([2, 3])}
    for name in ("images", "joined", "w"):
        constants |= {f"{name}_s": np.float32(0.05), f"{name}_z": np.int8(0)}
    moving: list[Any] = []
    for i, begins in enumerate(([0, 0], [1, 0], [0, 1], [1, 1])):
        constants[f"begins{i}"] = np.array(begins)
        source = "images_q" if compact else "images_dq"
        moving.append(helper.make_node("Slice", [source, f"begins{i}", "ends", "axes", "steps"], [f"part{i}"]))
    parts = [f"part{i}" for i in range(4)]
    first, last = pair("images"), pair("joined")
    if compact:
        last[1].input[0] = "joined"
        nodes = [first[0], *moving, helper.make_node("Concat", parts, ["joined"], axis=1), last[1]]
    else:
        nodes = [*first, *moving, helper.make_node("Concat", parts, ["joined"], axis=1), *last]
    conv = helper.make_node("Conv", ["joined_dq", "w_dq", "bias"], ["out"], pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [*nodes, *pair("w"), conv, *more], "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in out],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize("compact", [True, False])
def test_a_stem_of_slices_is_float(compact: bool) -> None:
    found = float_stem(sliced(compact))
    onnx.checker.check_model(onnx.load_from_string(found), full_check=True)
    assert [operator for operator, _ in nodes(found)] == ["Slice"] * 4 + ["Concat", "Conv"]
    assert all(names[0] == "images" for operator, names in nodes(found) if operator == "Slice")
    assert nodes(found)[-1][1] == ["joined", "w", "bias"]
    images = np.random.default_rng(1).random((1, 3, 8, 8), np.float32)
    whole, quantised = outputs(found, images)[0], outputs(sliced(compact), images)[0]
    assert 0 < np.abs(whole - quantised).max() < 1


@pytest.mark.parametrize("compact", [True, False])
def test_slices_that_something_else_reads_stay(compact: bool) -> None:
    more = [helper.make_node("Relu", ["joined_dq"], ["relu"])]
    content = sliced(compact, tuple(more), ("out", "relu"))
    assert float_stem(content) == content
    between = onnx.load_from_string(sliced(compact))
    at = next(i for i, node in enumerate(between.graph.node) if node.op_type == "Concat")
    between.graph.node[at].input[0] = "negative"
    between.graph.node.insert(at, helper.make_node("Neg", ["part0"], ["negative"]))
    assert float_stem(between.SerializeToString()) == between.SerializeToString()


def test_only_the_stem_of_the_bundled_model_changes() -> None:
    before = in_float(ROAD6.read_bytes())
    after = float_stem(before)
    onnx.checker.check_model(onnx.load_from_string(after), full_check=True)
    gone = [n for n in nodes(before) if n not in nodes(after)]
    assert sorted(operator for operator, _ in gone) == ["Conv"] + ["DequantizeLinear"] * 2 + ["QuantizeLinear"] * 2
    assert len(nodes(after)) == len(nodes(before)) - 4
    images = np.random.default_rng(0).random((1, 3, 416, 416), np.float32)
    for a, b in zip(outputs(before, images), outputs(after, images), strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99


def test_the_builder_asks_for_it_where_it_chooses_precisions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt_here()
    asked: list[int] = []

    def counted(content: bytes) -> bytes:
        asked.append(len(content))
        return float_stem(content)

    monkeypatch.setattr(network, "float_stem", counted)
    job = prepare(ROAD6, BuildOptions())
    assert job.trt.always_strongly_typed, "RTX is"
    assert network._load(job)[0] == ROAD6.read_bytes()
    monkeypatch.setattr(Trt, "has_precision_flags", True)
    loaded, ranges = network._load(job)
    assert not ranges
    assert asked == [len(in_float(ROAD6.read_bytes()))]
    assert loaded == float_stem(in_float(ROAD6.read_bytes()))
    monkeypatch.undo()
    monkeypatch.setattr(network, "_load", lambda _: (loaded, ranges))
    builder.build_into(job, tmp_path / "a.plan")


def test_a_model_that_is_a_stem_only_keeps_its_pairs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt_here()
    path = qdq(tmp_path / "q.onnx")
    job = prepare(path, BuildOptions())
    monkeypatch.setattr(Trt, "has_precision_flags", True)
    loaded, _ = network._load(job)
    assert "QuantizeLinear" in {kind for kind, _ in nodes(loaded)}
    assert loaded == in_float(path.read_bytes())
