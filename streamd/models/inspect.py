"""Describes a model without running it: shapes, operators, head, cost, and likely problems."""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from streamd.engine import ModelSettings, open_backend
from streamd.engine.model import PLAN_SUFFIXES, model_file, sha256_of
from streamd.engine.onnx.reader import read_onnx
from streamd.engine.openvino import OpenVinoSettings
from streamd.engine.sidecar import Provenance, read_sidecar
from streamd.errors import ModelError, StreamdError
from streamd.heads import DetectSettings
from streamd.heads.detector import open_detector
from streamd.heads.select import declared, recognise, sigmoid_contradicts
from streamd.models.centre import one_sided
from streamd.models.counting import asymmetric, gflops, int8_convolutions, parameters, shapes, silus
from streamd.models.graph import Graph, load, name_nodes, opset, vendor
from streamd.types import ModelSpec, TensorSpec

OLDEST_OPSET, NEWEST_OPSET = 11, 17
"""17 is the newest opset that TensorRT 8.5 reads."""
PLAN_TAG = b"trt"
"""Bytes 1 to 3 of a plan: TensorRT-RTX 1 writes vtrt; the first letter differs between families."""


@dataclass
class Inspection:
    """The findings. None means that a value cannot be determined here; `unknown` says why."""

    path: str
    sha256: str
    bytes: int
    kind: str
    """onnx or plan"""
    inputs: list[dict[str, Any]] | None = None
    outputs: list[dict[str, Any]] | None = None
    operators: dict[str, int] | None = None
    opset: int | None = None
    producer: str | None = None
    labels: list[str] | None = None
    head: str | None = None
    parameters: int | None = None
    gflops: float | None = None
    """Two operations per multiply-add, convolutions and matrix products only, batch 1, at the stated input size."""
    input_size: tuple[int, int] | None = None
    quantized: bool | None = None
    int8_convolutions: int | None = None
    convolutions: int | None = None
    provenance: Provenance | None = None
    warnings: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        body = dict(vars(self))
        if self.provenance is not None:
            body["provenance"] = self.provenance.model_dump(mode="json", exclude_defaults=True)
        return body


def _tensor(value: Any) -> dict[str, Any]:
    onnx = vendor()
    kind = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in kind.shape.dim]
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    except (KeyError, TypeError, ValueError):  # no type, or one newer than the package
        dtype = "?"
    return {"name": value.name, "shape": shape, "dtype": dtype}


def _warnings(model: Any, graph: Graph, found: Inspection) -> list[str]:
    operators, out = found.operators or {}, []
    if count := operators.get("LeakyRelu", 0):
        out.append(
            f"{count} LeakyReLU: half of INT8's range is spent on negative values, which carry a tenth of the signal, "
            "and cannot be centred, since no value is the least; with ReLU it can. Check the accuracy with "
            "`streamd quantize --labels`"
        )
    count = silus(graph) + operators.get("HardSwish", 0)
    if count:
        out.append(
            f"{count} SiLU: an exponential per value is computed in float, which ReLU avoids"
            + ("" if found.quantized else _ranges(model))
        )
    for tensor in found.inputs or []:
        dynamic = [str(d) for d in tensor["shape"] if not isinstance(d, int)]
        if dynamic:
            what = "its batch is dynamic" if not isinstance(tensor["shape"][0], int) else "its size is dynamic"
            if len(dynamic) > 1:
                what = f"{len(dynamic)} dimensions are dynamic"
            out.append(
                f"input {tensor['name']}: {what} ({', '.join(dynamic)}): TensorRT optimizes it for a range "
                "(`streamd build --batch`) and is fastest at the optimum of that range"
            )
    version = found.opset or 0
    if version < OLDEST_OPSET:
        out.append(f"opset {version} is older than {OLDEST_OPSET}: Resize and Pad had other semantics; export it again")
    elif version < 13 and not found.quantized:
        out.append(f"opset {version}: quantizing needs 13 (per-channel scales); `streamd quantize` converts it")
    elif version > NEWEST_OPSET:
        out.append(f"opset {version} is newer than {NEWEST_OPSET}, the last that TensorRT 8.5 (JetPack 5) reads")
    if found.quantized and asymmetric(graph):
        out.append(
            "some Q/DQ pairs are not symmetric INT8 (zero point 0), which TensorRT rejects; quantize the model again"
        )
    if operators.get("QLinearConv", 0) or operators.get("ConvInteger", 0):
        out.append(
            "quantized with integer operators instead of Q/DQ pairs, which TensorRT rejects; quantize the float model"
        )
    if operators.get("NonMaxSuppression", 0):
        out.append("contains NonMaxSuppression: output sizes depend on the image; export it without NMS")
    if operators.get("BatchNormalization", 0):
        out.append("contains BatchNormalization that was not folded into convolutions; export it in evaluation mode")
    return out


def _ranges(model: Any) -> str:
    """What becomes of the ranges of a float model's one-sided activations; continues a sentence."""
    moved, known = one_sided(model)
    if not known:
        return ""
    said = (
        f". Of {known} activations that are hardly ever negative (SiLU, ReLU), `streamd quantize` can centre {moved} "
        "in INT8's range"
    )
    if moved < known:
        said += f"; the other {known - moved} use little more than half of its steps, since padding needs an exact zero"
    return said + ". Check the accuracy with `streamd quantize --labels`"


def _trt_unsupported(path: Path) -> list[str] | None:
    """The installed TensorRT parser's objections to the model; None if TensorRT is not installed."""
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            trt = importlib.import_module(name)
            logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
            explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
            network = trt.Builder(logger).create_network(0 if explicit is None else 1 << int(explicit))
            parser = trt.OnnxParser(network, logger)
            if parser.parse(path.read_bytes()):
                return []
            label = f"{name} {trt.__version__}"
            return [f"{label} cannot read it: {parser.get_error(i).desc()}" for i in range(parser.num_errors)]
        except ImportError:
            continue
        except (RuntimeError, TypeError, AttributeError) as error:
            return [f"{name} could not check it: {error}"]
    return None


def _inspect_without_onnx(path: Path, found: Inspection, head: str | None) -> Inspection:
    """What streamd's own reader and OpenVINO tell: a plain installation has no package onnx."""
    file = read_onnx(path)
    operators = Counter(node.operator for node in file.nodes)
    found = replace(
        found,
        inputs=[_of_spec(tensor) for tensor in file.inputs],
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        quantized=file.quantized,
    )
    spec = _judge(path, found, head)
    if spec is not None:
        found.outputs = [_of_spec(tensor) for tensor in spec.outputs]
    found.unknown.append(
        "operator set, exporter, parameters, GFLOPs and operators that cost time: pip install onnx to see them"
    )
    return found


def _of_spec(tensor: TensorSpec) -> dict[str, Any]:
    shape = [size if size >= 0 else "?" for size in tensor.shape]
    return {"name": tensor.name, "shape": shape, "dtype": tensor.dtype}


def _settle_outputs(found: Inspection, spec: ModelSpec) -> None:
    """Replaces names of dimensions, such as Concatoutput0_dim_1, by the sizes at the model's input size.

    The batch stays as it is declared.
    """
    sizes = {tensor.name: tensor.shape for tensor in spec.outputs}
    for row in found.outputs or []:
        known = sizes.get(row["name"], ())
        if len(known) == len(row["shape"]):
            row["shape"] = [
                size if i and not isinstance(declared, int) and size >= 0 else declared
                for i, (declared, size) in enumerate(zip(row["shape"], known, strict=True))
            ]


def _judge(path: Path, found: Inspection, head: str | None) -> ModelSpec | None:
    """Opens the model as the daemon does: fills in head, labels and input size, and warns of what it says."""
    try:
        backend = open_backend(OpenVinoSettings(), ModelSettings(path=str(path)))
        spec = backend.spec
        backend.close()
    except StreamdError as error:
        found.warnings.append(f"the daemon cannot run it: {error}")
        return None
    found.input_size = (spec.input_height, spec.input_width)
    try:
        if read_onnx(path).ends_in_sigmoid and (said := sigmoid_contradicts(head, spec)):
            found.warnings.append(said)
        settings = declared(head, spec) or recognise(spec)
        found.head = settings.kind
        found.labels = list(open_detector(spec, settings, DetectSettings()).labels)
    except StreamdError as error:
        found.warnings.append(str(error) if found.head else f"no head: {error}")
        found.labels = list(spec.labels) or None
    return spec


def _inspect_onnx(path: Path, found: Inspection, head: str | None) -> Inspection:
    if importlib.util.find_spec("onnx") is None:
        return _inspect_without_onnx(path, found, head)
    model = load(path)
    name_nodes(model)
    graph = Graph(model)
    constants = {t.name for t in model.graph.initializer}
    operators = Counter(node.op_type for node in graph.nodes)
    int8, convolutions = int8_convolutions(graph)
    found = replace(
        found,
        inputs=[_tensor(v) for v in model.graph.input if v.name not in constants],
        outputs=[_tensor(v) for v in model.graph.output],
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        opset=opset(model),
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))) or None,
        parameters=parameters(model, graph),
        quantized="QuantizeLinear" in operators or "DequantizeLinear" in operators or int8 > 0,
        int8_convolutions=int8,
        convolutions=convolutions,
    )
    if (spec := _judge(path, found, head)) is not None:
        _settle_outputs(found, spec)
    size = found.input_size = found.input_size or (640, 640)
    found.gflops = gflops(graph, shapes(model, size))
    if found.gflops is None:
        found.unknown.append("GFLOPs: ONNX cannot infer every shape of this model")
    found.warnings += _warnings(model, graph, found)
    verdict = _trt_unsupported(path)
    if verdict is None:
        found.unknown.append("whether TensorRT supports every operator: TensorRT is not installed here")
    else:
        found.warnings += verdict
    return found


def _plan_io(engine: Any, trt: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs through the tensor API of TensorRT 8.5 and later."""
    inputs: list[dict[str, Any]] = []
    outputs: list[dict[str, Any]] = []
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        row = {
            "name": name,
            "shape": [int(d) if d >= 0 else "?" for d in engine.get_tensor_shape(name)],
            "dtype": str(engine.get_tensor_dtype(name)).rsplit(".", 1)[-1].lower(),
        }
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(row)
    return inputs, outputs


def _inspect_plan(path: Path, found: Inspection) -> Inspection:
    with path.open("rb") as handle:
        start = handle.read(32)
    if start[1:4] != PLAN_TAG:
        found.warnings.append("does not start like a TensorRT plan; it may be damaged or another kind of file")
    loaded = None
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            trt = importlib.import_module(name)
        except ImportError:
            continue
        try:
            logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
            engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
        except (RuntimeError, TypeError) as error:
            found.unknown.append(f"{name} {trt.__version__} cannot create a runtime on this machine: {error}")
            continue
        if engine is None:
            found.warnings.append(
                f"{name} {trt.__version__} cannot load it: it is damaged, or was built by another version or "
                "for another GPU; build it again on this machine"
            )
            continue
        loaded = f"{name} {trt.__version__}"
        found.inputs, found.outputs = _plan_io(engine, trt)
        break
    if loaded is None:
        found.unknown.append(
            "inputs, outputs and layers: only the TensorRT version that built a plan can read them, on the same GPU"
        )
    provenance = found.provenance
    if provenance is None:
        found.unknown.append("origin: it has no sidecar (`streamd build` writes one)")
    else:
        found.quantized = provenance.precision == "int8" if provenance.precision else None
        built, here = provenance.tensorrt, loaded and loaded.split()[-1]
        if built and here and built != here:
            found.warnings.append(f"was built by TensorRT {built}, this machine has {here}; build it again")
    return found


def inspect(path: str, head: str | None = None) -> Inspection:
    """Inspects an ONNX model or a TensorRT plan.

    Args:
        path: the model file.
        head: kind of its head. Default: as the sidecar declares, otherwise from the output shapes.

    Raises:
        ModelError: missing, unreadable, corrupt, or neither of the two.
        ConfigError: its sidecar is invalid.
    """
    file = model_file(path)
    kind = "plan" if file.suffix in PLAN_SUFFIXES else "onnx"
    if kind == "onnx" and file.suffix != ".onnx":
        raise ModelError(
            f"model {file}: expected an ONNX model (.onnx) or a TensorRT plan ({', '.join(PLAN_SUFFIXES)})"
        )
    sha256 = sha256_of(file)
    sidecar = read_sidecar(file)
    found = Inspection(str(file), sha256, file.stat().st_size, kind, provenance=sidecar.provenance)
    if sidecar.labels:
        found.labels = list(sidecar.labels)
    if sidecar.head:
        found.head = str(sidecar.head.get("kind"))
    if sidecar.sha256 is not None and sidecar.sha256 != sha256:
        found.warnings.append("its sidecar was written for another file; the daemon will reject the pair")
    found.head = head or found.head
    return _inspect_onnx(file, found, head) if kind == "onnx" else _inspect_plan(file, found)
