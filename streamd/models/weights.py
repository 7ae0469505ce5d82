"""Weights on INT8's grid: a scale for each output channel, and steps that no processor adds up wrongly.

x86 processors without VNNI multiply an INT8 activation by an INT8 weight and add the products of two neighbouring
input channels in 16 bits, which saturate (`vpmaddubsw`; oneDNN, "Nuances of int8 computations"). OpenVINO reads
symmetric activations as unsigned, shifted by 128, so two neighbouring weights of 127 are enough to saturate, and
detectors fall to nothing: YOLOv5n from mAP 0.34 to 0.05 on an AVX2 processor. Halving all weights, as is common, would
cost a bit everywhere. Here a channel's scale only grows until no pair of its weights can overflow with the activations
that calibration saw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

QMAX = 127
"""Symmetric INT8 uses −127..127, so that scale × 127 is the threshold both ways."""
TINY = 1e-12
SUM_MAX = 32767
"""What the sum of two products may reach."""
SHIFT = 128
"""Signed activations are shifted by this to be unsigned."""
SPARE = 1.25
"""Activations may be larger by this factor than the largest that calibration saw."""


@dataclass(frozen=True)
class Int8Weights:
    """A convolution's weights in INT8."""

    steps: npt.NDArray[np.int8]
    """(O, …) −127..127."""
    scales: npt.NDArray[np.float32]
    """(O,) what one step is worth."""
    bias: npt.NDArray[np.float32] | None = None
    """(O,) in the place of the float model's; None keeps that."""

    def values(self) -> npt.NDArray[np.float32]:
        """(O, …) the weights that the steps stand for."""
        out: npt.NDArray[np.float32] = self.steps * over_channels(self.scales, self.steps.ndim)
        return out


def over_channels(scales: npt.NDArray[np.float32], dimensions: int) -> npt.NDArray[np.float32]:
    """(O, 1, …) of (O,)."""
    return scales.reshape(-1, *[1] * (dimensions - 1))


def weight_scales(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(O,) scales of (O, …) weights: each channel's largest magnitude becomes 127."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scales: npt.NDArray[np.float32] = np.maximum(largest, TINY).astype(np.float32) / np.float32(QMAX)
    return scales


def unsigned_peaks(peaks: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.int64]:
    """(C,) the largest unsigned value of each input channel.

    Args:
        peaks: (C,) largest activation that calibration saw.
        threshold: the magnitude that becomes 127.
    """
    steps = np.ceil(peaks.astype(np.float64) * SPARE * QMAX / max(threshold, TINY))
    return SHIFT + np.clip(steps, 0, QMAX).astype(np.int64)


def safe_scales(weight: npt.NDArray[np.float32], unsigned: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """(O,) scales like `weight_scales`, larger where two neighbours could overflow 16 bits.

    Args:
        weight: (O, C, …) of a convolution with one group.
        unsigned: (C,) by `unsigned_peaks`.
    """
    scales = weight_scales(weight)
    out_channels, channels = weight.shape[:2]
    if channels < 2:
        return scales
    odd = channels % 2
    padded = np.pad(weight.reshape(out_channels, channels, -1).astype(np.float64), ((0, 0), (0, odd), (0, 0)))
    pairs = padded.reshape(out_channels, (channels + odd) // 2, 2, -1)
    largest = np.pad(unsigned, (0, odd)).reshape(-1, 2).astype(np.float64)
    # Products of opposite signs cancel; what counts is the sum of those of one sign. Rounding adds half a step to each.
    above = np.einsum("opkt,pk->opt", np.maximum(pairs, 0), largest)
    below = np.einsum("opkt,pk->opt", np.maximum(-pairs, 0), largest)
    needed = np.maximum(above, below) / (SUM_MAX - largest.sum(axis=1) / 2)[None, :, None]
    out: npt.NDArray[np.float32] = np.maximum(scales, needed.max(axis=(1, 2)).astype(np.float32))
    return out


def nearest(weight: npt.NDArray[np.float32], scales: npt.NDArray[np.float32]) -> Int8Weights:
    """Each weight rounded to the nearest step."""
    steps = np.rint(weight / over_channels(scales, weight.ndim))
    return Int8Weights(np.clip(steps, -QMAX, QMAX).astype(np.int8), scales)
