"""Starts from an exported detector: its convolutions, with the normalisation that export folded into them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from demo_model.net import Conv, Detector


def warm_start(model: Detector, path: Path, batches: Iterable[Any]) -> None:
    """Gives `model` the weights of an exported one of the same shape; it then says the same.

    Normalisation is put back so that it changes nothing: its mean and deviation are those of the batches, its factor
    that deviation, its offset that mean and the convolution's bias. Filters get the size that random ones have, which
    normalisation undoes: so learning goes on at the pace at which it began.

    Args:
        model: what gets the weights; left as it was found, training or not.
        path: what `export` wrote.
        batches: pictures (B, 3, SIZE, SIZE) on the model's device, like those of training.

    Raises:
        ValueError: the file holds a network of another shape.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in constants:  # two of the same value are stored once
            constants[node.output[0]] = constants[node.input[0]]
    filters = [[torch.tensor(constants[n]) for n in node.input[1:]] for node in graph.node if node.op_type == "Conv"]
    training = model.training
    model.eval()
    batches = list(batches)
    convs = _in_order(model, batches[0][:1])
    if [c.weight.shape for c in convs] != [f[0].shape for f in filters]:
        raise ValueError(f"{path}: its convolutions are not those of this network")
    blocks = {id(m.conv): m for m in model.modules() if isinstance(m, Conv)}
    with torch.no_grad():
        for conv, (weight, bias) in zip(convs, filters, strict=True):
            conv.weight.copy_(weight)
            block = blocks.get(id(conv))
            if block is None:
                conv.bias.copy_(bias)
                continue
            block.bn.running_mean.zero_()
            block.bn.running_var.fill_(1 - block.bn.eps)
            block.bn.weight.fill_(1)
            block.bn.bias.copy_(bias)
        moments = _moments(model, list(blocks.values()), batches)
        for block, (mean, variance) in zip(blocks.values(), moments, strict=True):
            weight = block.conv.weight
            usual = (3 * weight[0].numel()) ** -0.5
            factor = usual / weight.square().mean((1, 2, 3)).sqrt().clamp(min=1e-8)
            weight.mul_(factor[:, None, None, None])
            block.bn.running_mean.copy_(mean * factor)
            block.bn.running_var.copy_(variance * factor.square())
            block.bn.weight.copy_((variance + block.bn.eps / factor.square()).sqrt())
            block.bn.bias.add_(mean)
    model.train(training)


def _in_order(model: nn.Module, picture: Any) -> list[Any]:
    """The convolutions in the order in which they run, as they are in an exported graph."""
    found: list[Any] = []
    hooks = [
        m.register_forward_hook(lambda module, *_: found.append(module))
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        model(picture)
    for hook in hooks:
        hook.remove()
    return found


def _moments(model: nn.Module, blocks: list[Conv], batches: list[Any]) -> list[tuple[Any, Any]]:
    """Mean and variance of what each block's normalisation reads, by channel."""
    sums = [torch.zeros(2, b.bn.num_features, dtype=torch.float64, device=b.bn.weight.device) for b in blocks]
    counts = [0] * len(blocks)

    def look(i: int) -> Any:
        def hook(_: Any, inputs: Any) -> None:
            x = inputs[0].float()
            sums[i] += torch.stack(
                [x.sum((0, 2, 3), dtype=torch.float64), x.square().sum((0, 2, 3), dtype=torch.float64)]
            )
            counts[i] += x.numel() // x.shape[1]

        return hook

    hooks = [b.bn.register_forward_pre_hook(look(i)) for i, b in enumerate(blocks)]
    for pictures in batches:
        model(pictures)
    for hook in hooks:
        hook.remove()
    means = [s / n for s, n in zip(sums, counts, strict=True)]
    return [(m[0].float(), (m[1] - m[0].square()).clamp(min=0).float()) for m in means]
