from __future__ import annotations

import random

import pytest

from streamd.events.retry import RetryPolicy


def test_each_target_has_waits_of_its_own() -> None:
    now = [100.0]
    policy = RetryPolicy(1.0, 8.0, clock=lambda: now[0], random_source=random.Random(1))
    waits = [policy.failed("far") for _ in range(6)]
    for wait, bound in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert bound / 2 <= wait <= bound
    assert policy.attempts("far") == 6
    assert policy.wait_s("near") == 0.0
    assert policy.wait_s("far") == pytest.approx(waits[-1])
    now[0] += waits[-1]
    assert policy.wait_s("far") == 0.0
    policy.succeeded("far")
    assert policy.attempts("far") == 0
    assert policy.failed("far") <= 1.0


def test_what_a_target_asks_for_is_kept_to_within_reason() -> None:
    policy = RetryPolicy(1.0, 8.0, clock=lambda: 0.0)
    assert policy.failed("a", retry_after_s=120.0) == 120.0
    assert policy.failed("b", retry_after_s=0.0) >= 0.5
    assert policy.failed("c", retry_after_s=1e9) == 3600.0
