"""TensorRT on NVIDIA GPUs: from a decoder's surface to boxes without leaving the device.

`cuda` is the only file that uses pycuda, `runtime` the only one that runs TensorRT; `kernels` and `decode` fill the
structures of kernels.cu; `slot` is one batch in flight and `replay` its CUDA graphs; `backend` combines them;
`version`, `network`, `fastest` and `builder` make plans.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from streamd.engine import ENGINES, BatchSettings, Devices, DeviceSettings, ModelSettings
from streamd.flow.contracts import Backend


@ENGINES.register
class TensorRtSettings(DeviceSettings):
    """TensorRT on an NVIDIA GPU: frames stay in device memory from decoder to boxes."""

    kind: Literal["tensorrt"] = "tensorrt"
    device: Devices = Field(
        0, description="CUDA device ordinal, or a list of them among which streams are distributed."
    )
    slots: int = Field(3, ge=1, le=16, description="Batches in flight.")
    graphs: Literal["auto", "on", "off"] = Field("auto", description="Replay CUDA graphs, one per batch size.")
    max_candidates: int | None = Field(
        None,
        ge=16,
        le=32768,
        description="Largest number of boxes per frame on the device before NMS. Default: 1024, or 32768 if boxes of "
        "scores below 0.05 or several classes for each box are asked for, as for measuring accuracy.",
    )
    workspace_mb: int = Field(1024, ge=16, description="Builder workspace when an ONNX model is built, in MiB.")
    precision: Literal["auto", "fp32", "fp16", "int8", "mixed"] = Field(
        "auto",
        description="auto: FP16; for an ONNX model with Q/DQ nodes INT8, or FP16 if that is faster here and the float "
        "model is at hand. mixed: INT8 or FP16 by layer of a model with Q/DQ nodes, whichever is faster here (up to "
        "TensorRT 10).",
    )
    float_model: str | None = Field(
        None,
        description="The float model that a quantized one was made from, for FP16. Default: the file that `streamd "
        "quantize` noted, in the folder of the quantized model.",
    )
    effort: int | None = Field(
        None,
        ge=0,
        le=5,
        description="How thoroughly TensorRT searches for the fastest plan when an ONNX model is built: from 0, built "
        "soonest, to 5. TensorRT 8.5 has its own, 3, and one below it; RTX ignores it. Default: TensorRT's own.",
    )
    mps: bool | Literal["auto"] = Field(
        "auto",
        description="Workers share the GPU through the daemon's own NVIDIA MPS server (needs workers). auto: if "
        "several share one, and MPS is installed.",
    )
    cache_dir: str | None = Field(
        None,
        description="Where built plans are kept. Default: beside the model, else the user's cache folder.",
    )

    @property
    def shares_gpu(self) -> bool | Literal["auto"]:
        """See `EngineSettings.shares_gpu`."""
        return self.mps

    def open(self, model: ModelSettings, *, batch: BatchSettings, live: bool = False) -> Backend[Any]:
        """See `EngineSettings.open`."""
        from streamd.engine.tensorrt.backend import TensorRtBackend

        return TensorRtBackend(self, model, batch=batch)
