"""Everything between a model's raw outputs and detections: the head, the class names, postprocessing."""

from __future__ import annotations

from dataclasses import dataclass

from streamd.heads import DetectSettings, Head, HeadSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import declared, open_head, resolve_labels
from streamd.types import DecodePlan, ModelInfo, ModelSpec


@dataclass(frozen=True)
class Detector:
    """What turns the outputs of one opened model into detections."""

    head: Head
    labels: tuple[str, ...]
    """Class names in order."""
    postprocess: Postprocess
    model: ModelInfo
    """The part that every message includes."""

    @property
    def plan(self) -> DecodePlan | None:
        """For `Backend.start`."""
        return self.head.plan


def open_detector(spec: ModelSpec, head: HeadSettings | str | None, detect: DetectSettings) -> Detector:
    """Creates what turns the outputs of an opened backend into detections.

    Args:
        spec: specification of the backend's model.
        head: settings of the head, or its kind, or None to recognise it.
        detect: thresholds and filters.

    Raises:
        ConfigError: the head is unknown or does not fit the model, or labels and classes do not match.
    """
    if isinstance(head, str):
        head = declared(head, spec)
    opened = open_head(head, spec, detect)
    labels = resolve_labels(spec, opened.classes)
    return Detector(opened, labels, Postprocess(opened, detect, labels), ModelInfo(spec.name, spec.sha256, labels))
