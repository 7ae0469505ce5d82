"""What fine-tuning changes: INT8 steps and scales of weights, scales of activations, biases, weights of float layers.

Everything is trained in units of its own, so that one rate suits a whole network: weights in steps, scales as
logarithms (S. Esser et al., "Learned Step Size Quantization", 2020), biases in what one step of the inputs is worth.
Rounding passes gradients on as if it were not there, except where it clips.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamd.models.calibrate import Peaks
from streamd.models.finetune.operators import vendor
from streamd.models.graph import Graph, constant_weight
from streamd.models.qdq import Layer, Sites
from streamd.models.weights import QMAX, SHIFT, SPARE, SUM_MAX, TINY, Int8Weights, weight_scales
from streamd.types import Float32Array

STEP_RATE = 0.01
"""Of weights in INT8, in steps. More, and weights that cross to the next step by chance outweigh those that should."""
FLOAT_RATE = 0.02
"""Of weights in float and their biases, in what would be steps."""
BIAS_RATE = 0.002
"""Of biases of layers in INT8, in what one step of the inputs is worth at the output."""
SCALE_RATE = 2e-4
"""Of the logarithms of scales."""


@functools.cache
def _rounding() -> Any:
    """The rounding of activations as a PyTorch function: half the memory of one made of operators."""
    torch = vendor()

    class Rounding(torch.autograd.Function):  # type: ignore[misc, name-defined]  # torch may be absent
        @staticmethod
        def forward(context: Any, x: Any, scale: Any) -> Any:
            context.save_for_backward(x, scale)
            return torch.round(x / scale).clamp_(-QMAX - 1, QMAX).mul_(scale)

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            x, scale = context.saved_tensors
            exact = x / scale
            steps = torch.round(exact).clamp_(-QMAX - 1, QMAX)
            inside = (exact >= -QMAX - 1) & (exact <= QMAX)
            # A larger scale moves a value by its steps, less what stays where it was.
            moved = steps.addcmul_(exact, inside, value=-1)
            return gradient * inside, torch.dot(gradient.reshape(-1), moved.reshape(-1))

    return Rounding


def _straight_through(value: Any, rounded: Any) -> Any:
    return value + (rounded - value).detach()


def _fitting(steps: Any, unsigned: Any) -> Any:
    """(O, C, …) steps of which no two neighbours overflow 16 bits: those that would are made smaller together.

    Args:
        steps: whole numbers.
        unsigned: (C,) as by `weights.unsigned_peaks`.
    """
    torch = vendor()
    out_channels, channels = steps.shape[:2]
    odd = channels % 2
    flat = torch.nn.functional.pad(steps.reshape(out_channels, channels, -1), (0, 0, 0, odd))
    pairs = flat.reshape(out_channels, (channels + odd) // 2, 2, -1)
    largest = torch.nn.functional.pad(unsigned, (0, odd)).reshape(1, -1, 2, 1)
    above = (pairs.clamp(min=0) * largest).sum(2, keepdim=True)
    below = (pairs.clamp(max=0).neg() * largest).sum(2, keepdim=True)
    share = (SUM_MAX / torch.maximum(above, below).clamp(min=1)).clamp(max=1)
    # Towards zero, and a hair less: the products are sums of whole numbers, the quotient is not.
    fitted = torch.where(share < 1, torch.trunc(pairs * share * (1 - 1e-6)), pairs)
    return fitted.reshape(out_channels, channels + odd, -1)[:, :channels].reshape(steps.shape)


@dataclass
class _Weight:
    """The weights of one layer in INT8."""

    layer: Layer
    latent: Any
    """(O, …) in steps, not rounded."""
    start: Any
    """(O, 1, …) scales before training."""
    growth: Any
    """(O, 1, …) logarithm of what they are multiplied with."""
    peaks: Any | None
    """(C,) largest input values, where neighbours can overflow."""

    def steps(self, threshold: Any) -> Any:
        """Whole numbers that no processor overflows with."""
        torch = vendor()
        steps = torch.round(self.latent.clamp(-QMAX, QMAX))
        if self.peaks is not None:
            peaks = torch.ceil(self.peaks * SPARE * QMAX / threshold)
            steps = _fitting(steps, SHIFT + peaks.clamp(0, QMAX))
        return _straight_through(self.latent.clamp(-QMAX, QMAX), steps)

    def scales(self) -> Any:
        return self.start * vendor().exp(self.growth)


@dataclass
class _Offset:
    """A constant that is trained as start + unit·change."""

    start: Any
    unit: Any
    change: Any

    def value(self) -> Any:
        return self.start + self.unit * self.change


@dataclass(frozen=True)
class Tuned:
    """The outcome of fine-tuning."""

    weights: dict[str, Int8Weights]
    """By weight tensor."""
    thresholds: dict[str, float]
    """As `calibrate.thresholds` makes them."""
    constants: dict[str, Float32Array]
    """Weights and biases of layers in float, by name."""
    before: float
    after: float
    """Distance to the float model on pictures held out, before and after."""

    @property
    def helped(self) -> bool:
        """Whether anything was changed."""
        return self.after < self.before


@dataclass(frozen=True)
class Start:
    """What is fine-tuned: an INT8 model by its parts."""

    model: Any
    """The float model."""
    sites: Sites
    """Of it."""
    thresholds: Mapping[str, float]
    """Of its activations."""
    weights: Mapping[str, Int8Weights]
    """In INT8, by weight tensor."""
    peaks: Peaks
    """Of the layers' inputs."""
    float_layers: Collection[str] = ()
    """Layers that stay in float; their weights are trained, too."""


class Parameters:
    """All parameters of one INT8 model.

    Args:
        start: what they are at first.
        device: where they are trained.
    """

    def __init__(self, start: Start, device: str) -> None:
        torch = vendor()
        model, sites, peaks, thresholds = start.model, start.sites, start.peaks, start.thresholds
        self._sites, self._device = sites, device
        self._kept, self._limits = dict(start.weights), dict(thresholds)
        active = {layer.name: layer for layer in sites.layers if layer.name not in start.float_layers}
        self._weights: dict[str, _Weight] = {}
        self._biases: dict[str, _Offset] = {}
        """By weight tensor of a layer in INT8."""
        self._constants: dict[str, _Offset] = {}
        """By name, of layers in float."""
        self._bias_names: dict[str, str] = {}
        self._thresholds = {g: self._tensor(max(thresholds[names[0]], TINY)) for g, names in sites.sources.items()}
        self._growth = {g: torch.zeros((), device=device, requires_grad=True) for g in sites.sources}
        graph = Graph(model)
        for node in graph.nodes:
            weight = constant_weight(graph, node) if node.op_type == "Conv" else None
            if weight is None:
                continue
            alone = len(graph.consumers[node.input[1]]) == 1
            bias = graph.constant(node.input[2]) if len(node.input) > 2 and graph.is_constant(node.input[2]) else None
            if node.name in active:
                self._add_int8(active[node.name], weight, bias, int(graph.attribute(node, "group", 1)), peaks)
                if not alone:
                    self._biases.pop(node.input[1], None)
            else:
                unit = weight_scales(weight).reshape(-1, *[1] * (weight.ndim - 1))
                self._constants[node.input[1]] = self._offset(weight, unit)
                if bias is not None and len(graph.consumers[node.input[2]]) == 1:
                    self._constants[node.input[2]] = self._offset(
                        bias, np.sqrt(np.square(weight).sum((1, 2, 3))) / QMAX
                    )

    def _tensor(self, value: Any) -> Any:
        return vendor().tensor(np.asarray(value, np.float32), device=self._device)

    def _offset(self, start: Float32Array, unit: Any) -> _Offset:
        torch = vendor()
        zeros = torch.zeros(start.shape, device=self._device, requires_grad=True)
        return _Offset(self._tensor(start), self._tensor(unit), zeros)

    def _add_int8(
        self, layer: Layer, weight: Float32Array, bias: Float32Array | None, groups: int, peaks: Peaks
    ) -> None:
        made = self._kept[layer.weight]
        scales = self._tensor(made.scales).reshape(-1, *[1] * (weight.ndim - 1))
        self._weights[layer.weight] = _Weight(
            layer,
            self._tensor(made.steps).requires_grad_(),
            scales,
            vendor().zeros_like(scales).requires_grad_(),
            self._tensor(peaks[layer.input]) if groups == 1 else None,
        )
        start = made.bias if made.bias is not None else bias if bias is not None else np.zeros(len(weight), np.float32)
        step = self._limits[self._sites.sources[self._sites.group[layer.input]][0]] / QMAX
        unit = np.maximum(step * np.sqrt(np.square(weight).reshape(len(weight), -1).sum(1)), TINY)
        self._biases[layer.weight] = self._offset(start, unit)

    def groups(self) -> list[dict[str, Any]]:
        """For an optimizer."""
        scales = [w.growth for w in self._weights.values()] + list(self._growth.values())
        return [
            {"params": [w.latent for w in self._weights.values()], "lr": STEP_RATE},
            {"params": [c.change for c in self._constants.values()], "lr": FLOAT_RATE},
            {"params": [b.change for b in self._biases.values()], "lr": BIAS_RATE},
            {"params": scales, "lr": SCALE_RATE},
        ]

    def _threshold(self, group: int) -> Any:
        return self._thresholds[group] * vendor().exp(self._growth[group])

    def given(self, int8: Mapping[str, tuple[str, str | None]]) -> dict[str, Any]:
        """Tensors that replace constants of the quantized model, see `Network`.

        Args:
            int8: by weight tensor, the names of the weights and, if any, the bias in the quantized model.
        """
        out = {name: offset.value() for name, offset in self._constants.items()}
        for name, weight in self._weights.items():
            threshold = self._threshold(self._sites.group[weight.layer.input]).detach()
            rounded, bias = int8[name]
            out[rounded] = weight.steps(threshold) * weight.scales()
            if bias is not None and name in self._biases:
                out[bias] = self._biases[name].value()
        return out

    def rounded(self, scale: str, x: Any) -> Any:
        """An activation after its round trip through INT8; see `network.Rounded`."""
        group = self._sites.group[scale.removesuffix("_scale")]
        return _rounding().apply(x, self._threshold(group) / QMAX)

    def tuned(self) -> tuple[dict[str, Int8Weights], dict[str, float], dict[str, Float32Array]]:
        """Weights, thresholds and constants as they are now; see `Tuned`."""

        def array(tensor: Any) -> Float32Array:
            found: Float32Array = tensor.detach().cpu().numpy().astype(np.float32)
            return found

        weights, limits = dict(self._kept), dict(self._limits)
        for group, names in self._sites.sources.items():
            limits[names[0]] = float(self._threshold(group).detach())
        for name, weight in self._weights.items():
            threshold = self._threshold(self._sites.group[weight.layer.input]).detach()
            steps = np.rint(array(weight.steps(threshold))).astype(np.int8)
            bias = array(self._biases[name].value()) if name in self._biases else self._kept[name].bias
            weights[name] = Int8Weights(steps, array(weight.scales()).reshape(-1), bias)
        return weights, limits, {name: array(offset.value()) for name, offset in self._constants.items()}
