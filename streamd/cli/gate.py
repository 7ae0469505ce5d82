"""The accuracy gate of `streamd build`: compares the plan with the model it was built from, on real images."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamd.cli.console import add_judging_options, share
from streamd.engine.sidecar import Sidecar
from streamd.errors import ConfigError, GateError

if TYPE_CHECKING:
    from streamd.engine.tensorrt.job import Job
    from streamd.models.gate import Verdict

_RTX_REFUSES = (9, 0)
"""Compute capability for which TensorRT-RTX can build plans, but not run them."""


def add_gate_options(p: Any) -> None:
    """Adds the gate's options."""
    group = p.add_argument_group("accuracy gate")
    group.add_argument("--eval-images", metavar="DIR", help="images on which to compare the plan with the model")
    group.add_argument(
        "--labels", metavar="DIR|JSON", help="labels of these images (YOLO text or COCO JSON); compares mAP"
    )
    group.add_argument("--reference", metavar="MODEL", help="model to compare with instead, e.g. the float one")
    add_judging_options(group)
    group.add_argument(
        "--min-agreement",
        type=share,
        metavar="SHARE",
        help="without labels: share of boxes that both must find (default 0.95)",
    )
    group.add_argument(
        "--force", action="store_true", help="write the plan even if the gate refuses it; the sidecar records this"
    )


def gate_of(args: argparse.Namespace) -> PlanGate | None:
    """The gate that the options request, or None.

    Raises:
        ConfigError: labels without images, or paths that do not exist.
    """
    if args.eval_images is None:
        if args.labels is not None or args.reference is not None:
            raise ConfigError("--labels and --reference: need --eval-images, the folder of images to compare on")
        return None
    paths = (("--eval-images", args.eval_images), ("--labels", args.labels), ("--reference", args.reference))
    for option, value in paths:
        if value is not None and not Path(value).exists():
            raise ConfigError(f"{option} {value}: does not exist")
    engine = {"kind": "tensorrt", "device": args.device}
    return PlanGate(
        args.eval_images,
        args.labels,
        args.reference,
        args.max_drop,
        args.min_agreement,
        args.force,
        engine,
        args.prove,
        tuple(args.classes) if args.classes else None,
    )


def cannot_run(job: Job) -> str | None:
    """Why this machine cannot run the plan that it has built, or None."""
    from streamd.engine.auto import tensorrt_unavailable

    if (reason := tensorrt_unavailable()) is not None:
        return reason
    if job.trt.is_rtx and job.gpu is not None and job.gpu.capability == _RTX_REFUSES:
        return f"TensorRT-RTX does not run on {job.gpu}"
    return None


@dataclass(frozen=True)
class PlanGate:
    """What to compare, and how much loss is allowed."""

    images: str
    labels: str | None
    reference: str | None
    max_drop: float
    min_agreement: float | None
    force: bool
    engine: dict[str, Any]
    """Backend settings for the plan; the reference runs on OpenVINO."""
    prove: bool = False
    classes: tuple[str, ...] | None = None

    def check(self, plan: Path, sidecar: Sidecar, job: Job) -> tuple[Sidecar, str]:
        """Compares `plan` with the model it was built from, or with `reference`.

        Returns:
            The sidecar with the measurements, and a line for the user.

        Raises:
            GateError: the plan has lost too much accuracy, and force is not set.
        """
        made = sidecar.provenance
        assert made is not None
        if (reason := cannot_run(job)) is not None:
            note = f"accuracy not checked: this machine cannot run the plan: {reason}"
            made = made.model_copy(update={"method": f"{made.method}; {note}"})
            text = f"{note}; run `streamd evaluate` with it on the target machine"
            return sidecar.model_copy(update={"provenance": made}), text
        reference = Path(self.reference) if self.reference else job.onnx.path
        try:
            verdict = self._judge(plan, reference)
        except GateError as error:
            # The reference itself finds nothing, so nothing can be measured; only force may pass this.
            if not self.force:
                raise
            made = made.model_copy(update={"forced": True})
            return sidecar.model_copy(
                update={"provenance": made}
            ), f"accuracy: not measured; written because of --force although {error}"
        if verdict.refusal is not None and not self.force:
            raise GateError(
                f"plan of {job.onnx.path}: {verdict.refusal}; nothing was written (--force writes it anyway)"
            )
        # The comparison is with the float model only if no other reference is given.
        base = "map_float" if self.reference or not job.onnx.quantized else "map_source"
        found: dict[str, Any] = {
            "accuracy": {k.replace("map_float", base): v for k, v in verdict.accuracy.items()},
            "agreement": verdict.agreement,
            "forced": made.forced or verdict.refusal is not None,
        }
        text = _line(verdict, reference.name)
        return sidecar.model_copy(update={"provenance": made.model_copy(update=found)}), text

    def _judge(self, plan: Path, reference: Path) -> Verdict:
        from streamd.models.gate import MIN_AGREEMENT, Gate
        from streamd.models.pictures import Pictures

        where = Pictures(self.images, 1 << 20)

        class TwoEngines(Gate):
            """Whether the reference is a file for the CPU while the plan is one for the GPU."""

            def use(self, engine: dict[str, Any]) -> None:
                self._engine = engine

        gate = TwoEngines(
            {"kind": "openvino"},
            max_drop=self.max_drop,
            min_agreement=MIN_AGREEMENT if self.min_agreement is None else self.min_agreement,
            images=self.images if self.labels is not None else None,
            labels=self.labels,
            frames=None if self.labels is not None else where.frames,
            prove=self.prove,
            classes=self.classes,
        )
        gate.open(reference)
        gate.use(self.engine)
        return gate.judge(plan)


def _line(verdict: Verdict, reference: str) -> str:
    if verdict.agreement is not None:
        text = f"agreement: {verdict.agreement:.1%} of boxes, with {reference}"
    else:
        a = verdict.accuracy
        text = f"accuracy: mAP {a['map']:.4f}, {reference} has {a['map_float']:.4f} on the same images"
        if verdict.interval is not None:
            text += f"; {verdict.interval}"
        if verdict.undecided is not None:
            text += f"; not shown: {verdict.undecided}"
    return text if verdict.refusal is None else f"{text}; written because of --force although {verdict.refusal}"
