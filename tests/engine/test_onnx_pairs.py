"""Ranges instead of Q/DQ pairs: no pair is left, weights are as rounded, and ranges are the pairs' own."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from streamd.engine.model import model_file
from streamd.engine.onnx.pairs import without_pairs
from streamd.engine.onnx.reader import read_onnx
from streamd.engine.onnx.weights import in_float
from streamd.engine.tensorrt.job import BuildOptions, settle_precision
from streamd.engine.tensorrt.version import Trt
from streamd.errors import ConfigError
from tests.engine.test_builder import RTX, T8, T10, T11, outputs
from tests.engine.test_onnx_stem import nodes, pair, small

ROAD6 = model_file("builtin:road6")
STEP = 0.05
"""Of the pairs made here."""


def graph_of(made: list[onnx.NodeProto], names: tuple[str, ...], out: str = "out") -> bytes:
    """Nodes over the input `images`, with a scale and a zero point for each name."""
    constants: dict[str, np.generic | np.ndarray] = {}
    for name in names:
        constants |= {f"{name}_s": np.float32(STEP), f"{name}_z": np.int8(0)}
    graph = helper.make_graph(
        made, "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def test_pairs_go_and_ranges_stay() -> None:
    found = without_pairs(small())
    assert found is not None
    onnx.checker.check_model(onnx.load_from_string(found.model))
    assert nodes(found.model) == [("Conv", ["images", "w", "bias"])]
    assert found.ranges == {"images": pytest.approx(127 * STEP)}


def test_the_demo_model_computes_the_same_but_for_rounding() -> None:
    original = in_float(ROAD6.read_bytes())
    found = without_pairs(original)
    assert found is not None
    assert not {"QuantizeLinear", "DequantizeLinear"} & {kind for kind, _ in nodes(found.model)}
    quantizers = [n for n in onnx.load_from_string(original).graph.node if n.op_type == "QuantizeLinear"]
    scales = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(original).graph.initializer}
    for node in quantizers:
        scale = scales[node.input[1]]
        if scale.size == 1 and node.input[0] not in scales:
            assert found.ranges[node.input[0]] >= 127 * float(scale) * (1 - 1e-6), node.input[0]
    image = np.random.default_rng(0).random((1, 3, 416, 416), np.float32)
    for got, want in zip(outputs(found.model, image), outputs(original, image), strict=True):
        noise = np.square(got - want).mean() / np.square(want - want.mean()).mean()
        assert noise < 0.01, "rounding of activations is all that differs"


def test_what_follows_from_a_range_has_one_too() -> None:
    made = [
        helper.make_node("Relu", ["images"], ["a"]), *pair("a"),
        helper.make_node("Sigmoid", ["a_dq"], ["gate"]), helper.make_node("Mul", ["a_dq", "gate"], ["b"]), *pair("b"),
        helper.make_node("Neg", ["b_dq"], ["c"]), helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Mul", ["d", "c"], ["e"]), helper.make_node("Add", ["b_dq", "e"], ["f"]), *pair("f"),
        helper.make_node("Neg", ["f_dq"], ["out"]),
    ]  # fmt: skip
    found = without_pairs(graph_of(made, ("a", "b", "f")))
    assert found is not None
    step = pytest.approx(127 * STEP)
    assert found.ranges == {
        "images": step, "a": step, "gate": 1.0, "b": step, "c": 8.0, "d": 1.0, "e": step, "f": step,
    }  # fmt: skip


def test_an_output_keeps_its_name() -> None:
    made = [helper.make_node("Relu", ["images"], ["a"]), *pair("a")]
    found = without_pairs(graph_of(made, ("a",), out="a_dq"))
    assert found is not None
    onnx.checker.check_model(onnx.load_from_string(found.model))
    assert nodes(found.model) == [("Relu", ["images"]), ("Identity", ["a"])]


def test_joined_branches_keep_their_shared_range() -> None:
    made = [
        helper.make_node("Relu", ["images"], ["a"]), helper.make_node("Neg", ["images"], ["b"]),
        pair("a")[0], pair("b")[0],
        helper.make_node("Concat", ["a_q", "b_q"], ["c_q"], axis=1),
        helper.make_node("DequantizeLinear", ["c_q", "a_s", "a_z"], ["c"]),
        helper.make_node("Neg", ["c"], ["out"]),
    ]  # fmt: skip
    found = without_pairs(graph_of(made, ("a", "b")))
    assert found is not None
    assert nodes(found.model)[2:] == [("Concat", ["a", "b"]), ("Neg", ["c_q"])]
    assert found.ranges == dict.fromkeys(("images", "a", "b", "c_q"), pytest.approx(127 * STEP))


@pytest.mark.parametrize("change", ["zero", "unsigned", "float"])
def test_other_pairs_are_left_alone(change: str) -> None:
    model = onnx.load_from_string(small())
    for tensor in model.graph.initializer:
        if tensor.name == "images_z" and change == "zero":
            tensor.CopyFrom(numpy_helper.from_array(np.int8(3), "images_z"))
        if tensor.name == "images_z" and change == "unsigned":
            tensor.CopyFrom(numpy_helper.from_array(np.uint8(0), "images_z"))
        if tensor.name == "images_s" and change == "float":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(np.inf), "images_s"))
    assert without_pairs(model.SerializeToString()) is None


def test_a_float_model_has_no_pairs() -> None:
    assert without_pairs(graph_of([helper.make_node("Relu", ["images"], ["out"])], ())) is None
    assert without_pairs(b"no model") is None


@pytest.mark.parametrize("which", [T11, RTX], ids=str)
def test_a_builder_that_takes_types_from_the_file_refuses(which: Trt) -> None:
    with pytest.raises(ConfigError, match=r"precision mixed: TensorRT.* takes precisions from the file"):
        settle_precision(which, read_onnx(ROAD6), BuildOptions(precision="mixed"))


@pytest.mark.parametrize("which", [T8, T10], ids=str)
def test_a_builder_with_flags_takes_it(which: Trt) -> None:
    assert settle_precision(which, read_onnx(ROAD6), BuildOptions(precision="mixed"))[0] == "mixed"


def test_mixed_needs_a_quantized_model() -> None:
    with pytest.raises(ConfigError, match="precision mixed needs Q/DQ nodes"):
        settle_precision(T8, read_onnx(model_file("builtin:road6_float")), BuildOptions(precision="mixed"))
