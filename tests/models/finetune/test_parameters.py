"""What fine-tuning trains: rounding that lets gradients through, and weights that no processor overflows with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamd.models.finetune import parameters
from streamd.models.finetune.parameters import Parameters, Start
from streamd.models.weights import SUM_MAX, unsigned_peaks
from tests.models.nets import branches

torch = pytest.importorskip("torch", reason="fine-tuning needs PyTorch")


def opened(ready: Start, float_layers: tuple[str, ...] = ()) -> Parameters:
    return Parameters(replace(ready, float_layers=float_layers), "cpu")


def test_rounding_and_its_gradients() -> None:
    x = torch.tensor([0.26, -0.1, 200.0, -200.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    out = parameters._rounding().apply(x, scale)
    assert out.tolist() == [0.5, 0.0, 63.5, -64.0]
    out.sum().backward()
    # Values pass, except where they are clipped; a larger scale moves these by their steps, others by their error.
    assert x.grad.tolist() == [1, 1, 0, 0]
    assert float(scale.grad) == pytest.approx((1 - 0.52) + (0 + 0.2) + 127 - 128)


def test_nothing_is_changed_before_training(ready: Start) -> None:
    limits, weights = ready.thresholds, ready.weights
    found, thresholds_, constants = opened(ready).tuned()
    assert thresholds_ == pytest.approx(limits)
    assert set(constants) == {"out.w", "out.b"}
    for name, made in weights.items():
        assert (found[name].steps == made.steps).all()
        np.testing.assert_allclose(found[name].scales, made.scales, rtol=1e-6)
        bias = found[name].bias
        assert bias is not None
        np.testing.assert_allclose(bias, branches_bias(name), rtol=1e-6)


def branches_bias(weight: str) -> Any:
    from onnx import numpy_helper

    name = weight.replace(".w", ".b")
    return next(numpy_helper.to_array(t) for t in branches().graph.initializer if t.name == name)


def test_layers_in_float_are_trained_in_float(ready: Start) -> None:
    found, _, constants = opened(ready, ("a",)).tuned()
    assert set(constants) == {"out.w", "out.b", "a.w", "a.b"}
    assert found["a.w"] is ready.weights["a.w"]


def test_no_trained_weights_overflow(ready: Start) -> None:
    sites, peaks = ready.sites, ready.peaks
    trained = opened(ready)
    random = np.random.default_rng(2)
    with torch.no_grad():
        for group in trained.groups():
            for tensor in group["params"]:
                tensor += torch.from_numpy(random.normal(0, 0.3, tensor.shape).astype(np.float32))
        for weight in trained._weights.values():
            # Far more than fits.
            weight.latent += torch.from_numpy(random.choice([-90, 0, 90], weight.latent.shape).astype(np.float32))
    weights, limits, _ = trained.tuned()
    given = trained.given({name: (name, None) for name in weights})
    near = 0
    for layer in sites.layers:
        made = weights[layer.weight]
        # What was trained is what is written.
        np.testing.assert_allclose(made.values(), given[layer.weight].detach().numpy(), rtol=1e-5, atol=1e-7)
        unsigned = unsigned_peaks(peaks[layer.input], limits[sites.sources[sites.group[layer.input]][0]])
        steps = made.steps.reshape(len(made.steps), len(unsigned), -1).astype(np.int64)
        for k in range(0, len(unsigned) - 1, 2):
            for sign in (1, -1):
                total = np.maximum(sign * steps[:, k : k + 2], 0) * unsigned[None, k : k + 2, None]
                assert total.sum(1).max() <= SUM_MAX
                near += int((total.sum(1) > 0.95 * SUM_MAX).sum())
    assert near > 100
