"""Arithmetic and checks shared by several heads."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from streamd.errors import ConfigError
from streamd.heads import DecodeOptions, Head
from streamd.types import Candidates, Float32Array, FloatArray, ModelSpec, Outputs

EMPTY = Candidates(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))
STRIDES = (8, 16, 32)
"""Input pixels per cell, of the three grids that most detectors have."""


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
"""The input's normalisation of models whose backbone was trained on ImageNet; RGB, 0 to 1."""
NORMALIZED_MAX = 1.5
"""Largest box value of normalised outputs. In a whole frame, boxes in input pixels always exceed it: the centres of the
last cells are hundreds of pixels away."""


def cells(height: int, width: int) -> int:
    """Number of cells of the grids of `STRIDES` over an input of this size in pixels."""
    return sum((height // s) * (width // s) for s in STRIDES)


def listed(spec: ModelSpec) -> str:
    """The model's outputs, for an error: name[shape], …"""
    return ", ".join(f"{t.name}{list(t.shape)}" for t in spec.outputs)


def check_single(kind: str, form: str, spec: ModelSpec, fits: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
    """The shape of the model's only output.

    Raises:
        ConfigError: there are several outputs, or it does not have three dimensions, or does not fit.
    """
    shape = spec.outputs[0].shape if len(spec.outputs) == 1 else ()
    if len(shape) != 3 or not fits(shape):
        raise ConfigError(f"model.head: {kind} expects one output of shape {form}; {spec.path} has {listed(spec)}")
    return shape


def logit(probability: float) -> float:
    """The inverse sigmoid: thresholds are applied to raw outputs, so that exponentials are computed for few."""
    if probability <= 0:
        return -math.inf
    return math.inf if probability >= 1 else math.log(probability / (1 - probability))


def as_float32(values: FloatArray) -> Float32Array:
    """The same values in single precision; no copy if they already are."""
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


def label_boxes(
    xyxy: Float32Array, scores: Float32Array, options: DecodeOptions, extra: Float32Array | None = None
) -> Candidates:
    """Turns class scores into candidates.

    Args:
        xyxy: (M, 4)
        scores: (M, C), objectness included.
        options: the lowest score, and whether every class above it counts or only the best one.
        extra: (M, E) see `Candidates.extra`.
    """
    if options.multi_label:
        rows, classes = np.nonzero(scores >= options.conf)
        more = None if extra is None else extra[rows]
        return Candidates(xyxy[rows], scores[rows, classes], classes.astype(np.int32), extra=more)
    classes = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), classes]
    keep: npt.NDArray[np.bool_] = best >= options.conf
    more = None if extra is None else extra[keep]
    return Candidates(xyxy[keep], best[keep], classes[keep].astype(np.int32), extra=more)


class RowsHead(Head):
    """A head whose only output is (B, N, 5+C), with objectness in column 4 as an upper bound of the score.

    Args:
        options: thresholds.
    """

    def __init__(self, options: DecodeOptions) -> None:
        self._options = options
        self._checked = False

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """See `Head.candidates`."""
        rows = as_float32(outputs[0][index])
        if not self._checked:
            self.check(rows)
            self._checked = True
        (confident,) = np.nonzero(rows[:, 4] >= self._options.conf)
        return self.decode(rows[confident], confident) if len(confident) else EMPTY

    @abstractmethod
    def check(self, rows: Float32Array) -> None:
        """Checks the rows (N, 5+C) of the first frame.

        Raises:
            ModelError: they contradict the declared or recognised head.
        """

    @abstractmethod
    def decode(self, rows: Float32Array, index: npt.NDArray[np.intp]) -> Candidates:
        """Decodes the rows (M, 5+C) whose objectness reaches the threshold; `index` (M,) are their row numbers."""
