"""Installs a package with kinds of its own beside streamd, as pip would, and runs its tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def install(package: Path, target: Path) -> str:
    """Installs into `target` without a network; returns the PYTHONPATH under which streamd finds it."""
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"),
        *("--no-deps", "--no-build-isolation", "--no-cache-dir", "--target", str(target), str(package)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))


def passed(tests: Path, python: str = sys.executable, timeout: float = 110) -> str:
    """Runs a file of tests by itself in its folder; returns what pytest counted.

    Args:
        tests: the file.
        python: of another environment, which has a streamd of its own.
        timeout: seconds.
    """
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tests.parent), tests.name]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    if python == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tests.parent, timeout=timeout, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1].partition(" in ")[0]
