"""The part of a model that a layer's noise passes through: its own operators and all behind them.

To run it with another form of the layer takes the float model's values of the tensors at its edge, and none of the
operators before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from streamd.models.calibrate import Observer
from streamd.models.graph import Graph, vendor
from streamd.models.qdq import Layer
from streamd.types import Float32Array

MEMORY = 512 << 20
"""Bytes of edges' values held at a time; more layers than fit are taken in turns."""
Values = Mapping[str, npt.NDArray[Any]]
"""By tensor."""


@dataclass(frozen=True)
class Behind:
    """What lies behind a layer, and what its pair changes on the way to it."""

    nodes: tuple[int, ...]
    """Numbers of operators in the model's order."""
    edge: tuple[str, ...]
    """Tensors that they read and others produce; the same values whatever form the layer has."""
    outputs: tuple[str, ...]
    """Of the tensors asked for, those that the layer has an effect on."""


def _downstream(graph: Graph, names: Iterable[str]) -> set[str]:
    """These tensors and all that depend on them."""
    stack = list(names)
    seen = set(stack)
    while stack:
        for node in graph.consumers.get(stack.pop(), []):
            for out in node.output:
                if out and out not in seen:
                    seen.add(out)
                    stack.append(out)
    return seen


def behind(graph: Graph, layer: Layer, outputs: Sequence[str]) -> Behind:
    """Finds the part of a model behind one of its layers.

    Args:
        graph: of the model, without operators that contain graphs.
        layer: of it.
        outputs: tensors that are of interest.
    """
    # A pair also rounds what pass-through operators before the layer give to others.
    reached = _downstream(graph, [layer.output, *graph.passed(layer.input)])
    varying = _downstream(graph, graph.inputs)
    number = {id(node): i for i, node in enumerate(graph.nodes)}
    wanted = tuple(name for name in outputs if name in reached)
    nodes: set[int] = set()
    edge: dict[str, None] = {}
    stack = list(wanted)
    while stack:
        name = stack.pop()
        if name in varying and name not in reached:
            edge[name] = None
        elif (node := graph.producer.get(name)) is not None and number[id(node)] not in nodes:
            nodes.add(number[id(node)])
            stack += [read for read in node.input if read]
    return Behind(tuple(sorted(nodes)), tuple(edge), wanted)


def contains_graphs(model: Any) -> bool:
    """Whether an operator has graphs of its own (If, Loop, Scan), which read tensors that are none of its inputs."""
    graphs = (vendor().AttributeProto.GRAPH, vendor().AttributeProto.GRAPHS)
    return any(a.type in graphs for node in model.graph.node for a in node.attribute)


def extracted(model: Any, part: Behind, edges: Sequence[Values]) -> Any:
    """That part as a model of its own, whose inputs are its edge.

    Args:
        model: the whole one, which is left alone.
        part: of it.
        edges: the values of its edge that it will be given, for types and shapes.
    """
    onnx = vendor()
    made = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    nodes = [model.graph.node[i] for i in part.nodes]
    read = {name for node in nodes for name in node.input}
    made.graph.name = model.graph.name
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    made.graph.sparse_initializer.extend(t for t in model.graph.sparse_initializer if t.values.name in read)
    for name in part.edge:
        found = [values[name] for values in edges]
        sizes = zip(*(array.shape for array in found), strict=True)
        shape = [size[0] if len(set(size)) == 1 else None for size in sizes]
        kind = onnx.helper.np_dtype_to_tensor_dtype(found[0].dtype)
        made.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    made.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in part.outputs)
    return made


class Edges:
    """The float model's values at the edges of what lies behind its layers.

    Args:
        model: the float model.
        parts: by layer, in the order in which they are asked for; in another, it takes longer.
        samples: network inputs.
    """

    def __init__(self, model: Any, parts: Mapping[str, Behind], samples: Sequence[Float32Array]) -> None:
        self._model, self._parts, self._samples = model, parts, samples
        every = list(dict.fromkeys(name for part in parts.values() for name in part.edge))
        found = Observer(model, every).run(samples[0])
        self._bytes = {name: found[name].nbytes * len(samples) for name in every}
        self._held: list[dict[str, npt.NDArray[Any]]] = []
        self._waiting: set[str] = set()

    def of(self, layer: str) -> list[dict[str, npt.NDArray[Any]]]:
        """For each sample, the values of this layer's edge."""
        if layer not in self._waiting:
            self._look(layer)
        edge = self._parts[layer].edge
        found = [{name: values[name] for name in edge} for values in self._held]
        self._waiting.discard(layer)
        if not self._waiting:
            self._held = []
        return found

    def _look(self, first: str) -> None:
        """Holds the values for this layer, and for as many of those behind it as there is room for."""
        self._held = []
        layers = list(self._parts)
        names: dict[str, None] = {}
        self._waiting = set()
        for layer in layers[layers.index(first) :]:
            more = names | dict.fromkeys(self._parts[layer].edge)
            if names and sum(self._bytes[name] for name in more) > MEMORY:
                break
            names = more
            self._waiting.add(layer)
        observer = Observer(self._model, list(names))
        self._held = [observer.run(sample) for sample in self._samples]
