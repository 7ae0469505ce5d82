"""The head room: what a model's outputs mean.

A head turns raw outputs into `Candidates` (network-input pixels, above the confidence threshold); `postprocess`
applies NMS and maps back to the source, for every head alike. To add a head: write one file here, add its settings
to `HeadConfig`, teach `recognise` its shapes, and pass `tests/heads/test_contract.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from pydantic import Discriminator, Field, Tag

from streamd.settings import Settings, Unit
from streamd.types import Candidates, DecodePlan, Outputs


class Head(Protocol):
    """Decodes one model's outputs. Keeps nothing between calls but that its first outputs were checked; one thread."""

    nms: bool
    """False where the model has already suppressed overlapping boxes (end-to-end outputs)."""
    plan: DecodePlan
    """The same knowledge for a device that decodes boxes itself."""

    def candidates(self, outputs: Outputs, index: int) -> Candidates:
        """Decodes frame `index` of a batch.

        Args:
            outputs: float32 or float16 arrays in `ModelSpec.outputs` order, first dimension the batch.
            index: which frame of the batch.

        Raises:
            ModelError: the first outputs cannot be what the head was declared or recognised for.
        """
        ...


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


class Yolov5HeadsSettings(Settings):
    """YOLOv5's raw heads, logits: one (B, A, H, W, 5+C) output a stride, or (B, A·(5+C), H, W) as convolved.

    Of the latter, A is that of the anchors.
    """

    kind: Literal["yolov5_heads"] = "yolov5_heads"
    anchors: tuple[tuple[float, ...], ...] | None = Field(
        None,
        description="Anchors w,h,w,h,… in input pixels, a row a head from the finest. Default: YOLOv5's for COCO.",
    )
    strides: tuple[int, ...] | None = Field(None, description="Stride of each head. Default: from the shapes.")


class Yolov5CatSettings(Settings):
    """YOLOv5's decoded output: (B, N, 5+C), cx cy w h objectness classes, in input pixels and 0..1."""

    kind: Literal["yolov5_cat"] = "yolov5_cat"


class Yolov5SigmoidSettings(Settings):
    """YOLOv5's raw heads after a sigmoid, joined but not decoded: (B, N, 5+C), all 0..1. To be declared.

    Its shape is that of yolov5_cat. Rows go stride by stride, within each anchor by anchor, then line by line.
    """

    kind: Literal["yolov5_sigmoid"] = "yolov5_sigmoid"
    strides: tuple[int, ...] | None = Field(None, description="Strides in the order of the rows. Default: 8, 16, 32.")
    anchors: tuple[tuple[float, ...], ...] | None = Field(
        None,
        description="Anchors w,h,w,h,… in input pixels, a row a stride in the same order. Default: YOLOv5's for COCO.",
    )


class Yolov8Settings(Settings):
    """YOLOv8's and YOLO11's output: (B, 4+C, N), cx cy w h classes, in input pixels and 0..1, no objectness."""

    kind: Literal["yolov8"] = "yolov8"


class EndToEndSettings(Settings):
    """Outputs with NMS inside: (B, N, 6), x1 y1 x2 y2 score class, in input pixels."""

    kind: Literal["end_to_end"] = "end_to_end"


def _kind(value: Any) -> str:
    kind = value.get("kind", "") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


HeadConfig = Annotated[
    Annotated[Yolov5HeadsSettings, Tag("yolov5_heads")]
    | Annotated[Yolov5CatSettings, Tag("yolov5_cat")]
    | Annotated[Yolov5SigmoidSettings, Tag("yolov5_sigmoid")]
    | Annotated[Yolov8Settings, Tag("yolov8")]
    | Annotated[EndToEndSettings, Tag("end_to_end")],
    Discriminator(_kind),
]
KINDS = ("yolov5_heads", "yolov5_cat", "yolov5_sigmoid", "yolov8", "end_to_end")
"""Of `HeadConfig`."""
