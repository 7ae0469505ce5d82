"""What PyTorch computes for each ONNX operator that detectors have before their output convolutions.

An operator is a function of a call: its node's attributes, and its inputs, which are PyTorch tensors where they depend
on the picture, and NumPy arrays where they are constants or follow from shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.errors import ConfigError, ModelError


def vendor() -> Any:
    """The torch package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            f"--finetune: the package torch is not installed ({error}); pip install 'streamd[finetune]'"
        ) from error
    return torch


@dataclass(frozen=True)
class Call:
    """One execution of a node."""

    name: str
    attributes: Mapping[str, Any]
    inputs: Sequence[Any]
    """Tensors, arrays, and None for optional inputs that are left out."""
    device: str
    outputs: int = 1
    placed: Callable[[int], Any] | None = None
    """Gives a constant input as a tensor. Default: a copy."""

    @property
    def x(self) -> Any:
        """The first input, as a tensor."""
        return self.tensor(0)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        value = self.attributes.get(name, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def tensor(self, index: int) -> Any:
        """An input as a tensor; a constant is copied to the device."""
        value = self.inputs[index]
        if not isinstance(value, np.ndarray):
            return value
        return self.placed(index) if self.placed is not None else vendor().from_numpy(np.array(value)).to(self.device)

    def tensors(self) -> list[Any]:
        """All of them."""
        return [self.tensor(i) for i in range(len(self.inputs))]

    def array(self, index: int) -> npt.NDArray[Any]:
        """An input that does not depend on the picture.

        Raises:
            ModelError: it does.
        """
        value = self.inputs[index]
        if not isinstance(value, np.ndarray):
            raise self.unusual("its shape or positions depend on the picture")
        return value

    def unusual(self, why: str) -> ModelError:
        """The error for a variant of an operator that is not known here."""
        return ModelError(f"--finetune: node {self.name!r}: {why}, which fine-tuning does not compute; leave it out")


def _pads(call: Call, dimensions: int) -> list[int]:
    """(before, after) of each spatial axis, the last axis first, as torch's `pad` wants them."""
    if str(call.get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID"):
        raise call.unusual(f"auto_pad={call.get('auto_pad')}")
    pads = list(call.get("pads", [0] * 2 * dimensions))
    return [int(p) for axis in reversed(range(dimensions)) for p in (pads[axis], pads[axis + dimensions])]


def _conv(call: Call) -> Any:
    functional = vendor().nn.functional
    x, weight = call.x, call.tensor(1)
    if weight.ndim != 4:
        raise call.unusual(f"a convolution of {weight.ndim - 2} dimensions")
    left, right, top, bottom = _pads(call, 2)
    if (left, top) != (right, bottom):
        x, left, top = functional.pad(x, (left, right, top, bottom)), 0, 0
    bias = call.tensor(2) if call.has(2) else None
    return functional.conv2d(
        x, weight, bias, call.get("strides", [1, 1]), (top, left), call.get("dilations", [1, 1]), call.get("group", 1)
    )


def _max_pool(call: Call) -> Any:
    functional = vendor().nn.functional
    if call.outputs > 1:
        raise call.unusual("MaxPool with positions")
    left, right, top, bottom = _pads(call, 2)
    x = call.x
    if any((left, right, top, bottom)):
        x = functional.pad(x, (left, right, top, bottom), value=-float("inf"))
    kernel = call.get("kernel_shape")
    strides, dilations = call.get("strides", [1] * len(kernel)), call.get("dilations", [1] * len(kernel))
    return functional.max_pool2d(x, kernel, strides, 0, dilations, bool(call.get("ceil_mode", 0)))


def _average_pool(call: Call) -> Any:
    left, right, top, bottom = _pads(call, 2)
    if (left, top) != (right, bottom) or call.get("ceil_mode", 0):
        raise call.unusual("AveragePool with unequal padding or ceil_mode")
    kernel = call.get("kernel_shape")
    strides, padded = call.get("strides", [1] * len(kernel)), bool(call.get("count_include_pad", 0))
    return vendor().nn.functional.avg_pool2d(call.x, kernel, strides, (top, left), False, padded)


def _nearest(call: Call, size: int, out: int, scale: float) -> npt.NDArray[np.int64]:
    """(out,) which of `size` positions each output position takes, by ONNX's rules."""
    at = np.arange(out, dtype=np.float64)
    mode = str(call.get("coordinate_transformation_mode", "half_pixel"))
    if mode in ("half_pixel", "pytorch_half_pixel"):
        at = (at + 0.5) / scale - 0.5
    elif mode == "asymmetric":
        at = at / scale
    elif mode == "align_corners":
        at = at * (size - 1) / max(out - 1, 1)
    else:
        raise call.unusual(f"Resize by {mode}")
    rule = str(call.get("nearest_mode", "round_prefer_floor"))
    rounded = {
        "floor": np.floor(at),
        "ceil": np.ceil(at),
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
    }[rule]
    return np.clip(rounded, 0, size - 1).astype(np.int64)


def _resize(call: Call) -> Any:
    torch = vendor()
    x = call.x
    if str(call.get("mode", "nearest")) != "nearest":
        raise call.unusual(f"Resize by {call.get('mode')}")
    sizes = [int(n) for n in call.array(3)] if call.has(3) else None
    scales = None if sizes else [float(s) for s in call.array(2)]
    if (sizes and len(sizes) != x.ndim) or (scales and len(scales) != x.ndim):
        raise call.unusual("Resize of some axes")
    for axis in range(x.ndim):
        have = x.shape[axis]
        want = sizes[axis] if sizes else int(np.floor(have * scales[axis])) if scales else have
        if want != have:
            scale = want / have if sizes or not scales else scales[axis]
            take = torch.from_numpy(_nearest(call, have, want, scale)).to(call.device)
            x = x.index_select(axis, take)
    return x


def _slice(call: Call) -> Any:
    x = call.x
    starts, ends = call.array(1).tolist(), call.array(2).tolist()
    axes = call.array(3).tolist() if call.has(3) else list(range(len(starts)))
    steps = call.array(4).tolist() if call.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise call.unusual("Slice backwards")
        kept = [slice(None)] * x.ndim
        kept[axis] = slice(start, end, step)
        x = x[tuple(kept)]
    return x


def _split(call: Call) -> Any:
    axis, x = call.get("axis", 0), call.x
    parts = call.array(1).tolist() if call.has(1) else call.get("split")
    if parts is None:
        parts = -(-x.shape[axis] // call.outputs)
    return vendor().split(x, parts, axis)


def _reshape(call: Call) -> Any:
    x = call.x
    shape = [int(n) for n in call.array(1)]
    if not call.get("allowzero", 0):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    if shape and x.ndim >= 4 and len(shape) >= 4:
        # Channels are regrouped, in a model of one batch and input size: it does the same with others.
        if shape[0] == 1 < x.shape[0]:
            shape[0] = x.shape[0]
        known = int(np.prod([n for n in shape if n != -1]))
        if x.numel() != known and (-1 not in shape or x.numel() % known):
            shape[-2:] = x.shape[-2:]
    return x.reshape(shape)


def _pad(call: Call) -> Any:
    x, pads = call.x, [int(p) for p in call.array(1)]
    if str(call.get("mode", "constant")) != "constant" or call.has(3):
        raise call.unusual("Pad other than by a constant on all axes")
    value = float(call.array(2)) if call.has(2) else 0.0
    around = [p for axis in reversed(range(x.ndim)) for p in (pads[axis], pads[axis + x.ndim])]
    return vendor().nn.functional.pad(x, around, value=value)


def _axes(call: Call) -> list[int]:
    axes = call.array(1).tolist() if call.has(1) else call.get("axes")
    if axes is None:
        raise call.unusual("no axes")
    return [int(a) for a in axes]


def _squeeze(call: Call) -> Any:
    x = call.x
    return x.reshape([n for i, n in enumerate(x.shape) if i not in {a % x.ndim for a in _axes(call)}])


def _unsqueeze(call: Call) -> Any:
    x, axes = call.x, _axes(call)
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


def _flatten(call: Call) -> Any:
    x, axis = call.x, call.get("axis", 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _clip(call: Call) -> Any:
    low = float(call.array(1)) if call.has(1) else call.get("min")
    high = float(call.array(2)) if call.has(2) else call.get("max")
    return vendor().clamp(call.x, low, high)


def _batch_norm(call: Call) -> Any:
    x, scale, bias, mean, variance = call.tensors()
    return vendor().nn.functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.get("epsilon", 1e-5))


def _reduce_mean(call: Call) -> Any:
    return call.x.mean(_axes(call), keepdim=bool(call.get("keepdims", 1)))


def _hard_sigmoid(call: Call) -> Any:
    return vendor().clamp(call.x * call.get("alpha", 0.2) + call.get("beta", 0.5), 0.0, 1.0)


OPERATORS: dict[str, Callable[[Call], Any]] = {
    "Add": lambda c: c.x + c.tensor(1),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda c: vendor().cat(c.tensors(), c.get("axis")),
    "Conv": _conv,
    "Div": lambda c: c.x / c.tensor(1),
    "Dropout": lambda c: c.x,
    "Exp": lambda c: c.x.exp(),
    "Flatten": _flatten,
    "GlobalAveragePool": lambda c: c.x.mean((2, 3), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda c: vendor().nn.functional.hardswish(c.x),
    "Identity": lambda c: c.x,
    "LeakyRelu": lambda c: vendor().nn.functional.leaky_relu(c.x, c.get("alpha", 0.01)),
    "MatMul": lambda c: c.x @ c.tensor(1),
    "MaxPool": _max_pool,
    "Mul": lambda c: c.x * c.tensor(1),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": lambda c: vendor().relu(c.x),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": lambda c: vendor().sigmoid(c.x),
    "Slice": _slice,
    "Softmax": lambda c: vendor().softmax(c.x, c.get("axis", -1)),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": lambda c: c.x - c.tensor(1),
    "Tanh": lambda c: vendor().tanh(c.x),
    "Transpose": lambda c: c.x.permute(c.get("perm", list(reversed(range(c.x.ndim))))),
    "Unsqueeze": _unsqueeze,
}
"""By operator. SiLU (`Mul` of a value and its `Sigmoid`) is recognised by `network`."""
