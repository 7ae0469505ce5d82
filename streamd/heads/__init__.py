"""The head room: what a model's outputs mean.

A head turns raw outputs into `Candidates` (network-input pixels, above the confidence threshold); `postprocess`
applies NMS and maps back to the source, for every head alike. To add a head, write one file here:

    @HEADS.register
    class MyHeadSettings(HeadSettings):
        kind: Literal["my_head"] = "my_head"
        form: ClassVar[str] = "(B, N, 7)"

        def open(self, spec: ModelSpec, options: DecodeOptions) -> Head: ...

Where its outputs can be told by their shapes, it overrides `recognise` and `shapes`. Its test gives the contract suite
(`tests/heads/test_contract.py`) outputs that hold known objects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from streamd.heads.nms import nms
from streamd.settings import KindSettings, Settings, Unit
from streamd.settings.registry import Registry
from streamd.types import Candidates, DecodePlan, Details, Letterbox, ModelSpec, Outputs


class DetectSettings(Settings):
    """Which boxes count as detections."""

    conf: Unit = Field(0.25, description="Lowest score of a detection.")
    iou: Unit = Field(0.45, description="NMS drops a box that overlaps a better one of its class by more than this.")
    max_det: int = Field(300, ge=1, le=30_000, description="Most detections a frame.")
    classes: tuple[str | int, ...] | None = Field(
        None, description="Only these classes, by name or number. Default: all."
    )
    class_conf: dict[str, Unit] = Field(
        default_factory=dict, description="Lowest score per class name, where it differs from conf."
    )
    multi_label: bool = Field(
        False,
        description="One box may yield several classes, as accuracy benchmarks count. Default: its best only.",
    )
    agnostic: bool = Field(False, description="NMS across classes: a box suppresses boxes of other classes too.")


class DecodeOptions(NamedTuple):
    """What a head needs to know of `DetectSettings`."""

    conf: float
    """Lowest score that any class may have."""
    multi_label: bool = False
    """A box yields every class above `conf`, else its best one only."""

    @classmethod
    def of(cls, detect: DetectSettings) -> DecodeOptions:
        """The options that lose nothing of what `detect` asks for."""
        return cls(min([detect.conf, *detect.class_conf.values()]), detect.multi_label)


class Head(ABC):
    """Decodes one model's outputs. Keeps nothing between calls but that its first outputs were checked; one thread."""

    nms: bool = True
    """False where the model has already suppressed overlapping boxes (end-to-end outputs)."""
    classes: int
    """How many classes the outputs have."""
    plan: DecodePlan | None = None
    """The same knowledge for a device that decodes boxes itself; None where no device layout describes the outputs."""
    detailed: bool = False
    """True where boxes have more than a class and a score: `details` is asked for every frame with boxes."""

    @abstractmethod
    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """Decodes frame `index` of a batch.

        Args:
            outputs: float32 or float16 arrays in `ModelSpec.outputs` order, first dimension the batch.
            index: which frame of the batch.

        Raises:
            ModelError: the first outputs cannot be what the head was declared or recognised for.
        """

    def suppress(self, found: Candidates, detect: DetectSettings) -> npt.NDArray[np.intp]:
        """NMS: numbers of the boxes to keep, best first, `detect.max_det` at most. Not called where `nms` is False."""
        return nms(found.xyxy, found.score, found.class_id, detect.iou, detect.max_det, agnostic=detect.agnostic)

    def details(self, outputs: Outputs, index: int, kept: Candidates, letterbox: Letterbox) -> Details:
        """What the model says of the boxes that are published, where `detailed`.

        Args:
            outputs: see `candidates`.
            index: which frame of the batch.
            kept: the boxes in network-input pixels; there is at least one.
            letterbox: the way to source pixels.
        """
        raise NotImplementedError


class HeadSettings(KindSettings):
    """Settings of one kind of head."""

    form: ClassVar[str]
    """The shapes of its outputs, for people: (B, N, 5+C)."""
    tasks: ClassVar[tuple[str, ...]] = ("detect",)
    """What models of this family do, as Ultralytics' exporter names it in the model's metadata."""
    usual_input: ClassVar[Mapping[str, Any]] = {}
    """How models of this family are fed, as fields of the sidecar, where that is not streamd's default.

    A model of it must say how it is fed: the outputs of a wrong input look like detections of nothing.
    """
    sigmoid_contradicts: ClassVar[str] = ""
    """For a model whose outputs come out of a sigmoid: why that is not what this head reads, and what to do.

    Continues the sentence "its outputs end in a sigmoid". Empty where that is as it should be.
    """

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """What a model with an input of `height` × `width` pixels puts out for one frame in this form.

        For messages and the fuzzer. Empty where the head's settings decide.
        """
        return ()

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """The settings under which outputs of these shapes can be decoded, or None. Sure, or None: never a guess."""
        return None

    @classmethod
    def undecodable(cls, spec: ModelSpec) -> str:
        """For outputs of this family in a form that no head decodes: what they are, and what to do.

        Continues the sentence "outputs NAME[SHAPE]". Takes precedence over what other heads recognise. Empty where the
        outputs are something else.
        """
        return ""

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """Makes the head.

        Raises:
            ConfigError: the settings contradict the model's shapes.
        """
        raise NotImplementedError


HEADS: Registry[HeadSettings] = Registry("head", HeadSettings, "streamd.heads", first="yolov5_cat")

if TYPE_CHECKING:
    HeadConfig = HeadSettings
else:
    HeadConfig = HEADS.one_of()
