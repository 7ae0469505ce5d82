"""Fine-tunes an INT8 model on the calibration pictures, so that its outputs come near the float model's.

No labels are needed: the float model is the teacher, and is asked about every changed picture anew. Some pictures are
left out of training; the state that is nearest to the float model on these is kept, and only if it is nearer than what
was there before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamd.errors import ConfigError, StreamdError
from streamd.models.finetune.distance import Distance
from streamd.models.finetune.network import Network
from streamd.models.finetune.operators import vendor
from streamd.models.finetune.parameters import Parameters, Start, Tuned
from streamd.models.graph import Graph
from streamd.models.qdq import quantized
from streamd.types import Float32Array

STEPS = 500
BATCH = {"cpu": 4, "cuda": 32}
"""Parts of pictures between two changes, by device: on an H200, 32 take 0.2 s."""
PICTURES = 256
"""Most pictures used, 2.5 MB each at 640×640."""
HELD_OUT = 8
"""Of so many pictures one is left out of training."""
LOOKS = 5
"""So many times the pictures left out are looked at."""
WARM_UP = 20
"""Steps in which the rates grow to what they are."""
STRIDE = 64
"""Sides of windows are multiples of this, which all detectors' strides divide."""
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Input:
    """How the network's input is made."""

    padding: tuple[float, ...]
    """(C,) what is around a picture."""
    nchw: bool = True
    batch: int | None = None
    """Pictures in every input, if that is fixed."""


class Windows:
    """Parts of pictures, mirrored and scaled at random: detectors see objects of all sizes on both sides.

    Args:
        pictures: (1, …) network inputs.
        size: height and width of a part.
        made: how the inputs are made.
    """

    def __init__(self, pictures: Sequence[Any], size: tuple[int, int], made: Input) -> None:
        self._pictures, self._size, self._made = pictures, size, made
        self._random = np.random.default_rng(0)

    def draw(self) -> Float32Array:
        """One part, (1, C, H, W), or (1, H, W, C) as the model reads it."""
        import cv2

        random = self._random
        x = self._pictures[int(random.integers(len(self._pictures)))].astype(np.float32)
        planes = x[0] if self._made.nchw else x[0].transpose(2, 0, 1)
        high, wide = self._size
        zoom = float(np.exp(random.uniform(-0.7, 0.5))) if random.random() < 0.7 else 1.0
        top, left = ((out - zoom * n) * random.random() for n, out in zip(planes.shape[1:], self._size, strict=True))
        mirrored = random.random() < 0.5
        across, begin = (-zoom, left + zoom * (planes.shape[2] - 1)) if mirrored else (zoom, left)
        matrix = np.array([[across, 0, begin], [0, zoom, top]])
        out = np.stack([
            cv2.warpAffine(plane, matrix, (wide, high), flags=cv2.INTER_LINEAR, borderValue=value)
            for plane, value in zip(planes, self._made.padding, strict=True)
        ])  # fmt: skip
        return out[None] if self._made.nchw else np.ascontiguousarray(out.transpose(1, 2, 0))[None]


class _Pair:
    """The float model and its INT8 form, both in PyTorch."""

    def __init__(self, start: Start, int8: Any, parameters: Parameters, device: str) -> None:
        sites = start.sites
        self._float = Network(start.model, sites.outputs, device)
        self._int8 = Network(int8, sites.outputs, device)
        self._parameters, self._device = parameters, device
        nodes = {node.name: node for node in Graph(int8).nodes}
        self._names: dict[str, tuple[str, str | None]] = {}
        for layer in sites.layers:
            inputs = nodes[layer.name].input
            if inputs[1] != layer.weight:
                self._names[layer.weight] = inputs[1], inputs[2] if len(inputs) > 2 else None

    def wanted(self, x: Float32Array) -> list[Any]:
        """The float model's results."""
        torch = vendor()
        with torch.no_grad():
            found: list[Any] = self._float(torch.from_numpy(x).to(self._device))
        return found

    def __call__(self, x: Float32Array) -> tuple[list[Any], list[Any]]:
        """(made, wanted) for one input."""
        given = vendor().from_numpy(x).to(self._device)
        return self._int8(given, self._parameters.given(self._names), self._parameters.rounded), self.wanted(x)


def _takes(
    wanted: Callable[[Float32Array], list[Any]], picture: Float32Array, changed: Float32Array, nchw: bool
) -> bool:
    """Whether the layers take an input of another size or batch, and what they make of it follows from its shape."""
    try:
        full, other = wanted(picture), wanted(changed)
    except (StreamdError, RuntimeError):
        return False
    return all(
        f.ndim == o.ndim == 4
        and f.shape[0] * len(changed) == o.shape[0] * len(picture)
        and all(
            f.shape[i] * changed.shape[axis] == o.shape[i] * picture.shape[axis]
            for i, axis in (((2, 2), (3, 3)) if nchw else ((2, 1), (3, 2)))
        )
        for f, o in zip(full, other, strict=True)
    )


def _takes_more(wanted: Callable[[Float32Array], list[Any]], picture: Float32Array, nchw: bool) -> bool:
    """Whether the layers treat every picture of a larger batch as they do this one."""
    more = np.repeat(picture, 2, axis=0)
    if not _takes(wanted, picture, more, nchw):
        return False
    torch = vendor()
    alone = wanted(picture)
    return all(
        torch.allclose(o, f.repeat_interleave(2, 0), 1e-3, 1e-3) for f, o in zip(alone, wanted(more), strict=True)
    )


def _size(wanted: Callable[[Float32Array], list[Any]], picture: Float32Array, nchw: bool) -> tuple[int, int]:
    """Height and width to train at: half of the input's, a quarter of the work, where the layers take any size."""
    high, wide = picture.shape[2:] if nchw else picture.shape[1:3]
    half = (-(-high // 2 // STRIDE) * STRIDE, -(-wide // 2 // STRIDE) * STRIDE)
    part = picture[:, :, : half[0], : half[1]] if nchw else picture[:, : half[0], : half[1]]
    return half if _takes(wanted, picture, np.ascontiguousarray(part), nchw) else (high, wide)


def _batches(draw: Callable[[], Float32Array]) -> Generator[Float32Array, None, None]:
    """What `draw` gives, the next one while the last is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(draw)
        while True:
            made = coming.result()
            coming = thread.submit(draw)
            yield made


def finetuned(
    start: Start,
    inputs: Iterable[Float32Array],
    made: Input,
    report: Report,
    *,
    classes: int | None = None,
    steps: int = STEPS,
    batch: int | None = None,
    residuals: bool = True,
    device: str | None = None,
) -> Tuned:
    """Weights, biases and scales that bring an INT8 model's outputs near the float model's.

    Args:
        start: the INT8 model, which is what it has to be better than.
        inputs: network inputs of calibration pictures.
        made: how these are made.
        report: is told about progress.
        classes: that the model tells apart; None if that is not known.
        steps: changes to make.
        batch: parts of pictures that are looked at for each. Default: by the device.
        residuals: as for `quantized`.
        device: of PyTorch. Default: a GPU if there is one.

    Raises:
        ConfigError: torch is not installed, or there are too few pictures.
        ModelError: the model has an operator that PyTorch is not told how to compute.
    """
    torch = vendor()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    batch = batch or BATCH.get(device.partition(":")[0], BATCH["cpu"])
    # Half precision is exact to a fortieth of a grey level.
    pictures = [x[:1].astype(np.float16) for x in inputs]
    if len(pictures) < HELD_OUT:
        raise ConfigError(
            f"--finetune: {len(pictures)} calibration images are too few, for one of {HELD_OUT} is left out to see "
            "whether it helped; give more with --images, or leave --finetune out"
        )
    held_out = [x.astype(np.float32) for x in pictures[HELD_OUT - 1 :: HELD_OUT]]
    training = [x for i, x in enumerate(pictures) if i % HELD_OUT != HELD_OUT - 1]
    # Every layer gets a bias of its own, which can then be trained, unless it shares its weights.
    readers = Graph(start.model).consumers
    biased = {
        name: w if w.bias is not None or len(readers[name]) > 1 else replace(w, bias=np.zeros(len(w.steps), np.float32))
        for name, w in start.weights.items()
    }
    int8 = quantized(
        start.model, start.sites, start.thresholds, float_layers=start.float_layers, residuals=residuals, weights=biased
    )
    parameters = Parameters(start, device)
    kept = parameters.tuned()
    pair, distance = _Pair(start, int8, parameters, device), Distance(classes)

    def repeated(x: Float32Array) -> Float32Array:
        return np.repeat(x, made.batch or 1, axis=0)

    def judged() -> float:
        with torch.no_grad():
            return float(np.mean([float(distance(*pair(repeated(x)))) for x in held_out]))

    best = before = judged()
    first = repeated(held_out[0])
    windows = Windows(training, _size(pair.wanted, first, made.nchw), made)
    free = made.batch is None or _takes_more(pair.wanted, first, made.nchw)
    at_once = batch if free else made.batch or 1
    parts = -(-batch // at_once)
    drawn = _batches(lambda: np.concatenate([windows.draw() for _ in range(at_once)]))
    optimizer = torch.optim.Adam(parameters.groups(), betas=(0.9, 0.99))

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    looks = {steps * (i + 1) // LOOKS for i in range(LOOKS)}
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        for _ in range(parts):
            loss = distance(*pair(next(drawn))) / parts
            loss.backward()
        optimizer.step()
        schedule.step()
        if step in looks:
            now = judged()
            if now < best:  # never for NaN
                best, kept = now, parameters.tuned()
        report("fine-tune", step, steps)
    drawn.close()
    return Tuned(*kept, before, best)
