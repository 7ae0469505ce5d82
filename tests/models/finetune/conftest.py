"""A small network, quantized, for all tests of fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest

from streamd.models.calibrate import Observer, observe, thresholds
from streamd.models.finetune.parameters import Start
from streamd.models.qdq import find_sites
from streamd.models.tune import safe_weights
from tests.models.nets import branches

IMAGES = np.random.default_rng(1).random((24, 1, 3, 64, 64), np.float32)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """PyTorch's threads wait for each other at every operator: beside other work, small networks take minutes."""
    pytest.importorskip("torch", reason="fine-tuning needs PyTorch").set_num_threads(1)


@pytest.fixture(scope="session")
def ready() -> Start:
    model = branches()
    sites = find_sites(model)
    layers = list(dict.fromkeys(layer.input for layer in sites.layers))
    histograms, peaks = observe(
        Observer(model, list(dict.fromkeys([*sites.watched, *layers]))), IMAGES, sites.watched, layers
    )
    limits = thresholds(histograms, sites.sources, "mse")
    return Start(model, sites, limits, safe_weights(model, sites, limits, peaks), peaks)
