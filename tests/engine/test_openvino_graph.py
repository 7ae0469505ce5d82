"""Changes to OpenVINO models: the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamd.engine.openvino_graph import join_slices
from tests.engine.onnx_models import best_rows, conv_relu


@pytest.mark.parametrize("batch", [1, "batch"])
def test_slices_become_a_split_with_the_same_outputs(tmp_path: Path, batch: Any) -> None:
    import onnxruntime as ort
    import openvino as ov

    path = best_rows(tmp_path / "m.onnx", batch=batch)
    picture = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    model = ov.Core().read_model(path)
    assert join_slices(model) == 1
    assert join_slices(model) == 0
    got = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(picture)[0]
    (want,) = ort.InferenceSession(str(path)).run(None, {"images": picture})
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_other_models_stay_as_they_are(tmp_path: Path) -> None:
    import openvino as ov

    assert join_slices(ov.Core().read_model(conv_relu(tmp_path / "m.onnx"))) == 0
