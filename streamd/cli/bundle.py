"""`streamd bundle CONFIG`: has a daemon that runs write what it remembers."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Any

from streamd.errors import ConfigError, SinkError
from streamd.recorder.bundle import bundles
from streamd.recorder.place import config_name, default_folder, pid_file
from streamd.yamlfile import read_yaml

UNIT_FOLDER = Path("/var/lib/streamd/bundles")
"""Where the unit in systemd/ has them."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser("bundle", help="have a running daemon write its last seconds into a bundle, for support")
    p.add_argument("config", metavar="CONFIG", help="the configuration file that it runs")
    p.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="wait so long for it (default 30)")


def _folder(path: Path) -> Path:
    """Reads nothing but the one field: the secrets of the rest need not be in the operator's environment."""
    try:
        values = read_yaml(path.read_text(encoding="utf-8"), os.environ).values
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    section = values.get("recorder") if isinstance(values, dict) else None
    folder = section.get("folder") if isinstance(section, dict) else None
    if isinstance(folder, str):
        return (path.parent / Path(folder).expanduser()).absolute()
    return default_folder() or UNIT_FOLDER


def _process(folder: Path, path: Path) -> int:
    """The process that records for the configuration."""
    file = pid_file(folder, config_name(path))
    with contextlib.suppress(OSError, ValueError), file.open() as opened:
        pid = int(opened.read())
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return pid  # its lock says that it lives
    raise ConfigError(
        f"{path}: no daemon of this configuration records into {folder}; start it, or set recorder.folder if it runs"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the bundle's path.

    Raises:
        ConfigError: no such daemon.
        SinkError: it may not be asked, or has not answered.
    """
    path = Path(args.config)
    folder = _folder(path)
    pid = _process(folder, path)
    before = set(bundles(folder, config_name(path)))
    try:
        os.kill(pid, signal.SIGUSR2)
    except OSError as error:
        raise SinkError(f"process {pid} cannot be asked: {error.strerror}; run this as its user, or as root") from error
    deadline = time.monotonic() + args.timeout
    while time.monotonic() < deadline:
        for found in reversed(bundles(folder, config_name(path), "request")):
            if found not in before:
                print(found)
                return 0
        time.sleep(0.05)
    raise SinkError(f"process {pid} wrote no bundle into {folder} within {args.timeout:g} s; its log says why")
