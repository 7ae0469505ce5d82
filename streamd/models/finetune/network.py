"""An ONNX model as PyTorch functions, up to some of its tensors; with Q/DQ pairs as rounding in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.errors import ModelError
from streamd.models.finetune.operators import OPERATORS, Call, vendor
from streamd.models.graph import Graph
from streamd.models.graph import vendor as onnx_vendor

Rounded = Callable[[str, Any], Any]
"""Rounds an activation: called with the name of its scale, and the tensor."""
_SILU = "SiLU"
_PAIRS = ("QuantizeLinear", "DequantizeLinear")


class _Step:
    """A node, ready to run."""

    def __init__(self, node: Any, inputs: Sequence[str], kind: str) -> None:
        helper = onnx_vendor().helper
        self.node, self.kind = node, kind
        self.inputs = list(inputs)
        self.outputs = list(node.output)
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.done: list[str] = []
        """Tensors that no later step reads."""
        self._reference: Any = None

    def on_host(self, inputs: Sequence[Any]) -> list[Any]:
        """What the node makes of constants and shapes: by onnx's own reference."""
        if self._reference is None:
            from onnx.reference import ReferenceEvaluator

            self._reference = ReferenceEvaluator(self.node)
        names = [name for name in self.inputs if name]
        given = [v for v in inputs if v is not None]
        return [np.asarray(v) for v in self._reference.run(None, dict(zip(names, given, strict=True)))]


class Network:
    """A model as PyTorch functions. Gradients flow to whatever tensor replaces one of its constants.

    An activation between the two halves of a pair is kept as the value that its INT8 stands for, so that
    `DequantizeLinear` does nothing: pooling, selecting and concatenating commute with the scale that both halves share.

    Args:
        model: the ONNX model.
        outputs: names of the tensors wanted; what they do not need is left out.
        device: where it runs.

    Raises:
        ModelError: it has an operator without a counterpart here.
        ConfigError: torch is not installed.
    """

    def __init__(self, model: Any, outputs: Sequence[str], device: str = "cpu") -> None:
        vendor()
        self.graph = Graph(model)
        self.outputs = tuple(outputs)
        self.device = device
        self._input = self.graph.inputs[0]
        self._steps = self._needed()
        self._cached: dict[str, Any] = {}
        self._placed: dict[str, Any] = {}
        """Constants that are on the device."""

    def _needed(self) -> list[_Step]:
        graph = self.graph
        wanted, stack = set(self.outputs), list(self.outputs)
        while stack:
            node = graph.producer.get(stack.pop())
            for name in () if node is None else node.input:
                if name and name not in wanted:
                    wanted.add(name)
                    stack.append(name)
        steps: list[_Step] = []
        skipped: set[int] = set()
        for node in graph.nodes:
            if node.op_type == "Constant" or not wanted.intersection(node.output):
                continue
            steps.append(_Step(node, node.input, node.op_type))
            source = self._silu(node)
            if source is not None:
                skipped.add(id(graph.producer[next(n for n in node.input if n != source)]))
                steps[-1] = _Step(node, [source], _SILU)
        steps = [step for step in steps if id(step.node) not in skipped]
        last = {name: step for step in steps for name in step.inputs}
        for name, step in last.items():
            if name not in self.outputs:
                step.done.append(name)
        return steps

    def _silu(self, node: Any) -> str | None:
        """x, if the node is x·σ(x) and nothing else reads σ(x)."""
        if node.op_type != "Mul" or len(node.input) != 2:
            return None
        for source, other in (tuple(node.input), tuple(reversed(node.input))):
            producer = self.graph.producer.get(other)
            if (
                producer is not None
                and producer.op_type == "Sigmoid"
                and producer.input[0] == source
                and len(self.graph.consumers[other]) == 1
                and other not in self.outputs
            ):
                return str(source)
        return None

    def _constant(self, name: str) -> npt.NDArray[Any]:
        if name not in self._cached:
            self._cached[name] = self.graph.constant(name)
        found: npt.NDArray[Any] = self._cached[name]
        return found

    def _tensor(self, name: str, value: npt.NDArray[Any]) -> Any:
        if name in self._placed:
            return self._placed[name]
        made = vendor().from_numpy(np.array(value)).to(self.device)
        if name in self._cached:
            self._placed[name] = made
        return made

    def __call__(self, x: Any, given: Mapping[str, Any] | None = None, rounded: Rounded | None = None) -> list[Any]:
        """The outputs for one (B, …) input.

        Args:
            x: a tensor on the device.
            given: tensors by name, in place of what the model computes or has as constants.
            rounded: what `QuantizeLinear` does to activations; only for models with pairs.

        Raises:
            ModelError: a node is of a form that is not known here.
        """
        values: dict[str, Any] = {self._input: x, **(given or {})}
        for step in self._steps:
            if step.outputs[0] in values or step.outputs[0] in self._cached:
                continue
            inputs = [
                None if not name else values[name] if name in values else self._constant(name) for name in step.inputs
            ]
            made = self._run(step, inputs, rounded)
            values.update(zip(step.outputs, made, strict=False))
            for name in step.done:
                values.pop(name, None)
        return [values[name] for name in self.outputs]

    def _run(self, step: _Step, inputs: list[Any], rounded: Rounded | None) -> Sequence[Any]:
        kind = step.kind
        if kind == "Shape":
            return step.on_host([np.empty(tuple(inputs[0].shape), np.bool_)])
        if all(value is None or isinstance(value, np.ndarray) for value in inputs):
            found = step.on_host(inputs)
            if all(not name or self.graph.is_constant(name) or name in self._cached for name in step.inputs):
                self._cached |= zip(step.outputs, found, strict=True)
            return found
        if kind == _SILU:
            return [vendor().nn.functional.silu(inputs[0])]
        if kind == "QuantizeLinear" and rounded is not None:
            return [rounded(step.inputs[1], inputs[0])]
        if kind == "DequantizeLinear":
            return [inputs[0]]
        operator = OPERATORS.get(kind)
        if operator is None:
            raise ModelError(
                f"--finetune: node {step.node.name!r}: operator {kind} is not one that fine-tuning computes (it knows "
                f"{', '.join(sorted(OPERATORS))}); leave --finetune out"
            )
        call = Call(
            step.node.name, step.attributes, inputs, self.device, len(step.outputs),
            lambda i: self._tensor(step.inputs[i], inputs[i]),
        )  # fmt: skip
        try:
            made = operator(call)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ModelError(f"--finetune: node {step.node.name!r} ({kind}): {error}; leave --finetune out") from error
        return made if isinstance(made, (tuple, list)) else [made]
