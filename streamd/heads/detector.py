"""Everything between a model's raw outputs and detections, put together: the head, the class names, the last steps."""

from __future__ import annotations

from dataclasses import dataclass

from streamd.heads import DetectSettings, Head, HeadSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import declared, open_head, resolve_labels
from streamd.types import DecodePlan, ModelInfo, ModelSpec


@dataclass(frozen=True)
class Detector:
    """One opened model's way from outputs to detections."""

    head: Head
    labels: tuple[str, ...]
    """Class names in order."""
    postprocess: Postprocess
    model: ModelInfo
    """What travels with every message."""

    @property
    def plan(self) -> DecodePlan | None:
        """For `Backend.start`."""
        return self.head.plan


def open_detector(spec: ModelSpec, head: HeadSettings | str | None, detect: DetectSettings) -> Detector:
    """Puts together what turns the outputs of an opened backend into detections.

    Args:
        spec: the backend's.
        head: settings of the head, or its kind, or None where it is to be recognised.
        detect: which boxes count.

    Raises:
        ConfigError: the head cannot be known or does not fit, or labels and classes do not.
    """
    if isinstance(head, str):
        head = declared(head, spec)
    opened = open_head(head, spec, detect)
    labels = resolve_labels(spec, opened.classes)
    return Detector(opened, labels, Postprocess(opened, detect, labels), ModelInfo(spec.name, spec.sha256, labels))
