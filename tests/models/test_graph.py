"""ONNX models as the offline commands read and change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamd.models.calibrate import Observer, observe, thresholds
from streamd.models.graph import fix_size_input, has_size_input, load, prepare
from streamd.models.qdq import find_sites, quantized
from streamd.models.quantizer import input_spec
from tests.engine.onnx_models import detr_final
from tests.models.nets import branches


@pytest.mark.parametrize("batch", ["N", 2])
def test_an_input_for_the_size_becomes_a_constant(tmp_path: Path, batch: Any) -> None:
    """As for the engines: what is quantized, and what comes of it, has the picture as its only input."""
    import onnxruntime as ort

    path = detr_final(tmp_path / "m.onnx", batch=batch)
    model = load(path)
    assert has_size_input(model)
    fix_size_input(model, input_spec(str(path)))
    assert not has_size_input(model)
    pictures = np.zeros((2, 3, 64, 96), np.float32)
    want = ort.InferenceSession(str(path)).run(
        None, {"images": pictures, "orig_target_sizes": np.array([[96, 64]] * 2)}
    )
    got = ort.InferenceSession(model.SerializeToString()).run(None, {"images": pictures})
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_constants_that_are_listed_as_inputs_do_not_stay_behind(tmp_path: Path) -> None:
    """As PaddlePaddle's exporter writes them: the quantized model must need nothing but the picture."""
    onnx = pytest.importorskip("onnx")
    model = branches(opset=13)
    model.ir_version = 3
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    path = tmp_path / "listed.onnx"
    onnx.save(model, str(path))
    made = prepare(path)
    assert [i.name for i in made.graph.input] == ["images"]
    onnx.checker.check_model(made)
    sites = find_sites(made)
    images = np.random.default_rng(0).random((2, 1, 3, 64, 64), np.float32)
    limits = thresholds(observe(Observer(made, sites.watched), images)[0], sites.sources, "mse")
    int8 = quantized(made, sites, limits)
    assert [i.name for i in int8.graph.input] == ["images"]
    wanted, got = (Observer(m, sites.outputs).run(images[0]) for m in (made, int8))
    for name in sites.outputs:
        assert got[name] == pytest.approx(wanted[name], abs=0.1 * float(np.abs(wanted[name]).max()))
