"""The tests' own daemon: a start that fails tells why."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.behaviour.daemon import Running, daemon, until

HANGS = "import faulthandler, time; faulthandler.enable(); print('{}', flush=True); time.sleep(60)"


def running(folder: Path, *command: str) -> Running:
    with (folder / "log").open("w") as out:
        process = subprocess.Popen([sys.executable, *command], stdout=out, stderr=out, text=True)
    return Running(process, folder / "log", folder / "c.yaml")


def test_a_start_that_ends_shows_its_exit_code_and_log(tmp_path: Path) -> None:
    ended = running(tmp_path, "-m", "streamd", "run", str(tmp_path / "none.yaml"))
    ended.process.wait(30)
    with pytest.raises(AssertionError, match=r"(?s)ended before it had a port.*exit code 2.*none\.yaml"):
        until(lambda: ended.port, 5, "the daemon starts")


def test_a_start_that_hangs_shows_where(tmp_path: Path) -> None:
    hangs = running(tmp_path, "-c", HANGS)
    until(lambda: "{}" in (tmp_path / "log").read_text(), 20)
    with pytest.raises(
        AssertionError, match=r"(?s)not within 0.2 s: the daemon starts.*was running.*Fatal Python error"
    ):
        until(lambda: hangs.port, 0.2, "the daemon starts")
    assert hangs.process.wait(5) == -signal.SIGABRT


def test_a_good_start_is_no_news(tmp_path: Path) -> None:
    with daemon(tmp_path, "model: {path: none}\nengine: {kind: 'null'}\nstreams: [{id: a, kind: synthetic}]\n") as good:
        assert good.get("/healthz")[0] == 200
