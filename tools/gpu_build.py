"""Separate processes of `gpu_suite.py`: the builds of its plans, and PyTorch for comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Table = dict[str, Any]
_LINE = 160


@dataclass(frozen=True)
class Wanted:
    """One plan to build, given as NAME=MODEL:PRECISION:MIN,BEST,MAX."""

    name: str
    model: Path
    precision: str
    batch: tuple[str, ...]
    effort: int | None = None
    """None: TensorRT's own."""

    @classmethod
    def of(cls, text: str) -> Wanted:
        """Raises ValueError, which argparse turns into a message."""
        name, _, rest = text.partition("=")
        model, precision, batch = rest.rsplit(":", 2)
        least, best, most = batch.split(",")
        return cls(name, Path(model), precision, (least, best, most))

    def at(self, effort: int | None) -> Wanted:
        """The same plan at that effort, called NAME-effortN; None: TensorRT's own, under its own name."""
        return self if effort is None else replace(self, name=f"{self.name}-effort{effort}", effort=effort)

    def start(self, out: Path, preload: Path | None = None) -> subprocess.Popen[bytes]:
        """Runs `streamd build` into `out`, with its output in NAME.log there, and with the library `preload`."""
        files = ["--out", str(out / f"{self.name}.plan"), "--timing-cache", str(out / f"{self.name}.timing")]
        options = ["--precision", self.precision, "--batch", *self.batch, "--workspace", "2048", "--force"]
        options += [] if self.effort is None else ["--effort", str(self.effort)]
        environment = os.environ | ({} if preload is None else {"LD_PRELOAD": str(preload)})
        with (out / f"{self.name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "streamd", "build", str(self.model), *files, *options],
                cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip


def clock_rates(out: Path) -> Path:
    """Compiles `clock_rates.c` into `out`; it says what it is good for."""
    library = out.resolve() / "clock_rates.so"
    source = ROOT / "tools" / "clock_rates.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def effort_of(text: str) -> int | None:
    """0 to 5, or None for `own`. Raises ValueError, which argparse turns into a message."""
    if text == "own":
        return None
    if text not in tuple("012345"):
        raise ValueError(text)
    return int(text)


def build_all(
    wanted: Iterable[Wanted],
    out: Path,
    *,
    jobs: int,
    limit_s: float,
    keep: Callable[[str, Table], None],
    preload: Path | None = None,
) -> list[Path]:
    """Builds `jobs` plans at a time, in the order given; one that takes longer than `limit_s` is ended.

    Simultaneous builds run in turns on the GPU, unless an MPS server lets them share it.

    Args:
        keep: called as each build ends, with its seconds and exit code, or the information that it was ended.
        preload: a library for every build, see `clock_rates`.

    Returns:
        The plans that were made.
    """
    waiting, made = list(wanted), []
    running: list[tuple[Wanted, subprocess.Popen[bytes], float]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            each = waiting.pop(0)
            running.append((each, each.start(out, preload), time.monotonic()))
        time.sleep(0.2)
        for item in list(running):
            each, process, begun = item
            seconds = time.monotonic() - begun
            late = process.poll() is None
            if late and seconds < limit_s:
                continue
            running.remove(item)
            if late:
                process.kill()
            code = process.wait()
            result: Table = {"seconds": round(seconds)} | ({"late": True} if late else {"exit": code})
            if code == 0:
                made.append(out / f"{each.name}.plan")
            else:
                lines = (out / f"{each.name}.log").read_text(errors="replace").strip().splitlines()
                result["said"] = [line[-_LINE:] for line in lines[-2:]]
            keep(each.name, result)
    return made


def torch(python: str, model: Path, batches: Iterable[int], out: Path) -> Table:
    """Runs `torch_baseline.py` with another Python that has PyTorch; returns milliseconds by batch size."""
    command = [python, str(ROOT / "tools" / "torch_baseline.py"), str(model), "--json", str(out / "torch.json")]
    # Our own libraries and packages belong to another Python.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LD_LIBRARY_PATH", "PYTHONHOME")}
    done = subprocess.run(
        [*command, "--batch", *map(str, batches)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"exit": done.returncode, "said": done.stderr[-400:]}
    found: Table = json.loads((out / "torch.json").read_text())
    return found
