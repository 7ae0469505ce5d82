"""Starts and stops the real RTSP server of `rtsp_server.py`."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"
SCRIPT = Path(__file__).with_name("rtsp_server.py")
PACKAGES = (
    "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad python3-gi"
)


class Server:
    """A running server on `port`."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def url(self, mount: str, credentials: str = "") -> str:
        return f"rtsp://{credentials}127.0.0.1:{self.port}/{mount}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def rtsp_server(*mounts: str, port: int = 0, user: str = "", password: str = "") -> Iterator[Server]:
    """Serves `mounts` (NAME=FILE:CODEC); skips, or fails in CI, where GStreamer is not installed."""
    command = [SYSTEM_PYTHON, str(SCRIPT), "--port", str(port)]
    if user:
        command += ["--user", user, "--password", password]
    process = subprocess.Popen([*command, *mounts], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    if not line.strip().isdigit():
        process.kill()
        message = f"GStreamer's RTSP server does not start (apt-get install {PACKAGES}): {process.stderr.read()[-300:]}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    server = Server(process, int(line))
    try:
        yield server
    finally:
        server.kill()
        process.stdout.close()
        process.stderr.close()
