"""A model on a CPU with OpenVINO, and nothing made fast."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from streamd.engine import BatchSettings, EngineSettings, ModelSettings
from streamd.engine.model import model_file, settle_spec, sha256_of
from streamd.errors import ModelError
from streamd.flow.contracts import Backend
from streamd.imaging.reference import preprocess
from streamd.types import DecodePlan, Frame, Letterbox, Outputs, TensorSpec


class PlainSettings(EngineSettings):
    """OpenVINO on a CPU, one batch after the other."""

    kind: Literal["plain"] = "plain"

    def open(self, model: ModelSettings, *, batch: BatchSettings, live: bool = False) -> Backend[Any]:
        return Plain(model, batch)


@dataclass
class PlainSlot:
    index: int
    pixels: Any = None
    outputs: list[Any] = field(default_factory=list)


class Plain(Backend[PlainSlot]):
    title = "plain"

    def __init__(self, model: ModelSettings, batch: BatchSettings) -> None:
        import openvino

        path = model_file(model.path)
        self._core = openvino.Core()
        try:
            self._model = self._core.read_model(path)
        except RuntimeError as error:
            raise ModelError(f"model {path}: cannot be read ({error}); expected ONNX") from error
        self.spec = settle_spec(
            model, path, sha256_of(path), [spec(p) for p in self._model.inputs], [spec(p) for p in self._model.outputs],
            {}, batch.max or 1,
        )  # fmt: skip
        self._slots: list[PlainSlot] = []

    @property
    def slots(self) -> Sequence[PlainSlot]:
        return self._slots

    def start(self, plan: DecodePlan | None = None) -> None:
        self._compiled = self._core.compile_model(self._model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self._slots = [PlainSlot(0), PlainSlot(1)]

    def preprocess(self, slot: PlainSlot, frames: Sequence[Frame]) -> Sequence[Letterbox]:
        s = self.spec
        slot.pixels, boxes = preprocess(
            frames, s.input_width, s.input_height, pad_value=s.pad_value, color=s.color, scale=s.scale,
            mean=s.mean or (0, 0, 0), std=s.std or (1, 1, 1), placement=s.placement,
        )  # fmt: skip
        return boxes

    def infer(self, slot: PlainSlot) -> None:
        found = self._compiled.create_infer_request().infer({self.spec.input.name: slot.pixels})
        slot.outputs = [np.array(found[port]) for port in self._compiled.outputs]

    def collect(self, slot: PlainSlot) -> Outputs:
        return slot.outputs

    def close(self) -> None:
        self._slots = []


def spec(port: Any) -> TensorSpec:
    shape = tuple(d.get_length() if d.is_static else -1 for d in port.partial_shape)
    return TensorSpec(port.get_any_name(), shape, "float32")
