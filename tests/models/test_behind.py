"""A layer's noise, measured on what lies behind it only."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from streamd.models import behind as behind_
from streamd.models.behind import behind
from streamd.models.calibrate import Observer, observe, thresholds
from streamd.models.graph import Graph
from streamd.models.qdq import find_sites
from streamd.models.sensitivity import Noise
from tests.models.nets import branches, detector

IMAGES = list(np.random.default_rng(1).random((3, 1, 3, 64, 64), np.float32))


def noise_of(model: Any, images: list[Any] = IMAGES) -> Noise:
    sites = find_sites(model)
    limits = thresholds(observe(Observer(model, sites.watched), images)[0], sites.sources, "mse")
    return Noise(model, sites, limits, images)


def three_heads(tmp_path: Path) -> Any:
    return onnx.load(str(detector(tmp_path / "m.onnx")))


def with_a_choice() -> Any:
    """`branches` with an If before its output convolution, which reads a tensor that is not among its inputs."""
    model = branches()
    last = next(node for node in model.graph.node if node.name == "out")
    ways = [
        helper.make_graph(
            [helper.make_node("Identity", [last.input[0]], [f"{name}_o"])], name, [],
            [helper.make_tensor_value_info(f"{name}_o", 1, None)],
        )
        for name in ("then", "else")
    ]  # fmt: skip
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "always"))
    choice = helper.make_node("If", ["always"], ["chosen"], "choice", then_branch=ways[0], else_branch=ways[1])
    model.graph.node.insert(list(model.graph.node).index(last), choice)
    next(node for node in model.graph.node if node.name == "out").input[0] = "chosen"
    return model


@pytest.mark.parametrize("kind", ["branches", "ReLU", "three heads", "several batches", "a choice"])
@pytest.mark.parametrize("memory", [1, behind_.MEMORY], ids=["layer by layer", "all at once"])
def test_it_is_that_of_the_whole_model(kind: str, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind_, "MEMORY", memory)
    model = {
        "branches": branches, "ReLU": lambda: branches(act="relu"), "three heads": lambda: three_heads(tmp_path),
        "several batches": lambda: three_heads(tmp_path), "a choice": with_a_choice,
    }[kind]()  # fmt: skip
    images = [IMAGES[0], np.concatenate(IMAGES[1:])] if kind == "several batches" else IMAGES
    noise = noise_of(model, images)
    for name in noise.names:
        whole = noise.of([name])
        assert any(whole.values())
        assert noise.alone(name) == pytest.approx(whole, rel=1e-4, abs=1e-11), name


def test_layers_may_be_asked_for_in_any_order() -> None:
    forwards, backwards = noise_of(branches()), noise_of(branches())
    last = [backwards.alone(name) for name in reversed(backwards.names)]
    assert [forwards.alone(name) for name in forwards.names] == [pytest.approx(found) for found in reversed(last)]


def test_a_layer_that_leads_nowhere_makes_no_noise() -> None:
    model = branches()
    stem = next(node for node in model.graph.node if node.name == "stem")
    model.graph.node.append(helper.make_node("Conv", list(stem.input), ["unread"], "idle", kernel_shape=[3, 3]))
    noise = noise_of(model)
    assert "idle" in noise.names
    assert noise.alone("idle") == noise.of(["idle"]) == dict.fromkeys(noise.of([]), 0.0)


def test_nothing_before_a_layer_is_run_again(tmp_path: Path) -> None:
    model = three_heads(tmp_path)
    graph, sites = Graph(model), find_sites(model)
    parts = {layer.name: behind(graph, layer, sites.outputs) for layer in sites.layers}
    names = [{graph.nodes[i].name for i in part.nodes} for part in parts.values()]
    assert all(later < earlier for earlier, later in pairwise(names))
    assert (parts["body0"].edge, parts["body0"].outputs) == (("images",), sites.outputs)
    # Only the last of three heads is behind the last layer.
    last = parts["mix4"]
    assert [graph.nodes[i].op_type for i in last.nodes] == ["Conv", "Sigmoid", "Mul", "Conv"]
    assert last.outputs == sites.outputs[2:]
    assert last.edge == (next(layer.input for layer in sites.layers if layer.name == "mix4"),)


def test_a_pair_moves_through_what_passes_values_on() -> None:
    """`c` reads a concatenation of `a` and `b`, which becomes one of INT8 tensors."""
    model = branches()
    graph, sites = Graph(model), find_sites(model)
    part = behind(graph, next(layer for layer in sites.layers if layer.name == "c"), sites.outputs)
    assert "cat1" in {graph.nodes[i].name for i in part.nodes}
    assert "cat1_o" not in part.edge
    assert {"a", "b", "stem"}.isdisjoint(graph.nodes[i].name for i in part.nodes)
