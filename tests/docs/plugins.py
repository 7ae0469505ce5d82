"""Installs a package with kinds of its own beside streamd, as pip would, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def install(package: Path, target: Path) -> str:
    """Installs into `target` without a network; returns the PYTHONPATH under which streamd finds it."""
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"),
        *("--no-deps", "--no-build-isolation", "--no-cache-dir", "--target", str(target), str(package)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))
