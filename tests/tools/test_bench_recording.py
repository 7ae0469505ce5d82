"""The interval that the recording benchmark judges by."""

from __future__ import annotations

import math

import pytest
from bench_recording import interval


def test_the_interval_is_student_s() -> None:
    # Mean 3, standard deviation 1.5811, five values: 3 -+ 2.776 * 1.5811 / sqrt(5).
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((3.0, 1.037, 4.963), abs=0.001)
    assert interval([2.0]) == (2.0, -math.inf, math.inf)
