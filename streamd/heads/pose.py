"""Boxes with keypoints, as Ultralytics exports YOLOv8-pose, YOLO11-pose and YOLO26-pose.

The extra values of a row are x, y (input pixels) of each of K keypoints, and for D = 3 also its visibility 0..1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from streamd.errors import ConfigError
from streamd.heads import HEADS, DecodeOptions, Head, HeadSettings
from streamd.heads.tasks import TaskHead, TaskSettings, said_shape
from streamd.types import Candidates, Details, Letterbox, ModelSpec, Outputs

_DIMENSIONS = (2, 3)


@HEADS.register
class PoseSettings(TaskSettings):
    """Boxes with keypoints as exported by Ultralytics: (B, 4+C+K·D, N), or (B, N, 6+K·D) after NMS."""

    kind: Literal["pose"] = "pose"
    kpt_shape: tuple[int, int] | None = Field(
        None,
        description="Number of keypoints, and of values of each: 2 (x, y) or 3 (x, y, visibility). Default: from the "
        "metadata.",
    )
    form: ClassVar[str] = "(B, 4+C+K·D, N)"
    sigmoid_contradicts: ClassVar[str] = (
        ", but pose expects boxes and keypoints in input pixels; export the model without it, or declare another head"
    )
    tasks: ClassVar[tuple[str, ...]] = ("pose",)
    of_boxes: ClassVar[str] = "keypoints"

    @classmethod
    def recognise(cls, spec: ModelSpec) -> HeadSettings | None:
        """See `HeadSettings.recognise`. By the metadata, which also has the number of keypoints."""
        said = spec.metadata.get("task", "").strip().lower() == "pose" and len(spec.outputs) == 1
        return cls() if said and cls()._shape(spec) is not None else None

    def _shape(self, spec: ModelSpec) -> tuple[int, int] | None:
        found = self.kpt_shape or said_shape(spec, "kpt_shape")
        return (found[0], found[1]) if found is not None and len(found) == 2 and found[1] in _DIMENSIONS else None

    def open(self, spec: ModelSpec, options: DecodeOptions) -> Head:
        """See `HeadSettings.open`."""
        said, shape = said_shape(spec, "kpt_shape"), self._shape(spec)
        if self.kpt_shape is not None and said is not None and said != self.kpt_shape:
            raise ConfigError(
                f"model.head.kpt_shape: {list(self.kpt_shape)}, but the metadata of {spec.path} says {list(said)}"
            )
        if shape is None or shape[0] < 1:
            raise ConfigError(
                f"model {spec.path}: nothing says how many keypoints it has; declare "
                "model.head: {kind: pose, kpt_shape: [17, 3]} (keypoints, and 2 or 3 values of each)"
            )
        final = self.is_final(spec.outputs[0].shape if len(spec.outputs) == 1 else (), shape[0] * shape[1], spec)
        return Pose(spec, options, shape, final=final)


class Pose(TaskHead):
    """See the module."""

    def __init__(self, spec: ModelSpec, options: DecodeOptions, shape: tuple[int, int], *, final: bool) -> None:
        super().__init__("pose", spec, options, output=0, extra=shape[0] * shape[1], final=final)
        self._shape = shape

    def details(self, outputs: Outputs, index: int, kept: Candidates, letterbox: Letterbox) -> Details:
        """See `Head.details`. Points are clipped to the picture, as boxes are; one that is no number has score 0."""
        assert kept.extra is not None
        values = kept.extra.reshape(-1, *self._shape)
        points = np.ones((*values.shape[:2], 3), np.float32)
        points[..., :2] = letterbox.points_to_source(values[..., :2], clip=True)
        if self._shape[1] == 3:
            points[..., 2] = np.clip(values[..., 2], 0, 1)
        # A message has numbers only.
        points[~np.isfinite(points).all(axis=2)] = 0
        return Details(keypoints=points)
