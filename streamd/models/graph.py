"""An ONNX model as a graph: loading, atomic saving, and the traversals used by quantization and inspection."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.engine.model import SIZE_INPUTS, model_file, size_value
from streamd.engine.onnx.reader import MOVERS
from streamd.errors import ConfigError, ModelError
from streamd.types import ModelSpec

MIN_OPSET = 13
"""QuantizeLinear supports per-channel scales from opset 13 on."""


def vendor() -> Any:
    """The onnx package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import onnx
        import onnx.numpy_helper
        import onnx.version_converter
    except ImportError as error:
        raise ConfigError(f"the package onnx is not installed ({error}); pip install 'streamd[quantize]'") from error
    return onnx


def load(path: str | os.PathLike[str]) -> Any:
    """Reads and checks an ONNX model.

    Raises:
        ModelError: missing, unreadable, or not a valid ONNX model.
    """
    onnx = vendor()
    file = model_file(os.fspath(path))
    try:
        model = onnx.load(str(file))
        onnx.checker.check_model(model)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"model {file}: not a valid ONNX model: {reason}; export or copy it again") from error
    if any(isinstance(text, bytes) for text in _texts(model)):
        raise ModelError(f"model {file}: contains a name that is not UTF-8; export or copy it again")
    if not model.graph.node:
        raise ModelError(f"model {file}: its graph contains no operators; export it again")
    return model


def _texts(model: Any) -> Iterator[Any]:
    """Every name in the model. protobuf returns bytes for a name that is not UTF-8."""
    graph = model.graph
    yield from (model.producer_name, model.producer_version, graph.name)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for value in (*graph.input, *graph.output):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    yield from (tensor.name for tensor in graph.initializer)
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)


def has_size_input(model: Any) -> bool:
    """Whether the model has an input of `SIZE_INPUTS` beside the picture."""
    return any(value.name in SIZE_INPUTS for value in model.graph.input)


def fix_size_input(model: Any, spec: ModelSpec) -> None:
    """Replaces an input of `SIZE_INPUTS` by a constant, the size of the network's input, as engines do. In place."""
    numpy_helper, graph = vendor().numpy_helper, model.graph
    for value in [value for value in graph.input if value.name in SIZE_INPUTS]:
        # One row serves a dynamic batch, too: it is only ever multiplied with what has the batch.
        size = size_value(spec, max(1, spec.input.shape[0]))
        dtype = vendor().helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        graph.initializer.append(numpy_helper.from_array(size.astype(dtype), value.name))
        graph.input.remove(value)


def opset(model: Any) -> int:
    """The version of the standard ONNX operator set; 0 if none is declared."""
    return max((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file atomically: beside `path`, then renamed.

    Raises:
        ConfigError: the folder is missing, the disk is full, or permission is denied; no partial file remains.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; nothing was changed") from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            # The folder is missing or not accessible, so there is no temporary file either.
            temporary = path


def check_writable(path: Path) -> None:
    """Checks, before any long work, whether `path` can be written.

    Raises:
        ConfigError: it cannot.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give a file name")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: its folder is not writable; check its owner and mode")


class Graph:
    """Producers and consumers of each tensor in a model's main graph. The model is not changed."""

    def __init__(self, model: Any) -> None:
        onnx = vendor()
        graph = model.graph
        self.nodes: list[Any] = list(graph.node)
        self.outputs: list[str] = [o.name for o in graph.output]
        self.producer: dict[str, Any] = {name: node for node in self.nodes for name in node.output if name}
        self.consumers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self._constants: dict[str, Any] = {t.name: t for t in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value" and node.output:
                        self._constants[node.output[0]] = attribute.t
        self._helper = onnx.numpy_helper
        constants = set(self._constants)
        self.inputs: list[str] = [i.name for i in graph.input if i.name not in constants]

    def is_constant(self, name: str) -> bool:
        """True for initialisers and Constant nodes."""
        return name in self._constants

    def constant(self, name: str) -> npt.NDArray[Any]:
        """The value of a constant tensor.

        Raises:
            ModelError: its data does not fit its shape or type.
        """
        try:
            value: npt.NDArray[Any] = self._helper.to_array(self._constants[name])
        except Exception as error:
            raise ModelError(f"constant {name!r} is damaged ({error}); export or copy the model again") from error
        return value

    def attribute(self, node: Any, name: str, default: Any = None) -> Any:
        """The value of a node's attribute."""
        onnx = vendor()
        for attribute in node.attribute:
            if attribute.name == name:
                value = onnx.helper.get_attribute_value(attribute)
                return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return default

    def passes(self, node: Any) -> bool:
        """True if the node only moves or selects its inputs' values, so that all of them share one scale."""
        if node.op_type in ("Resize", "Upsample"):
            return str(self.attribute(node, "mode", "nearest")) == "nearest"
        if node.op_type == "Pad":
            return str(self.attribute(node, "mode", "constant")) != "constant"
        return node.op_type in MOVERS

    def data_inputs(self, node: Any) -> list[str]:
        """The data inputs of a pass-through node, without its shapes and indices."""
        inputs = list(node.input) if node.op_type == "Concat" else list(node.input[:1])
        return [name for name in inputs if not self.is_constant(name)]

    def _upwards(self, tensor: str) -> Iterator[tuple[str, bool]]:
        stack, seen = [tensor], {tensor}
        while stack:
            name = stack.pop()
            node = self.producer.get(name)
            if node is None or not self.passes(node):
                yield name, True
                continue
            for out in node.output:
                if out:
                    yield out, False
            for data in reversed(self.data_inputs(node)):
                if data not in seen:
                    seen.add(data)
                    stack.append(data)

    def sources(self, tensor: str) -> list[str]:
        """The tensors that `tensor` takes its values from, found by walking up through pass-through nodes."""
        return [name for name, source in self._upwards(tensor) if source]

    def passed(self, tensor: str) -> list[str]:
        """The outputs of the pass-through nodes between `tensor` and its sources, including `tensor` itself."""
        return [name for name, source in self._upwards(tensor) if not source]

    def reaches_output_without(self, node: Any, op_types: Iterable[str]) -> bool:
        """True if a graph output can be reached from `node` without passing another node of `op_types`."""
        stop = frozenset(op_types)
        stack, seen = list(node.output), set(node.output)
        while stack:
            name = stack.pop()
            if name in self.outputs:
                return True
            for consumer in self.consumers.get(name, []):
                # A node that reads only a tensor's shape does not pass on its values.
                if consumer.op_type in stop or consumer.op_type == "Shape":
                    continue
                for out in consumer.output:
                    if out not in seen:
                        seen.add(out)
                        stack.append(out)
        return False


def name_nodes(model: Any) -> None:
    """Gives every node a unique name, so that layers can be referred to."""
    taken: set[str] = set()
    for i, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{i}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)


def _constants_are_no_inputs(model: Any) -> None:
    """Takes constants off the list of inputs, where exporters of ONNX's first years put them. In place.

    One that the quantized model no longer reads would be an input without a value.
    """
    constants = {t.name for t in model.graph.initializer}
    for value in [v for v in model.graph.input if v.name in constants]:
        model.graph.input.remove(value)
        # The first version of the format that allows it.
        model.ir_version = max(model.ir_version, 4)


def prepare(path: str | os.PathLike[str]) -> Any:
    """Loads a model for quantization: with named nodes, and an opset that supports per-channel scales.

    Raises:
        ModelError: it cannot be read, is already quantized, or cannot be converted to `MIN_OPSET`.
    """
    onnx = vendor()
    model = load(path)
    if any(n.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for n in model.graph.node):
        raise ModelError(f"model {path}: is already quantized; give the float model")
    if opset(model) < MIN_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, MIN_OPSET)
        except Exception as error:
            raise ModelError(
                f"model {path}: opset {opset(model)} cannot be converted to {MIN_OPSET}, the first with scales per "
                f"channel ({str(error).splitlines()[0][:160]}); export it again with opset {MIN_OPSET} or later"
            ) from error
    _constants_are_no_inputs(model)
    name_nodes(model)
    return model


def constant_weight(graph: Graph, node: Any) -> npt.NDArray[np.float32] | None:
    """A convolution's float32 weights, or None where they are computed or of another type."""
    if len(node.input) < 2 or not graph.is_constant(node.input[1]):
        return None
    value = graph.constant(node.input[1])
    return value if value.dtype == np.float32 else None


def with_constants(model: Any, values: Mapping[str, npt.NDArray[Any]]) -> Any:
    """A copy of the model in which these constants have other values."""
    made, numpy_helper = copy.deepcopy(model), vendor().numpy_helper
    for tensor in made.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    for node in made.graph.node:
        if node.op_type == "Constant" and node.output[0] in values:
            for attribute in node.attribute:
                if attribute.name == "value":
                    attribute.t.CopyFrom(numpy_helper.from_array(values[node.output[0]]))
    return made


def chosen(names: Sequence[str], available: Sequence[str], field: str) -> list[str]:
    """The items of `available` that `names` select: exact names, or patterns with *.

    Raises:
        ConfigError: a name that matches nothing; suggests similar ones.
    """
    import difflib
    import fnmatch

    found: dict[str, None] = {}
    for name in names:
        hits = [a for a in available if a == name or ("*" in name and fnmatch.fnmatchcase(a, name))]
        if not hits:
            near = difflib.get_close_matches(name, available, n=3, cutoff=0.3) or list(available[:3])
            raise ConfigError(f"{field}: the model has no layer {name!r}; similar: {', '.join(near)}")
        found |= dict.fromkeys(hits)
    return list(found)
