"""Inspection."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from streamd.cli import main
from streamd.engine.sidecar import Provenance, Sidecar, write_sidecar
from streamd.errors import ModelError
from streamd.models.inspect import inspect
from streamd.models.quantize import quantize
from streamd.models.request import Request
from tests.conftest import shared
from tests.models.nets import Net, detector, pictures


def test_a_small_detector(tmp_path: Path) -> None:
    found = inspect(str(detector(tmp_path / "m.onnx")))
    assert found.head == "yolov5_heads"
    assert found.inputs == [{"name": "images", "shape": ["batch", 3, 64, 64], "dtype": "float32"}]
    assert [o["name"] for o in found.outputs or []] == ["s8", "s16", "s32"]
    assert (found.opset, found.convolutions, found.quantized) == (17, 13, False)
    assert found.labels == ["class_0"]
    # Weights and biases: 3→16, nine 16→16, all 3×3; three 16→18, 1×1.
    assert found.parameters == (3 * 16 * 9 + 16) + 9 * (16 * 16 * 9 + 16) + 3 * (16 * 18 + 18)
    grids = [32, 16, 8, 4, 2]
    operations = sum(2 * g * g * 16 * 9 * (3 if i == 0 else 16) + 2 * g * g * 16 * 9 * 16 for i, g in enumerate(grids))
    operations += sum(2 * g * g * 18 * 16 for g in grids[2:])
    assert found.gflops == pytest.approx(operations / 1e9)
    (silu,) = (w for w in found.warnings if "SiLU" in w)
    assert silu.startswith("10 SiLU: an exponential per value is computed in float, which ReLU avoids. ")
    # All its convolutions are padded; the last SiLU of each level is also read by an output convolution.
    assert "Of 9 activations that are hardly ever negative (SiLU, ReLU), `streamd quantize` can centre 0" in silu
    assert "; the other 9 use little more than half" in silu
    assert any("batch is dynamic" in w for w in found.warnings)


def test_a_quantised_one(tmp_path: Path) -> None:
    model, out = detector(tmp_path / "m.onnx", act="relu"), tmp_path / "q.onnx"
    quantize(Request(str(model), str(pictures(tmp_path / "i")), out, batches=1, use_cache=False))
    before, after = inspect(str(model)), inspect(str(out))
    assert (after.quantized, after.int8_convolutions, after.convolutions) == (True, 10, 13)
    assert (after.parameters, after.gflops) == (before.parameters, before.gflops)
    assert after.provenance is not None
    assert after.provenance.source == "m.onnx"
    assert not any("SiLU" in w or "symmetric" in w for w in after.warnings)


def test_ranges_that_quantize_centres_are_not_warned_of(tmp_path: Path) -> None:
    net = Net()
    x = net.silu(net.conv("images", 3, 8))
    x = net.silu(net.conv(x, 8, 8, kernel=1))
    net.op("Identity", [net.conv(net.silu(net.conv(x, 8, 8, kernel=1)), 8, 6)], "y")
    onnx.save(net.model({"y_o": [1, 6, 64, 64]}, [1, 3, 64, 64], 17), str(tmp_path / "m.onnx"))
    (silu,) = (w for w in inspect(str(tmp_path / "m.onnx")).warnings if "SiLU" in w)
    assert "can centre 2 in INT8's range. Check" in silu
    out = tmp_path / "q.onnx"
    request = Request(
        str(tmp_path / "m.onnx"), str(pictures(tmp_path / "i")), out, batches=1, use_cache=False, force=True
    )
    quantize(request)
    (silu,) = (w for w in inspect(str(out)).warnings if "SiLU" in w)
    assert silu == "3 SiLU: an exponential per value is computed in float, which ReLU avoids"


def test_warnings(tmp_path: Path) -> None:
    net = Net()
    x = net.op("LeakyRelu", [net.conv("images", 3, 8)], alpha=0.1)
    net.op("Identity", [net.conv(x, 8, 6)], "y")
    onnx.save(net.model({"y_o": [1, 6, 64, 64]}, [1, 3, 64, 64], 18), str(tmp_path / "m.onnx"))
    found = inspect(str(tmp_path / "m.onnx"))
    assert found.head is None
    for text in ("1 LeakyReLU", "opset 18 is newer", "no head"):
        assert any(text in w for w in found.warnings), text


def test_pairs_that_tensorrt_refuses(tmp_path: Path) -> None:
    net = Net()
    q = net.op("QuantizeLinear", ["images", net.constant(np.float32(0.01))], "q")
    d = net.op("DequantizeLinear", [q, "k0"], "d")
    net.op("Identity", [net.conv(d, 3, 6)], "y")
    onnx.save(net.model({"y_o": [1, 6, 64, 64]}, [1, 3, 64, 64]), str(tmp_path / "m.onnx"))
    assert any("not symmetric INT8" in w for w in inspect(str(tmp_path / "m.onnx")).warnings)


def test_a_plan_without_tensorrt_says_what_it_does_not_know(tmp_path: Path) -> None:
    plan = tmp_path / "m.plan"
    plan.write_bytes(b"vtrt" + bytes(100))
    found = inspect(str(plan))
    assert any("has no sidecar" in u for u in found.unknown)
    made = Provenance(precision="int8", gpu="NVIDIA H200 (9.0)", effort=0)
    write_sidecar(plan, Sidecar(sha256=found.sha256, provenance=made))
    found = inspect(str(plan))
    assert found.quantized is True
    assert found.provenance is not None
    assert found.provenance.gpu == "NVIDIA H200 (9.0)"
    assert found.as_json()["provenance"]["effort"] == 0
    plan.write_bytes(b"garbage")
    assert any("does not start" in w for w in inspect(str(plan)).warnings)
    assert any("another kind of file" in w for w in inspect(str(plan)).warnings)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("m.onnx", b"\x08\x07junk", "not a valid ONNX"), ("m.onnx", b"", "is empty"), ("m.txt", b"x", "expected an ONNX")],
)
def test_what_is_no_model(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        inspect(str(tmp_path / name))


def test_real_models_and_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shared("models/yolov5n_cat.onnx")), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["head"], body["opset"], body["labels"][:2]) == ("yolov5_cat", 17, ["person", "bicycle"])
    assert body["outputs"] == [{"name": "output0", "shape": ["batch", 25200, 85], "dtype": "float32"}]
    # The YOLOv5 repository gives 1.9 million and 4.5 GFLOPs for YOLOv5n at 640.
    assert body["parameters"] == pytest.approx(1.87e6, rel=0.01)
    assert body["gflops"] == pytest.approx(4.5, rel=0.02)
    assert main(["inspect", str(shared("models/yolov5lite_e_relu_320.onnx"))]) == 0
    text = capsys.readouterr().out
    assert "outputs end in a sigmoid" in text
    assert "declare --head yolov5_sigmoid" in text
    assert "warning: opset 12" in text
    declared = ["--head", "yolov5_sigmoid", "--json"]
    assert main(["inspect", str(shared("models/yolov5lite_e_relu_320.onnx")), *declared]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["head"], len(body["labels"])) == ("yolov5_sigmoid", 80)
    assert not any("sigmoid" in w for w in body["warnings"])
    assert main(["inspect", "builtin:road6"]) == 0
    text = capsys.readouterr().out
    assert "\nlabels      6: person, bicycle, car, motorcycle, bus, truck\n" in text
    assert "\nprovenance  source: road6_float.onnx\n            source sha256: 91182cd44ff1…\n" in text
    assert "\n            tools: onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, streamd 0.1.0\n" in text


def test_without_the_package_onnx_it_tells_what_the_daemon_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain installation, as in the README."""
    path = detector(tmp_path / "m.onnx")
    full = inspect(str(path))
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "onnx" else find(name, *more))
    found = inspect(str(path))
    assert (found.head, found.labels, found.operators) == (full.head, full.labels, full.operators)
    assert (found.input_size, found.quantized) == (full.input_size, False)
    assert found.inputs == [{"name": "images", "shape": ["?", 3, 64, 64], "dtype": "float32"}]
    assert [o["name"] for o in found.outputs or []] == ["s8", "s16", "s32"]
    assert found.warnings == []
    assert main(["inspect", str(path)]) == 0
    assert "GFLOPs and operators that cost time: pip install onnx to see them" in capsys.readouterr().out
