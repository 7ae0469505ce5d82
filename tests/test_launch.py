"""A forked streamd behaves as one that is executed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

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
