"""How certain a loss of accuracy is: a paired bootstrap over the images.

Two models are measured on the same images, so the images are what is drawn again (with replacement, B. Efron and
R. Tibshirani, An Introduction to the Bootstrap, 1993), the same draw for both models, and COCO's mean average precision
is computed anew for each draw. Boxes are matched once: how an image's boxes match its labels does not depend on which
other images are drawn. A draw is then a weight for each image, and accumulation is arithmetic on cumulative weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 0
"""The same images and models give the same interval."""
_CELLS = 4 << 20
"""Resamples × detections looked at in one go: 32 MiB of 64-bit numbers."""
_RECALLS = np.linspace(0.0, 1.0, 101)
"""COCO's recall thresholds."""


@dataclass(frozen=True)
class ClassMatches:
    """How the detections of one class match the labels, over all images, best score first."""

    image: npt.NDArray[np.intp]
    """(D,) position of each detection's image."""
    hit: npt.NDArray[np.bool_]
    """(T, D): found a labelled box, for each IoU threshold."""
    counted: npt.NDArray[np.bool_]
    """(T, D): counts as right or wrong. False for a box in a crowd."""
    truth: npt.NDArray[np.int64]
    """(N,) labelled boxes of each image that have to be found."""


@dataclass(frozen=True)
class Matches:
    """All that average precision needs to know of one model on one set of images."""

    names: tuple[str, ...]
    """(N,) of the images."""
    classes: tuple[ClassMatches, ...]

    def __repr__(self) -> str:
        return f"Matches({len(self.names)} images, {len(self.classes)} classes)"


def matches_of(scorer: Any, names: Sequence[str]) -> Matches:
    """Takes the matches out of a pycocotools `COCOeval` after `evaluate()`.

    Args:
        scorer: evaluated; its images are numbered from 1, and its first area range is the whole.
        names: of the images in that order.
    """
    images, areas = len(names), len(scorer.params.areaRng)
    thresholds = len(scorer.params.iouThrs)
    classes = []
    for k in range(len(scorer.params.catIds)):
        start = k * areas * images
        found = [(i, e) for i, e in enumerate(scorer.evalImgs[start : start + images]) if e is not None]
        scores = np.concatenate([np.asarray(e["dtScores"], np.float64) for _, e in found] or [np.zeros(0)])
        order = np.argsort(-scores, kind="stable")
        none = np.zeros((thresholds, 0), bool)
        hit = np.concatenate([none, *(e["dtMatches"].astype(bool) for _, e in found)], axis=1)[:, order]
        ignored = np.concatenate([none, *(e["dtIgnore"].astype(bool) for _, e in found)], axis=1)[:, order]
        truth = np.zeros(images, np.int64)
        for i, e in found:
            truth[i] = np.count_nonzero(np.asarray(e["gtIgnore"]) == 0)
        image = np.repeat(np.array([i for i, _ in found], np.intp), [len(e["dtScores"]) for _, e in found])
        classes.append(ClassMatches(image[order], hit & ~ignored, ~ignored, truth))
    return Matches(tuple(names), tuple(classes))


def _class_ap(c: ClassMatches, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(R, T) average precision of one class; NaN where a resample has no labelled box of it."""
    labelled = weights @ c.truth
    out = np.zeros((len(weights), len(c.hit)))
    # Behind the last hit nothing changes the envelope of the precision any more.
    hits = np.flatnonzero(c.hit.any(axis=0))
    used = int(hits[-1]) + 1 if hits.size else 0
    drawn = weights[:, c.image[:used]]
    everything = drawn.cumsum(axis=1)
    for t, (hit, counted) in enumerate(zip(c.hit[:, :used], c.counted[:, :used], strict=True)):
        at = np.flatnonzero(hit)
        if not at.size:
            continue
        right = drawn[:, at].cumsum(axis=1)
        seen = (everything if counted.all() else (drawn * counted).cumsum(axis=1))[:, at]
        precision = right / (seen + np.spacing(1))
        # Precision at a recall is the best at that recall or a higher one.
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = right / np.maximum(labelled, 1)[:, None]
        reached = np.searchsorted(_RECALLS, recall, side="right")
        gained = np.diff(reached, axis=1, prepend=0)
        out[:, t] = (envelope * gained).sum(axis=1) / len(_RECALLS)
    out[labelled == 0] = np.nan
    return out


def average_precision(matches: Matches, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean average precision over the classes, as COCO counts it, for weighted images.

    Args:
        matches: of one model on N images.
        weights: (R, N) how often each image counts, for each of R resamples.

    Returns:
        (R, T) for each resample and IoU threshold. Classes without a label in a resample do not count in it.
    """
    total = np.zeros((len(weights), len(matches.classes[0].hit)))
    present = np.zeros(total.shape, np.int64)
    for c in matches.classes:
        rows = max(1, _CELLS // max(1, len(c.image)))
        for start in range(0, len(weights), rows):
            part = slice(start, start + rows)
            found = _class_ap(c, weights[part])
            there = ~np.isnan(found)
            total[part] += np.where(there, found, 0.0)
            present[part] += there
    return np.divide(total, present, out=np.zeros_like(total), where=present > 0)


@dataclass(frozen=True)
class Drop:
    """A loss of mAP and how certain it is."""

    value: float
    """mAP of the first model minus that of the second."""
    low: float
    high: float
    """The interval's ends."""
    images: int
    resamples: int = RESAMPLES
    confidence: float = CONFIDENCE

    @property
    def margin(self) -> float:
        """Half the interval's width: a smaller difference cannot be told from none on that many images."""
        return (self.high - self.low) / 2

    def images_for(self, margin: float) -> int:
        """About how many such images make the interval ± `margin`: its width falls with the root of their number."""
        return math.ceil(self.images * (self.margin / margin) ** 2)

    def images_to_decide(self, limit: float) -> int | None:
        """About how many such images tell whether the loss is above or below `limit`, if it is as measured.

        None where no number does: the measured loss is the limit.
        """
        distance = abs(limit - self.value)
        return self.images_for(distance) if distance > 1e-6 else None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "low": round(self.low, 6),
            "high": round(self.high, 6),
            "confidence": self.confidence,
            "images": self.images,
            "resamples": self.resamples,
            "margin": round(self.margin, 6),
        }

    def __str__(self) -> str:
        verb, value, low, high = "lost", self.value, self.low, self.high
        if value < 0:
            verb, value, low, high = "gained", -value, -high, -low
        return (
            f"{verb} {value:.4f}, between {low:.4f} and {high:.4f} ({self.confidence:.0%} of resamples); "
            f"{self.images} images cannot show less than {self.margin:.4f}"
        )


def paired_losses(
    first: Matches, second: Matches, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, npt.NDArray[np.float64]] | None:
    """The loss of mAP from `first` to `second`, and (R,) that of each resample; None on fewer than two images.

    Resamples in which no class has a label say nothing, and are left out.

    Raises:
        ValueError: the two were not measured on the same images.
    """
    if first.names != second.names:
        raise ValueError("a paired interval needs both models to have seen the same images in the same order")
    images = len(first.names)
    if images < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    weights = np.concatenate([np.ones((1, images), np.int64), drawn])
    lost = average_precision(first, weights).mean(axis=1) - average_precision(second, weights).mean(axis=1)
    said = drawn @ np.sum([c.truth for c in first.classes], axis=0) > 0
    return float(lost[0]), lost[1:][said]


def ends(losses: npt.NDArray[np.float64], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The ends of the percentile interval."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(losses, [tail, 1 - tail])
    return float(low), float(high)


def paired_drop(
    first: Matches, second: Matches, *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = SEED
) -> Drop | None:
    """The loss of mAP from `first` to `second` with its percentile interval; None on fewer than two images.

    Raises:
        ValueError: the two were not measured on the same images.
    """
    found = paired_losses(first, second, resamples=resamples, seed=seed)
    if found is None:
        return None
    value, losses = found
    return Drop(value, *ends(losses, confidence), len(first.names), resamples, confidence)


def mean_ends(sets: Sequence[npt.NDArray[np.float64]], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of the mean of several sets' losses.

    Args:
        sets: of each set, (R,) the losses of its resamples by `paired_losses`.
    """
    count = min(len(losses) for losses in sets)
    # Resamples of two sets that were drawn with one seed have nothing to do with each other.
    rng = np.random.default_rng(SEED)
    return ends(np.mean([rng.permutation(losses)[:count] for losses in sets], axis=0), confidence)
