"""Placement of pairs, checked on small graphs by structure and by running them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from streamd.models.calibrate import Observer, observe, thresholds
from streamd.models.graph import Graph, name_nodes
from streamd.models.qdq import find_sites, quantized
from streamd.models.tune import safe_weights
from streamd.models.weights import Int8Weights
from tests.models.nets import Net, branches

INPUT = np.random.default_rng(5).random((1, 3, 64, 64), np.float32)


def run(model: Any, feed: np.ndarray[Any, Any] = INPUT) -> list[np.ndarray[Any, Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray[Any, Any]] = session.run(None, {"images": feed})
    return found


def made(model: Any, **options: Any) -> Any:
    sites = find_sites(model)
    histograms, _ = observe(Observer(model, sites.watched), [INPUT])
    out = quantized(model, sites, thresholds(histograms, sites.sources, "minmax"), **options)
    onnx.checker.check_model(out, full_check=True)
    return out


def sqnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(10 * np.log10(np.square(a).sum() / np.square(a - b).sum()))


def test_every_convolution_but_the_output_s_is_a_layer() -> None:
    sites = find_sites(branches())
    assert [layer.name for layer in sites.layers] == ["stem", "a", "b", "c", "d"]
    assert sites.outputs == ("out_o",)


@pytest.mark.parametrize("act", ["silu", "relu"])
def test_quantised_layers_read_pairs_and_the_rest_stays_float(act: str) -> None:
    graph = Graph(made(branches(act=act)))
    for node in graph.nodes:
        if node.op_type == "Conv":
            kinds = [getattr(graph.producer.get(n), "op_type", None) for n in node.input]
            if node.name == "out":
                assert "DequantizeLinear" not in kinds
            else:
                assert kinds == ["DequantizeLinear", "DequantizeLinear", None], node.name


def test_compact_weights_are_equal_in_value_and_a_quarter_of_the_size() -> None:
    pairs, compact = (made(branches(), compact=c) for c in (False, True))
    for a, b in zip(run(pairs), run(compact), strict=True):
        np.testing.assert_array_equal(a, b)
    stored = {t.name: t for t in compact.graph.initializer}
    weights = [n.input[0] for n in compact.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    assert len(weights) == 5
    assert {stored[w].data_type for w in weights} == {onnx.TensorProto.INT8}
    assert not {t.name for t in compact.graph.initializer} & {w.removesuffix("_q") for w in weights}


def test_pairs_are_what_tensorrt_wants() -> None:
    model = branches()
    graph = Graph(made(model))
    weights = {f"{layer.weight}_grid" for layer in find_sites(model).layers}
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            scale, zero = graph.constant(node.input[1]), graph.constant(node.input[2])
            assert zero.dtype == np.int8
            assert not zero.any()
            assert (scale > 0).all()
            if node.input[0] in weights:
                assert graph.attribute(node, "axis") == 0
                assert scale.shape == (graph.constant(node.input[0]).shape[0],)
                assert node.input[0] in {t.name for t in made(model).graph.initializer}
            else:
                assert scale.shape == ()


def test_concatenated_and_pooled_tensors_share_one_scale() -> None:
    model = branches()
    sites = find_sites(model)
    adds = {"skip_o", "pool_o", "cat2_o"}
    assert len({sites.group[n] for n in adds}) == 1
    graph = Graph(made(model))
    scales = {name: float(graph.constant(f"{name}_scale")) for name in ("skip_o", "cat2_o")}
    assert len(set(scales.values())) == 1
    # What is pooled and joined between the pair's halves has no scale of its own.
    assert not graph.is_constant("pool_o_scale")
    joined = next(n for n in graph.nodes if n.name == "cat2")
    assert all(name.endswith("_q") for name in joined.input)


def test_groups_that_meet_twice_are_one() -> None:
    """A shuffle block: the same tensor is cut in two, one half goes on as it is and is joined again."""
    net = Net()
    x = net.relu(net.conv("images", 3, 8, name="first"))
    for i in range(3):
        cuts = [net.constant(np.array([k])) for k in (0, 4, 8, 1)]
        left = net.op("Slice", [x, cuts[0], cuts[1], cuts[3]], f"left{i}")
        right = net.op("Slice", [x, cuts[1], cuts[2], cuts[3]], f"right{i}")
        right = net.relu(net.conv(right, 4, 4, name=f"branch{i}"))
        x = net.op("Concat", [left, right], f"join{i}", axis=1)
    net.op("Identity", [net.conv(net.relu(net.conv(x, 8, 8, name="last")), 8, 6, name="out")], "y")
    model = net.model({"y_o": [1, 6, 64, 64]}, [1, 3, 64, 64])
    sites = find_sites(model)
    groups = {sites.group[f"{kind}{i}_o"] for kind in ("left", "right", "join") for i in range(3)}
    assert len(groups) == 1
    assert sqnr(run(model)[0], run(made(model))[0]) > 20


def test_int8_moves_equal_pairs_on_either_side() -> None:
    model = branches()
    assert np.array_equal(run(made(model))[0], run(made(model, moves=()))[0])


def test_the_skip_connection_reads_the_quantised_value_only_if_asked() -> None:
    model = branches()
    with_, without = (Graph(made(model, residuals=r)) for r in (True, False))
    inputs = [next(n for n in g.nodes if n.name == "skip").input for g in (with_, without)]
    stem = next(layer.input for layer in find_sites(model).layers if layer.name == "a")
    assert f"{stem}_dq" in inputs[0]
    assert stem in inputs[1]


@pytest.mark.parametrize("act", ["silu", "relu"])
def test_little_is_lost_and_openvino_computes_the_same(act: str) -> None:
    import openvino as ov

    model = branches(act=act)
    quant = made(model)
    want, found = run(model)[0], run(quant)[0]
    assert sqnr(want, found) > 25
    core = ov.Core()
    # Plain float32 around the INT8 convolutions, so that the two runtimes may differ by rounding only.
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    network = core.compile_model(core.read_model(quant.SerializeToString()), "CPU", hint)
    assert sqnr(found, np.array(network([INPUT])[0])) > 30


def by_openvino(model: Any, feed: np.ndarray[Any, Any] = INPUT) -> np.ndarray[Any, Any]:
    import openvino as ov

    core = ov.Core()
    network = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(network([feed])[0])


def test_both_forms_are_the_same_model_to_openvino() -> None:
    """Weights half way between two steps: OpenVINO's arithmetic rounds some of them to the other one."""
    model = branches()
    random = np.random.default_rng(0)
    for t in model.graph.initializer:
        if t.name.endswith(".w") and t.name != "out.w":
            shape = numpy_helper.to_array(t).shape
            weight = (random.integers(-60, 60, shape) + 0.5) / 127 * random.uniform(0.2, 1, (shape[0], 1, 1, 1))
            weight.reshape(shape[0], -1)[:, 0] = np.abs(weight.reshape(shape[0], -1)).max(axis=1) * 127 / 60.5
            t.CopyFrom(numpy_helper.from_array(weight.astype(np.float32), t.name))
    assert np.array_equal(by_openvino(made(model)), by_openvino(made(model, compact=True)))


def test_no_processor_overflows() -> None:
    """Equal weights and large activations: the worst case of processors that add products in 16 bits."""
    net = Net()
    hidden = net.relu(net.conv("images", 3, 8, name="stem", kernel=1))
    deep = net.relu(net.conv(hidden, 8, 8, name="deep", kernel=1))
    net.conv(deep, 8, 6, name="out", kernel=1)
    for t in net.constants:
        if t.name in ("stem.w", "deep.w"):
            t.CopyFrom(numpy_helper.from_array(np.full(numpy_helper.to_array(t).shape, 0.25, np.float32), t.name))
    model = net.model({"out_o": [1, 6, 64, 64]}, [1, 3, 64, 64])
    sites, bright = find_sites(model), np.ones((1, 3, 64, 64), np.float32)
    watched = list(dict.fromkeys([*sites.watched, *(layer.input for layer in sites.layers)]))
    histograms, peaks = observe(
        Observer(model, watched), [bright], sites.watched, [layer.input for layer in sites.layers]
    )
    limits = thresholds(histograms, sites.sources, "minmax")
    safe = quantized(model, sites, limits, weights=safe_weights(model, sites, limits, peaks))
    assert sqnr(run(model, bright)[0], by_openvino(safe, bright)) > 30


def test_weights_that_are_given_are_taken() -> None:
    model = branches()
    weight = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "c.w"))
    steps = np.full(weight.shape, 3, np.int8)
    bias = np.arange(len(weight), dtype=np.float32)
    given = {"c.w": Int8Weights(steps, np.full(len(weight), 0.5, np.float32), bias)}
    for compact in (False, True):
        out = made(model, weights=given, compact=compact)
        graph = Graph(out)
        node = next(n for n in graph.nodes if n.name == "c")
        assert graph.constant(node.input[2]).tolist() == bias.tolist()
        pair = graph.producer[node.input[1]]
        assert graph.constant(pair.input[1])[0] == 0.5
        if compact:
            assert (graph.constant(pair.input[0]) == 3).all()
        else:
            assert (graph.constant(graph.producer[pair.input[0]].input[0]) == 1.5).all()
        assert next(n for n in graph.nodes if n.name == "a").input[2] == "a.b"


def test_float_layers_have_no_pairs() -> None:
    model = branches()
    everything = [layer.name for layer in find_sites(model).layers]
    none = made(model, float_layers=everything)
    assert not any("Quantize" in n.op_type for n in none.graph.node)
    assert np.array_equal(run(none)[0], run(model)[0])
    one = Graph(made(model, float_layers=["c"]))
    node = next(n for n in one.nodes if n.name == "c")
    assert one.is_constant(node.input[1])


def test_the_model_itself_is_left_alone() -> None:
    model = branches()
    before = model.SerializeToString(deterministic=True)
    made(model)
    assert model.SerializeToString(deterministic=True) == before


def test_weights_in_constant_nodes_and_nodes_without_names() -> None:
    model = branches()
    for t in list(model.graph.initializer):
        if t.name == "c.w":
            node = onnx.helper.make_node(
                "Constant", [], ["c.w"], value=numpy_helper.from_array(numpy_helper.to_array(t))
            )
            model.graph.initializer.remove(t)
            model.graph.node.insert(0, node)
    for node in model.graph.node:
        node.name = ""
    name_nodes(model)
    assert len({n.name for n in model.graph.node}) == len(model.graph.node)
    assert sqnr(run(model)[0], run(made(model))[0]) > 25


def test_a_convolution_states_its_kernel_as_tensorrt_8_does_not_infer_it_from_pairs() -> None:
    model = branches()
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    for node in layers:
        for i, attribute in reversed(list(enumerate(node.attribute))):
            if attribute.name == "kernel_shape":
                del node.attribute[i]
    found = {
        node.name: list(attribute.ints)
        for node in made(model).graph.node
        for attribute in node.attribute
        if node.op_type == "Conv" and attribute.name == "kernel_shape"
    }
    weights = {t.name: t.dims for t in model.graph.initializer}
    assert found == {node.name: list(weights[node.input[1]][2:]) for node in layers if node.name != "out"}
