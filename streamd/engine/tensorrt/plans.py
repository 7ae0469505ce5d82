"""Plans on disk: what a plan was built for, whether it fits, where it is kept, and how it is written atomically.

A plan runs only with the TensorRT version and GPU it was built with, and its bytes do not say which model it came from.
Its sidecar therefore has a key, the SHA-256 of everything that the plan depends on, and the SHA-256 of the plan itself:
a plan whose key or hash differs is never loaded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from streamd.engine.model import ASSETS, PLAN_SUFFIXES, sha256_of
from streamd.engine.sidecar import Provenance, Sidecar, read_sidecar, sidecar_path, write_sidecar
from streamd.engine.tensorrt.driver import Gpu
from streamd.engine.tensorrt.version import Trt, parse_version
from streamd.errors import ConfigError, ModelError
from streamd.security.trust import distrust, distrust_acl

log = structlog.get_logger(__name__)

ANY_RTX = "any GPU TensorRT-RTX supports"
ANY_AMPERE = "any GPU of compute capability 8.0 or later"
REVISION = 2
"""Revision of the builder's own changes to a network. Increase it with any such change, to invalidate older plans."""
VERSION_COMPATIBLE = " (version compatible)"
"""Suffix of `Provenance.tensorrt` for a plan that later versions can also run."""
_ADDED = ("float_sha256", "effort")
"""Fields of `Recipe` that are younger than plans which are in use."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a plan. Two plans with the same recipe are equivalent."""

    model_sha256: str
    precision: str
    """fp32, fp16, int8, mixed, or fastest (the faster of INT8 and FP16), never auto."""
    profile: tuple[int, int, int]
    """Batch: minimum, optimum, maximum."""
    tensorrt: str
    gpu: str
    input_size: tuple[int, int]
    """Height and width in pixels."""
    profiles: int = 1
    workspace_mb: int = 1024
    calibration_sha256: str | None = None
    revision: int = REVISION
    float_sha256: str | None = None
    """SHA-256 of the float model that a quantized one was made from, where it is used."""
    effort: int | None = None
    """How thoroughly the builder searches, 0 to 5. None: TensorRT's own default."""

    @property
    def key(self) -> str:
        """Hex SHA-256 over all of it."""
        # Plans built without a float model, or without a given effort, keep the key of before these fields existed.
        values = {k: v for k, v in asdict(self).items() if k not in _ADDED or v is not None}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def differs(self, other: Provenance) -> str:
        """Why a plan with that provenance does not match, in words."""
        theirs = "fastest" if other.compared_ms else other.precision
        pairs: Sequence[tuple[str, object, object]] = (
            ("the model has changed", other.source_sha256, self.model_sha256),
            (f"built by TensorRT {other.tensorrt}, installed is {self.tensorrt}", other.tensorrt, self.tensorrt),
            (f"built for {other.gpu}, this GPU is {self.gpu}", other.gpu, self.gpu),
            (f"precision {theirs}, wanted {self.precision}", theirs, self.precision),
            (f"effort {_effort(other.effort)}, wanted {_effort(self.effort)}", other.effort, self.effort),
            (f"batches of {_batches(other.profile)}, wanted {_batches(self.profile)}", other.profile, self.profile),
        )
        reasons = [text for text, its, ours in pairs if its != ours]
        return "; ".join(reasons) or "built with other options or by another version of streamd"


def _batches(profile: tuple[int, int, int] | None) -> str:
    return "/".join(map(str, profile)) if profile else "unknown size"


def _effort(effort: int | None) -> str:
    return "TensorRT's own" if effort is None else str(effort)


def built_by(trt: Trt, *, version_compatible: bool = False) -> str:
    """`Provenance.tensorrt`: marks RTX, whose plans are incompatible with TensorRT's."""
    prefix = "RTX " if trt.is_rtx else ""
    return f"{prefix}{trt.version_text}{VERSION_COMPATIBLE if version_compatible else ''}"


def built_for(trt: Trt, gpu: Gpu | None, *, hardware_compatible: bool = False) -> str:
    """`Provenance.gpu`."""
    if trt.is_rtx or gpu is None:
        return ANY_RTX
    return ANY_AMPERE if hardware_compatible else str(gpu)


def _misfit(provenance: Provenance, trt: Trt, gpu: Gpu | None) -> str | None:
    """Why the plan cannot run here, or None."""
    here = built_by(trt)
    if provenance.tensorrt is not None:
        theirs = provenance.tensorrt.removesuffix(VERSION_COMPATIBLE)
        portable = provenance.tensorrt.endswith(VERSION_COMPATIBLE)
        same_kind = theirs.startswith("RTX ") == trt.is_rtx
        # Forward compatibility only, as the vendor guarantees.
        newer = portable and same_kind and parse_version(theirs.removeprefix("RTX ")) <= trt.version
        if theirs != here and not newer:
            return f"was built by TensorRT {provenance.tensorrt}, this is {here}"
    if provenance.gpu is None or gpu is None or provenance.gpu in (ANY_RTX, str(gpu)):
        return None
    if provenance.gpu == ANY_AMPERE and gpu.capability >= (8, 0):
        return None
    return f"was built for {provenance.gpu}, this is {gpu}"


def check_plan(path: Path, trt: Trt, gpu: Gpu | None) -> None:
    """Checks a plan that the user named against its sidecar.

    Raises:
        ModelError: it was truncated or replaced, or built for another TensorRT or GPU.
    """
    sidecar = read_sidecar(path)
    if sidecar.sha256 is None and sidecar.provenance is None:
        log.warning(
            "engine plan has no sidecar: its origin cannot be verified, and class names are guessed",
            plan=str(path),
            advice="build it with `streamd build`",
        )
    if sidecar.provenance is not None and (why := _misfit(sidecar.provenance, trt, gpu)) is not None:
        raise ModelError(
            f"plan {path}: {why}; a plan runs only where it was built: rebuild it here with `streamd build`, or "
            "give the ONNX model"
        )
    if sidecar.sha256 is not None and sha256_of(path) != sidecar.sha256:
        raise ModelError(
            f"plan {path}: is not the file that its sidecar describes (truncated, damaged or replaced); copy both "
            "again or rebuild it with `streamd build`"
        )


def find_plan(recipe: Recipe, source: str, folders: Sequence[Path]) -> tuple[Path | None, str]:
    """A plan in `folders` that matches the recipe exactly, otherwise None and the reason, for the log.

    Args:
        recipe: the recipe to match.
        source: file name of the model, to distinguish its outdated plans from those of other models.
        folders: searched in order; missing ones are skipped.
    """
    reason = "no plan has been built yet"
    for folder in folders:
        for plan in _plans_in(folder):
            try:
                sidecar = read_sidecar(plan)
            except ConfigError:
                continue
            provenance = sidecar.provenance
            if provenance is None or provenance.source != source:
                continue
            if (doubt := distrust(plan.stat()) or distrust_acl(plan)) is not None:
                reason = f"{plan.name} is not trusted: {doubt}"
            elif provenance.key != recipe.key:
                reason = f"{plan.name} does not fit: {recipe.differs(provenance)}"
            elif sidecar.sha256 != sha256_of(plan):
                reason = f"{plan.name} is not the file that its sidecar describes"
            else:
                return plan, ""
    return None, reason


def _plans_in(folder: Path) -> list[Path]:
    try:
        # Newest first; hidden files are unfinished files of another builder.
        found = [p for p in folder.iterdir() if p.suffix in PLAN_SUFFIXES and not p.name.startswith(".")]
        return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)
    except OSError:
        return []


def user_cache() -> Path:
    """systemd's CacheDirectory=, otherwise the user's cache folder."""
    given = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "streamd"


def plan_folders(model: Path, cache_dir: str | None) -> list[Path]:
    """Folders in which a plan of `model` is searched; a new one is kept in the first writable one."""
    if cache_dir is not None:
        return [Path(os.path.expanduser(cache_dir))]
    if model.parent == ASSETS:
        return [user_cache()]  # never write into an installed package
    return [model.absolute().parent, user_cache()]


def writable_folder(folders: Sequence[Path]) -> Path:
    """The first writable one of `folders`; created if missing.

    Raises:
        ConfigError: none is writable.
    """
    reasons = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
    raise ConfigError(
        f"engine.cache_dir: no writable folder for the built plan ({'; '.join(reasons)}); name a writable one"
    )


@contextlib.contextmanager
def building(folder: Path, name: str) -> Iterator[None]:
    """Holds the lock for building `name` in `folder`; waits for another process that has it. Released if we die."""
    path = folder / f".{name}.lock"
    try:
        handle = path.open("w")
    except OSError as error:
        raise ConfigError(f"lock {path}: cannot be opened: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                log.info("waiting for another process that is building the same plan", lock=str(path))
                fcntl.flock(handle, fcntl.LOCK_EX)
            else:
                # A file system without locks: at worst the same plan is built twice, and each rename is atomic.
                log.debug("folder does not support locks", folder=str(folder), reason=error.strerror)
        yield


class StagedPlan:
    """A plan and its sidecar, written under hidden names beside their final ones. A context manager.

    `path` can be loaded like any plan. `commit` moves both into place; leaving without it removes them, so that a full
    disk, a failed gate or a crash leaves the previous files unchanged.

    Args:
        out: the final path.

    Raises:
        ConfigError: the folder of `out` is missing or not writable. Raised at once, before minutes of building.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        if out.is_dir():
            raise ConfigError(f"plan {out}: is a folder; give the path of a file")
        try:
            suffix = out.suffix if out.suffix in PLAN_SUFFIXES else ".plan"
            handle, name = tempfile.mkstemp(suffix, f".{out.stem}.", out.parent)
            os.close(handle)
        except OSError as error:
            raise ConfigError(f"plan {out}: cannot be written in {out.parent}: {error.strerror}") from error
        self.path = Path(name)

    def __enter__(self) -> StagedPlan:
        return self

    def __exit__(self, *_: object) -> None:
        for path in (self.path, sidecar_path(self.path)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def write(self, plan: memoryview, sidecar: Sidecar) -> Sidecar:
        """Writes both, and returns the sidecar with the plan's hash.

        Raises:
            ModelError: the disk is full or failing.
            ConfigError: the sidecar cannot be written.
        """
        try:
            with self.path.open("wb") as handle:
                handle.write(plan)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise ModelError(
                f"plan {self.out}: {plan.nbytes / 2**20:.0f} MiB cannot be written: {error.strerror}; "
                "no partial file remains"
            ) from error
        sidecar = sidecar.model_copy(update={"sha256": hashlib.sha256(plan).hexdigest()})
        write_sidecar(self.path, sidecar)
        # A temporary file is readable by its creator only, but the daemon may run as another user.
        self.path.chmod(sidecar_path(self.path).stat().st_mode & 0o777)
        return sidecar

    def commit(self) -> None:
        """Moves plan and sidecar into place.

        Raises:
            ModelError: they cannot be renamed.
        """
        try:
            # A crash between the two leaves a plan that does not match its sidecar: it is rejected and rebuilt.
            self.path.replace(self.out)
            sidecar_path(self.path).replace(sidecar_path(self.out))
        except OSError as error:
            raise ModelError(f"plan {self.out}: cannot be moved into place: {error.strerror}") from error
