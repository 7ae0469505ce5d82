"""An input that becomes a constant: what is left is the same model with one input less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamd.engine.onnx.constants import with_constant
from streamd.engine.onnx.reader import read_onnx
from tests.engine.onnx_models import detr_final


@pytest.mark.parametrize("batch", ["N", 2])
def test_outputs_are_those_of_the_input_set_to_the_value(tmp_path: Path, batch: int | str) -> None:
    import onnxruntime as ort

    path = detr_final(tmp_path / "m.onnx", batch=batch)
    pictures = np.zeros((2, 3, 64, 96), np.float32)
    sizes = np.array([[96, 64]] * 2)
    want = ort.InferenceSession(str(path)).run(None, {"images": pictures, "orig_target_sizes": sizes})
    changed = with_constant(path.read_bytes(), "orig_target_sizes", sizes[: 1 if batch == "N" else 2])
    (tmp_path / "changed.onnx").write_bytes(changed)
    assert [t.name for t in read_onnx(tmp_path / "changed.onnx").inputs] == ["images"]
    session = ort.InferenceSession(changed)
    for a, b in zip(session.run(None, {"images": pictures}), want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_to_do(tmp_path: Path) -> None:
    path = detr_final(tmp_path / "m.onnx")
    assert with_constant(path.read_bytes(), "im_shape", np.array([1])) == path.read_bytes()
    assert with_constant(b"not onnx", "im_shape", np.array([1])) == b"not onnx"
