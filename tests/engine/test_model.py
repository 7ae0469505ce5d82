"""The specification of a model: file, sidecar, configuration, in this order of increasing weight."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from streamd.config.loader import load
from streamd.engine import BUILTIN, ModelSettings
from streamd.engine.model import (
    _metadata_labels,
    image_input,
    model_file,
    parts_of,
    read_labels,
    settle_spec,
    sha256_of,
    size_input,
    size_value,
)
from streamd.engine.onnx.reader import read_onnx
from streamd.engine.sidecar import Provenance, Sidecar, read_sidecar, sidecar_path, write_sidecar
from streamd.errors import ConfigError, ModelError
from streamd.types import CENTERED, ModelSpec, Placement, TensorSpec

IMAGE = TensorSpec("images", (-1, 3, 320, 320), "float32")
OUT = TensorSpec("out", (-1, 6300, 7), "float32")


def settle(path: Path, image: TensorSpec = IMAGE, metadata: dict[str, str] | None = None, **kw: Any) -> ModelSpec:
    return settle_spec(ModelSettings(path=str(path), **kw), path, "0" * 64, [image], [OUT], metadata or {}, 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "my model.onnx"
    file.write_bytes(b"x")
    return file


def test_defaults(path: Path) -> None:
    spec = settle(path)
    assert (spec.name, spec.layout, spec.color, spec.pad_value, spec.max_batch) == (
        "my_model", "NCHW", "RGB", 114, 8,
    )  # fmt: skip
    assert spec.scale == pytest.approx(1 / 255)
    assert (spec.input_width, spec.input_height) == (320, 320)


def test_metadata_then_sidecar_then_configuration(path: Path) -> None:
    metadata = {"names": "{0: 'cat', 1: 'dog'}"}
    assert settle(path, metadata=metadata).labels == ("cat", "dog")
    write_sidecar(path, Sidecar(version=1, labels=("a", "b"), pad_value=0, color="BGR", scale=1.0))
    spec = settle(path, metadata=metadata)
    assert (spec.labels, spec.pad_value, spec.color, spec.scale) == (("a", "b"), 0, "BGR", 1.0)
    spec = settle(path, metadata=metadata, labels=("x", "y"), pad_value=7, color="RGB")
    assert (spec.labels, spec.pad_value, spec.color) == (("x", "y"), 7, "RGB")


def test_how_the_input_is_made_is_declared_or_assumed(path: Path) -> None:
    spec = settle(path)
    assert (spec.mean, spec.std, spec.placement, spec.input_declared) == (None, None, CENTERED, False)
    gain, offset = spec.normalization()
    np.testing.assert_allclose(gain, [1 / 255] * 3)
    assert offset.tolist() == [0, 0, 0]
    write_sidecar(path, Sidecar(mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 1), resize="stretch", align="top_left"))
    spec = settle(path)
    assert spec.placement == Placement("stretch", "top_left")
    assert spec.input_declared
    gain, offset = spec.normalization()
    np.testing.assert_allclose(gain, [4 / 255, 2 / 255, 1 / 255])
    np.testing.assert_allclose(offset, [-2, -0.8, -0.3], rtol=1e-6)
    spec = settle(path, scale=1, mean=(1, 2, 3), std=(1, 1, 2), resize="letterbox", align="center")
    assert (spec.mean, spec.std, spec.placement) == ((1, 2, 3), (1, 1, 2), CENTERED)
    assert [v.tolist() for v in spec.normalization()] == [[1, 1, 0.5], [-1, -2, -1.5]]
    write_sidecar(path, Sidecar(color="RGB", scale=1 / 255, pad_value=114, input_assumed=True))
    assert not settle(path).input_declared
    assert settle(path, color="RGB").input_declared


@pytest.mark.parametrize("field", [{"std": (1, 0, 1)}, {"mean": (1, 2)}, {"resize": "crop"}, {"align": "bottom"}])
def test_an_input_that_cannot_be_is_refused(path: Path, field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModelSettings(path=str(path), **field)
    with pytest.raises(ValidationError):
        Sidecar(**field)


def test_labels_from_a_file(path: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("one\n  two \n\n")
    assert settle(path, labels=str(names)).labels == ("one", "two")
    for content in (b"", b"\xff\xfe\x00"):
        names.write_bytes(content)
        with pytest.raises(ConfigError, match=r"names\.txt"):
            settle(path, labels=str(names))


def test_a_model_that_comes_with_streamd_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("road6", "road6_float"):
        (tmp_path / f"{name}.onnx").write_bytes(b"x")
    monkeypatch.setattr("streamd.engine.model.ASSETS", tmp_path)
    assert model_file(f"{BUILTIN}road6") == tmp_path / "road6.onnx"
    with pytest.raises(ModelError, match=r"model builtin:cats: .* available: builtin:road6, builtin:road6_float"):
        model_file("builtin:cats")
    for name in ("", "../assets/road6", "road6.onnx"):
        with pytest.raises(ModelError, match="there is no such bundled model"):
            model_file(BUILTIN + name)
    config = tmp_path / "c.yaml"
    config.write_text('model: {path: "builtin:road6"}\nstreams: [{id: a, url: x.mp4}]\n')
    assert load(config).config.model.path == "builtin:road6"
    monkeypatch.setattr("streamd.engine.model.ASSETS", tmp_path / "none")
    with pytest.raises(ModelError, match="available: none in this installation"):
        model_file("builtin:road6")


@pytest.mark.parametrize(
    "names",
    ["{0: 'cat', 1: 'dog'}", "['cat', 'dog']", '{"0": "cat", "1": "dog"}', '["cat", "dog"]', "{1: 'dog', 0: 'cat'}"],
)
def test_names_in_the_forms_of_exporters(path: Path, names: str) -> None:
    assert settle(path, metadata={"names": names}).labels == ("cat", "dog")


@pytest.mark.parametrize(
    "names",
    [
        "__import__('os')", "(" * 5000, "{", "{1: 'cat', 2: 'dog'}", "{0: 'a', 2: 'b'}",
        '{"a": "b"}', "5", "[[1]]", "{0: {}}",
    ],
)  # fmt: skip
def test_names_that_are_none_are_refused_not_replaced(path: Path, names: str) -> None:
    with pytest.raises(ModelError, match=r"`names` metadata .*give model\.labels"):
        settle(path, metadata={"names": names})
    assert settle(path, metadata={"names": names}, labels=("x", "y")).labels == ("x", "y")


def test_names_that_cannot_be_encoded(path: Path) -> None:
    spec = settle(path, metadata={"names": r'["caf\ud800", "b"]'})
    assert spec.labels == ("caf\\ud800", "b")
    with pytest.raises(ConfigError, match="cannot be written as UTF-8"):
        settle(path, labels=("a\udce4",))
    with pytest.raises(ConfigError, match="cannot be written as UTF-8"):
        settle(path, name="a\udce4")


def test_a_class_name_as_long_as_a_page(path: Path, tmp_path: Path) -> None:
    long = "x" * 100_000
    with pytest.raises(ModelError, match="has 100000 characters; expected at most 200"):
        settle(path, metadata={"names": f"['{long}', 'b']"})
    (tmp_path / "names.txt").write_text(f"a\n{long}\n")
    with pytest.raises(ModelError, match="expected at most 200"):
        settle(path, labels=str(tmp_path / "names.txt"))
    assert settle(path, labels=("x" * 200, "b")).labels[1] == "b"


def test_a_byte_order_mark_is_no_part_of_a_name(path: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(b"\xef\xbb\xbfperson\r\ncar\r\n")
    assert settle(path, labels=str(names)).labels == ("person", "car")


def test_the_exporters_task_comes_from_the_model_or_from_the_sidecar(path: Path) -> None:
    assert settle(path, metadata={"task": "pose"}).metadata["task"] == "pose"
    assert "task" not in settle(path).metadata
    write_sidecar(path, Sidecar(task="obb"))
    assert settle(path).metadata["task"] == "obb"
    assert settle(path, metadata={"task": "pose"}).metadata["task"] == "pose"


def test_shapes(path: Path) -> None:
    assert settle(path, TensorSpec("i", (1, 320, 416, 3), "uint8"), scale=1).layout == "NHWC"
    assert settle(path, TensorSpec("i", (1, 320, 416, 3), "uint8"), scale=1).max_batch == 1
    assert settle(path, TensorSpec("i", (-1, 3, -1, -1), "float32")).input_width == 640
    assert settle(path, TensorSpec("i", (-1, 3, -1, -1), "float32"), input_size=(96, 160)).input_width == 160
    for shape in ((1, 3, 300, 320), (1, 3, 320), (1, 4, 320, 320)):
        with pytest.raises(ModelError, match=r"multiple of 8|one image input|3 colour"):
            settle(path, TensorSpec("i", shape, "float32"))
    assert settle(path, TensorSpec("i", (1, 3, 560, 560), "float32")).input_width == 560
    with pytest.raises(ModelError, match="multiple of 32"):
        settle(path, TensorSpec("i", (-1, 3, -1, -1), "float32"), input_size=(560, 560))


def test_an_input_for_the_size_may_stand_beside_the_picture(path: Path) -> None:
    size = TensorSpec("orig_target_sizes", (-1, 2), "int64")
    assert image_input([size, IMAGE], path) == IMAGE
    assert size_input([size, IMAGE]) == size
    assert size_input([IMAGE]) is None
    for wrong in (replace(size, name="im_shape"), replace(size, shape=(-1,)), replace(size, shape=(1, 2, 2))):
        with pytest.raises(ModelError, match=r"one image input .* the only other input .* is orig_target_sizes"):
            image_input([IMAGE, wrong], path)
    with pytest.raises(ModelError, match="one image input"):
        image_input([IMAGE, IMAGE], path)
    spec = settle(path, TensorSpec("i", (2, 3, 320, 416), "float32"))
    assert size_value(spec, 2).tolist() == [[416, 320], [416, 320]]


def test_a_sidecar_of_another_file(path: Path) -> None:
    write_sidecar(path, Sidecar(version=1, sha256="f" * 64))
    with pytest.raises(ModelError, match="written for another file"):
        settle(path)


def test_sidecars_come_back_and_bad_ones_are_named(path: Path) -> None:
    sidecar = Sidecar(version=1, labels=("a",), provenance=Provenance(source="m.onnx", accuracy={"map": 0.34}))
    write_sidecar(path, sidecar)
    assert read_sidecar(path) == sidecar
    for text in ("{", "[]", '{"labels": 3}', '{"lables": ["a"]}', "[" * 100_000):
        sidecar_path(path).write_text(text)
        with pytest.raises(ConfigError, match="sidecar"):
            read_sidecar(path)


def test_files(tmp_path: Path) -> None:
    for name, message in (("none", "does not exist"), (".", "is a folder")):
        with pytest.raises(ModelError, match=message):
            model_file(str(tmp_path / name))
    weights = tmp_path / "m.bin"
    xml = tmp_path / "m.xml"
    xml.write_text("<net/>")
    weights.write_bytes(b"1")
    first = sha256_of(xml)
    weights.write_bytes(b"2")
    assert sha256_of(xml) != first
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(ModelError, match=r"m\.bin: is no file"):
        model_file(str(xml))
    with pytest.raises(ModelError, match="model /dev/zero: is no file"):
        model_file("/dev/zero")


def test_dynamic_layouts(path: Path) -> None:
    assert settle(path, TensorSpec("i", (-1, -1, -1, 3), "float32"), input_size=(320, 416)).input.shape == (
        -1, 320, 416, 3,
    )  # fmt: skip
    assert settle(path, TensorSpec("i", (-1, -1, -1, 3), "float32")).layout == "NHWC"
    assert settle(path, TensorSpec("i", (-1, -1, -1, -1), "float32")).layout == "NCHW"
    assert settle(path, TensorSpec("i", (-1, 3, -1, -1), "float32")).layout == "NCHW"


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_an_input_of_bytes_wants_its_scale_declared(path: Path, dtype: str) -> None:
    """Else pixels 0 to 255 become 0 and 1, and the model sees a black picture."""
    with pytest.raises(ModelError, match=r"declare model\.scale"):
        settle(path, TensorSpec("i", (1, 320, 320, 3), dtype))
    assert settle(path, TensorSpec("i", (1, 320, 320, 3), dtype), scale=1).scale == 1


def _with_outside_weights(folder: Path, value: float) -> Path:
    onnx = pytest.importorskip("onnx")
    folder.mkdir()
    weights = onnx.numpy_helper.from_array(np.full((2, 3, 16, 16), value, np.float32), "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    sizes = [1, 3, 64, 64], [1, 2, 49, 49]
    values = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in zip("xy", sizes, strict=True)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:], [weights]))
    onnx.save(
        model, str(folder / "m.onnx"), save_as_external_data=True, location="m.onnx.data", size_threshold=0
    )  # fmt: skip
    return folder / "m.onnx"


def test_weights_outside_are_part_of_the_model(tmp_path: Path) -> None:
    one, other = _with_outside_weights(tmp_path / "a", 0.5), _with_outside_weights(tmp_path / "b", 0.25)
    assert one.read_bytes() == other.read_bytes()
    assert sha256_of(one) != sha256_of(other)
    assert sha256_of(one) == read_onnx(one).sha256
    weights = one.with_name("m.onnx.data")
    weights.chmod(0o666)
    with pytest.raises(ModelError, match=r"m\.onnx\.data: every user may change it"):
        model_file(str(one))
    weights.unlink()
    with pytest.raises(ModelError, match=r"its weights are in .*m\.onnx\.data, which cannot be read"):
        model_file(str(one))


def test_tensors_outside_that_are_no_initialisers_are_part_of_the_model(tmp_path: Path) -> None:
    """ONNX lets any tensor be outside: of a Constant, of a branch of a condition, sparse ones, of functions."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper

    def tensor(name: str) -> Any:
        (tmp_path / name).write_bytes(bytes(8))
        made = onnx.numpy_helper.from_array(np.zeros(2, np.float32), name)
        onnx.external_data_helper.set_external_data(made, name)
        made.ClearField("raw_data")
        return made

    out = helper.make_tensor_value_info("y", 1, [2])
    condition = onnx.numpy_helper.from_array(np.array(True), "c")
    branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor("branch"))], "b", [], [out])
    sparse = onnx.SparseTensorProto(values=tensor("sparse"), dims=[2])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=tensor("constant")),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [out], [condition], sparse_initializer=[sparse]))
    inside = helper.make_node("Constant", [], ["z"], value=tensor("function"))
    model.functions.append(helper.make_function("d", "f", [], ["z"], [inside], []))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    names = {"constant", "branch", "sparse", "function"}
    assert {part.name for part in parts_of(path)} == {"m.onnx"} | names
    seen = {sha256_of(path)}
    for name in names:
        (tmp_path / name).write_bytes(b"\1" * 8)
        seen.add(sha256_of(path))
    assert len(seen) == 1 + len(names)
    (tmp_path / "branch").chmod(0o666)
    with pytest.raises(ModelError, match="branch: every user may change it"):
        model_file(str(path))


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    model = _with_outside_weights(tmp_path / "a", 0.5)
    model.write_bytes(model.read_bytes().replace(b"m.onnx.data", b"../onnx.dat"))
    with pytest.raises(ModelError, match="not a file below its folder"):
        model_file(str(model))


def test_an_empty_name_is_refused(path: Path, tmp_path: Path) -> None:
    """To leave it out would give every later class the name of another."""
    names = tmp_path / "names.txt"
    names.write_text("person\n\ncar\n")
    with pytest.raises(ConfigError, match=r"names\.txt: line 2 is empty"):
        read_labels(str(names))
    names.write_text("person\ncar\n\n\n")
    assert read_labels(str(names)) == ("person", "car")
    for text in ("{0: 'person', 1: ' '}", '["", "car"]'):
        with pytest.raises(ModelError, match="has an empty name for class"):
            _metadata_labels({"names": text}, path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("best.pt", b"PK\x03\x04", r"a PyTorch checkpoint; export .* yolo export model=best\.pt format=onnx"),
        ("best.pth", b"PK\x03\x04", "a PyTorch checkpoint; export the model to ONNX$"),
        ("net.safetensors", b"{}", "a file of weights only; export the model to ONNX$"),
        ("m.onnx", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, .* git lfs pull"),
        ("m.onnx", b"\n<!DOCTYPE html><html>404</html>", "a web page or text, not a model; download"),
    ],
)
def test_what_is_often_given_for_a_model(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        model_file(str(tmp_path / name))
