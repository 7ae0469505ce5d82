"""`streamd bundle CONFIG`: makes a running daemon write its flight recorder's content to a file."""

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
from streamd.runtime.recorder.bundle import bundles
from streamd.runtime.recorder.place import config_name, default_folder, pid_file
from streamd.security.trust import read_text

UNIT_FOLDER = Path("/var/lib/streamd/bundles")
"""The bundle folder of the unit in systemd/."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser("bundle", help="make a running daemon write its most recent history to a support bundle")
    p.add_argument("config", metavar="CONFIG", help="configuration file that the daemon was started with")
    p.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="how long to wait for the bundle (default 30)"
    )


def _folder(path: Path) -> Path:
    """Reads this one field only: the operator's environment need not hold the secrets of the rest."""
    try:
        text = read_text(path, MAX_BYTES, what=str(path), expected="configuration that the daemon was started with")
        values = read_yaml(text, os.environ, path.parent, secrets=False).values
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    section = values.get("recorder") if isinstance(values, dict) else None
    folder = section.get("folder") if isinstance(section, dict) else None
    if isinstance(folder, str):
        return (path.parent / os.path.expanduser(folder)).absolute()
    return default_folder() or UNIT_FOLDER


def _processes(folder: Path, path: Path) -> dict[str, int]:
    """The recording processes of the configuration by bundle name: one, or one per worker."""
    name = config_name(path)
    found = {}
    for file in (pid_file(folder, name), *sorted(folder.glob(f"{name}-worker[0-9]*.pid"))):
        with contextlib.suppress(OSError, ValueError), file.open() as opened:
            pid = int(opened.read())
            try:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found[file.stem] = pid  # a held lock means that it is alive
    if not found:
        advice = "start it, or set recorder.folder if it is running"
        raise ConfigError(f"{path}: no daemon with this configuration records to {folder}; {advice}")
    return found


def run(args: argparse.Namespace) -> int:
    """Prints the path of each bundle.

    Raises:
        ConfigError: no such daemon is running.
        SinkError: it cannot be signalled, or did not answer in time.
    """
    path = Path(args.config)
    folder = _folder(path)
    waiting = _processes(folder, path)
    before = {bundle for name in waiting for bundle in bundles(folder, name)}
    for pid in waiting.values():
        try:
            os.kill(pid, signal.SIGUSR2)
        except OSError as error:
            message = f"process {pid} cannot be signalled: {error.strerror}; run this command as its user, or as root"
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
    raise SinkError(f"process {pids} wrote no bundle to {folder} within {args.timeout:g} s; see its log for the reason")
