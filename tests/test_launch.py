"""A forked streamd behaves as one that is executed."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import launch
from tests.conftest import ROOT

CONFIG = """\
model: {path: none}
engine: {kind: 'null'}
metrics: {listen: null}
streams: [{id: "${CAM}", kind: synthetic}]
"""


@pytest.mark.parametrize("forked", [True, False])
def test_streams_folder_environment_and_codes(tmp_path: Path, forked: bool) -> None:
    options: dict[str, Any] = {} if forked else {"executable": sys.executable}
    (tmp_path / "c.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "streamd", "check", "c.yaml"]
    environment = os.environ | {"CAM": "gate"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "c.yaml: valid: 1 stream, 0 sinks\n"
    with (tmp_path / "out").open("w") as out:
        code = subprocess.call(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT, **options)
    assert code == 2
    assert "CAM" in (tmp_path / "out").read_text()
    command = [sys.executable, "-m", "streamd", "run", str(tmp_path / "c.yaml")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **options)
    assert process.stderr is not None
    assert process.stderr.readline()  # its log
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    begin = time.monotonic()
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    assert time.monotonic() - begin < 30
    process.stderr.close()


def test_only_what_acts_at_the_beginning_needs_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "streamd", "check", "c.yaml"]
    assert launch._can_fork(command, {})
    importlib.import_module("cv2")
    # As `import cv2` leaves it, also where another test did it.
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/venv/cv2/../../lib64:{os.environ.get('LD_LIBRARY_PATH', '')}")
    assert launch._can_fork(command, {})
    assert launch._can_fork(command, {"env": os.environ | {"CAM": "gate"}})
    assert not launch._can_fork(command, {"env": os.environ | {"LD_LIBRARY_PATH": "/elsewhere"}})
    assert not launch._can_fork(command, {"env": os.environ | {"PYTHONMALLOC": "debug"}})


PRIORITIES = """
import os, subprocess, sys
from tests import launch

def begin():
    command = [sys.executable, "-m", "streamd", "demo", "--help"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        return os.getpriority(os.PRIO_PROCESS, process.pid)

launch.install()
before = begin()
os.nice(3)
kept = begin()
launch.renew()
print(kept - before, begin() - before)
"""


def test_a_lower_priority_is_that_of_what_is_started_once_it_is_renewed() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("STREAMD_TEST_EXEC", None)
    done = subprocess.run(
        [sys.executable, "-c", PRIORITIES], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == (f"0 {min(3, 19 - os.nice(0))}\n", "")
