"""Rounding by layer: patches are what a convolution multiplies, and the output's error falls."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from streamd.models.calibrate import Observer
from streamd.models.qdq import Layer, find_sites
from streamd.models.rounding import Convolution, Moments, convolutions, error, moments, patches, solve, turns
from streamd.models.weights import nearest, safe_scales, weight_scales
from tests.models.nets import branches
from tests.models.test_weights import largest_sum

rng = np.random.default_rng


def layer(
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Convolution:
    bias = np.zeros(len(weight), np.float32) if bias is None else bias
    return Convolution(Layer("c", "x", "w", "y"), weight, bias, strides, pads, dilations, groups)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 0, 2, 1)])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 1)])
def test_patches_are_what_the_convolution_multiplies(
    strides: tuple[int, int], pads: tuple[int, int, int, int], dilations: tuple[int, int]
) -> None:
    random = rng(0)
    weight = random.standard_normal((5, 3, 3, 2)).astype(np.float32)
    image = random.standard_normal((3, 11, 9)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=strides, pads=pads, dilations=dilations)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 11, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, "h", "w"])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"x": image[None]})
    rows, columns = (a.reshape(-1) for a in np.indices(out.shape[2:]))
    c = layer(weight, strides=strides, pads=pads, dilations=dilations)
    ours = patches(c, image, rows, columns) @ weight.reshape(5, -1).T
    assert ours == pytest.approx(out[0][:, rows, columns].T, abs=1e-4)


def sample(seed: int = 0, channels: int = 8) -> tuple[Convolution, Moments]:
    """A layer whose inputs are correlated and noisy, as they are behind other INT8 layers."""
    random = rng(seed)
    c = layer(random.standard_normal((6, channels, 3, 3)).astype(np.float32), random.standard_normal(6).astype("f4"))
    size = c.inputs
    mix = random.standard_normal((size, size)) * 0.95 ** np.arange(size)
    clean = (random.standard_normal((4000, size)) @ mix + 0.5).astype(np.float32)
    rough = (clean + random.standard_normal(clean.shape) * 0.02).astype(np.float32)
    moments = Moments.of(c)
    for part in range(0, 4000, 1000):
        x, y = rough[part : part + 1000], clean[part : part + 1000] @ c.weight.reshape(6, -1).T + c.bias
        moments.add(x, y)
    return c, moments


@pytest.mark.parametrize("seed", range(3))
def test_the_output_is_nearer_than_with_the_nearest_steps(seed: int) -> None:
    c, moments = sample(seed)
    scales = weight_scales(c.weight)
    plain, made = nearest(c.weight, scales), solve(c, moments, scales)
    # Of the error that rounding adds to what the best weights leave, half is gone.
    size = c.inputs
    best = np.linalg.lstsq(moments.inputs[0], moments.outputs[0], rcond=None)[0]
    floor = float((best.T @ moments.inputs[0] * best.T).sum() - 2 * (best * moments.outputs[0]).sum()) / moments.count
    assert moments.inputs.shape == (1, size + 1, size + 1)
    assert error(c, moments, made) - floor < 0.5 * (error(c, moments, plain) - floor)
    assert np.abs(made.steps).max() <= 127
    assert made.bias is not None


def test_the_bias_leaves_no_mean_error() -> None:
    c, moments = sample()
    made = solve(c, moments, weight_scales(c.weight))
    assert made.bias is not None
    mean = moments.inputs[0, -1, :-1] / moments.count
    wanted = moments.outputs[0, -1] / moments.count
    assert made.values().reshape(6, -1) @ mean + made.bias == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("channels", [8, 5])
def test_neighbours_do_not_overflow_however_they_are_rounded(channels: int) -> None:
    c, moments = sample(1, channels)
    unsigned = np.full(channels, 255)
    made = solve(c, moments, safe_scales(c.weight, unsigned), unsigned)
    assert largest_sum(made, unsigned) <= 32767
    # With scales that overflow the steps give way.
    assert largest_sum(solve(c, moments, weight_scales(c.weight), unsigned), unsigned) <= 32767


def test_which_layers_can_be_rounded_together() -> None:
    random = rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["y1"], "plain", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["y1", "w2"], ["y2"], "depthwise", group=4, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["y2", "w3"], ["y3"], "shared_a"),
        helper.make_node("Conv", ["y2", "w3"], ["y4"], "shared_b"),
        helper.make_node("Conv", ["y3", "w4"], ["y5"], "padded", auto_pad="SAME_UPPER"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y5", TensorProto.FLOAT, None)],
        [weight("w1", 4, 3, 3, 3), weight("b1", 4), weight("w2", 4, 1, 3, 3), weight("w3", 4, 4, 1, 1),
         weight("w4", 4, 4, 3, 3)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    layers = [Layer(n.name, n.input[0], n.input[1], n.output[0]) for n in nodes]
    found = convolutions(model, layers)
    assert [c.layer.name for c in found] == ["plain", "depthwise"]
    assert (found[0].pads, found[0].strides, found[0].inputs, found[0].groups) == ((1, 1, 1, 1), (1, 1), 27, 1)
    assert (found[1].inputs, found[1].groups) == (9, 4)


def test_moments_are_of_rounded_inputs_and_float_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every position is taken, they are plain sums."""
    monkeypatch.setattr("streamd.models.rounding.POSITIONS", 1 << 20)
    model = branches()
    sites = find_sites(model)
    found = [c for c in convolutions(model, sites.layers) if c.layer.name == "a"]
    assert len(found) == 1
    images = rng(2).random((2, 3, 64, 64), np.float32)
    made = moments(model, found, {"a": 0.125}, [images[:1], images[1:]])["a"]
    site = found[0].layer
    observer = Observer(model, [site.input, site.output])
    seen = [observer.run(image[None]) for image in images]
    x, y = (
        np.concatenate([s[name] for s in seen]).transpose(0, 2, 3, 1).reshape(-1, 8)
        for name in (site.input, site.output)
    )
    x = np.clip(np.rint(x / 0.125), -128, 127) * 0.125
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    assert made.count == len(x) == 2048
    assert made.inputs[0] == pytest.approx(x.T @ x, rel=1e-5)
    assert made.outputs[0] == pytest.approx(x.T @ y, rel=1e-4, abs=1e-3)


def test_matrices_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    c = layer(np.zeros((4, 4, 3, 3), np.float32))
    monkeypatch.setattr("streamd.models.rounding.MEMORY", 2 * 8 * 37 * 41)
    assert [len(part) for part in turns([c] * 5)] == [2, 2, 1]


def test_a_grouped_layer_is_its_groups_side_by_side() -> None:
    """Each group has its own inputs and outputs, so it comes out as a layer of its own would."""
    random = rng(4)
    weight = random.standard_normal((6, 2, 3, 3)).astype(np.float32)
    bias = random.standard_normal(6).astype(np.float32)
    whole = layer(weight, bias, groups=3)
    image = random.standard_normal((6, 40, 40)).astype(np.float32)
    rows, columns = (a.reshape(-1) for a in np.indices((38, 38)))
    clean = patches(whole, image, rows, columns).reshape(-1, 3, 18)
    rough = np.rint(clean / 0.05) * np.float32(0.05)
    y = np.einsum("pgk,gok->pgo", clean, weight.reshape(3, 2, 18)).reshape(-1, 6) + bias
    together = Moments.of(whole)
    together.add(rough.reshape(-1, 54), y)
    made = solve(whole, together, weight_scales(weight))
    for g in range(3):
        part = slice(2 * g, 2 * g + 2)
        single = layer(weight[part], bias[part])
        alone = Moments.of(single)
        alone.add(rough[:, g], y[:, part])
        wanted = solve(single, alone, weight_scales(weight[part]))
        assert (made.steps[part] == wanted.steps).all()
        assert made.bias is not None
        assert wanted.bias is not None
        assert made.bias[part] == pytest.approx(wanted.bias, abs=1e-4)
    assert error(whole, together, made) < error(whole, together, nearest(weight, weight_scales(weight)))
