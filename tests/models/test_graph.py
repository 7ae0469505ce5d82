"""ONNX models as the offline commands read and change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamd.models.graph import fix_size_input, has_size_input, load
from streamd.models.quantize import input_spec
from tests.engine.onnx_models import detr_final


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
