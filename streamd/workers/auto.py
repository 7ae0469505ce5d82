"""How many processes, and whether they share the GPU through MPS, where the configuration leaves that to streamd.

Measured on an H200 with 1080p streams of 25 frames/s: one process serves 32 of them, but not 64, since Python runs
under one lock. Eight processes reach the limit of the decoder chip, more gain nothing, and each takes 2.4 GiB of device
memory. Where several share a GPU, MPS halves the latency, since their kernels need not take turns. On a CPU the engine
uses all cores from one process.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass

import structlog

from streamd.config import Config
from streamd.engine.auto import AutoSettings, resolve, tensorrt_unavailable
from streamd.engine.tensorrt import TensorRtSettings, driver
from streamd.workers.mps import CONTROL

log = structlog.get_logger(__name__)

STREAMS_PER_WORKER = 16
MOST_PER_GPU = 8
CORES_PER_WORKER = 2
MIB_PER_WORKER = 3072
"""Of device memory: what a worker takes, and some for its decoders."""


@dataclass(frozen=True)
class Machine:
    """What the choice depends on.

    Attributes:
        gpus: of the engine.
        memory_mib: of the smallest of them.
        cores: that this process may use.
        mps: the control program is installed.
    """

    gpus: int
    memory_mib: int
    cores: int
    mps: bool


@dataclass(frozen=True)
class Choice:
    """Workers, whether they use MPS, and what limits their number."""

    workers: int
    mps: bool
    reason: str


def choose(streams: int, machine: Machine) -> Choice:
    """The number of processes for `streams` streams on GPUs."""
    limits = {
        f"{streams} streams, {STREAMS_PER_WORKER} per process": math.ceil(streams / STREAMS_PER_WORKER / machine.gpus),
        f"more than {MOST_PER_GPU} per GPU gain nothing": MOST_PER_GPU,
        f"{machine.cores} cores": machine.cores // CORES_PER_WORKER // machine.gpus,
        f"{machine.memory_mib} MiB of device memory": machine.memory_mib // MIB_PER_WORKER,
    }
    reason, each = min(limits.items(), key=lambda item: item[1])
    if streams <= STREAMS_PER_WORKER or each < 1:
        return Choice(1, False, reason)
    workers = each * machine.gpus
    return Choice(workers, machine.mps and each > 1, reason)


def settle(config: Config) -> Config:
    """`config` with numbers in place of `auto`. Logs what was chosen, and why.

    The engine `auto` becomes the one that it stands for if there is more than one process, since only TensorRT has
    anything to share.
    """
    engine = config.engine
    if config.workers != "auto":
        if isinstance(engine, TensorRtSettings) and engine.mps == "auto":
            use = config.workers > len(engine.devices) and shutil.which(CONTROL) is not None
            return _with(config, Choice(config.workers, use, "configured"))
        return config
    if len(config.streams) <= STREAMS_PER_WORKER:
        return _with(config, Choice(1, False, f"at most {STREAMS_PER_WORKER} streams"))
    if isinstance(engine, AutoSettings) and tensorrt_unavailable() is None:
        engine = resolve(config.model)
    if not isinstance(engine, TensorRtSettings):
        return _with(config, Choice(1, False, "no GPU"))
    return _with(config.model_copy(update={"engine": engine}), choose(len(config.streams), _machine(engine)))


def _machine(engine: TensorRtSettings) -> Machine:
    sizes = [driver.memory_mib(ordinal) for ordinal in engine.devices]
    cores = len(os.sched_getaffinity(0))
    return Machine(len(engine.devices), min(sizes), cores, shutil.which(CONTROL) is not None)


def _with(config: Config, choice: Choice) -> Config:
    engine = config.engine
    if isinstance(engine, TensorRtSettings):
        if choice.workers == 1 or (engine.mps == "auto" and not choice.mps):
            engine = engine.model_copy(update={"mps": False})
        if choice.workers > 1:
            log.info("workers", number=choice.workers, reason=choice.reason, mps=engine.mps is not False)
    return config.model_copy(update={"workers": choice.workers, "engine": engine})


def settle_like(config: Config, running: Config) -> Config:
    """`config` with what `running` has in place of `auto`: a reload changes neither."""
    update: dict[str, object] = {}
    if config.workers == "auto":
        update["workers"] = running.workers
    engine, now = config.engine, running.engine
    if isinstance(engine, AutoSettings) and isinstance(now, TensorRtSettings):
        update["engine"] = now
    elif isinstance(engine, TensorRtSettings) and isinstance(now, TensorRtSettings) and engine.mps == "auto":
        update["engine"] = engine.model_copy(update={"mps": now.mps})
    return config.model_copy(update=update)
