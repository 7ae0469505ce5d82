"""Where bundles go and what they are called: known to the daemon and to `streamd bundle` alike."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path


def config_name(path: str | os.PathLike[str]) -> str:
    """What bundles of a configuration file are named after: its own name without the suffix."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", Path(path).stem) or "streamd"


def default_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Below the service manager's state folder; None where there is none."""
    state = environment.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(state) / "bundles" if state else None


def pid_file(folder: Path, config: str) -> Path:
    """Names the process that records for a configuration, which holds a lock on it."""
    return folder / f"{config}.pid"
