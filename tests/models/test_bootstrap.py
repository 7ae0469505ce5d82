"""The paired bootstrap: beside pycocotools on the same images and on directly drawn ones."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.models.bootstrap import Drop, average_precision, mean_ends, paired_drop
from streamd.models.dataset import Dataset, Truth
from streamd.models.evaluate import Boxes, coco_scores

LABELS = ("a", "b", "c")


def made(images: int, seed: int, *, crowds: bool = False, noise: float = 6.0) -> tuple[list[Boxes], Dataset]:
    """Random labels and detections near them, with misses, inventions and doubles; scores are all different."""
    rng = np.random.default_rng(seed)
    found, truth = [], {}
    for i in range(images):
        n = int(rng.integers(0, 5))
        corner = rng.uniform(0, 200, (n, 2))
        xyxy = np.concatenate([corner, corner + rng.uniform(20, 100, (n, 2))], axis=1).astype(np.float32)
        class_id = rng.integers(0, len(LABELS), n).astype(np.int32)
        crowd = (rng.random(n) < 0.2).astype(np.int32) if crowds else np.zeros(n, np.int32)
        if n or rng.random() < 0.5:
            truth[f"{i}.png"] = Truth(class_id, xyxy, crowd, np.zeros(n, np.float32), False)
        hit = np.repeat(np.flatnonzero(rng.random(n) < 0.8), 2)
        near = xyxy[hit] + rng.normal(0, noise, (len(hit), 4))
        corner = rng.uniform(0, 200, (3, 2))
        wild = np.concatenate([corner, corner + 40], axis=1)
        boxes = np.concatenate([near, wild]).astype(np.float32)
        classes = np.concatenate([class_id[hit], rng.integers(0, len(LABELS), 3)]).astype(np.int32)
        scores = rng.random(len(boxes)).astype(np.float32)
        found.append(Boxes(f"{i}.png", 320, 320, boxes, scores, classes))
    return found, Dataset(tuple(Path(b.name) for b in found), truth, 0)


def drawn(found: list[Boxes], data: Dataset, weights: np.ndarray) -> float:
    """The slow road: a set in which each image stands as often as it was drawn, scored by pycocotools."""
    again, truth = [], {}
    for box, times in zip(found, weights.tolist(), strict=True):
        for k in range(times):
            again.append(replace(box, name=f"{k}_{box.name}"))
            if box.name in data.truth:
                truth[f"{k}_{box.name}"] = data.truth[box.name]
    return float(coco_scores(again, Dataset((), truth, 0), LABELS)["map"])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), crowds=st.booleans(), images=st.integers(4, 20))
def test_it_is_what_pycocotools_says_of_the_images_and_of_directly_drawn_ones(
    seed: int, crowds: bool, images: int
) -> None:
    found, data = made(images, seed, crowds=crowds)
    if not any(len(t.class_id) for t in data.truth.values()):
        return
    scores = coco_scores(found, data, LABELS)
    matches = scores["matches"]
    identity = average_precision(matches, np.ones((1, images), np.int64))
    assert identity.mean() == pytest.approx(scores["map"], abs=1e-6)
    assert identity[0, 0] == pytest.approx(scores["map50"], abs=1e-6)
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=3)
    # A draw must have a label that counts, or pycocotools has no measure.
    counting = np.array([int((data.truth[b.name].crowd == 0).sum()) if b.name in data.truth else 0 for b in found])
    for row, value in zip(weights, average_precision(matches, weights).mean(axis=1), strict=True):
        if row @ counting:
            assert value == pytest.approx(drawn(found, data, row), abs=1e-9)


def test_the_interval_is_the_one_of_directly_drawn_sets() -> None:
    first, data = made(12, 1)
    second = [replace(b, score=b.score[::-1].copy()) for b in first]
    a, b = (coco_scores(found, data, LABELS)["matches"] for found in (first, second))
    drop = paired_drop(a, b, resamples=40, confidence=0.5, seed=3)
    assert drop is not None
    weights = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=40)
    slow = [drawn(first, data, w) - drawn(second, data, w) for w in weights]
    assert (drop.low, drop.high) == pytest.approx(tuple(np.quantile(slow, [0.25, 0.75])), abs=1e-9)
    assert drop.value == pytest.approx(drawn(first, data, np.ones(12, int)) - drawn(second, data, np.ones(12, int)))


def test_a_model_loses_nothing_to_itself_and_a_worse_one_loses_something() -> None:
    good, data = made(60, 7, noise=2.0)
    bad, _ = made(60, 7, noise=8.0)
    a, b = (coco_scores(found, data, LABELS)["matches"] for found in (good, bad))
    same = paired_drop(a, a)
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    worse = paired_drop(a, b)
    assert worse is not None
    assert 0 < worse.low < worse.value < worse.high
    assert paired_drop(a, b) == worse


def test_nothing_found_and_one_image() -> None:
    found, data = made(5, 2)
    empty = [replace(b, xyxy=b.xyxy[:0], score=b.score[:0], class_id=b.class_id[:0]) for b in found]
    a, b = (coco_scores(f, data, LABELS)["matches"] for f in (found, empty))
    drop = paired_drop(a, b)
    assert drop is not None
    assert drop.value == pytest.approx(coco_scores(found, data, LABELS)["map"])
    one = [b for b in found if b.name in data.truth and len(data.truth[b.name].class_id)][:1]
    single = coco_scores(one, data, LABELS)["matches"]
    assert paired_drop(single, single) is None


def test_the_mean_of_several_sets_is_more_certain_than_one() -> None:
    """Four sets that vary alike: the mean varies half as much, although all were drawn with the same seed."""
    losses = np.random.default_rng(4).normal(0.003, 0.004, 4000)
    low, high = mean_ends([losses] * 4)
    assert (low, high) == pytest.approx((0.003 - 1.96 * 0.002, 0.003 + 1.96 * 0.002), abs=4e-4)
    assert mean_ends([losses]) == pytest.approx(tuple(np.quantile(losses, [0.025, 0.975])))
    # Sets that lost resamples without a label.
    assert mean_ends([losses, losses[:3000]])[0] < 0.003


def test_other_images_are_no_pair() -> None:
    found, data = made(6, 4)
    a, b = (coco_scores(f, data, LABELS)["matches"] for f in (found, found[:5]))
    with pytest.raises(ValueError, match="same images"):
        paired_drop(a, b)


def test_how_many_images_a_bound_needs() -> None:
    drop = Drop(0.004, 0.001, 0.009, 128)
    assert drop.margin == pytest.approx(0.004)
    assert drop.images_for(0.002) == 512
    assert drop.images_to_decide(0.006) == 512
    assert drop.images_to_decide(0.004) is None
    assert str(drop) == (
        "lost 0.0040, between 0.0010 and 0.0090 (95% of resamples); 128 images cannot show less than 0.0040"
    )
    assert str(Drop(-0.001, -0.003, 0.002, 128)).startswith("gained 0.0010, between -0.0020 and 0.0030")


def test_a_thousand_resamples_of_128_images_take_seconds() -> None:
    found, data = made(128, 5)
    rng = np.random.default_rng(0)

    def crowded(b: Boxes) -> Boxes:
        """300 boxes an image, as evaluation keeps."""
        corner = rng.uniform(0, 200, (300 - len(b.score), 2)).astype(np.float32)
        wild = np.concatenate([corner, corner + 40], axis=1)
        return replace(
            b,
            xyxy=np.concatenate([b.xyxy, wild]),
            score=np.concatenate([b.score, rng.random(len(wild)).astype(np.float32)]),
            class_id=np.concatenate([b.class_id, rng.integers(0, 3, len(wild)).astype(np.int32)]),
        )

    matches = coco_scores([crowded(b) for b in found], data, LABELS)["matches"]
    begin = time.process_time()
    paired_drop(matches, matches)
    assert time.process_time() - begin < 20
