"""Rounding by layer on a whole model: less noise at its outputs, or what was there before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from streamd.models import tune
from streamd.models.calibrate import Observer, observe, thresholds
from streamd.models.qdq import find_sites, quantized
from streamd.models.tune import output_noise, safe_weights, tuned
from tests.models.nets import branches

IMAGES = np.random.default_rng(1).random((20, 1, 3, 64, 64), np.float32)
UNSEEN = np.random.default_rng(2).random((4, 1, 3, 64, 64), np.float32)


def inputs(count: int) -> Iterable[Any]:
    return IMAGES[:count]


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def ready() -> tuple[Any, ...]:
    model = branches()
    sites = find_sites(model)
    layers = list(dict.fromkeys(layer.input for layer in sites.layers))
    watched = list(dict.fromkeys([*sites.watched, *layers]))
    histograms, peaks = observe(Observer(model, watched), IMAGES, sites.watched, layers)
    limits = thresholds(histograms, sites.sources, "mse")
    return model, sites, limits, safe_weights(model, sites, limits, peaks), peaks


def noise(ready: tuple[Any, ...], weights: Any, float_layers: tuple[str, ...] = ()) -> float:
    model, sites, limits, *_ = ready
    observer = Observer(model, sites.outputs)
    clean = [observer.run(x) for x in UNSEEN]
    return output_noise(clean, quantized(model, sites, limits, weights=weights, float_layers=float_layers), UNSEEN)


def test_the_outputs_of_unseen_pictures_are_nearer(ready: tuple[Any, ...]) -> None:
    model, sites, limits, weights, peaks = ready
    made = tuned(model, sites, limits, weights, peaks, inputs, silent)
    # A net of five layers has little to gain; YOLOv5n's fifty-seven gain 7 dB.
    assert noise(ready, made) < 0.95 * noise(ready, weights)
    again = tuned(model, sites, limits, weights, peaks, inputs, silent)
    assert all((made[n].steps == again[n].steps).all() for n in made)


def test_layers_in_float_are_left_out(ready: tuple[Any, ...]) -> None:
    model, sites, limits, weights, peaks = ready
    made = tuned(model, sites, limits, weights, peaks, inputs, silent, ["a", "b"])
    assert made["a.w"] is weights["a.w"]
    assert made["c.w"] is not weights["c.w"]
    assert noise(ready, made, ("a", "b")) < noise(ready, weights, ("a", "b"))


def test_what_makes_it_worse_is_not_taken(ready: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, limits, weights, peaks = ready

    def wrong(c: Any, *_: Any) -> Any:
        worse = weights[c.layer.weight]
        return type(worse)(worse.steps // 2, worse.scales)

    monkeypatch.setattr(tune, "solve", wrong)
    made = tuned(model, sites, limits, weights, peaks, inputs, silent)
    assert all(made[n] is weights[n] for n in made)


def test_one_picture_is_too_few(ready: tuple[Any, ...]) -> None:
    model, sites, limits, weights, peaks = ready
    assert tuned(model, sites, limits, weights, peaks, lambda _: IMAGES[:1], silent) == weights
