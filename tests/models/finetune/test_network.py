"""ONNX in PyTorch: what ONNX Runtime computes, for every operator, and with Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from streamd.errors import ModelError
from streamd.models.calibrate import Observer, observe, thresholds
from streamd.models.finetune.network import Network
from streamd.models.finetune.operators import OPERATORS
from streamd.models.qdq import find_sites, quantized
from tests.models.nets import Net, branches

torch = pytest.importorskip("torch", reason="fine-tuning needs PyTorch")

X = np.random.default_rng(5).standard_normal((2, 4, 8, 6)).astype(np.float32)


def floats(*values: Any) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def split(net: Net, x: str, *parts: int) -> str:
    """The second part of a tensor."""
    net.op("Split", [x, net.constant(ints(*parts))] if parts else [x], "s", outputs=2, axis=1)
    return "s_o1"


CASES: dict[str, tuple[str, Callable[[Net, str], str]]] = {
    "Add": ("", lambda n, x: n.op("Add", [x, n.constant(floats([[1]], [[2]], [[3]], [[4]]))])),
    "AveragePool": ("", lambda n, x: n.op("AveragePool", [x], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])),
    "AveragePool padded": (
        "AveragePool",
        lambda n, x: n.op("AveragePool", [x], kernel_shape=[2, 2], pads=[1] * 4, count_include_pad=1),
    ),
    "BatchNormalization": (
        "",
        lambda n, x: n.op(
            "BatchNormalization",
            [x, *(n.constant(floats(1, 2, 3, 4) * k) for k in (0.5, -0.1, 0.2, 1.5))],
            epsilon=1e-3,
        ),
    ),
    "Clip": ("", lambda n, x: n.op("Clip", [x, n.constant(np.float32(-0.5)), n.constant(np.float32(1))])),
    "Concat": ("", lambda n, x: n.op("Concat", [x, n.op("Relu", [x])], axis=1)),
    "Conv": ("", lambda n, x: n.conv(x, 4, 5, stride=2)),
    "Conv grouped, dilated, padded on one side": (
        "Conv",
        lambda n, x: n.op(
            "Conv",
            [x, n.constant(np.arange(64, dtype=np.float32).reshape(8, 2, 2, 2) / 64)],
            group=2,
            dilations=[2, 1],
            pads=[0, 1, 2, 0],
        ),
    ),
    "Div": ("", lambda n, x: n.op("Div", [x, n.constant(np.float32(3))])),
    "Dropout": ("", lambda n, x: n.op("Dropout", [x])),
    "Exp": ("", lambda n, x: n.op("Exp", [x])),
    "Flatten": ("", lambda n, x: n.op("Flatten", [x], axis=2)),
    "GlobalAveragePool": ("", lambda n, x: n.op("GlobalAveragePool", [x])),
    "HardSigmoid": ("", lambda n, x: n.op("HardSigmoid", [x], alpha=0.17)),
    "HardSwish": ("", lambda n, x: n.op("HardSwish", [x])),
    "Identity": ("", lambda n, x: n.op("Identity", [x])),
    "LeakyRelu": ("", lambda n, x: n.op("LeakyRelu", [x], alpha=0.1)),
    "MatMul": ("", lambda n, x: n.op("MatMul", [x, n.constant(np.eye(6, 3, dtype=np.float32))])),
    "MaxPool": ("", lambda n, x: n.op("MaxPool", [x], kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1])),
    "MaxPool of all sizes": (
        "MaxPool",
        lambda n, x: n.op("MaxPool", [x], kernel_shape=[3, 3], pads=[0, 0, 1, 1], strides=[2, 2], ceil_mode=1),
    ),
    "Mul": ("", lambda n, x: n.op("Mul", [x, n.op("Tanh", [x])])),
    "Pad": ("", lambda n, x: n.op("Pad", [x, n.constant(ints(0, 0, 1, 2, 0, 0, 3, 0)), n.constant(np.float32(2))])),
    "ReduceMean": ("", lambda n, x: n.op("ReduceMean", [x], axes=[1], keepdims=0)),
    "Relu": ("", lambda n, x: n.op("Relu", [x])),
    "Reshape": ("", lambda n, x: n.op("Reshape", [x, n.constant(ints(0, 2, 2, -1))])),
    "Resize": (
        "",
        lambda n, x: n.op(
            "Resize",
            [x, "", n.constant(floats(1, 1, 2, 2))],
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
    ),
    "Resize by its defaults": ("Resize", lambda n, x: n.op("Resize", [x, "", "", n.constant(ints(2, 4, 12, 9))])),
    "Sigmoid": ("", lambda n, x: n.op("Sigmoid", [x])),
    "SiLU": ("Sigmoid", lambda n, x: n.silu(x)),
    "Slice": (
        "",
        lambda n, x: n.op("Slice", [x, *(n.constant(v) for v in (ints(1, 0), ints(99, -1), ints(2, 3), ints(2, 1)))]),
    ),
    "Softmax": ("", lambda n, x: n.op("Softmax", [x], axis=1)),
    "Split": ("", split),
    "Split unequally": ("Split", lambda n, x: split(n, x, 1, 3)),
    "Squeeze": ("", lambda n, x: n.op("Squeeze", [n.op("Unsqueeze", [x, n.constant(ints(1))]), n.constant(ints(-4))])),
    "Sub": ("", lambda n, x: n.op("Sub", [x, n.op("Relu", [x])])),
    "Tanh": ("", lambda n, x: n.op("Tanh", [x])),
    "Transpose": ("", lambda n, x: n.op("Transpose", [x], perm=[0, 2, 3, 1])),
    "Unsqueeze": ("", lambda n, x: n.op("Unsqueeze", [x, n.constant(ints(2))])),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_that_of_onnxruntime(name: str) -> None:
    net = Net()
    out = CASES[name][1](net, net.op("Mul", ["images", net.constant(np.float32(1.5))]))
    model = made(net, out)
    expected = Observer(model, [out]).run(X)[out]
    (found,) = Network(model, [out])(torch.from_numpy(X))
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def made(net: Net, out: str) -> Any:
    """A model with that output, of whatever shape."""
    graph = helper.make_graph(
        net.nodes, "net", [helper.make_tensor_value_info("images", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)], net.constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_every_operator_was_compared() -> None:
    assert {of or name for name, (of, _) in CASES.items()} == set(OPERATORS)


def test_shapes_are_computed_beside() -> None:
    """As exporters write a doubling: Shape, Slice, Mul, Concat, Resize; and only what is wanted is computed."""
    net = Net()
    x = net.conv("images", 4, 4)
    shape = net.op("Shape", [x])
    front, back = (net.op("Slice", [shape, net.constant(ints(a)), net.constant(ints(b))]) for a, b in ((0, 2), (2, 4)))
    sizes = net.op("Concat", [front, net.op("Mul", [back, net.constant(ints(2))])], axis=0)
    out = net.op("Resize", [x, "", "", sizes], mode="nearest")
    net.op("NonZero", [out], "not_known_here")
    model = made(net, out)
    (found,) = Network(model, [out])(torch.from_numpy(X))
    np.testing.assert_allclose(found.numpy(), Observer(model, [out]).run(X)[out], rtol=1e-5, atol=1e-5)


def test_an_unknown_operator_is_refused() -> None:
    net = Net()
    out = net.op("Erf", [net.conv("images", 4, 4)], "gelu")
    with pytest.raises(ModelError, match=r"node 'gelu': operator Erf .* knows Add, .*; leave --finetune out"):
        Network(made(net, out), [out])(torch.from_numpy(X))


@pytest.mark.parametrize(
    ("options", "why"), [({"mode": "linear"}, "Resize by linear"), ({"axes": [2, 3]}, "Resize of some axes")]
)
def test_an_unknown_form_is_refused(options: dict[str, Any], why: str) -> None:
    net = Net()
    sizes = ints(12, 12) if "axes" in options else ints(2, 4, 12, 12)
    out = net.op("Resize", ["images", "", "", net.constant(sizes)], "up", **options)
    with pytest.raises(ModelError, match=f"node 'up': {why}, which fine-tuning does not compute"):
        Network(made(net, out), [out])(torch.from_numpy(X))


@pytest.mark.parametrize("compact", [False, True])
def test_pairs_round_as_onnxruntime_does(compact: bool) -> None:
    model = branches()
    sites = find_sites(model)
    images = np.random.default_rng(1).random((4, 1, 3, 64, 64), np.float32)
    histograms, _ = observe(Observer(model, sites.watched), images)
    int8 = quantized(model, sites, thresholds(histograms, sites.sources, "mse"), compact=compact)
    names = list(sites.outputs)
    network = Network(int8, sites.outputs)
    seen = set()

    def rounded(scale: str, x: Any) -> Any:
        seen.add(scale)
        step = torch.from_numpy(np.array(network.graph.constant(scale)))
        return torch.clamp(torch.round(x / step), -128, 127) * step

    for image in images:
        expected = Observer(int8, names[:1]).run(image)[names[0]]
        (found,) = network(torch.from_numpy(image), None, rounded)
        clean = Observer(model, names[:1]).run(image)[names[0]]
        noise = np.square(expected - clean).sum()
        # Sums in another order round a few values half way between two steps the other way.
        assert np.square(found.numpy() - expected).sum() < 0.05 * noise
    assert seen == {"images_scale", *(f"{n}_scale" for n in int8_inputs(int8))}


def int8_inputs(model: Any) -> list[str]:
    """Activations that are rounded."""
    constants = {t.name for t in model.graph.initializer}
    return [n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants]


def test_gradients_reach_what_replaces_constants() -> None:
    model = branches()
    sites = find_sites(model)
    network = Network(model, sites.outputs)
    weight = torch.from_numpy(np.array(network.graph.constant("stem.w"))).requires_grad_()
    (found,) = network(torch.rand(1, 3, 64, 64), {"stem.w": weight})
    found.square().sum().backward()
    assert float(weight.grad.abs().sum()) > 0
