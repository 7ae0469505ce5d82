"""FP16 for builders that take precisions only from the ONNX file (TensorRT 11, TensorRT-RTX).

Older builders had an FP16 flag; here the file itself must say float16. Only the network proper is converted: everything
between the image and the last convolution of each branch. The decoding after it stays in float32, because float16 steps
are half a pixel from 512 on; so do shape arithmetic and the sizes used by Resize.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from streamd.errors import BackendError, ModelError

_HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FLOAT_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs for which ONNX allows float32 only."""
_SIZES = frozenset({"Shape", "Size"})
_BODIES = frozenset({"If", "Loop", "Scan"})


def to_half(path: Path) -> bytes:
    """The model at `path` with float16 between image and last convolutions; inputs and outputs keep their types.

    Returns:
        The converted ONNX file's bytes.

    Raises:
        BackendError: the package onnx is not installed.
        ModelError: the model cannot be read, or contains branches or loops, which are not converted.
    """
    try:
        import onnx
        from onnx import shape_inference
    except ImportError as error:
        raise BackendError(
            "precision fp16: this TensorRT takes precisions from the ONNX file only, and converting a float32 model "
            f"needs the package onnx ({error}); pip install 'streamd[quantize]', or set precision: fp32"
        ) from error
    try:
        # Types of intermediate tensors are needed; loading also reads weights from external files.
        model = shape_inference.infer_shapes(onnx.load(str(path)))
    except Exception as error:
        raise ModelError(f"model {path}: is not a valid ONNX file: {error}") from error
    bodies = {node.op_type for node in model.graph.node} & _BODIES
    if bodies:
        raise ModelError(
            f"model {path}: cannot be converted to float16: it contains {', '.join(sorted(bodies))}; set precision: "
            "fp32, or export it in float16"
        )
    _Half(model.graph).convert()
    converted: bytes = model.SerializeToString()
    return converted


class _Half:
    """One conversion of one graph, in place."""

    def __init__(self, graph: Any) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self.graph = graph
        self.helper, self.numpy = helper, numpy_helper
        self.float32, self.float16 = TensorProto.FLOAT, TensorProto.FLOAT16
        self._constants_to_initializers()
        self.initializers = {t.name: t for t in graph.initializer}
        self.types = {
            v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output, *graph.value_info]
        } | {t.name: t.data_type for t in graph.initializer}
        self.casts: dict[tuple[str, int], str] = {}

    def _constants_to_initializers(self) -> None:
        """Gives constants a single form, so that both types can be derived from it."""
        kept = []
        for node in self.graph.node:
            values = [a.t for a in node.attribute if a.name == "value"]
            if node.op_type == "Constant" and values:
                values[0].name = node.output[0]
                self.graph.initializer.append(values[0])
            else:
                kept.append(node)
        del self.graph.node[:]
        self.graph.node.extend(kept)

    def _chosen(self) -> list[bool]:
        """Per node: True if it lies between the image and a convolution."""
        nodes = self.graph.node
        weights = set(self.initializers)
        seen = {i.name for i in self.graph.input} - weights
        from_image = []
        for node in nodes:
            # Shape cuts: what follows is arithmetic on sizes, not on pixels.
            flows = node.op_type not in _SIZES and any(name in seen for name in node.input)
            if flows:
                seen.update(node.output)
            from_image.append(flows)
        wanted: set[str] = set()
        to_heavy = []
        for node in reversed(nodes):
            leads = node.op_type in _HEAVY or any(name in wanted for name in node.output)
            if leads:
                wanted.update(node.input)
            to_heavy.append(leads)
        return [a and b for a, b in zip(from_image, reversed(to_heavy), strict=True)]

    def convert(self) -> None:
        """Does it."""
        chosen = self._chosen()
        half_tensors = {
            name
            for node, half in zip(self.graph.node, chosen, strict=True)
            if half
            for name in node.output
            if self.types.get(name, self.float32) == self.float32
        }
        nodes: list[Any] = []
        for node, half in zip(self.graph.node, chosen, strict=True):
            keep = _FLOAT_INPUTS.get(node.op_type, ())
            # A size is identical in both types.
            for i, name in enumerate(node.input if node.op_type not in _SIZES else ()):
                if not name or self.types.get(name, self.float32) != self.float32:
                    continue
                want_half = half and i not in keep
                if want_half != (name in half_tensors):
                    node.input[i] = self._as(name, self.float16 if want_half else self.float32, nodes)
            if half and node.op_type == "Cast":
                for a in node.attribute:
                    if a.name == "to" and a.i == self.float32:
                        a.i = self.float16
            nodes.append(node)
        self._restore_outputs(half_tensors, nodes)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        del self.graph.value_info[:]
        self._drop_unused(nodes)

    def _as(self, name: str, to: int, nodes: list[Any]) -> str:
        """`name` in type `to`: a converted copy of a constant, or a Cast of anything else, created once."""
        if (name, to) in self.casts:
            return self.casts[name, to]
        new = f"{name}_{'half' if to == self.float16 else 'float'}"
        if name in self.initializers:
            limit = np.finfo(np.float16).max
            values = np.clip(self.numpy.to_array(self.initializers[name]), -limit, limit).astype(np.float16)
            self.graph.initializer.append(self.numpy.from_array(values, new))
        else:
            nodes.append(self.helper.make_node("Cast", [name], [new], name=f"{new}_cast", to=to))
        self.casts[name, to] = new
        return new

    def _restore_outputs(self, half_tensors: Iterable[str], nodes: list[Any]) -> None:
        """Renames a graph output that became float16, and casts it back under its own name."""
        for output in self.graph.output:
            name = output.name
            if name not in half_tensors:
                continue
            inside = f"{name}_inside"
            for node in nodes:
                for names in (node.input, node.output):
                    for i, known in enumerate(names):
                        if known == name:
                            names[i] = inside
            nodes.append(self.helper.make_node("Cast", [inside], [name], name=f"{name}_cast", to=self.float32))

    def _drop_unused(self, nodes: Iterable[Any]) -> None:
        """Removes float32 weights that were replaced by float16 copies."""
        used = {name for node in nodes for name in node.input} | {o.name for o in self.graph.output}
        kept = [t for t in self.graph.initializer if t.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        for i in reversed(range(len(self.graph.input))):
            if self.graph.input[i].name not in used:
                del self.graph.input[i]
