"""Packages of kinds that a daemon finds, without pip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def install(folder: Path, name: str, version: str, *, code: str, entries: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves a package of one module as pip would, for processes that start from now on.

    Args:
        folder: where it is written.
        name: of the distribution; that of the module has underscores.
        version: of the distribution.
        code: of the module.
        entries: content of `entry_points.txt`.
        monkeypatch: undoes it.
    """
    site, module = folder / "site", name.replace("-", "_")
    info = site / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entries)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH")))))
