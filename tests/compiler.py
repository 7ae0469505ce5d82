"""Compiles the package's C files for the tests, whatever was installed, with every warning an error."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from streamd.analysis.tracking import native

_FLAGS = ("-O2", "-ffp-contract=off", "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def shared_library(folder: Path, sources: Sequence[Path]) -> str:
    """The path of a library made of `sources`, in a folder of its own."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "a C compiler is needed, such as Debian's gcc"
    built = folder / f"{sources[0].stem}.so"
    subprocess.run([compiler, *_FLAGS, "-o", str(built), *map(str, sources), "-lm"], check=True)
    return str(built)


def tracking_library(folder: Path) -> native.Library:
    """ByteTrack's step, compiled."""
    names = ("frames.c", "bytetrack.c", "associate.c", "select.c")
    found = native.library(shared_library(folder, [Path(native.__file__).with_name(name) for name in names]))
    assert found is not None
    return found
