"""From pictures to thresholds: histograms of activations, and four methods of choosing the clipping threshold.

A histogram keeps |x| in bins of equal width over 0..range. The range is a power of two that doubles when a larger
value appears; pairs of bins are then merged, which is exact. One pass over the pictures is enough, so a live camera
works as well as a folder, and the result does not depend on the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from streamd.errors import ConfigError
from streamd.models.weights import QMAX

Method = Literal["minmax", "entropy", "percentile", "mse"]
METHODS: tuple[str, ...] = get_args(Method)
BINS = 8192
LEVELS = QMAX + 1
"""Magnitudes that symmetric INT8 can distinguish, including zero."""
PERCENTILE = 99.99
ENTROPY_BINS = 2048
_BLOCK = 1 << 15
"""Values that are counted at a time, so that they stay in the processor's cache."""


class Histogram:
    """Counts of |x|."""

    def __init__(self, exponent: int | None = None, counts: npt.NDArray[np.int64] | None = None, peak: float = 0.0):
        self.exponent = exponent
        """The range is 0..2^exponent; None while only zeros have been seen."""
        self.counts = np.zeros(BINS, np.int64) if counts is None else counts
        self.zeros = 0
        """Exact zeros: a ReLU produces millions of them, and every threshold represents them exactly."""
        self.peak = peak
        """Largest magnitude seen."""

    @property
    def width(self) -> float:
        """Width of one bin."""
        return math.ldexp(1.0, (self.exponent or 0)) / BINS

    def _grow(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2, np.int64)])
            self.exponent += 1

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Counts an activation of any shape.

        Raises:
            ConfigError: it contains infinities or NaNs.
        """
        flat = values.reshape(-1)
        low, high = float(flat.min(initial=0.0)), float(flat.max(initial=0.0))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ConfigError(
                "calibration: the float model yields infinities or NaNs, which quantizing would hide; repair it first"
            )
        peak = max(-low, high)
        if peak == 0.0:
            self.zeros += flat.size
            return
        # Strictly below the end of the range, so that the last bin needs no special case.
        self._grow(math.frexp(peak)[1])
        self.peak = max(self.peak, peak)
        assert self.exponent is not None
        bins = np.float32(math.ldexp(BINS, -self.exponent))
        magnitude, index = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.intp)
        zeros = flat.size - int(np.count_nonzero(flat))
        self.zeros += zeros
        self.counts[0] -= zeros
        for begin in range(0, flat.size, _BLOCK):
            part = flat[begin : begin + _BLOCK]
            size = part.size
            np.abs(part, out=magnitude[:size])
            np.multiply(magnitude[:size], bins, out=magnitude[:size])
            index[:size] = magnitude[:size]
            self.counts += np.bincount(index[:size], minlength=BINS)

    def merged(self, others: Iterable[Histogram]) -> Histogram:
        """The histogram of both sets of values together."""
        everyone = [h for h in (self, *others) if h.exponent is not None]
        out = Histogram()
        out.zeros = self.zeros
        for h in everyone:
            copy = Histogram(h.exponent, h.counts, h.peak)
            copy._grow(max(e.exponent for e in everyone if e.exponent is not None))
            out.exponent = copy.exponent
            out.counts = out.counts + copy.counts
            out.peak = max(out.peak, h.peak)
        return out

    def as_json(self) -> dict[str, Any]:
        """For the cache, without trailing empty bins."""
        used = int(np.flatnonzero(self.counts)[-1]) + 1 if self.counts.any() else 0
        return {
            "exponent": self.exponent,
            "peak": self.peak,
            "zeros": self.zeros,
            "counts": self.counts[:used].tolist(),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Histogram:
        """The inverse of `as_json`."""
        counts = np.zeros(BINS, np.int64)
        given = np.array(body["counts"], np.int64)
        counts[: len(given)] = given
        out = cls(body["exponent"], counts, float(body["peak"]))
        out.zeros = int(body["zeros"])
        return out


def _minmax(h: Histogram) -> float:
    return h.peak


def _percentile(h: Histogram) -> float:
    """The magnitude that `PERCENTILE` % of all values, including zeros, do not exceed."""
    total = int(h.counts.sum()) + h.zeros
    reached = h.zeros + np.cumsum(h.counts)
    return min(h.peak, (int(np.searchsorted(reached, total * PERCENTILE / 100)) + 1) * h.width)


def _mse(h: Histogram) -> float:
    """The threshold with the least mean squared error: rounding error inside it, clipping error outside."""
    used = int(np.flatnonzero(h.counts)[-1]) + 1
    centres = (np.arange(used) + 0.5) * h.width
    counts = h.counts[:used].astype(np.float64)
    best, least = h.peak, math.inf
    for step in range(100, 9, -1):
        threshold = h.peak * step / 100
        scale = threshold / QMAX
        level = np.minimum(np.rint(centres / scale), QMAX) * scale
        # The spread within a bin is counted as rounding error only, as no threshold can change it.
        error = float((counts * (centres - level) ** 2).sum())
        if error < least:
            best, least = threshold, error
    return best


def _entropy(h: Histogram) -> float:
    """The threshold whose quantized distribution diverges least (Kullback-Leibler) from the clipped one.

    After S. Migacz, "8-bit inference with TensorRT", GTC 2017. For each candidate, the clipped tail is added to the
    last bin of the reference; the candidate is reduced to 128 levels and expanded again over the bins that were not
    empty.
    """
    counts = h.counts.reshape(ENTROPY_BINS, -1).sum(axis=1).astype(np.float64)
    width = h.width * (BINS // ENTROPY_BINS)
    used = int(np.flatnonzero(counts)[-1]) + 1
    if used <= LEVELS:
        return h.peak
    filled = (counts > 0).astype(np.float64)
    tail = counts[::-1].cumsum()[::-1]
    best, least = h.peak, math.inf
    for end in range(LEVELS, used + 1, 4):
        reference = counts[:end].copy()
        outside = tail[end] if end < len(tail) else 0.0
        reference[end - 1] += outside
        edges = (np.arange(LEVELS) * end) // LEVELS
        sums = np.add.reduceat(counts[:end], edges)
        holders = np.add.reduceat(filled[:end], edges)
        sizes = np.diff(np.append(edges, end))
        spread = np.repeat(np.divide(sums, holders, out=np.zeros(LEVELS), where=holders > 0), sizes) * filled[:end]
        p, q = reference / reference.sum(), spread / max(spread.sum(), 1e-300)
        some = p > 0
        # If only the added tail fills a bin, the candidate has no mass there: a small floor keeps the cost finite.
        divergence = float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-9))).sum())
        if divergence < least:
            best, least = end * width, divergence
    return min(best, h.peak)


_CHOOSERS: dict[str, Callable[[Histogram], float]] = {
    "minmax": _minmax,
    "entropy": _entropy,
    "percentile": _percentile,
    "mse": _mse,
}


def threshold(histogram: Histogram, method: Method) -> float:
    """The magnitude that maps to 127; 0 if only zeros were seen."""
    if histogram.exponent is None:
        return 0.0
    return float(_CHOOSERS[method](histogram))


def thresholds(
    histograms: Mapping[str, Histogram], groups: Mapping[int, Sequence[str]], method: Method
) -> dict[str, float]:
    """The threshold of each group's combined values, by the group's first tensor name."""
    out = {}
    for names in groups.values():
        first, *rest = (histograms[n] for n in names)
        out[names[0]] = threshold(first.merged(rest), method)
    return out


def exposing(model: Any, outputs: Sequence[str], threads: int | None = None) -> Any:
    """A session of ONNX Runtime for a model, left alone, whose outputs are these inner tensors.

    Raises:
        ConfigError: onnxruntime is not installed.
    """
    import copy

    from streamd.models.graph import vendor

    onnx = vendor()
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise ConfigError(
            f"the package onnxruntime is not installed ({error}); pip install 'streamd[quantize]'"
        ) from error
    exposed = copy.deepcopy(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return ort.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Observer:
    """Runs the float model on ONNX Runtime with its inner activations exposed.

    Args:
        model: as `graph.prepare` returns it.
        watched: tensors to record.
    """

    def __init__(self, model: Any, watched: Sequence[str], *, threads: int | None = None) -> None:
        constants = {t.name for t in model.graph.initializer}
        self._input = next(i.name for i in model.graph.input if i.name not in constants)
        self.watched = tuple(watched)
        # A graph input cannot be a graph output; it is taken from the fed values.
        self._inner = [name for name in watched if name != self._input]
        self._session = exposing(model, self._inner, threads)

    def run(self, batch: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """The watched activations of one (B, …) input."""
        # Asked for no output, ONNX Runtime fails.
        values = self._session.run(self._inner, {self._input: batch}) if self._inner else []
        found = dict(zip(self._inner, values, strict=True))
        if self._input in self.watched:
            found[self._input] = batch
        return found


Peaks = dict[str, npt.NDArray[np.float32]]
"""By tensor, (C,) the largest value of each channel."""


def observe(
    observer: Observer,
    batches: Iterable[npt.NDArray[np.float32]],
    counted: Sequence[str] | None = None,
    channels: Sequence[str] = (),
) -> tuple[dict[str, Histogram], Peaks]:
    """Looks at all batches.

    Args:
        observer: the float model.
        batches: (B, …) inputs.
        counted: watched tensors that histograms are made of. Default: all.
        channels: watched (B, C, …) tensors whose channels' peaks are wanted.
    """
    histograms = {name: Histogram() for name in (observer.watched if counted is None else counted)}
    peaks: Peaks = {}
    for batch in batches:
        found = observer.run(batch)
        for name, histogram in histograms.items():
            histogram.add(found[name])
        for name in channels:
            largest = found[name].max(axis=(0, *range(2, found[name].ndim)))
            peaks[name] = np.maximum(peaks[name], largest) if name in peaks else largest
    return histograms, peaks
