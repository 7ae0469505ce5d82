"""Location and names of bundles, shared by the daemon and `streamd bundle`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path


def config_name(path: str | os.PathLike[str]) -> str:
    """The name of a configuration in its bundles' file names: its file name without the suffix."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", Path(path).stem) or "streamd"


def default_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The default folder, below the service manager's state folder; None if there is none."""
    state = environment.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(state) / "bundles" if state else None


def pid_file(folder: Path, config: str) -> Path:
    """The file that names the process recording a configuration, which holds a lock on it."""
    return folder / f"{config}.pid"
