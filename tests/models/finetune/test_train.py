"""Fine-tuning a whole network: nearer to the float model on pictures it was not trained on, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamd.errors import ConfigError
from streamd.models.calibrate import Observer
from streamd.models.finetune import train
from streamd.models.finetune.network import Network
from streamd.models.finetune.parameters import Parameters, Start, Tuned
from streamd.models.finetune.train import Input, Windows, finetuned
from streamd.models.graph import with_constants
from streamd.models.qdq import quantized
from streamd.models.tune import output_noise
from tests.models.finetune.conftest import IMAGES
from tests.models.nets import Net

torch = pytest.importorskip("torch", reason="fine-tuning needs PyTorch")
UNSEEN = np.random.default_rng(2).random((4, 1, 3, 64, 64), np.float32)
GREY = Input((0.4, 0.4, 0.4))


def silent(*_: object) -> None:
    pass


def tuned(ready: Start, report: Callable[[str, int, int], None] = silent, **options: Any) -> Tuned:
    return finetuned(ready, options.pop("images", IMAGES), options.pop("made", GREY), report, **options)


def noise(ready: Start, found: Tuned | None) -> float:
    """At the output of unseen pictures, by ONNX Runtime."""
    model, sites = ready.model, ready.sites
    clean = [Observer(model, sites.outputs).run(x) for x in UNSEEN]
    if found is None:
        int8 = quantized(model, sites, ready.thresholds, weights=ready.weights)
    else:
        int8 = quantized(with_constants(model, found.constants), sites, found.thresholds, weights=found.weights)
    return output_noise(clean, int8, UNSEEN)


def test_the_outputs_of_unseen_pictures_are_nearer(ready: Start) -> None:
    told: list[tuple[str, int, int]] = []
    found = tuned(ready, lambda *said: told.append(said), steps=60)
    assert found.helped
    assert found.after < 0.85 * found.before
    assert noise(ready, found) < 0.85 * noise(ready, None)
    assert told[-1] == ("fine-tune", 60, 60)
    again = tuned(ready, steps=60)
    assert all((again.weights[n].steps == w.steps).all() for n, w in found.weights.items())
    assert again.thresholds == found.thresholds


def test_what_makes_it_worse_is_not_taken(ready: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Parameters) -> list[dict[str, Any]]:
        return [{"params": list(self._growth.values()), "lr": 0.3, "maximize": True}]

    monkeypatch.setattr(Parameters, "groups", away)
    found = tuned(ready, steps=10)
    assert not found.helped
    assert found.after == found.before
    assert found.thresholds == pytest.approx(ready.thresholds)


def test_layers_in_float_stay_there(ready: Start) -> None:
    found = tuned(replace(ready, float_layers=["a"]), steps=5)
    assert found.weights["a.w"] is ready.weights["a.w"]
    assert "a.w" in found.constants


def test_pictures_are_needed(ready: Start) -> None:
    with pytest.raises(ConfigError, match="--finetune: 5 calibration images are too few"):
        tuned(ready, images=IMAGES[:5])


def test_models_with_a_fixed_batch_and_other_layouts(ready: Start) -> None:
    """A batch of two that the model asks for."""
    images = np.repeat(IMAGES[:16], 2, axis=1)
    found = tuned(ready, images=images, made=replace(GREY, batch=2), steps=20)
    assert found.after < found.before


def test_windows_are_parts_of_the_picture_and_grey_around() -> None:
    picture = np.zeros((1, 3, 64, 64), np.float16)
    picture[0, 0], picture[0, 1] = 1, np.arange(64)[None] / 64
    windows = Windows([picture], (32, 48), GREY)
    sides, plain, grey = set(), 0, 0
    for _ in range(60):
        part = windows.draw()
        assert part.shape == (1, 3, 32, 48)
        inside = part[0, 0] > 0.999
        assert inside.any()
        # Outside the picture it is grey; beside the edge the two mix.
        assert (part[0, 0] >= 0.4 - 1e-6).all()
        grey += bool((np.abs(part[0, 0] - 0.4) < 1e-6).any())
        row = part[0, 1][inside.all(1)] if inside.all(1).any() else None
        if row is not None:
            plain += 1
            sides.add(bool(row[0, -1] > row[0, 0]))
    assert sides == {True, False}
    assert plain > 10
    assert grey > 5


def test_windows_have_the_models_layout() -> None:
    picture = np.arange(3 * 8 * 8, dtype=np.float16).reshape(1, 8, 8, 3)
    assert Windows([picture], (8, 8), replace(GREY, nchw=False)).draw().shape == (1, 8, 8, 3)


@pytest.mark.parametrize(("fixed", "size"), [(False, (128, 192)), (True, (256, 320))])
def test_windows_are_half_where_the_layers_take_any_size(fixed: bool, size: tuple[int, int]) -> None:
    def wanted(x: Any) -> list[Any]:
        if fixed and x.shape[2] != 256:
            raise RuntimeError("shape '[1, 4, 32, 40]' is invalid")
        return [torch.zeros(1, 4, x.shape[2] // 8, x.shape[3] // 8)]

    assert train._size(wanted, np.zeros((1, 3, 256, 320), np.float32), True) == size


def shuffled(batch: int, channels: int = 8) -> Any:
    """Channels in two groups, exchanged, as ShuffleNet's exports for one batch and one size have it."""
    net = Net(1)
    x = net.relu(net.conv("images", 3, channels, name="stem", stride=2))
    size = [32, 32]
    grouped = net.op("Reshape", [x, net.constant(np.array([batch, 2, channels // 2, *size]))])
    turned = net.op("Transpose", [grouped], perm=[0, 2, 1, 3, 4])
    whole = net.op("Reshape", [turned, net.constant(np.array([batch, -1, *size]))])
    net.op("Sigmoid", [net.conv(net.relu(net.conv(whole, channels, 8, name="deep")), 8, 6, name="out")], "decode")
    return net.model({"decode_o": [batch, 6, *size]}, [batch, 3, 64, 64])


def test_channels_are_exchanged_in_any_batch_and_size() -> None:
    network = Network(shuffled(1), ["out_o"])

    def wanted(x: Any) -> list[Any]:
        with torch.no_grad():
            return network(torch.from_numpy(x))

    images = UNSEEN[:2, 0]
    assert train._takes_more(wanted, images[:1], True)
    for i in range(2):
        np.testing.assert_allclose(wanted(images)[0][i], wanted(images[i : i + 1])[0][0], atol=1e-6)
    # A part of a picture gives the same, but for what is at its edge.
    whole, part = wanted(images[:1])[0], wanted(np.ascontiguousarray(images[:1, :, :40, :40]))[0]
    np.testing.assert_allclose(part[:, :, :12, :12], whole[:, :, :12, :12], atol=1e-6)


def test_layers_that_mix_the_pictures_of_a_batch_get_one() -> None:
    def mixed(x: Any) -> list[Any]:
        return [torch.from_numpy(x[:, :1]).cumsum(0)]

    assert not train._takes_more(mixed, UNSEEN[0], True)


def test_windows_are_whole_where_the_outputs_do_not_follow() -> None:
    assert train._size(lambda _: [torch.zeros(1, 7)], np.zeros((1, 256, 320, 3), np.float32), False) == (256, 320)
