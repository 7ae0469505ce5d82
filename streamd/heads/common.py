"""Small arithmetic that several heads share."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from streamd.types import Candidates, Float32Array, FloatArray

EMPTY = Candidates(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))


def logit(probability: float) -> float:
    """The inverse sigmoid: thresholds are applied to raw outputs, so that only survivors pay for an exponential."""
    if probability <= 0:
        return -math.inf
    return math.inf if probability >= 1 else math.log(probability / (1 - probability))


def as_float32(values: FloatArray) -> Float32Array:
    """The same values in single precision; no copy where they are."""
    return values.astype(np.float32, copy=False)


def sigmoid(x: Float32Array) -> Float32Array:
    """1 / (1 + e^-x), without overflow."""
    out = np.exp(-np.clip(x, -80, 80))
    out += np.float32(1)
    return np.reciprocal(out, out=out)


def corners(cx: Float32Array, cy: Float32Array, width: Float32Array, height: Float32Array) -> Float32Array:
    """(M, 4) corners of boxes given by centre and size."""
    out = np.empty((len(cx), 4), np.float32)
    out[:, 0] = cx - width / 2
    out[:, 1] = cy - height / 2
    out[:, 2] = cx + width / 2
    out[:, 3] = cy + height / 2
    return out


def label_boxes(xyxy: Float32Array, scores: Float32Array, conf: float, *, multi_label: bool) -> Candidates:
    """Turns class scores into candidates.

    Args:
        xyxy: (M, 4)
        scores: (M, C), objectness included.
        conf: lowest score.
        multi_label: every class above `conf`, else the best one only.
    """
    if multi_label:
        rows, classes = np.nonzero(scores >= conf)
        return Candidates(xyxy[rows], scores[rows, classes], classes.astype(np.int32))
    classes = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), classes]
    keep: npt.NDArray[np.bool_] = best >= conf
    return Candidates(xyxy[keep], best[keep], classes[keep].astype(np.int32))
