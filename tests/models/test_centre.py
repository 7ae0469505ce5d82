"""Activations in the middle of their range: the same network in float, finer steps in INT8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from streamd.engine.onnx.pairs import without_pairs
from streamd.models.calibrate import Observer, observe, thresholds
from streamd.models.centre import Centred, _Bounds, centred, one_sided
from streamd.models.graph import Graph
from streamd.models.qdq import find_sites, quantized
from streamd.models.tune import output_noise, safe_weights
from streamd.models.weights import QMAX
from tests.models.nets import Net

IMAGES = np.random.default_rng(1).random((6, 1, 3, 32, 32), np.float32)


def network(act: str = "silu", *, skip: bool = False, biased: bool = True) -> Any:
    """stem → (a, 3×3 b) → Concat → MaxPool → c → out; all but stem and b without padding."""
    net = Net(4)
    act_of = net.silu if act == "silu" else net.relu
    bright = net.op("Mul", ["images", net.constant(np.array(20, np.float32))], "bright")
    stem = act_of(net.conv(bright, 3, 16, name="stem", stride=2))
    a = act_of(net.conv(stem, 16, 16, name="a", kernel=1))
    b = act_of(net.conv(act_of(net.conv(a, 16, 16, name="pre", kernel=1)), 16, 16, name="b"))
    if skip:
        b = net.op("Add", [b, stem], "skip")
    joined = net.op("Concat", [act_of(net.conv(stem, 16, 16, name="side", kernel=1)), b], "cat", axis=1)
    pooled = net.op("MaxPool", [joined], "pool", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    c = act_of(net.conv(pooled, 32, 16, name="c", kernel=1))
    out = net.conv(c, 16, 6, name="out", kernel=1)
    net.op("Sigmoid", [out], "decode")
    if not biased:
        for node in net.nodes:
            if node.name in ("c", "pre"):
                del node.input[2:]
    return net.model({"decode_o": [1, 6, 16, 16]}, [1, 3, 32, 32])


def calibrated(model: Any) -> tuple[Any, ...]:
    sites = find_sites(model)
    layers = list(dict.fromkeys(layer.input for layer in sites.layers))
    histograms, peaks = observe(
        Observer(model, list(dict.fromkeys([*sites.watched, *layers]))), IMAGES, sites.watched, layers
    )
    return sites, histograms, thresholds(histograms, sites.sources, "mse"), peaks


def moved(model: Any, **options: Any) -> Centred:
    sites, histograms, limits, peaks = calibrated(model)
    return centred(model, sites, histograms, limits, peaks, **options)


def outputs(model: Any, name: str = "out_o") -> Any:
    observer = Observer(model, [name])
    return [observer.run(x)[name] for x in IMAGES]


@pytest.mark.parametrize("act", ["silu", "relu"])
@pytest.mark.parametrize("biased", [True, False])
def test_the_float_network_is_the_same(act: str, biased: bool) -> None:
    model = network(act, biased=biased)
    found = moved(model)
    # `a` and `side` read the stem, `pre` reads a, and c reads the concatenation; b is padded.
    assert set(found.moved) == {"a.w", "side.w", "pre.w", "c.w"}
    for before, after in zip(outputs(model), outputs(found.model), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_steps_are_half_as_large_and_zero_is_one_of_them() -> None:
    model = network("relu")
    sites, _, limits, _ = calibrated(model)
    found = moved(model)
    for name in ("Relu_2_o", "Relu_4_o"):
        after = found.thresholds[f"{name}_centred"]
        assert 0.45 * limits[name] < after < 0.65 * limits[name]
        centre = -Graph(found.model).constant(f"{name}_centre").item()
        assert centre / (after / QMAX) == pytest.approx(round(centre / (after / QMAX)), abs=1e-4)
        assert name not in found.thresholds
    assert set(found.thresholds) == {names[0] for names in found.sites.sources.values()}
    # What b reads is padded, and the picture is not one-sided.
    for name in ("bright_o", "Relu_6_o"):
        assert found.thresholds[name] == limits[name]
    assert len(found.sites.layers) == len(sites.layers)


@pytest.mark.parametrize("act", ["silu", "relu"])
def test_how_many_can_be_moved_is_known_before_calibration(act: str) -> None:
    """Of the outputs of stem, a, pre and the concatenation, b reads that of pre with padding."""
    model = network(act)
    assert one_sided(model) == (3, 4)
    assert len(moved(model).model.graph.initializer) > len(model.graph.initializer)
    centres = [t.name for t in moved(model).model.graph.initializer if t.name.endswith("_centre")]
    # The concatenation's sources are moved one by one.
    assert len(centres) == 4


def test_peaks_move_along() -> None:
    model = network("relu")
    *_, peaks = calibrated(model)
    found = moved(model)
    centre = -Graph(found.model).constant("Relu_2_o_centre").item()
    np.testing.assert_allclose(found.peaks["Relu_2_o_centred"], peaks["Relu_2_o"] - centre, rtol=1e-5)
    joined = -Graph(found.model).constant("Relu_10_o_centre").item()
    np.testing.assert_allclose(found.peaks["pool_o_centred"], peaks["pool_o"] - joined, rtol=1e-5)
    assert set(found.peaks) >= {layer.input for layer in found.sites.layers}


@pytest.mark.parametrize("act", ["silu", "relu"])
def test_int8_is_nearer_to_float(act: str) -> None:
    model = network(act)
    sites, histograms, limits, peaks = calibrated(model)
    clean = [{"out_o": y} for y in outputs(model)]
    before = output_noise(
        clean, quantized(model, sites, limits, weights=safe_weights(model, sites, limits, peaks)), IMAGES
    )
    found = centred(model, sites, histograms, limits, peaks)
    weights = found.corrected(safe_weights(found.model, found.sites, found.thresholds, found.peaks))
    after = output_noise(clean, quantized(found.model, found.sites, found.thresholds, weights=weights), IMAGES)
    assert after < 0.7 * before


def test_rounded_weights_times_the_constant_are_made_good() -> None:
    model = network()
    found = moved(model)
    weights = safe_weights(found.model, found.sites, found.thresholds, found.peaks)
    graph = Graph(model)
    for name, centre in found.moved.items():
        corrected = found.corrected(weights)[name]
        values = corrected.values().astype(np.float64).reshape(len(corrected.steps), -1)
        assert corrected.bias is not None
        # Zero in, the float model's bias out.
        np.testing.assert_allclose(
            corrected.bias - centre * values.sum(1), graph.constant(name.replace(".w", ".b")), atol=1e-4
        )


def test_a_skip_connection_keeps_an_activation_where_it_is() -> None:
    found = moved(network(skip=True))
    assert set(found.moved) == {"pre.w", "c.w"}


def test_float_layers_read_what_they_did() -> None:
    model = network()
    found = moved(model, float_layers=["a"])
    nodes = {node.name: node for node in found.model.graph.node}
    assert nodes["a"].input[0] == "Mul_3_o"
    assert nodes["side"].input[0] == "Mul_3_o_centred"
    assert list(nodes["a"].input[1:]) == ["a.w", "a.b"]
    for before, after in zip(outputs(model), outputs(found.model), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    # Both forms of what they read have a range: the float layer might be quantised after all.
    _, _, limits, _ = calibrated(model)
    assert found.thresholds["Mul_3_o"] == limits["Mul_3_o"] > found.thresholds["Mul_3_o_centred"]
    assert set(found.thresholds) == {names[0] for names in found.sites.sources.values()}
    weights = found.corrected(safe_weights(found.model, found.sites, found.thresholds, found.peaks))
    int8 = quantized(found.model, found.sites, found.thresholds, float_layers=["a"], weights=weights)
    inputs = {node.name: node.input[0] for node in int8.graph.node if node.op_type == "Conv"}
    assert (inputs["a"], inputs["side"]) == ("Mul_3_o", "Mul_3_o_centred_dq")
    assert output_noise([{"out_o": y} for y in outputs(model)], int8, IMAGES) < 0.01


def test_layers_that_come_to_be_in_float_read_what_they_did() -> None:
    model = network(biased=False)
    found = moved(model)
    before = found.model.SerializeToString()
    made = found.in_float(found.model, ["pre", "c", "b"])
    nodes = {node.name: node for node in made.graph.node}
    assert list(nodes["pre"].input) == ["Mul_6_o", "pre.w"]
    # c reads a concatenation, of which there is no other.
    assert list(nodes["c"].input) == ["pool_o_centred", "c.w", "c_centred_bias"]
    assert found.in_float(found.model, ["c"]) is found.model
    assert found.model.SerializeToString() == before
    for want, got in zip(outputs(model), outputs(made), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    int8 = quantized(made, found.sites, found.thresholds, float_layers=["pre", "c"])
    assert next(node for node in int8.graph.node if node.name == "pre").input[0] == "Mul_6_o"
    outputs(int8)


def test_two_sided_activations_stay() -> None:
    net = Net(4)
    x = net.op("LeakyRelu", [net.conv("images", 3, 8, name="stem")], alpha=0.1)
    x = net.op("Tanh", [net.conv(x, 8, 8, name="a", kernel=1)])
    net.conv(net.conv(x, 8, 8, name="b", kernel=1), 8, 4, name="out", kernel=1)
    model = net.model({"out_o": [1, 4, 32, 32]}, [1, 3, 32, 32])
    found = moved(model)
    assert not found.moved
    assert found.model.SerializeToString() == model.SerializeToString()


BOUNDS: dict[str, tuple[Any, float | None]] = {
    "ReLU": (lambda n, x: n.relu(x), 0.0),
    "SiLU": (lambda n, x: n.silu(x), -0.27847),
    "HardSwish": (lambda n, x: n.op("HardSwish", [x]), -0.375),
    "hard swish of parts": (
        lambda n, x: n.op("Div", [n.op("Mul", [x, clip(n, n.op("Add", [x, number(n, 3)]), 0, 6)]), number(n, 6)]),
        -0.375,
    ),
    "hard swish by HardSigmoid": (lambda n, x: n.op("Mul", [x, n.op("HardSigmoid", [x], alpha=1 / 6)]), -0.375),
    "gated": (lambda n, x: n.op("Mul", [n.silu(x), n.op("Sigmoid", [n.conv(x, 3, 3)])]), -0.27847),
    "sum": (lambda n, x: n.op("Add", [n.silu(x), n.silu(x)]), 2 * -0.27847),
    "moved": (lambda n, x: n.op("Concat", [n.relu(x), n.silu(x)], axis=1), -0.27847),
    "clipped": (lambda n, x: clip(n, x, -1, 6), -1.0),
    "another factor": (lambda n, x: n.op("Mul", [x, n.relu(x)]), None),
    "another sum": (lambda n, x: n.op("Add", [x, n.relu(x)]), None),
    "convolution": (lambda n, x: n.conv(x, 3, 3), None),
}


def number(net: Net, value: float) -> str:
    return net.constant(np.array(value, np.float32))


def clip(net: Net, x: str, low: float, high: float) -> str:
    return net.op("Clip", [x, number(net, low), number(net, high)])


@pytest.mark.parametrize("name", BOUNDS)
def test_the_least_value(name: str) -> None:
    make, expected = BOUNDS[name]
    net = Net()
    out = make(net, net.op("Identity", ["images"]))
    graph = helper.make_graph(
        net.nodes, "net", [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 99, 99])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)], net.constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert _Bounds(Graph(model)).least(out) == (None if expected is None else pytest.approx(expected))
    if expected is not None:
        values = np.linspace(-12, 12, 3 * 99 * 99, dtype=np.float32).reshape(1, 3, 99, 99)
        seen = float(Observer(model, [out]).run(values)[out].min())
        assert expected - 1e-5 <= seen
        if name != "gated":
            assert seen == pytest.approx(expected, abs=1e-4)


def test_precision_mixed_knows_the_ranges_of_what_was_moved() -> None:
    """TensorRT is told of the tensors of the float model, too, which are as large as they were."""
    model = network("relu")
    found = moved(model)
    int8 = quantized(found.model, found.sites, found.thresholds)
    unpaired = without_pairs(int8.SerializeToString())
    assert unpaired is not None
    names = ["Relu_2_o", "Relu_4_o", "Relu_6_o", "pool_o"]
    limits = calibrated(model)[2]
    for name in names:
        largest = max(float(y.max()) for y in outputs(model, name))
        least = limits.get(name, limits["Relu_10_o"])
        assert 0.9 * least <= unpaired.float_ranges[name] <= 2 * largest
    # In the quantized model itself, before and after the constant is subtracted.
    assert unpaired.ranges["Relu_2_o"] > 1.9 * unpaired.ranges["Relu_2_o_centred"]
