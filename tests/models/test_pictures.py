"""Calibration sees the very input that the daemon makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamd.imaging.reference import preprocess
from streamd.models.cache import key_of
from streamd.models.pictures import Feeder
from streamd.types import ModelSpec, TensorSpec
from tests.gpu.kernel_cases import INPUTS
from tests.imaging.test_letterbox import make_frame

SPEC = ModelSpec("m", "", "m", TensorSpec("images", (-1, 3, 64, 96), "float32"), (), ())


@pytest.mark.parametrize("how", [{}, *INPUTS])
@pytest.mark.parametrize("nhwc", [False, True])
def test_the_input_is_the_references(how: dict[str, Any], nhwc: bool) -> None:
    spec = replace(SPEC, **how)
    if nhwc:
        spec = replace(spec, input=replace(spec.input, shape=(-1, 64, 96, 3)), layout="NHWC")
    frame = make_frame()
    got = Feeder(spec).input(frame)
    want, _ = preprocess(
        [frame], 96, 64, pad_value=spec.pad_value, color=spec.color, scale=spec.scale, placement=spec.placement,
        mean=spec.mean or (0, 0, 0), std=spec.std or (1, 1, 1),
    )  # fmt: skip
    expected = want[0].transpose(1, 2, 0) if nhwc else want[0]
    assert (got.dtype, got.shape) == (np.dtype(np.float32), expected.shape)
    assert got.flags.c_contiguous
    # The host rounds pixels to code values.
    assert np.abs(got - expected).mean() < 0.5 * spec.normalization()[0].max()


def test_a_cache_is_of_one_input() -> None:
    keys = [key_of(replace(SPEC, **how), "pictures", ["x"]) for how in ({}, *INPUTS)]
    assert len(set(keys)) == len(keys)
