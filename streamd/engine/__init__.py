"""The engine room: backends that turn batches of frames into outputs.

To add a backend: write one file here, add its settings class to `EngineConfig` and its opener to `open_backend`,
and pass `tests/engine/test_contract.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import Discriminator, Field, Tag

from streamd.settings import Milliseconds, Settings
from streamd.types import Candidates, DecodePlan, Frame, Letterbox, ModelSpec, Outputs


class Slot(Protocol):
    """Preallocated buffers of one batch in flight. The number of slots is the pipeline's flow control."""

    index: int


class Backend(Protocol):
    """One model on one device, with one call per stage so that each stage's thread makes its own.

    `preprocess`, `infer` and `collect` of one slot are called in this order, each by a single thread that is the
    only caller of that method, and the slot is not used again before its outputs have been read. Calls for
    different slots overlap freely. On a device all three enqueue or wait on the slot's own queue; none allocates
    device or pinned memory, and none waits for the whole device.
    """

    spec: ModelSpec
    """Known once the backend is open; dimensions other than the batch are fixed."""

    @property
    def slots(self) -> Sequence[Slot]:
        """Empty until `start`."""
        ...

    def start(self, plan: DecodePlan | None = None) -> None:
        """Compiles what is left to compile and allocates every slot. Called once, before the first batch.

        Args:
            plan: what a device needs to decode boxes itself; None asks for raw outputs.

        Raises:
            BackendError: the device refused (memory, driver).
        """
        ...

    def preprocess(self, slot: Any, frames: Sequence[Frame]) -> Sequence[Letterbox]:
        """Letterboxes and normalises 1 to `spec.max_batch` frames of any sizes into the slot's input.

        Returns one Letterbox a frame. After the call, or at the latest once `collect` of the slot returned, the
        frames' pictures are no longer needed.

        Raises:
            BackendError: the device failed; the process must end.
        """
        ...

    def infer(self, slot: Any) -> None:
        """Starts the network on the slot's input and returns without waiting for it.

        Raises:
            BackendError: the device failed; the process must end.
        """
        ...

    def collect(self, slot: Any) -> Outputs | Sequence[Candidates]:
        """Waits for the slot's batch and returns its outputs, views that stay valid until the slot's next use.

        Either the raw outputs in `spec.outputs` order, first dimension the number of frames, or, where the device
        has decoded the boxes itself, one `Candidates` a frame.

        Raises:
            BackendError: the device failed; the process must end.
        """
        ...

    def close(self) -> None:
        """Frees everything. No other method is running or will be called. Idempotent."""
        ...


BUILTIN = "builtin:"
"""Begins the path of a model that comes with streamd, as in builtin:road6."""


class ModelSettings(Settings):
    """The model file and how its input is made. What is left out comes from the sidecar, then from the model."""

    path: str = Field(min_length=1, description="ONNX model, OpenVINO IR (.xml), TensorRT plan, or builtin:road6.")
    name: str | None = Field(None, description="Name in messages. Default: the file's name without its ending.")
    labels: tuple[str, ...] | str | None = Field(
        None, description="Class names, or a text file with one a line. Default: sidecar, model metadata, COCO's 80."
    )
    color: Literal["RGB", "BGR"] | None = Field(None, description="Channel order of the input. Default: RGB.")
    scale: float | None = Field(None, gt=0, description="Pixels 0..255 are multiplied by this. Default: 1/255.")
    pad_value: int | None = Field(None, ge=0, le=255, description="Grey around the picture. Default: 114.")
    input_size: tuple[int, int] | None = Field(
        None, description="Height and width for a model with a dynamic input size, in pixels. Default: 640, 640."
    )


class BatchSettings(Settings):
    """How frames of all streams are gathered into batches."""

    max: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Frames a batch at most. Default: 1 on a CPU, the model's own limit on a GPU.",
    )
    age_ms: Milliseconds = Field(
        0.0,
        description="How long the first frame of a batch may wait for others, in milliseconds. 0 takes what is "
        "there when a slot is free: batches then grow by themselves under load, and no frame waits for nothing.",
    )


class OpenVinoSettings(Settings):
    """OpenVINO on a CPU or Intel GPU: the backend where there is no NVIDIA GPU."""

    kind: Literal["openvino"] = "openvino"
    device: str = Field("CPU", description="OpenVINO device name: CPU, GPU, NPU, AUTO.")
    hint: Literal["auto", "latency", "throughput"] = Field(
        "auto",
        description="What to optimise for. auto: latency where one live stream is the whole load, else throughput.",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="Inference threads. Default: every core allowed to us."
    )
    requests: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Batches in flight. Default: what OpenVINO asks for the hint, plus two.",
    )
    precision: Literal["auto", "f32", "bf16", "f16"] = Field(
        "auto",
        description="Arithmetic of float layers. auto is OpenVINO's choice: bf16 on CPUs that have it, at a small loss "
        "of precision.",
    )
    cache_dir: str | None = Field(None, description="Folder in which OpenVINO keeps compiled models, to start faster.")


Ordinal = Annotated[int, Field(ge=0, le=255)]
Devices = Ordinal | Annotated[tuple[Ordinal, ...], Field(min_length=1)]


class NullSettings(Settings):
    """A scripted backend with no hardware behind it: scheduling, load and fault tests."""

    kind: Literal["null"] = "null"
    device: Devices = Field(0, description="Devices that are imitated; several share the streams out.")
    latency_ms: Milliseconds = Field(0.0, description="How long each batch takes.")
    slots: int = Field(2, ge=1, le=64, description="Batches in flight.")
    fail_after: int | None = Field(None, ge=0, description="Batches after which infer raises BackendError.")
    hang_after: int | None = Field(None, ge=0, description="Batches after which collect never returns.")


class TensorRtSettings(Settings):
    """TensorRT on an NVIDIA GPU: frames stay in device memory from decoder to boxes."""

    kind: Literal["tensorrt"] = "tensorrt"
    device: Devices = Field(0, description="CUDA device ordinal; a list of several shares the streams out among them.")
    slots: int = Field(3, ge=1, le=16, description="Batches in flight.")
    graphs: Literal["auto", "on", "off"] = Field("auto", description="Replay CUDA graphs, one per batch size.")
    max_candidates: int = Field(1024, ge=16, le=32768, description="Boxes a frame kept on the device before NMS.")
    workspace_mb: int = Field(1024, ge=16, description="Builder workspace when an ONNX model is built, in MiB.")
    precision: Literal["auto", "fp32", "fp16", "int8"] = Field(
        "auto", description="auto: INT8 where the ONNX model carries Q/DQ nodes, FP16 otherwise."
    )
    mps: bool = Field(
        False, description="Workers share the GPU through an NVIDIA MPS server of the daemon's own (needs workers)."
    )
    cache_dir: str | None = Field(
        None,
        description="Where built plans are kept. Default: beside the model, else the user's cache folder.",
    )

    @property
    def ordinal(self) -> int:
        """The device, where there is one: what a backend is given (see `per_device`)."""
        return self.device[0] if isinstance(self.device, tuple) else self.device


def _kind(value: Any) -> str:
    kind = value.get("kind", "auto") if isinstance(value, dict) else getattr(value, "kind", "auto")
    return str(kind)


class AutoSettings(Settings):
    """TensorRT where an NVIDIA GPU and TensorRT are there, OpenVINO otherwise; the log says which and why."""

    kind: Literal["auto"] = "auto"


EngineConfig = Annotated[
    Annotated[AutoSettings, Tag("auto")]
    | Annotated[OpenVinoSettings, Tag("openvino")]
    | Annotated[TensorRtSettings, Tag("tensorrt")]
    | Annotated[NullSettings, Tag("null")],
    Discriminator(_kind),
]


def per_device(
    settings: AutoSettings | OpenVinoSettings | TensorRtSettings | NullSettings,
) -> dict[int, AutoSettings | OpenVinoSettings | TensorRtSettings | NullSettings]:
    """The settings of one backend for each device that `settings` names, by ordinal; one entry where it names one."""
    if not isinstance(settings, (TensorRtSettings, NullSettings)):
        return {0: settings}
    ordinals = settings.device if isinstance(settings.device, tuple) else (settings.device,)
    return {ordinal: settings.model_copy(update={"device": ordinal}) for ordinal in ordinals}


def open_backend(
    settings: AutoSettings | OpenVinoSettings | TensorRtSettings | NullSettings,
    model: ModelSettings,
    *,
    batch: BatchSettings | None = None,
    live: bool = False,
) -> Backend:
    """Opens the model on the backend that `settings` names. `start` it before the first batch.

    Args:
        settings: one member of the union, with one device; `auto` is resolved here.
        model: the model file and its input.
        batch: bounds the largest batch; None leaves it to the backend.
        live: True where a single live stream is the whole load, so that latency counts before throughput.

    Raises:
        ModelError: the model is missing, unreadable, corrupt, or not what was declared.
        BackendError: the device or its software is not there.
    """
    from streamd.engine.select import open_kind

    return open_kind(settings, model, batch=batch or BatchSettings(), live=live)
