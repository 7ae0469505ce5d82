"""Quantizes a float ONNX model to INT8: calibrates, inserts Q/DQ pairs, measures, and writes only what passes."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from streamd import __version__
from streamd.engine.model import sha256_of
from streamd.engine.sidecar import Provenance, sidecar_path, write_sidecar
from streamd.errors import ConfigError, GateError, ModelError, StreamdError
from streamd.models.escalate import Step, best, escalated, within_aim
from streamd.models.gate import Gate, Verdict
from streamd.models.graph import write_whole
from streamd.models.quantizer import NOISE_PICTURES, Quantizer, Report, silent
from streamd.models.request import Request, Result
from streamd.models.sensitivity import LayerHarm, by_accuracy, by_noise, fewest


def quantize(request: Request, report: Report = silent) -> Result:
    """Quantizes a model and writes both it and its sidecar, or neither.

    Raises:
        GateError: it lost too much accuracy; nothing was written.
        ConfigError, ModelError, SourceError, BackendError: see `Quantizer`.
    """
    job = Quantizer(request, report)
    eval_images = request.eval_images or request.images
    if request.labels is not None and not Path(eval_images).is_dir():
        raise ConfigError(
            f"--labels: needs a folder of images to measure on, not {eval_images}; give it with --eval-images"
        )
    gate = Gate(
        request.engine,
        max_drop=request.max_drop,
        min_agreement=request.min_agreement,
        images=eval_images,
        files=None if request.eval_images is not None else job.pictures.others,
        labels=request.labels,
        frames=job.frames,
        head=request.head,
        prove=request.prove,
        classes=request.classes,
    )
    harms: list[LayerHarm] = []
    steps: list[Step] = []
    float_layers: Sequence[str] = job.float_layers
    with tempfile.TemporaryDirectory(prefix="streamd-") as temporary:
        folder = Path(temporary)
        try:
            gate.open(job.source, lambda done, total: report("measure float", done, total))
            if request.sensitivity == "map":
                harms = by_accuracy(job.layer_names, lambda layers: job.measure(gate, layers, folder).score, report)
            elif request.sensitivity or request.auto:
                harms = by_noise(job.noise(NOISE_PICTURES), report)
            if request.auto:
                float_layers, verdict = fewest(
                    [h.layer for h in harms],
                    job.float_layers,
                    lambda layers: job.measure(gate, layers, folder),
                    report,
                )
            else:
                verdict = job.measure(gate, float_layers, folder)
                # Where layers stand out, there are often more that do not bear INT8.
                enough = within_aim(verdict) if job.standing_out else verdict.passed
                if not enough and request.escalate and not request.force:
                    steps = _escalate(job, gate, verdict, folder, report)
                    found = best(steps)
                    if found is not None and (not verdict.passed or found.verdict.score < verdict.score):
                        float_layers, verdict = found.float_layers, found.verdict
        except StreamdError as error:
            if not request.force or isinstance(error, ModelError):
                raise
            verdict = Verdict(refusal=f"it could not be measured: {error}")
    if not verdict.passed and not request.force:
        raise GateError(_refusal(job, verdict, steps))
    return _write(job, float_layers, verdict, harms, steps)


def _escalate(job: Quantizer, gate: Gate, refused: Verdict, folder: Path, report: Report) -> list[Step]:
    """Looks for the layers that have to stay in float; [] if there is nothing to search by."""
    near = Gate(job.request.engine, min_agreement=0.0, frames=job.searched, head=job.request.head)
    try:
        near.open(job.source)
    except GateError:
        return []  # the float model finds nothing on these pictures

    def agreement(layers: Collection[str]) -> float:
        return 1 - job.measure(near, layers, folder).score

    return escalated(
        job.noise(NOISE_PICTURES), refused, job.float_layers, agreement,
        lambda layers: job.measure(gate, layers, folder), report,
    )  # fmt: skip


def _refusal(job: Quantizer, verdict: Verdict, steps: Sequence[Step]) -> str:
    """Why nothing was written, what was tried, and what else there is."""
    said = f"model {job.request.out} was not written: {verdict.refusal}"
    if not steps:
        return f"{said}; keep layers in float (--auto), try another --method or more pictures, or --force"
    tried = "; ".join(
        f"with {len(s.float_layers)} of {len(job.layer_names)} layers in float ({s.share:.0%} of the multiplications): "
        f"{s.verdict.refusal}"
        for s in steps
    )
    return (
        f"{said}; {tried}; more in float would leave little of INT8: use the float model, give other or more pictures, "
        "a larger limit, or --force"
    )


def _method(job: Quantizer) -> str:
    """What the sidecar says of how the model was made."""
    steps: list[str] = [job.request.method]
    if job.request.ranges == "centred":
        steps.append("centred")
    if job.request.rounding != "nearest":
        steps.append("rounded by layer")
    if job.finetuning is not None and job.finetuning.helped:
        steps.append(f"fine-tuned in {job.request.finetune} steps")
    return ", ".join(steps)


def _write(
    job: Quantizer, float_layers: Sequence[str], verdict: Verdict, harms: list[LayerHarm], steps: list[Step]
) -> Result:
    request = job.request
    forced = not verdict.passed
    tools = {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime", "openvino")}
    out = request.out
    write_whole(out, job.candidate(float_layers))
    sha256 = sha256_of(out)
    provenance = Provenance(
        source=job.source.name,
        source_sha256=job.spec.sha256,
        method=_method(job),
        calibration_sha256=job.pictures_sha256,
        accuracy=verdict.accuracy,
        agreement=verdict.agreement,
        float_layers=tuple(float_layers),
        precision="int8",
        tools={"streamd": __version__} | tools,
        forced=forced,
    )
    try:
        write_sidecar(out, job.sidecar(sha256=sha256, provenance=provenance))
    except ConfigError:
        # A model without its sidecar would be an incomplete output.
        out.unlink(missing_ok=True)
        sidecar_path(out).unlink(missing_ok=True)
        raise
    return Result(
        out=out,
        sha256=sha256,
        layers=len(job.layer_names),
        float_layers=tuple(float_layers),
        pictures=job.seen or len(job.pictures.images),
        unreadable=list(job.pictures.unreadable),
        cached=job.cached,
        calibration_seconds=job.calibration_seconds,
        calibration_sha256=job.pictures_sha256,
        verdict=verdict,
        forced=forced,
        sensitivity=harms,
        escalation=steps,
        finetuning=None if job.finetuning is None else (job.finetuning.before, job.finetuning.after),
    )
