"""What counts when an INT8 model's outputs are compared with the float model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from streamd.models.finetune.distance import BOXES, Distance

torch = pytest.importorskip("torch", reason="fine-tuning needs PyTorch")
CLASSES = 3


def level(kind: str, background: float = -9.0) -> list[Any]:
    """One level of 4×4 positions, with an object of class 1 at (1, 2)."""
    box, sure, scores = torch.zeros(4, 4, 4), torch.full((1, 4, 4), background), torch.full((CLASSES, 4, 4), -9.0)
    sure[0, 1, 2], scores[1, 1, 2] = 3.0, 3.0
    if kind == "rows":
        return [torch.cat([box, sure, scores])[None]]
    if kind == "apart":
        return [scores[None], box[None], sure[None]]
    if kind == "joined":
        return [torch.cat([scores, box])[None]]
    return [box[None], scores[None]]


def moved(maps: Sequence[Any], channel: tuple[int, int], at: tuple[int, int], by: float) -> list[Any]:
    out = [m.clone() for m in maps]
    out[channel[0]][0, channel[1], at[0], at[1]] += by
    return out


# By kind, where a coordinate of the box and the score of class 1 are: output, channel.
PLACES = {
    "rows": ((0, 2), (0, 6)),
    "apart": ((1, 2), (0, 1)),
    "joined": ((0, CLASSES + 2), (0, 1)),
    "two": ((0, 2), (1, 1)),
}


@pytest.mark.parametrize("kind", PLACES)
def test_an_object_counts_and_background_hardly(kind: str) -> None:
    distance, maps = Distance(CLASSES), level(kind)
    assert float(distance(maps, maps)) == 0
    for channel in PLACES[kind]:
        there = float(distance(moved(maps, channel, (1, 2), 0.5), maps))
        elsewhere = float(distance(moved(maps, channel, (3, 0), 0.5), maps))
        assert there > 100 * elsewhere > 0


@pytest.mark.parametrize("kind", PLACES)
def test_the_class_that_is_there_counts_most(kind: str) -> None:
    distance, maps = Distance(CLASSES), level(kind)
    output, channel = PLACES[kind][1]
    right = float(distance(moved(maps, (output, channel), (1, 2), 0.5), maps))
    wrong = float(distance(moved(maps, (output, channel + 1), (1, 2), 0.5), maps))
    assert right > 100 * wrong > 0


def test_a_box_counts_by_its_mean() -> None:
    distance, maps = Distance(CLASSES), level("rows")
    box = float(distance(moved(maps, (0, 2), (1, 2), 0.5), maps))
    sure = float(distance(moved(maps, (0, 4), (1, 2), 0.5), maps))
    assert box == pytest.approx(sure * BOXES / 4)


def test_anchors_are_kept_apart() -> None:
    one = level("rows")[0]
    empty = one.clone()
    empty[0, 4] = -9
    maps = [torch.cat([empty, one], 1)]
    distance = Distance(CLASSES)
    assert float(distance(moved(maps, (0, 8 + 2), (1, 2), 1), maps)) > 100 * float(
        distance(moved(maps, (0, 2), (1, 2), 1), maps)
    )


@pytest.mark.parametrize("classes", [None, 17])
def test_what_is_not_known_is_compared_everywhere(classes: int | None) -> None:
    maps = [torch.full((1, 6, 2, 2), 2.0), torch.full((1, 5), 10.0)]
    distance = Distance(classes)
    off = [maps[0] + 1, maps[1] + 1]
    # A quarter of the power of the first, a hundredth of that of the second; their mean.
    assert float(distance(off, maps)) == pytest.approx((1 / 4 + 1 / 100) / 2)
    assert float(distance(moved(maps, (0, 5), (0, 0), 1), maps)) == pytest.approx(
        float(distance(moved(maps, (0, 0), (1, 1), 1), maps))
    )


def test_gradients_lead_to_the_float_model() -> None:
    maps = level("apart")
    made = [
        (m + 0.1 * torch.from_numpy(np.random.default_rng(0).standard_normal(m.shape).astype(np.float32))) for m in maps
    ]
    for m in made:
        m.requires_grad_()
    distance = Distance(CLASSES)
    before = distance(made, maps)
    before.backward()
    after = distance([m.detach() - 0.01 * m.grad for m in made], maps)
    assert float(after) < float(before.detach())
