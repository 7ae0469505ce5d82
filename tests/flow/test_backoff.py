"""Waits between tries."""

from __future__ import annotations

import random

from streamd.flow.backoff import Backoff


def test_backoff_doubles_up_to_its_limit_with_jitter() -> None:
    backoff = Backoff(1, 8, random.Random(3))
    waits = [backoff.next() for _ in range(6)]
    for wait, bound in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert bound / 2 <= wait <= bound
    assert len(set(waits)) == 6
    backoff.reset()
    assert backoff.next() <= 1


def test_the_longest_wait_can_be_asked_for_at_once() -> None:
    backoff = Backoff(1, 8, random.Random(3))
    assert 4 <= backoff.next(longest=True) <= 8
    assert backoff.attempts == 1


def test_a_wait_that_is_cut_short_does_not_count() -> None:
    backoff = Backoff(1, 8, random.Random(3))
    for _ in range(3):
        backoff.next()
    assert 0 <= backoff.shorten() <= 1
    assert backoff.attempts == 2
    assert 2 <= backoff.next() <= 4, "the next wait is as long as the one that was cut short"
