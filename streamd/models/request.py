"""What `streamd quantize` is asked for, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamd.models.calibrate import Method
from streamd.models.centre import Ranges
from streamd.models.escalate import Step
from streamd.models.gate import MAX_DROP, MIN_AGREEMENT, Verdict
from streamd.models.sensitivity import FLOAT_SHARE, LayerHarm
from streamd.models.tune import Rounding


@dataclass(frozen=True)
class Request:
    """A request to `streamd quantize`."""

    model: str
    images: str
    out: Path
    batch: int = 8
    batches: int = 16
    every: int = 10
    method: Method = "mse"
    float_layers: tuple[str, ...] = ()
    float_share: float = FLOAT_SHARE
    """Share of the multiplications that may stay in float where that takes most of the noise away; see
    `sensitivity.dominant`."""
    labels: str | None = None
    eval_images: str | None = None
    max_drop: float = MAX_DROP
    prove: bool = False
    """Refuse unless the whole interval of the loss is within `max_drop`."""
    classes: tuple[str, ...] | None = None
    """Classes that accuracy is measured on. Default: those that the labels have."""
    min_agreement: float = MIN_AGREEMENT
    auto: bool = False
    escalate: bool = True
    """Where the gate refuses the model, keep as many layers in float as it takes; see `escalate`."""
    sensitivity: str | None = None
    """noise, map, or None."""
    force: bool = False
    cache: Path | None = None
    """Calibration cache file. Default: in the user's cache folder."""
    use_cache: bool = True
    rounding: Rounding = "layer"
    """How weights are rounded: so that each layer's output stays what it was, or each to the nearest step."""
    ranges: Ranges = "centred"
    """Whether one-sided activations are moved to the middle of their range; see `centre`."""
    finetune: int = 0
    """Steps of fine-tuning against the float model in PyTorch; see `finetune.train`. 0: none."""
    compact: bool = False
    """Store weights as INT8; see `qdq.quantized`."""
    residuals: bool = True
    head: str | None = None
    """Kind of the head; the INT8 model's sidecar then declares it. Default: from the sidecar, otherwise the shapes."""
    engine: dict[str, Any] = field(default_factory=lambda: {"kind": "openvino"})
    """Backend that measures accuracy."""


@dataclass
class Result:
    """The outcome."""

    out: Path
    sha256: str
    layers: int
    """Convolutions that could be quantized."""
    float_layers: tuple[str, ...]
    pictures: int
    unreadable: list[str]
    cached: bool
    """True if the calibration came from the cache."""
    calibration_seconds: float
    """Time for reading, letterboxing, running the float model, building histograms and choosing thresholds."""
    calibration_sha256: str
    verdict: Verdict
    forced: bool
    sensitivity: list[LayerHarm]
    escalation: list[Step] = field(default_factory=list)
    """What was tried after the gate was not content with the model as asked for."""
    finetuning: tuple[float, float] | None = None
    """Distance to the float model before and after, on calibration pictures left out of fine-tuning."""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "out": str(self.out),
            "sha256": self.sha256,
            "layers": self.layers,
            "float_layers": list(self.float_layers),
            "pictures": self.pictures,
            "unreadable": self.unreadable,
            "cached": self.cached,
            "calibration_seconds": round(self.calibration_seconds, 3),
            "calibration_sha256": self.calibration_sha256,
            "accuracy": self.verdict.accuracy,
            "interval": None if self.verdict.interval is None else self.verdict.interval.as_json(),
            "undecided": self.verdict.undecided,
            "agreement": self.verdict.agreement,
            "refusal": self.verdict.refusal,
            "forced": self.forced,
            "sensitivity": [vars(h) for h in self.sensitivity],
            "escalation": [step.as_json() for step in self.escalation],
            "finetuning": None
            if self.finetuning is None
            else dict(zip(("before", "after"), self.finetuning, strict=True)),
        }
