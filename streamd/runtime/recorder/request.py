"""Asking recording processes for bundles, from the same or another process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from streamd.config import RecorderSettings
from streamd.errors import SinkError
from streamd.runtime.recorder.bundle import bundles
from streamd.runtime.recorder.place import default_folder, pid_file

NOT_RECORDING = "the flight recorder is not running; set recorder.folder, and recorder.keep above 0"
PATIENCE_S = 20.0
"""How long somebody in front of a browser waits for bundles."""


def of_workers(settings: RecorderSettings, name: str) -> list[Path]:
    """A new bundle of each worker process.

    Args:
        settings: the configuration's.
        name: of the parent's configuration.

    Raises:
        SinkError: no worker records, or one wrote no bundle in time.
    """
    folder = Path(settings.folder) if settings.folder is not None else default_folder()
    processes = recording(folder, name) if folder is not None and settings.keep else {}
    if folder is None or not processes:
        raise SinkError(NOT_RECORDING)
    return list(written(folder, processes, lambda: signalled(processes), PATIENCE_S))


def recording(folder: Path, name: str) -> dict[str, int]:
    """The living processes that record a configuration, by the name of their bundles: one, or one per worker."""
    found = {}
    for file in (pid_file(folder, name), *sorted(folder.glob(f"{name}-worker[0-9]*.pid"))):
        with contextlib.suppress(OSError, ValueError), file.open() as opened:
            pid = int(opened.read())
            try:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found[file.stem] = pid  # a held lock means that it is alive
    return found


def signalled(pids: Mapping[str, int]) -> None:
    """Asks processes for a bundle.

    Raises:
        SinkError: one cannot be signalled.
    """
    for pid in pids.values():
        try:
            os.kill(pid, signal.SIGUSR2)
        except OSError as error:
            message = f"process {pid} cannot be signalled: {error.strerror}; run this command as its user, or as root"
            raise SinkError(message) from error


def written(folder: Path, pids: Mapping[str, int], ask: Callable[[], None], timeout_s: float) -> Iterator[Path]:
    """Asks for bundles, and yields each as soon as it is there.

    Args:
        folder: of the bundles.
        pids: the processes that are asked, by the name of their bundles.
        ask: asks them.
        timeout_s: how long to wait for all of them, seconds.

    Raises:
        SinkError: a process wrote none in time.
    """
    waiting = dict(pids)
    before = {bundle for name in waiting for bundle in bundles(folder, name)}
    ask()
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for name in list(waiting):
            new = [bundle for bundle in bundles(folder, name, "request") if bundle not in before]
            if new:
                yield new[-1]
                del waiting[name]
        if not waiting:
            return
        time.sleep(0.05)
    processes = ", ".join(map(str, waiting.values()))
    raise SinkError(
        f"process {processes} wrote no bundle to {folder} within {timeout_s:g} s; see its log for the reason"
    )
