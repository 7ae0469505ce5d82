"""INT8 weights become float weights with a whole pair, and nothing that the network computes changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from streamd.engine.model import model_file
from streamd.engine.onnx.weights import in_float
from streamd.engine.sidecar import read_sidecar
from tests.engine.test_builder import outputs

ROAD6 = model_file("builtin:road6")


def dequantised_constants(model: Any) -> list[Any]:
    """The DequantizeLinear nodes that read an INT8 constant."""
    int8 = {t.name for t in model.graph.initializer if t.data_type == TensorProto.INT8}
    return [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in int8]


def test_the_bundled_model_computes_the_same() -> None:
    compact = ROAD6.read_bytes()
    whole = in_float(compact)
    before, after = onnx.load_from_string(compact), onnx.load_from_string(whole)
    onnx.checker.check_model(after, full_check=True)
    made = read_sidecar(ROAD6).provenance
    assert made is not None
    int8 = 57 - len(made.float_layers)
    assert len(dequantised_constants(before)) == int8
    assert not dequantised_constants(after)
    assert len(after.graph.node) == len(before.graph.node) + int8
    assert len(whole) > 3 * len(compact)
    images = np.random.default_rng(0).random((1, 3, 416, 416), np.float32)
    for a, b in zip(outputs(compact, images), outputs(whole, images), strict=True):
        np.testing.assert_array_equal(a, b)


def small(zero: int = 0, scale: Any = (0.5, 0.25), axis: int = 0, **more: Any) -> bytes:
    weights = np.arange(-8, 8, dtype=np.int8).reshape(2, 2, 2, 2)
    scales = np.array(scale, np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], axis=axis, **more),
        helper.make_node("Conv", ["images", "wf"], ["out"]),
    ]
    constants = {"w": weights, "s": scales, "z": np.full(scales.shape, zero, np.int8), "w_float": np.zeros(1)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2, 3, 3])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, doc_string="kept")
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize(("scale", "axis"), [((0.5, 0.25), 0), ((0.1, 0.7), 1), ((0.1, 0.7), -3), (0.3, 0)])
def test_scales_by_channel_and_for_the_whole(scale: Any, axis: int) -> None:
    content = small(scale=scale, axis=axis)
    found = onnx.load_from_string(in_float(content))
    assert found.doc_string == "kept"
    onnx.checker.check_model(found)
    assert found.graph.node[0].op_type == "QuantizeLinear"
    assert found.graph.node[0].input[0] == "w_float_", "a name that was free"
    assert "w" not in {t.name for t in found.graph.initializer}
    images = np.random.default_rng(1).random((1, 2, 4, 4), np.float32)
    np.testing.assert_array_equal(outputs(content, images)[0], outputs(found.SerializeToString(), images)[0])


def test_what_is_not_understood_stays() -> None:
    sound = small()
    odd = [small(zero=3), small(scale=(0.5, 0.25, 0.125)), small(axis=4), small(axis=-5), small(scale=(0.0, np.nan))]
    for content in (*odd, b"", b"no model", sound[:-7]):
        assert in_float(content) == content
    model = onnx.load_from_string(sound)
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].int32_data.extend(range(16))
    assert in_float(model.SerializeToString()) == model.SerializeToString()
