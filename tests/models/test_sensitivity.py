"""Which layers do most of the harm, and what they cost in float."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from streamd.models.calibrate import Observer, observe, thresholds
from streamd.models.qdq import find_sites
from streamd.models.sensitivity import Noise, by_noise, dominant, multiplications
from streamd.models.weights import nearest
from tests.models.nets import branches

IMAGES = list(np.random.default_rng(1).random((3, 1, 3, 64, 64), np.float32))


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def ready() -> tuple[Any, ...]:
    """A model in which layer "a" alone has weights forty times as coarse as the others'."""
    model = branches()
    sites = find_sites(model)
    limits = thresholds(observe(Observer(model, sites.watched), IMAGES)[0], sites.sources, "mse")
    weight = next(layer for layer in sites.layers if layer.name == "a").weight
    value = next(
        np.frombuffer(t.raw_data, np.float32).reshape(t.dims) for t in model.graph.initializer if t.name == weight
    )
    scales = np.abs(value.reshape(len(value), -1)).max(axis=1) / np.float32(3)
    return model, sites, limits, {weight: nearest(value, scales)}


def test_shares_of_the_multiplications(ready: tuple[Any, ...]) -> None:
    model, sites, *_ = ready
    counts = {"stem": 27 * 8, "a": 8 * 8, "b": 72 * 8, "c": 16 * 8, "d": 144 * 8}
    total = sum(counts.values()) + 8 * 6
    found = multiplications(model, sites, IMAGES[0])
    assert found == {name: pytest.approx(count / total) for name, count in counts.items()}


def test_the_layer_that_makes_the_noise_stays_in_float(ready: tuple[Any, ...]) -> None:
    model, sites, limits, weights = ready
    assert by_noise(Noise(model, sites, limits, IMAGES, weights), silent)[0].layer == "a"
    assert dominant(Noise(model, sites, limits, IMAGES, weights), silent) == ["a"]


def test_none_is_kept_beyond_its_share_or_twice(ready: tuple[Any, ...]) -> None:
    model, sites, limits, weights = ready
    assert dominant(Noise(model, sites, limits, IMAGES, weights), silent, share=0.02) == []
    assert "a" not in dominant(Noise(model, sites, limits, IMAGES, weights), silent, always=["a"])


def test_layers_are_kept_while_one_stands_out_and_the_share_lasts(ready: tuple[Any, ...]) -> None:
    """Without a coarse layer, the noise of a net of five is spread over all of them, each above a tenth."""
    model, sites, limits, _ = ready
    kept = dominant(Noise(model, sites, limits, IMAGES), silent, share=0.2)
    cost = multiplications(model, sites, IMAGES[0])
    assert kept
    assert sum(cost[name] for name in kept) <= 0.2


def test_noise_that_does_no_harm_keeps_nothing_in_float(
    ready: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sites, limits, weights = ready
    monkeypatch.setattr("streamd.models.sensitivity.QUIET", 1.0)
    assert dominant(Noise(model, sites, limits, IMAGES, weights), silent, share=1.0) == []


class Vectors:
    """A model's noise at one output, where each layer adds a vector of its own."""

    costs: dict[str, float]

    def __init__(self, **added: tuple[float, ...]) -> None:
        self._added = added
        self.names = list(added)
        self.costs = dict.fromkeys(added, 0.01)

    def of(self, int8: Collection[str]) -> dict[str, float]:
        return {"out": float(np.square(np.sum([self._added[name] for name in int8], axis=0)).sum())}

    def alone(self, name: str) -> dict[str, float]:
        return self.of([name])


def test_layers_are_weighed_by_what_each_makes_alone() -> None:
    """Left and right cancel on these pictures, which says nothing of others."""
    noise: Any = Vectors(left=(-3.0, 0.0), right=(2.9, 0.0), up=(0.0, 1.0))
    assert dominant(noise, silent, share=0.025) == ["left", "right"]


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_the_same_however_the_noise_adds_up(seed: int) -> None:
    """Forty layers of decreasing noise in random directions: another processor's rounding is another draw."""
    turned = np.random.default_rng(seed).normal(size=(40, 16))
    made = 0.8 ** np.arange(40)[:, None] * turned / np.linalg.norm(turned, axis=1, keepdims=True)
    noise: Any = Vectors(**{f"layer{i}": tuple(v) for i, v in enumerate(made)})
    assert dominant(noise, silent, share=0.055) == [f"layer{i}" for i in range(5)]


def apart(*sizes: float) -> Any:
    """Layers whose noise has nothing to do with each other."""
    return Vectors(**{f"layer{i}": tuple(v) for i, v in enumerate(np.diag(sizes))})


def test_where_no_layer_stands_out_all_are_in_int8() -> None:
    """9 of 33 parts stand out, and a twenty-fourth behind them does not; 2 of 26 parts do not stand out."""
    assert dominant(apart(3.0, *[1.0] * 24), silent) == ["layer0"]
    assert dominant(apart(2.0**0.5, *[1.0] * 24), silent) == []


def test_what_layers_make_together_is_not_asked() -> None:
    """Noise that adds up in one direction: together 25 parts make 196, of which the largest alone has 4."""
    same: Any = Vectors(**{f"layer{i}": (size,) for i, size in enumerate([2.0, *[0.5] * 24])})
    assert dominant(same, silent) == ["layer0"]


def test_behind_the_first_a_twentieth_is_enough() -> None:
    """Fifteen layers of a fifteenth each stay in INT8, unless one beside them stands out."""
    assert dominant(apart(*[1.0] * 15), silent) == []
    assert dominant(apart(2.0, *[1.0] * 15), silent, share=0.025) == ["layer0", "layer1"]


def test_layers_that_stay_in_float_anyway_count_for_nothing() -> None:
    noise: Any = Vectors(a=(3.0, 0.0), b=(1.0, 0.0), c=(0.1, 0.0))
    assert dominant(noise, silent, always=["a"], share=0.01) == ["b"]
    assert dominant(noise, silent, always=["a", "b", "c"]) == []
