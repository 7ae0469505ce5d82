"""What is kept in float after the gate has refused, and that the gate does not choose it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from streamd.models import escalate
from streamd.models.calibrate import Observer, observe, thresholds
from streamd.models.escalate import AIM, LOOKS, MOST, best, escalated
from streamd.models.gate import Verdict
from streamd.models.qdq import find_sites
from streamd.models.sensitivity import Noise, by_noise
from tests.models.nets import branches

IMAGES = list(np.random.default_rng(1).random((3, 1, 3, 64, 64), np.float32))
REFUSED = Verdict({"map": 0.2}, refusal="mAP lost 0.1", score=0.1, allowed=0.01)


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def noise() -> Noise:
    model = branches()
    sites = find_sites(model)
    limits = thresholds(observe(Observer(model, sites.watched), IMAGES)[0], sites.sources, "mse")
    return Noise(model, sites, limits, IMAGES)


class Asked:
    """Agreement and the gate's verdict as functions of how many layers are in float; both note what they were asked."""

    def __init__(self, agreement: dict[int, float], losses: dict[int, float], limit: float = 0.01) -> None:
        self._agreement, self._losses, self._limit = agreement, losses, limit
        self.searched: list[frozenset[str]] = []
        self.judged: list[tuple[str, ...]] = []

    def agreement(self, layers: Collection[str]) -> float:
        self.searched.append(frozenset(layers))
        return self._agreement.get(len(layers), 1.0)

    def judge(self, layers: Collection[str]) -> Verdict:
        self.judged.append(tuple(layers))
        loss = self._losses.get(len(layers), 0.0)
        return Verdict(refusal=None if loss <= self._limit else f"lost {loss}", score=loss, allowed=self._limit)

    def run(self, noise: Noise, **options: Any) -> list[escalate.Step]:
        always = options.get("always", [])
        return escalated(noise, REFUSED, always, self.agreement, self.judge, silent)


@pytest.fixture(autouse=True)
def _roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five layers, of which one has most of the work: all but that may stay in float, and none stands out."""
    monkeypatch.setattr(escalate, "MOST", 0.95)
    monkeypatch.setattr(escalate, "dominant", lambda *_, always, **__: [])


def test_the_noisiest_layers_stay_in_float_until_boxes_are_found_again(noise: Noise) -> None:
    asked = Asked({0: 0.5, 1: 0.9}, {})
    steps = asked.run(noise)
    assert len(steps) == 1
    order = [h.layer for h in by_noise(noise, silent)]
    # Two were needed by number; which two is the order's choice.
    assert set(steps[0].float_layers) == set(order[:2])
    assert steps[0].share == pytest.approx(sum(noise.costs[n] for n in order[:2]))
    assert len(asked.searched) == len(set(asked.searched))


def test_layers_that_stand_out_come_first(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    last = by_noise(noise, silent)[-1].layer
    monkeypatch.setattr(escalate, "dominant", lambda *_, always, **__: [last])
    assert Asked({}, {}).run(noise)[0].float_layers == (last,)
    steps = Asked({2: 0.9}, {}).run(noise, always=["b"])
    assert steps[0].float_layers[:2] == ("b", last)


def test_the_search_goes_on_where_the_gate_is_not_content(noise: Noise) -> None:
    """A loss within the limit, but not what is aimed at: the next model has to agree in half of what was missing."""
    bar = 1 - AIM * 0.05
    asked = Asked({0: 0.9, 1: bar, 2: bar + 0.001, 3: 1 - (1 - bar) / 2}, {1: 0.009, 3: 0.004})
    steps = asked.run(noise)
    assert [len(s.float_layers) for s in steps] == [1, 3]
    assert best(steps) is steps[1]
    assert [s.verdict.score for s in steps] == [0.009, 0.004]


def test_the_one_that_lost_least_is_taken(noise: Noise) -> None:
    asked = Asked({0: 0.9, 1: 0.97, 2: 0.985, 3: 1.0}, {1: 0.007, 2: 0.008, 3: 0.02})
    steps = asked.run(noise)
    assert len(steps) == len(asked.judged) == LOOKS
    assert best(steps) is steps[0]


def test_what_the_gate_has_seen_is_not_judged_again(noise: Noise) -> None:
    before = Verdict({"map": 0.2}, score=0.008, allowed=0.01)
    asked = Asked({1: 1 - AIM * 0.05}, {})
    steps = escalated(noise, before, ["a"], asked.agreement, asked.judge, silent)
    assert [len(s.float_layers) for s in steps] == [1, 2]
    assert steps[0].verdict is before
    assert asked.judged == [steps[1].float_layers]


def test_no_choice_passes(noise: Noise) -> None:
    steps = Asked({}, dict.fromkeys(range(6), 0.5)).run(noise)
    assert steps
    assert best(steps) is None


def test_more_than_half_of_the_work_never_stays_in_float(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(escalate, "MOST", MOST)
    asked = Asked(dict.fromkeys(range(6), 0.5), dict.fromkeys(range(6), 0.5))
    steps = asked.run(noise)
    # The model that came nearest is judged once, and the search ends.
    assert len(steps) == 1
    assert 0 < steps[0].share <= MOST
    assert all(sum(noise.costs[n] for n in layers) <= MOST for layers in asked.searched)


def test_a_tighter_limit_asks_for_more_agreement(noise: Noise) -> None:
    tight = Verdict({"map": 0.2}, refusal="no", score=0.1, allowed=0.002)
    asked = Asked({0: 0.98, 1: 0.995}, {}, limit=0.002)
    steps = escalated(noise, tight, [], asked.agreement, asked.judge, silent)
    assert [len(s.float_layers) for s in steps] == [1]
    # Without labels the limit is one of agreement already.
    told = Verdict(agreement=0.9, refusal="no", score=0.1, allowed=0.05)
    asked = Asked({0: 0.96, 1: 0.972}, {}, limit=0.05)
    assert [len(s.float_layers) for s in escalated(noise, told, [], asked.agreement, asked.judge, silent)] == [1]
