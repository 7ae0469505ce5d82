"""Heads: the decoding of a model's outputs.

A head turns raw outputs into `Candidates` (network-input pixels, above the confidence threshold); `postprocess`
applies NMS and maps boxes to source pixels, in the same way for all heads. To add a head, write one file here:

    @HEADS.register
    class MyHeadSettings(HeadSettings):
        kind: Literal["my_head"] = "my_head"
        form: ClassVar[str] = "(B, N, 7)"

        def open(self, spec: ModelSpec, options: DecodeOptions) -> Head: ...

If its outputs can be recognised by their shapes, it overrides `recognise` and `shapes`. Its test provides the contract
suite (`tests/heads/test_contract.py`) with outputs that contain known objects."""

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

    conf: Unit = Field(
        0.25, description="Lowest score of a detection. A lower value finds more objects, and more false ones."
    )
    iou: Unit = Field(
        0.45, description="NMS removes a box whose overlap (IoU) with a better box of the same class exceeds this."
    )
    max_det: int = Field(300, ge=1, le=30_000, description="Largest number of detections per frame.")
    classes: tuple[str | int, ...] | None = Field(
        None, description="Only these classes, by name or number. Default: all."
    )
    class_conf: dict[str, Unit] = Field(
        default_factory=dict,
        description="Lowest scores of some classes, by name, such as {person: 0.4}; conf applies to all others.",
    )
    multi_label: bool = Field(
        False,
        description="true: a box is published once for each class that reaches the threshold, as accuracy "
        "benchmarks count. false: only for its best class.",
    )
    agnostic: bool = Field(False, description="NMS across classes: a box also suppresses boxes of other classes.")


class DecodeOptions(NamedTuple):
    """What a head needs from `DetectSettings`."""

    conf: float
    """Lowest score that any class may have."""
    multi_label: bool = False
    """Whether a box yields every class above `conf` or only its best one."""

    @classmethod
    def of(cls, detect: DetectSettings) -> DecodeOptions:
        """The options that keep every box that `detect` may accept."""
        return cls(min([detect.conf, *detect.class_conf.values()]), detect.multi_label)


class Head(ABC):
    """Decodes one model's outputs. For one thread. Keeps no state between calls, except that its first outputs were
    checked."""

    nms: bool = True
    """False where the model has already suppressed overlapping boxes (end-to-end outputs)."""
    classes: int
    """Number of classes in the outputs."""
    plan: DecodePlan | None = None
    """The same for a device that decodes boxes itself; None if no device layout describes the outputs."""
    detailed: bool = False
    """True if boxes have more than a class and a score: `details` is then called for every frame with boxes."""

    @abstractmethod
    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """Decodes frame `index` of a batch.

        Args:
            outputs: float32 or float16 arrays in `ModelSpec.outputs` order, first dimension the batch.
            index: which frame of the batch.

        Raises:
            ModelError: the first outputs contradict the declared or recognised head.
        """

    def suppress(self, found: Candidates, detect: DetectSettings) -> npt.NDArray[np.intp]:
        """NMS: indices of the boxes to keep, best first, at most `detect.max_det`. Not called if `nms` is False."""
        return nms(found.xyxy, found.score, found.class_id, detect.iou, detect.max_det, agnostic=detect.agnostic)

    def details(self, outputs: Outputs, index: int, kept: Candidates, letterbox: Letterbox) -> Details:
        """The model's details of the published boxes, if `detailed`: numbers only, neither NaN nor infinity.

        Args:
            outputs: see `candidates`.
            index: which frame of the batch.
            kept: the boxes in network-input pixels; there is at least one.
            letterbox: the mapping to source pixels.
        """
        raise NotImplementedError


class HeadSettings(KindSettings):
    """Settings of one kind of head."""

    form: ClassVar[str]
    """The shapes of its outputs, for messages: (B, N, 5+C)."""
    tasks: ClassVar[tuple[str, ...]] = ("detect",)
    """Tasks of models of this family, as named by Ultralytics' exporter in the model's metadata."""
    usual_input: ClassVar[Mapping[str, Any]] = {}
    """How the input of models of this family is usually made, as fields of the sidecar, if it differs from streamd's
    default.

    Such a model must declare how its input is made: with wrong input, it merely seems to detect nothing.
    """
    sigmoid_contradicts: ClassVar[str] = ""
    """For a model with an output of nothing but values after a sigmoid: why this head cannot decode it, and what to do.

    Continues the sentence "its outputs end in a sigmoid". Empty if it can, or if some of the family's outputs end so.
    """

    @classmethod
    def shapes(cls, height: int, width: int, classes: int) -> tuple[tuple[int, ...], ...]:
        """The output shapes for one frame in this form, with an input of `height` × `width` pixels.

        For messages and the fuzzer. Empty if they depend on the head's settings.
        """
        return ()

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """The settings with which outputs of these shapes can be decoded; None if that is not certain."""
        return None

    @classmethod
    def undecodable(cls, spec: ModelSpec) -> str:
        """For outputs of this family in a form that no head decodes: what they are, and what to do.

        Continues the sentence "outputs NAME[SHAPE]". Takes precedence over what other heads recognise. Empty if the
        outputs are something else."""
        return ""

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """Makes the head.

        Raises:
            ConfigError: the settings contradict the model's shapes.
        """
        raise NotImplementedError


HEADS: Registry[HeadSettings] = Registry("head", HeadSettings, "streamd.heads", first="yolov5_cat", contract=1)

if TYPE_CHECKING:
    HeadConfig = HeadSettings
else:
    HeadConfig = HEADS.one_of()
