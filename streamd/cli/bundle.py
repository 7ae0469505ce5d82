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

from streamd.config.yamlfile import MAX_BYTES, read_yaml
from streamd.errors import ConfigError, SinkError
from streamd.recorder.bundle import bundles
from streamd.recorder.place import config_name, default_folder, pid_file
from streamd.security.trust import read_text

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
        text = read_text(path, MAX_BYTES, what=str(path), expected="the configuration that the daemon runs")
        values = read_yaml(text, os.environ, path.parent, secrets=False).values
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    section = values.get("recorder") if isinstance(values, dict) else None
    folder = section.get("folder") if isinstance(section, dict) else None
    if isinstance(folder, str):
        return (path.parent / os.path.expanduser(folder)).absolute()
    return default_folder() or UNIT_FOLDER


def _processes(folder: Path, path: Path) -> dict[str, int]:
    """The processes that record for the configuration, by the name of their bundles: one, or one for each worker."""
    name = config_name(path)
    found = {}
    for file in (pid_file(folder, name), *sorted(folder.glob(f"{name}-worker[0-9]*.pid"))):
        with contextlib.suppress(OSError, ValueError), file.open() as opened:
            pid = int(opened.read())
            try:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found[file.stem] = pid  # its lock says that it lives
    if not found:
        advice = "start it, or set recorder.folder if it runs"
        raise ConfigError(f"{path}: no daemon of this configuration records into {folder}; {advice}")
    return found


def run(args: argparse.Namespace) -> int:
    """Prints the path of each bundle.

    Raises:
        ConfigError: no such daemon.
        SinkError: it may not be asked, or has not answered.
    """
    path = Path(args.config)
    folder = _folder(path)
    waiting = _processes(folder, path)
    before = {bundle for name in waiting for bundle in bundles(folder, name)}
    for pid in waiting.values():
        try:
            os.kill(pid, signal.SIGUSR2)
        except OSError as error:
            message = f"process {pid} cannot be asked: {error.strerror}; run this as its user, or as root"
            raise SinkError(message) from error
    deadline = time.monotonic() + args.timeout
    while time.monotonic() < deadline:
        for name in list(waiting):
            new = [bundle for bundle in bundles(folder, name, "request") if bundle not in before]
            if new:
                print(new[-1])
                del waiting[name]
        if not waiting:
            return 0
        time.sleep(0.05)
    pids = ", ".join(map(str, waiting.values()))
    raise SinkError(f"process {pids} wrote no bundle into {folder} within {args.timeout:g} s; its log says why")
