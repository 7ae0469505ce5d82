"""The plan of a model: the one that was asked for, one that was built before, or one that is built now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.model import PLAN_SUFFIXES, model_file
from streamd.engine.sidecar import Sidecar, read_sidecar, write_sidecar
from streamd.engine.tensorrt import driver, outputs, plans
from streamd.engine.tensorrt.job import BuildOptions, Job, prepare
from streamd.engine.tensorrt.network import build_one, describe
from streamd.engine.tensorrt.plans import StagedPlan
from streamd.engine.tensorrt.version import OWN_EFFORT, load_trt
from streamd.errors import ConfigError

if TYPE_CHECKING:
    from streamd.engine.tensorrt import TensorRtSettings

log = structlog.get_logger(__name__)


def build(job: Job) -> tuple[Any, Sidecar]:
    """Builds the plan; minutes on a GPU.

    Returns:
        The serialized plan (a buffer), and its sidecar without the plan's own hash.

    Raises:
        ModelError: TensorRT cannot parse the model; each node that it rejects is named.
        BackendError: the builder failed.
    """
    _tell_effort(job)
    if job.recipe.precision == "fastest":
        from streamd.engine.tensorrt.fastest import build_fastest

        return build_fastest(job)
    return build_one(job)


def _tell_effort(job: Job) -> None:
    """Warns if the effort is not the one that was asked for."""
    asked, effort = job.options.effort, job.recipe.effort
    if asked is None or asked == (OWN_EFFORT if effort is None else effort):
        return
    if effort is None:
        log.warning("effort is ignored: it changes no plan of this TensorRT", effort=asked, tensorrt=str(job.trt))
    else:
        log.warning(
            "this TensorRT has no such effort; the nearest is used", effort=asked, used=effort, tensorrt=str(job.trt)
        )


def build_into(job: Job, out: Path) -> Sidecar:
    """Builds and writes plan and sidecar, atomically. Returns the sidecar as written."""
    with StagedPlan(out) as staged:
        plan, sidecar = build(job)
        sidecar = staged.write(memoryview(plan), sidecar)
        staged.commit()
        return sidecar


def plan_for(model: ModelSettings, settings: TensorRtSettings, batch: BatchSettings, *, profiles: int = 1) -> Path:
    """The plan to run: the given one, one built earlier that fits exactly, or one built now.

    Args:
        model: a plan (.plan, .engine, .trt) or an ONNX model.
        settings: where plans are kept, and how they are built.
        batch: limits the largest batch of a plan built here.
        profiles: optimisation profiles wanted (see `Trt.profile_per_context`).

    Raises:
        ModelError: the model or plan cannot be used here.
        ConfigError: settings contradict it, or there is no folder to keep a plan in.
        BackendError: no TensorRT, no GPU, or the build failed.
    """
    path = model_file(model.path)
    if path.suffix.lower() in PLAN_SUFFIXES:
        plans.check_plan(path, load_trt(), driver.find_gpu(settings.ordinal))
        return path
    options = BuildOptions(
        precision=settings.precision,
        profiles=profiles,
        workspace_mb=settings.workspace_mb,
        effort=settings.effort,
        device=settings.ordinal,
        input_size=model.input_size,
        float_model=model_file(settings.float_model) if settings.float_model is not None else None,
    )
    job = prepare(path, options, most=batch.max)
    folders = plans.plan_folders(path, settings.cache_dir)
    found, _ = plans.find_plan(job.recipe, job.source, folders)
    if found is None:
        found = _build_once(job, folders)
    _refresh(found, job)
    return found


def _build_once(job: Job, folders: list[Path]) -> Path:
    """Builds the plan in the first writable folder, unless another process has just done so."""
    folder = plans.writable_folder(folders)
    out = folder / f"{job.onnx.path.stem}-{job.recipe.key[:16]}.plan"
    with plans.building(folder, out.name):
        found, reason = plans.find_plan(job.recipe, job.source, folders)
        if found is not None:
            return found
        log.info(
            "building an engine plan; this may take minutes", model=str(job.onnx.path), reason=reason, plan=str(out)
        )
        timing = folder / _timing_name(job)
        sidecar = build_into(replace(job, options=replace(job.options, timing_cache=timing)), out)
        assert sidecar.provenance is not None
        log.info("engine plan built", plan=str(out), seconds=sidecar.provenance.build_seconds)
    return out


def _timing_name(job: Job) -> str:
    """A cache of its own for each effort: what a short search found best may not end a longer one."""
    effort = "" if job.recipe.effort is None else f"-effort{job.recipe.effort}"
    return f"streamd-{job.trt.name}-{job.trt.version_text}{effort}.timing"


def _refresh(plan: Path, job: Job) -> None:
    """Copies class names and the like to a reused plan if the model's own sidecar has changed since."""
    old = read_sidecar(plan)
    fresh = describe(job, 0.0).model_copy(update={"sha256": old.sha256, "provenance": old.provenance})
    if fresh.head is None and old.head == outputs.DECLARED:
        fresh = fresh.model_copy(update={"head": old.head})
    if fresh != old:
        try:
            write_sidecar(plan, fresh)
        except ConfigError as error:
            raise ConfigError(
                f"plan {plan}: the model's sidecar has changed since, and the plan's own cannot be updated: {error}"
            ) from error
