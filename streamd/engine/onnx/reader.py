"""The few facts about an ONNX file that a plan depends on, read directly from its protobuf fields.

A machine that only runs models has no `onnx` package and needs none: fields are walked by their lengths (see onnx.proto
for the numbers), which also detects a truncated file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from streamd.engine.onnx.protobuf import Broken, field, fields, spans, text, varint
from streamd.errors import ModelError
from streamd.types import TensorSpec

_GRAPH = 7
"""Field number in ModelProto."""
_FUNCTION = 25
_MAX_DEPTH = 32
"""Of graphs in graphs."""
_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
MOVERS = frozenset(
    {"Concat", "MaxPool", "Resize", "Upsample", "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze",
     "Flatten", "Identity", "DepthToSpace", "SpaceToDepth", "Pad"}
)  # fmt: skip
"""Operators that only select or move values."""


@dataclass(frozen=True)
class OnnxNode:
    """One node of the graph, in file order."""

    name: str
    operator: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name or '(unnamed)'} ({self.operator})"


@dataclass(frozen=True)
class OnnxFile:
    """The facts about an ONNX file."""

    path: Path
    file_sha256: str
    """SHA-256 of the file alone."""
    sha256: str
    """SHA-256 of the file and its external weight files, if any: the identity of the model."""
    inputs: tuple[TensorSpec, ...]
    """Inputs without initialisers (weights); -1 for a dynamic dimension."""
    nodes: tuple[OnnxNode, ...]
    metadata: dict[str, str]
    output_tensors: tuple[TensorSpec, ...] = ()
    """What the file says of them; -1 for a dynamic dimension, no dimensions where it says nothing."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output tensors."""
        return tuple(tensor.name for tensor in self.output_tensors)

    @cached_property
    def ends_in_sigmoid(self) -> bool:
        """True if a sigmoid is the last arithmetic before a whole output: such YOLOv5 rows are not decoded."""
        makers = {name: node for node in self.nodes for name in node.outputs if node.operator != "Constant"}
        computed = makers.keys() | {tensor.name for tensor in self.inputs}
        for output in self.outputs:
            last, waiting, seen = set(), [output], {output}
            while waiting:
                node = makers.get(waiting.pop())
                if node is None or node.operator not in MOVERS:
                    last.add(node.operator if node is not None else "")
                    continue
                # All inputs of Concat except constants are data; of the others, only the first is.
                above = computed & set(node.inputs if node.operator == "Concat" else node.inputs[:1]) - seen
                seen |= above
                waiting += above
            if last == {"Sigmoid"}:
                return True
        return False

    @cached_property
    def quantized(self) -> bool:
        """True if the model has Q/DQ nodes."""
        return any(node.operator in QUANTIZERS for node in self.nodes)


def _tensor(data: memoryview) -> TensorSpec:
    """A ValueInfoProto: name = 1, type = 2 {tensor_type = 1 {elem_type = 1, shape = 2 {dim = 1 {dim_value = 1}}}}."""
    name, element, shape = "", 0, []
    for number, _, body in fields(data):
        if number == 1:
            name = text(body)
        elif number == 2:
            for kind, _, tensor in fields(body):
                if kind != 1:
                    continue
                for part, value, inner in fields(tensor):
                    if part == 1:
                        element = value
                    elif part == 2:
                        for _, _, dimension in fields(inner):
                            sizes = [v for n, v, _ in fields(dimension) if n == 1]
                            shape.append(sizes[0] if sizes and 0 < sizes[0] < 1 << 31 else -1)
    return TensorSpec(name, tuple(shape), _TYPES.get(element, f"type {element}"))


def _pair(data: memoryview) -> tuple[str, str]:
    """A StringStringEntryProto."""
    found = {number: text(body) for number, _, body in fields(data)}
    return found.get(1, ""), found.get(2, "")


def _weights(data: memoryview) -> tuple[str, str | None]:
    """Name of a TensorProto, and the external file of its data, if any."""
    name, where = "", None
    for number, _, body in fields(data):
        if number == 8:
            name = text(body)
        elif number == 13:
            key, value = _pair(body)
            where = value if key == "location" else where
    return name, where


def _outside(model: memoryview) -> list[str]:
    """The external files of a ModelProto, in its order: any tensor may have one, also those of operators (`Constant`),
    of the branches of a condition and of functions."""
    found: dict[str, None] = {}

    def tensor(body: memoryview) -> None:
        if (where := _weights(body)[1]) is not None:
            found[where] = None

    def sparse(body: memoryview) -> None:
        for number, _, part in fields(body):
            if number in (1, 2):
                tensor(part)

    def node(body: memoryview, depth: int) -> None:
        for attribute in (part for number, _, part in fields(body) if number == 5):
            for number, _, part in fields(attribute):
                if number in (5, 10):
                    tensor(part)
                elif number in (6, 11):
                    graph(part, depth + 1)
                elif number in (22, 23):
                    sparse(part)

    def graph(body: memoryview, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise Broken
        for number, _, part in fields(body):
            if number == 1:
                node(part, depth)
            elif number == 5:
                tensor(part)
            elif number == 15:
                sparse(part)

    for number, _, body in fields(model):
        if number == _GRAPH:
            graph(body, 0)
        elif number == _FUNCTION:
            for each, _, part in fields(body):
                if each == 7:
                    node(part, 0)
    return list(found)


def tensor_shape(data: memoryview) -> list[int]:
    """The dimensions of a TensorProto: dims = 1, packed or not."""
    shape: list[int] = []
    for number, value, body in fields(data):
        if number == 1 and len(body):
            at = 0
            while at < len(body):
                size, at = varint(body, at)
                shape.append(size)
        elif number == 1:
            shape.append(value)
    return shape


def read_node(data: memoryview) -> OnnxNode:
    """A NodeProto: input = 1, output = 2, name = 3, op_type = 4."""
    found: dict[int, list[str]] = {1: [], 2: [], 3: [""], 4: [""]}
    for number, _, body in fields(data):
        if number in found:
            found[number].append(text(body))
    return OnnxNode(found[3][-1], found[4][-1], tuple(found[1]), tuple(found[2]))


def change_graph(model: bytes, change: Callable[[memoryview], bytes | None]) -> bytes:
    """An ONNX file with a modified graph.

    Args:
        model: the file's bytes.
        change: takes the bytes of the GraphProto and returns new ones, or None if there is nothing to change.

    Returns:
        The same bytes if there is nothing to change or the file is not ONNX, which the parser will report.
    """
    try:
        parts = list(spans(memoryview(model)))
        graphs = [change(body) for number, _, _, body in parts if number == _GRAPH]
    except Broken:
        return model
    if len(graphs) != 1 or graphs[0] is None:
        return model
    return b"".join(field(_GRAPH, graphs[0]) if number == _GRAPH else whole for number, whole, _, _ in parts)


def _beside(path: Path, name: str) -> Path:
    """The external file `name` of the model at `path`.

    Raises:
        ModelError: the model may not use it.
    """
    file = path.parent / name
    # ONNX requires a relative path below the model's folder. A device would be read forever.
    below = "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts
    if not below or (file.exists() and not file.is_file()):
        raise ModelError(
            f"model {path}: its weights are in {name!r}, which is not a file below its folder; export it again"
        )
    return file


def external_weights(path: Path) -> list[Path]:
    """The external weight files of an ONNX model, in the order of the model; none if it is not ONNX.

    Raises:
        ModelError: the model may not use one of them, or cannot be read.
    """
    try:
        names = _outside(memoryview(path.read_bytes()))
    except OSError as error:
        raise ModelError(f"model {path}: cannot be read: {error.strerror}") from error
    except Broken:
        return []  # opening it reports what is wrong
    return [_beside(path, name) for name in names]


def _with_outside(path: Path, digest: hashlib._Hash, outside: list[str]) -> str:
    for name in outside:
        file = _beside(path, name)
        try:
            with file.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise ModelError(
                f"model {path}: its weights are in {file}, which cannot be read: {error.strerror}; "
                "copy that file next to the model"
            ) from error
    return digest.hexdigest()


def read_onnx(path: Path) -> OnnxFile:
    """Reads the facts in `OnnxFile`; weights are skipped.

    Raises:
        ModelError: unreadable, not ONNX, truncated, or without a graph.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"model {path}: cannot be read: {error.strerror}") from error
    if not data:
        raise ModelError(f"model {path}: is empty; export or copy it again")
    try:
        return _read(path, memoryview(data))
    except Broken:
        raise ModelError(
            f"model {path}: is not a complete ONNX file (truncated or damaged); export or copy it again"
        ) from None


def _read(path: Path, data: memoryview) -> OnnxFile:
    graph: memoryview | None = None
    metadata = {}
    for number, _, body in fields(data):
        if number == _GRAPH:
            graph = body
        elif number == 14:
            key, value = _pair(body)
            metadata[key] = value
    if graph is None:
        raise Broken
    nodes, inputs, outputs, weights = [], [], [], set()
    for number, _, body in fields(graph):
        if number == 1:
            nodes.append(read_node(body))
        elif number == 11:
            inputs.append(_tensor(body))
        elif number == 12:
            outputs.append(_tensor(body))
        elif number == 5:
            weights.add(_weights(body)[0])
    if not nodes:
        raise Broken
    found = tuple(t for t in inputs if t.name not in weights)
    digest = hashlib.sha256(data)
    return OnnxFile(
        path,
        digest.hexdigest(),
        _with_outside(path, digest, _outside(data)),
        found,
        tuple(nodes),
        metadata,
        tuple(outputs),
    )
