"""The accuracy gate of `streamd build`: the finished plan against the model it was made from, on real images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamd.engine import ModelSettings
from streamd.errors import ConfigError, GateError
from streamd.heads import DetectSettings
from streamd.sidecar import Sidecar
from streamd.types import Float32Array

if TYPE_CHECKING:
    from streamd.engine.tensorrt.job import Job
    from streamd.models.evaluate import Boxes

MAX_DROP = 0.005
MIN_AGREEMENT = 0.85
MATCH_IOU = 0.5
_RTX_REFUSES = (9, 0)
"""Compute capability on which TensorRT-RTX builds but does not run."""


def add_gate_options(p: Any) -> None:
    """The gate's options."""
    group = p.add_argument_group("accuracy gate")
    group.add_argument("--eval-images", metavar="DIR", help="compare the plan with the model on these images")
    group.add_argument("--labels", metavar="DIR|JSON", help="their labels: YOLO text files or one COCO JSON file")
    group.add_argument("--reference", metavar="MODEL", help="compare with this model instead, e.g. the float one")
    group.add_argument(
        "--max-drop",
        type=float,
        default=MAX_DROP,
        help=f"with --labels: largest loss of mAP allowed (default {MAX_DROP})",
    )
    group.add_argument(
        "--min-agreement",
        type=float,
        default=MIN_AGREEMENT,
        help=f"without: least share of the model's detections that the plan must find too (default {MIN_AGREEMENT})",
    )
    group.add_argument("--force", action="store_true", help="write the plan even if it fails; its sidecar says so")


def gate_of(args: argparse.Namespace) -> Gate | None:
    """The gate that the options ask for, or None.

    Raises:
        ConfigError: labels without images, paths that are not there, or a bound that is none.
    """
    if args.eval_images is None:
        if args.labels is not None or args.reference is not None:
            raise ConfigError("--labels and --reference need --eval-images, the folder of images to compare on")
        return None
    for option, value in (("--eval-images", args.eval_images), ("--labels", args.labels)):
        if value is not None and not Path(value).exists():
            raise ConfigError(f"{option} {value}: does not exist")
    if not 0 <= args.max_drop <= 1 or not 0 <= args.min_agreement <= 1:
        raise ConfigError("--max-drop and --min-agreement are shares: between 0 and 1")
    return Gate(
        args.eval_images, args.labels, args.reference, args.max_drop, args.min_agreement, args.force, args.device
    )


def cannot_run(job: Job) -> str | None:
    """Why this machine cannot run the plan it has built, or None."""
    from streamd.engine.select import nvidia_gpu

    if (reason := nvidia_gpu()) is not None:
        return reason
    if job.trt.is_rtx and job.gpu is not None and job.gpu.capability == _RTX_REFUSES:
        return f"TensorRT-RTX does not run on {job.gpu}"
    return None


@dataclass(frozen=True)
class Gate:
    """What is compared, and what is allowed."""

    images: str
    labels: str | None
    reference: str | None
    max_drop: float
    min_agreement: float
    force: bool
    device: int = 0

    def check(self, plan: Path, sidecar: Sidecar, job: Job) -> tuple[Sidecar, str]:
        """Compares `plan` with the model it was made from (which runs on OpenVINO).

        Returns:
            The sidecar with what was measured, and a line for the user.

        Raises:
            GateError: the plan is too much worse, and force is not given.
        """
        assert sidecar.provenance is not None
        if (reason := cannot_run(job)) is not None:
            note = f"accuracy not checked, for this machine cannot run the plan: {reason}"
            made = sidecar.provenance.model_copy(update={"method": f"{sidecar.provenance.method}; {note}"})
            advice = "run `streamd evaluate` with it where it is to run"
            return sidecar.model_copy(update={"provenance": made}), f"{note}; {advice}"
        path = self.reference or str(job.onnx.path)
        measure = self._accuracy if self.labels is not None else self._agreement
        found, failed, verdict = measure(plan, path)
        if failed and not self.force:
            raise GateError(
                f"plan {job.onnx.path.name}: {verdict}; nothing was written (--force writes it all the same)"
            )
        made = sidecar.provenance.model_copy(update=found | {"forced": sidecar.provenance.forced or failed})
        return sidecar.model_copy(update={"provenance": made}), verdict + ("; forced" if failed else "")

    def _engines(self, plan: Path, reference: str) -> list[tuple[ModelSettings, dict[str, Any]]]:
        return [
            (ModelSettings(path=reference), {"kind": "openvino"}),
            (ModelSettings(path=str(plan)), {"kind": "tensorrt", "device": self.device}),
        ]

    def _accuracy(self, plan: Path, reference: str) -> tuple[dict[str, Any], bool, str]:
        from streamd.models.dataset import open_dataset
        from streamd.models.evaluate import COCO_DETECT, Detector, evaluate

        assert self.labels is not None
        figures = []
        for model, engine in self._engines(plan, reference):
            with Detector(model, COCO_DETECT, engine) as detector:
                figures.append(evaluate(detector, open_dataset(self.images, self.labels, detector.labels)))
        before, after = figures
        drop = before.map - after.map
        verdict = (
            f"accuracy: mAP {after.map:.4f}, {Path(reference).name} has {before.map:.4f} on the same "
            f"{after.images} images: a drop of {drop:.4f}, allowed are {self.max_drop:g}"
        )
        accuracy = {"map": after.map, "map50": after.map50, "map_reference": before.map}
        return {"accuracy": {k: round(v, 6) for k, v in accuracy.items()}}, drop > self.max_drop, verdict

    def _agreement(self, plan: Path, reference: str) -> tuple[dict[str, Any], bool, str]:
        from streamd.models.dataset import image_folder
        from streamd.models.evaluate import Detector
        from streamd.sources.images import read_image

        files = image_folder(self.images)
        found: list[list[Boxes]] = []
        for model, engine in self._engines(plan, reference):
            with Detector(model, DetectSettings(), engine) as detector:
                found.append(list(detector.detect((path.name, read_image(path)) for path in files)))
        share, boxes = agreement(*found)
        verdict = (
            f"agreement: {share:.4f} of the {boxes} detections of {Path(reference).name} were found again in "
            f"{len(files)} images, asked are {self.min_agreement:g}"
        )
        return {"agreement": round(share, 6)}, share < self.min_agreement, verdict


def agreement(reference: Sequence[Boxes], other: Sequence[Boxes]) -> tuple[float, int]:
    """The share of the reference's boxes that `other` has too: same image, same class, IoU of at least 0.5.

    Each box of `other` answers for one of the reference's, the best first.

    Returns:
        (share, number of reference boxes); 1.0 where there are none.
    """
    total = matched = 0
    for a, b in zip(reference, other, strict=True):
        total += len(a.score)
        overlap = _iou(a.xyxy, b.xyxy) * (a.class_id[:, None] == b.class_id[None, :])
        while overlap.size and overlap.max() >= MATCH_IOU:
            row, column = np.unravel_index(int(overlap.argmax()), overlap.shape)
            matched += 1
            overlap[row, :] = 0
            overlap[:, column] = 0
    return (matched / total if total else 1.0), total


def _iou(a: Float32Array, b: Float32Array) -> Float32Array:
    """(N, 4) × (M, 4) -> (N, M)"""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.prod(np.clip(high - low, 0, None), axis=2)
    size_a, size_b = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b))
    union = size_a[:, None] + size_b[None, :] - inner
    out: Float32Array = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
    return out
