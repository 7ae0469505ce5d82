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
        0, description="Number of the CUDA device, or a list of devices among which the streams are distributed."
    )
    slots: int = Field(3, ge=1, le=16, description="Number of batches in flight.")
    graphs: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether batches run as CUDA graphs, one per batch size. auto: if that is possible. on: required.",
    )
    max_candidates: int | None = Field(
        None,
        ge=16,
        le=32768,
        description="Largest number of boxes per frame before NMS, on the device. Default: 1024; 32768 if scores "
        "below 0.05 or several classes per box are asked for, as for measuring accuracy.",
    )
    workspace_mb: int = Field(
        1024, ge=16, description="Memory that the builder may use when an ONNX model is built, in MiB."
    )
    precision: Literal["auto", "fp32", "fp16", "int8", "mixed"] = Field(
        "auto",
        description="Precision of the plan that is built from an ONNX model. auto: FP16; INT8 if the model has "
        "Q/DQ nodes, unless FP16 is faster on this GPU and the float model is at hand. mixed: INT8 or FP16 for "
        "each layer of a model with Q/DQ nodes, whichever is faster here (up to TensorRT 10).",
    )
    float_model: str | None = Field(
        None,
        description="The float model from which a quantized one was made, for FP16. Default: the file that "
        "`streamd quantize` noted, in the folder of the quantized model.",
    )
    effort: int | None = Field(
        None,
        ge=0,
        le=5,
        description="How thoroughly TensorRT searches for the fastest plan when an ONNX model is built: 0 builds "
        "soonest, 5 searches longest. Lower it to try a model sooner. TensorRT 8.5 has 1 (also for 0), "
        "2 and 3, and refuses 4 and 5. TensorRT-RTX ignores it. Default: TensorRT's own, 3.",
    )
    mps: bool | Literal["auto"] = Field(
        "auto",
        description="Whether workers share the GPU through an NVIDIA MPS server that the daemon starts (needs "
        "`workers`). auto: if several workers share a GPU and MPS is installed.",
    )
    cache_dir: str | None = Field(
        None,
        description="Folder for the plans that are built. Default: the model's folder, otherwise the user's cache "
        "folder.",
    )

    @property
    def shares_gpu(self) -> bool | Literal["auto"]:
        """See `EngineSettings.shares_gpu`."""
        return self.mps

    def open(self, model: ModelSettings, *, batch: BatchSettings, live: bool = False) -> Backend[Any]:
        """See `EngineSettings.open`."""
        from streamd.engine.tensorrt.backend import TensorRtBackend

        return TensorRtBackend(self, model, batch=batch)
