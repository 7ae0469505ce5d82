"""Returns YOLOv5's heads as the convolutions leave them, (B, A·K, H, W), if the file has (B, A, H, W, K).

The transposition between the two moves all values of all cells for the sake of the few that contain a box; the decode
kernel reads either form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamd.engine.tensorrt.version import Trt

DECLARED: Mapping[str, Any] = {"kind": "yolov5_heads"}
"""The head of a plan whose outputs were all changed, if the model declares none."""
_CONVOLVED: tuple[str, ...] = ("batch", "channel", "row", "column")
_SPLIT: tuple[str, ...] = ("batch", "anchor", "value", "row", "column")
_WANTED: tuple[str, ...] = ("batch", "anchor", "row", "column", "value")
_LEAST_VALUES = 6
"""Least values per cell: box, objectness, one class."""


def give_convolutions(trt: Trt, network: Any, *, half: bool) -> bool:
    """Replaces outputs that are YOLOv5's reshape and transposition of a convolution by the convolution's own output.

    Names and order stay the same; other outputs are left unchanged.

    Args:
        trt: the installed TensorRT.
        network: as parsed.
        half: if the builder chooses precisions itself, whether float16 is allowed, and outputs are float16.

    Returns:
        True if every output was changed.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    given = [network.get_output(i) for i in range(network.num_outputs)]
    sources = [_source(trt.module, makers, tensor) for tensor in given]
    if all(source is None for source in sources):
        return False
    taken, changed = set(makers), 0
    # All are marked again in their order, since outputs are returned in the order of marking.
    for tensor, source in zip(given, sources, strict=True):
        network.unmark_output(tensor)
        if source is None or source.is_network_output:
            network.mark_output(tensor)
            continue
        name, spare = tensor.name, f"{tensor.name}_by_cell"
        while spare in taken:
            spare += "_"
        tensor.name, source.name = spare, name
        network.mark_output(source)
        if trt.has_precision_flags:
            source.dtype = trt.module.float16 if half else trt.module.float32
            source.allowed_formats = 1 << int(trt.module.TensorFormat.LINEAR)
        changed += 1
    return changed == len(given)


def _source(module: Any, makers: Mapping[str, Any], output: Any) -> Any:
    """The convolution's result from which `output` is made in YOLOv5's way, otherwise None."""
    kinds, floats = module.LayerType, (module.float32, module.float16)
    casts = [getattr(kinds, name) for name in ("IDENTITY", "CAST") if hasattr(kinds, name)]
    tensor, shuffles = output, []
    while (layer := makers.get(tensor.name)) is not None and (layer.type in casts or layer.type == kinds.SHUFFLE):
        if tensor.dtype not in floats:
            return None
        if layer.type == kinds.SHUFFLE:
            shuffles.append(layer)
        tensor = layer.get_input(0)
    if tensor.dtype not in floats or not _convolved(module, makers, tensor):
        return None
    return tensor if _splits(module, tuple(tensor.shape), shuffles[::-1]) else None


def _convolved(module: Any, makers: Mapping[str, Any], tensor: Any) -> bool:
    """Whether it is the result of a convolution, or of a sum with one, such as its bias."""
    kinds, layer = module.LayerType, makers.get(tensor.name)
    if layer is not None and layer.type == kinds.ELEMENTWISE:
        layer.__class__ = module.IElementWiseLayer
        if layer.op == module.ElementWiseOperation.SUM:
            above = [makers.get(layer.get_input(i).name) for i in range(2)]
            layer = next((maker for maker in above if maker is not None and maker.type == kinds.CONVOLUTION), None)
    return layer is not None and layer.type == kinds.CONVOLUTION


def _splits(module: Any, shape: tuple[int, ...], shuffles: list[Any]) -> bool:
    """Whether these shuffles turn `shape` (B, A·K, H, W) into (B, A, H, W, K); -1 means not known yet.

    A shuffle transposes, reshapes and transposes again. A reshape that keeps the number of dimensions changes none.
    """
    axes: tuple[str, ...] = _CONVOLVED
    if len(shape) != len(axes):
        return False
    for layer in shuffles:
        layer.__class__ = module.IShuffleLayer
        out = tuple(layer.get_output(0).shape)
        first, second = (
            [order[i] for i in range(len(dims))]
            for order, dims in ((layer.first_transpose, shape), (layer.second_transpose, out))
        )
        axes, shape = tuple(axes[i] for i in first), tuple(shape[i] for i in first)
        reshaped = tuple(out[second.index(i)] for i in range(len(out)))
        if axes == _CONVOLVED and len(reshaped) == len(_SPLIT):
            _, anchors, values, _, _ = reshaped
            if anchors < 1 or values < _LEAST_VALUES or anchors * values != shape[1]:
                return False
            axes, shape = _SPLIT, (shape[0], anchors, values, *shape[2:])
        if len(reshaped) != len(shape) or any(a != b for a, b in zip(shape, reshaped, strict=True) if min(a, b) >= 0):
            return False
        axes, shape = tuple(axes[i] for i in second), tuple(shape[i] for i in second)
    return axes == _WANTED
