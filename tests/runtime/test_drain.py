"""The parts of a drain fit into its time, and closing outputs always has some."""

from __future__ import annotations

import time

import pytest

from streamd.runtime.drain import WORKER_SHARE, Drain


def test_each_part_ends_before_the_whole() -> None:
    before = time.monotonic()
    drain = Drain(10)
    assert before + 10 <= drain.deadline <= time.monotonic() + 10
    assert drain.deadline - drain.workers_by == pytest.approx(1)
    assert drain.deadline - drain.stages_by() == pytest.approx(2, abs=0.5)
    assert drain.outputs_s() == pytest.approx(10, abs=0.5)
    # A worker that uses all its time is not killed for it.
    assert drain.workers_by - before > WORKER_SHARE * 10


def test_past_the_deadline_there_is_still_a_moment() -> None:
    drain = Drain(0)
    assert drain.outputs_s() == 0.5
    assert 0 < drain.stages_by() - time.monotonic() <= 0.1
