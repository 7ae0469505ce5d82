"""Outputs of a plan: YOLOv5's heads come as convolved, by the real parser; everything else as the file has it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.sidecar import Sidecar, read_sidecar, write_sidecar
from streamd.engine.tensorrt import TensorRtSettings, network, outputs
from streamd.engine.tensorrt.builder import build, plan_for
from streamd.engine.tensorrt.job import BuildOptions, prepare
from streamd.engine.tensorrt.outputs import DECLARED, give_convolutions
from streamd.engine.tensorrt.version import Trt, vendor_logger
from tests.conftest import shared
from tests.engine.trt import trt_here
from tests.models.nets import Net, detector

GRID, VALUES = 8, 7


@pytest.fixture(scope="module")
def trt() -> Trt:
    return trt_here()


def given(path: Path, precision: Any) -> tuple[bool, list[tuple[str, tuple[int, ...], str]]]:
    """What the builder does with the network: whether all outputs changed, and the outputs afterwards."""
    job = prepare(path, BuildOptions(precision=precision))
    made = job.trt.module.Builder(vendor_logger())
    parsed, parser = network._parse(job, made, vendor_logger())
    changed = give_convolutions(job.trt, parsed, half=precision != "fp32")
    found = [parsed.get_output(i) for i in range(parsed.num_outputs)]
    out = [(t.name, tuple(t.shape), str(t.dtype).rsplit(".", 1)[-1]) for t in found]
    del found, parsed, parser, made
    return changed, out


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "FLOAT"), ("fp16", "HALF")])
def test_a_real_detectors_heads_are_given_out_as_convolved(trt: Trt, precision: Any, dtype: str) -> None:
    path = shared("models/yolov5n_heads.onnx")
    assert given(path, precision) == (
        True,
        [(f"stride{s}", (-1, 255, 640 // s, 640 // s), dtype) for s in (8, 16, 32)],
    )
    plan, sidecar = build(prepare(path, BuildOptions(precision=precision)))
    assert plan.nbytes > 1 << 20
    assert sidecar.head == DECLARED


@pytest.mark.parametrize("name", ["yolov5n_cat", "yolov5lite_e_relu_320"])
def test_outputs_of_another_kind_stay_as_they_are(trt: Trt, name: str) -> None:
    path = shared(f"models/{name}.onnx")
    changed, (found,) = given(path, "fp32")
    (declared,) = onnx.load(str(path)).graph.output
    assert not changed
    assert (found[0], len(found[1]), found[2]) == (declared.name, 3, "FLOAT")
    assert build(prepare(path, BuildOptions(precision="fp32")))[1].head is None


def head(net: Net, kind: str, name: str) -> list[Any]:
    """One output of a small network, and its shape."""
    channels = 3 * VALUES
    x = net.conv("images", 3, channels, name=f"{name}_conv", stride=4)
    order, shape = [0, 1, 3, 4, 2], [1, 3, VALUES, GRID, GRID]
    if kind == "bias":
        x = net.op("Add", [x, net.constant(np.ones((1, channels, 1, 1), np.float32))])
    elif kind == "sigmoid":
        x = net.op("Sigmoid", [x])
    elif kind == "channels last":
        x, shape = net.op("Transpose", [x], perm=[0, 2, 3, 1]), [1, GRID, GRID, 3, VALUES]
        order = [0, 3, 1, 2, 4]
    elif kind == "values first":
        shape, order = [1, VALUES, 3, GRID, GRID], [0, 2, 3, 4, 1]
    elif kind == "columns first":
        order = [0, 1, 4, 3, 2]
    elif kind == "batch split":
        shape = [1, 3, VALUES, 2 * GRID, GRID // 2]
    x = net.op("Reshape", [x, net.constant(np.array(shape))])
    if kind == "twice":
        order = [0, 1, 4, 2, 3]
        x, shape = net.op("Transpose", [x], perm=order), [shape[i] for i in order]
    net.nodes.append(helper.make_node("Transpose", [x], [name], f"{name}_transpose", perm=order))
    return [shape[i] for i in order]


AS_CONVOLVED = (1, 3 * VALUES, GRID, GRID)


@pytest.mark.parametrize(
    ("kind", "matches"),
    [
        ("plain", True),
        ("bias", True),
        ("twice", True),
        ("sigmoid", False),
        ("channels last", False),
        ("values first", False),
        ("columns first", False),
        ("batch split", False),
    ],
)
def test_only_the_very_pattern_is_changed(trt: Trt, tmp_path: Path, kind: str, matches: bool) -> None:
    net = Net()
    before = {"a": head(net, "plain", "a"), "b": head(net, kind, "b"), "c": head(net, "plain", "c")}
    path = tmp_path / "m.onnx"
    # Not in the order of their layers.
    onnx.save(net.model({n: before[n] for n in "cba"}, [1, 3, 4 * GRID, 4 * GRID]), str(path))
    changed, found = given(path, "fp32")
    assert changed == matches
    assert [name for name, _, _ in found] == ["c", "b", "a"]
    shapes = {name: shape for name, shape, _ in found}
    assert shapes == {
        "a": AS_CONVOLVED,
        "b": AS_CONVOLVED if matches else tuple(before["b"]),
        "c": AS_CONVOLVED,
    }
    plan, sidecar = build(prepare(path, BuildOptions(precision="fp32")))
    assert plan.nbytes > 0
    assert sidecar.head == (DECLARED if matches else None)


def test_an_output_that_the_network_goes_on_with_is_still_its_input(trt: Trt, tmp_path: Path) -> None:
    net = Net()
    shape = head(net, "plain", "a")
    net.nodes.append(helper.make_node("Sigmoid", ["a"], ["shares"], "last"))
    path = tmp_path / "m.onnx"
    onnx.save(net.model({"a": shape, "shares": shape}, [1, 3, 4 * GRID, 4 * GRID]), str(path))
    assert given(path, "fp32") == (False, [("a", AS_CONVOLVED, "FLOAT"), ("shares", tuple(shape), "FLOAT")])
    assert build(prepare(path, BuildOptions(precision="fp32")))[0].nbytes > 0


def test_a_convolution_is_given_out_once(trt: Trt, tmp_path: Path) -> None:
    net = Net()
    shape = head(net, "plain", "a")
    path = tmp_path / "m.onnx"
    both = {"a": shape, "a_conv_o": list(AS_CONVOLVED)}
    onnx.save(net.model(both, [1, 3, 4 * GRID, 4 * GRID]), str(path))
    assert given(path, "fp32") == (False, [("a", tuple(shape), "FLOAT"), ("a_conv_o", AS_CONVOLVED, "FLOAT")])


def test_the_models_own_word_on_its_head_is_kept(trt: Trt, tmp_path: Path) -> None:
    model = detector(tmp_path / "m.onnx")
    word = {"kind": "yolov5_heads", "anchors": [[1, 2, 3, 4, 5, 6]] * 3}
    write_sidecar(model, Sidecar(version=1, head=word))
    assert build(prepare(model, BuildOptions(precision="fp32")))[1].head == word


def test_a_reused_plan_keeps_its_head(trt: Trt, tmp_path: Path) -> None:
    if not trt.is_rtx:
        pytest.skip("a plan is built on a GPU")
    model = detector(tmp_path / "m.onnx")
    settings = TensorRtSettings(precision="fp32", cache_dir=str(tmp_path))
    plan = plan_for(ModelSettings(path=str(model)), settings, BatchSettings(max=1))
    assert read_sidecar(plan).head == DECLARED
    write_sidecar(model, Sidecar(version=1, labels=("thing",)))
    assert plan_for(ModelSettings(path=str(model)), settings, BatchSettings(max=1)) == plan
    assert (read_sidecar(plan).head, read_sidecar(plan).labels) == (DECLARED, ("thing",))


# A builder with precision flags cannot be installed here: its objects by the names that TensorRT 8.5 gives them.


class Layer:
    def __init__(
        self, kind: str, inputs: list[Any], output: Any, first: Any = range(8), second: Any = range(8)
    ) -> None:
        self.type, self._inputs, self._output, self.num_outputs = kind, inputs, output, 1
        self.first_transpose, self.second_transpose = list(first), list(second)

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def get_output(self, index: int) -> Any:
        return self._output


class Network:
    def __init__(self, layers: list[Layer], marked: list[Any]) -> None:
        self.layers, self.marked = layers, marked
        self.num_layers, self.num_outputs = len(layers), len(marked)
        for tensor in marked:
            tensor.is_network_output = True

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_output(self, index: int) -> Any:
        return self.marked[index]

    def mark_output(self, tensor: Any) -> None:
        self.marked.append(tensor)
        tensor.is_network_output = True

    def unmark_output(self, tensor: Any) -> None:
        self.marked.remove(tensor)
        tensor.is_network_output = False


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("known", [False, True], ids=["rows unknown to it", "rows known"])
@pytest.mark.parametrize("one", [False, True], ids=["two layers", "one layer"])
def test_types_are_asked_for_where_the_builder_chooses(half: bool, known: bool, one: bool) -> None:
    kinds = SimpleNamespace(SHUFFLE="s", IDENTITY="i", CONVOLUTION="c", ELEMENTWISE="e")
    module: Any = SimpleNamespace(
        BuilderFlag=SimpleNamespace(FP16=0), LayerType=kinds, IShuffleLayer=Layer, IElementWiseLayer=Layer,
        float32="float32", float16="float16", TensorFormat=SimpleNamespace(LINEAR=0),
    )  # fmt: skip

    def tensor(name: str, *shape: int) -> Any:
        return SimpleNamespace(name=name, shape=shape, dtype="float32", is_network_output=False)

    rows = 20 if known else -1
    image, convolved = tensor("images", -1, 3, 640, 640), tensor("conv", -1, 255, 20, 20)
    split, out = tensor("split", -1, 3, 85, rows, rows), tensor("out", -1, 3, rows, rows, 85)
    order = [0, 1, 3, 4, 2, 5, 6, 7]
    shuffles = [Layer("s", [convolved], split), Layer("s", [split], out, order)]
    network = Network(
        [Layer("c", [image], convolved), *([Layer("s", [convolved], out, second=order)] if one else shuffles)], [out]
    )
    assert give_convolutions(Trt(module, "tensorrt", (8, 5, 3, 1)), network, half=half)
    assert network.marked == [convolved]
    assert (convolved.name, convolved.dtype, convolved.allowed_formats) == ("out", "float16" if half else "float32", 1)
    assert out.name == "out_by_cell"
    assert outputs.DECLARED == {"kind": "yolov5_heads"}
