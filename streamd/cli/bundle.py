"""`streamd bundle CONFIG`: makes a running daemon write its flight recorder's content to a file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from streamd.config.yamlfile import MAX_BYTES, read_yaml
from streamd.errors import ConfigError, NoAnswerError
from streamd.runtime.recorder.place import config_name, default_folder
from streamd.runtime.recorder.request import recording, signalled, written
from streamd.security.trust import read_text

UNIT_FOLDER = Path("/var/lib/streamd/bundles")
"""The bundle folder of the unit in systemd/."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "bundle",
        help="make a running daemon write its most recent history to a support bundle",
        description="Makes the daemon that runs CONFIG write a support bundle, and prints its path. Run it as root or "
        "as the daemon's user. The bundle holds no credentials.",
    )
    p.add_argument("config", metavar="CONFIG", help="configuration file that the daemon was started with")
    p.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="how long to wait for the bundle (default 30)"
    )


def _folder(path: Path) -> Path:
    """Reads this one field only: the operator's environment need not hold the secrets of the rest."""
    try:
        text = read_text(path, MAX_BYTES, what=str(path), expected="the configuration that the daemon was started with")
        values = read_yaml(text, os.environ, path.parent, secrets=False).values
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    section = values.get("recorder") if isinstance(values, dict) else None
    folder = section.get("folder") if isinstance(section, dict) else None
    if isinstance(folder, str):
        return (path.parent / os.path.expanduser(folder)).absolute()
    return default_folder() or UNIT_FOLDER


def _processes(folder: Path, path: Path) -> dict[str, int]:
    found = recording(folder, config_name(path))
    if not found:
        advice = "start it"
        if folder == UNIT_FOLDER:
            advice = "start its service, or set recorder.folder if it does not run as one"
        raise NoAnswerError(f"{path}: no daemon with this configuration records to {folder}; {advice}")
    return found


def run(args: argparse.Namespace) -> int:
    """Prints the path of each bundle.

    Raises:
        ConfigError: the configuration cannot be read.
        NoAnswerError: no such daemon is running, or it did not answer in time.
        SinkError: it cannot be signalled.
    """
    path = Path(args.config)
    folder = _folder(path)
    processes = _processes(folder, path)
    for bundle in written(folder, processes, lambda: signalled(processes), args.timeout):
        print(bundle, flush=True)
    return 0
