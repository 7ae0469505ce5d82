"""SIGHUP to a daemon that has just been started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal or handles it, as the kernel says."""
    masks = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return bool((int(masks["SigIgn"], 16) | int(masks["SigCgt"], 16)) >> (number - 1) & 1)


SCRIPT = "import sys; from streamd.cli import main; sys.exit(main())"
"""As the console script."""


def test_the_command_line_is_there_before_anything_large_is_loaded() -> None:
    script = "import sys, streamd.cli; print(*{'pydantic', 'numpy', 'av', 'structlog'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == ""


@pytest.mark.parametrize("entry", [["-m", "streamd"], ["-c", SCRIPT]])
def test_a_hangup_does_not_end_a_daemon_that_is_being_started(tmp_path: Path, entry: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {path: 'builtin:road6'}\nengine: {kind: 'null'}\nsinks: []\nmetrics: {listen: null}\n"
        "streams: [{id: a, kind: synthetic, fps: 10, width: 64, height: 64}]\n"
    )
    process = subprocess.Popen(
        [sys.executable, *entry, "run", str(path), "--for", "3"], stderr=subprocess.PIPE, text=True,
        executable=sys.executable,  # not forked: see tests/launch.py
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not ignores(process.pid, signal.SIGHUP):
        assert process.poll() is None
        assert time.monotonic() < deadline
    while process.poll() is None:
        os.kill(process.pid, signal.SIGHUP)
        time.sleep(0.05)
        assert time.monotonic() < deadline
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
