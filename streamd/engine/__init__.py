"""Engines: backends that turn batches of frames into outputs.

To add one, write one file here with its settings class, decorated with `ENGINES.register`, whose `open` returns a
`streamd.flow.contracts.Backend`; `tests/engine/test_contract.py` tests it. docs/extending.md says more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from streamd.engine.foreign import ForeignBackend
from streamd.errors import BackendError
from streamd.flow.contracts import Backend
from streamd.settings import ConfigPath, KindSettings, Milliseconds, Problems, Settings
from streamd.settings.plugins import opened, origin
from streamd.settings.registry import Registry

Channels = tuple[float, float, float]
Spread = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
InputSize = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
BUILTIN = "builtin:"
"""Prefix of the path of a bundled model, as in builtin:road6."""


class ModelSettings(Settings):
    """The model file and how its input is made. What is left out comes from the sidecar, then from the model."""

    DEFAULT_SIZE: ClassVar[tuple[int, int]] = (640, 640)
    """Height and width for a dynamic input."""
    DEFAULT_RESIZE: ClassVar[Literal["letterbox", "stretch"]] = "letterbox"
    STRIDED: ClassVar[bool] = True
    """True if the input's size must be a multiple of the model's strides."""

    path: ConfigPath = Field(
        min_length=1,
        description="Model file: ONNX, OpenVINO IR (.xml) or TensorRT plan; or builtin:road6, the bundled detector.",
    )
    name: str | None = Field(None, description="Name in messages. Default: the file's name without its suffix.")
    labels: tuple[str, ...] | ConfigPath | None = Field(
        None,
        description="Class names in order: a list, or a text file with one name per line. Default: from the "
        "sidecar or the model's metadata, otherwise COCO's names if there are 80 classes, otherwise class_0, "
        "class_1 and so on.",
    )
    color: Literal["RGB", "BGR"] | None = Field(None, description="Channel order of the input. Default: RGB.")
    scale: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Factor for pixel values, which are 0 to 255; 1 leaves them as they are. Default: 1/255.",
    )
    mean: Channels | None = Field(
        None, description="Subtracted after `scale`: one number per channel, in the order of `color`. Default: nothing."
    )
    std: Spread | None = Field(
        None,
        description="Divisor after `mean` was subtracted: one number per channel, in the order of `color`. "
        "Default: 1, 1, 1.",
    )
    resize: Literal["letterbox", "stretch"] | None = Field(
        None,
        description="How a picture is fitted to the input. letterbox: it keeps its aspect ratio and is padded. "
        "stretch: it fills the input. Default: letterbox.",
    )
    align: Literal["center", "top_left"] | None = Field(
        None,
        description="Where a letterboxed picture lies. center: in the middle. top_left: in that corner, with "
        "padding on the right and below only. Default: center.",
    )
    pad_value: int | None = Field(None, ge=0, le=255, description="Grey level of the padding. Default: 114.")
    input_size: InputSize | None = Field(
        None,
        description="Height and width of the input in pixels, if the model leaves them open; multiples of 32. A "
        "smaller input is faster and misses more small objects. Default: 640, 640.",
    )


class BatchSettings(Settings):
    """How frames of all streams are gathered into batches."""

    max: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Largest number of frames in a batch. Default: 1 on a CPU, the model's own limit on a GPU.",
    )
    age_ms: Milliseconds = Field(
        0.0,
        description="How long the first frame of a batch may wait for others, in milliseconds. 0: a batch takes "
        "what is there when a slot is free, so that batches grow with the load and no frame waits for others.",
    )


Ordinal = Annotated[int, Field(ge=0, le=255)]
Devices = Ordinal | Annotated[tuple[Ordinal, ...], Field(min_length=1)]


class EngineSettings(KindSettings):
    """Settings of every engine."""

    @property
    def devices(self) -> tuple[int, ...]:
        """Ordinals of the devices that share the streams; one backend is opened for each."""
        return (0,)

    @property
    def names_devices(self) -> bool:
        """True if the settings list devices, so that workers are distributed among them."""
        return False

    @property
    def shares_gpu(self) -> bool | Literal["auto"]:
        """True if worker processes share the GPU through the daemon's own NVIDIA MPS server; auto if that may fail."""
        return False

    def for_device(self, ordinal: int) -> EngineSettings:
        """The settings of the backend of one of `devices`."""
        return self

    def aside(self) -> EngineSettings:
        """The settings for a small network beside the main one, which must not take its share of the machine."""
        return self

    def open(self, model: ModelSettings, *, batch: BatchSettings, live: bool = False) -> Backend[Any]:
        """Opens the model. `Backend.start` is called before the first batch.

        Args:
            model: the model file and its input.
            batch: bounds the largest batch.
            live: True if a single live stream is the whole load, so that latency matters more than throughput.

        Raises:
            ModelError: the model is missing, unreadable, corrupt, or not what was declared.
            BackendError: the device or its software is missing.
        """
        raise NotImplementedError


class DeviceSettings(EngineSettings):
    """Settings of engines that number their devices."""

    device: Devices = Field(0, description="Device, or a list of devices among which the streams are distributed.")

    @property
    def devices(self) -> tuple[int, ...]:
        """See `EngineSettings.devices`."""
        return self.device if isinstance(self.device, tuple) else (self.device,)

    @property
    def names_devices(self) -> bool:
        """See `EngineSettings.names_devices`."""
        return isinstance(self.device, tuple)

    @property
    def ordinal(self) -> int:
        """The device, if there is only one, as for a backend (see `for_device`)."""
        return self.devices[0]

    def for_device(self, ordinal: int) -> EngineSettings:
        """See `EngineSettings.for_device`."""
        return self.model_copy(update={"device": ordinal})

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        if len(set(self.devices)) < len(self.devices):
            yield ("device",), "names a device twice"


ENGINES: Registry[EngineSettings] = Registry(
    "engine", EngineSettings, "streamd.engine", default="auto", group="streamd.engines", contract=1
)

if TYPE_CHECKING:
    EngineConfig = EngineSettings
else:
    EngineConfig = ENGINES.one_of()


def open_backend(
    settings: EngineSettings, model: ModelSettings, *, batch: BatchSettings | None = None, live: bool = False
) -> Backend[Any]:
    """Opens the model on the engine of `settings`, which must have one device; see `EngineSettings.open`."""
    of = origin(settings)
    backend = opened(
        of, Backend, BackendError, lambda: settings.open(model, batch=batch or BatchSettings(), live=live)
    )  # fmt: skip
    return backend if of is None else ForeignBackend(backend, of)
