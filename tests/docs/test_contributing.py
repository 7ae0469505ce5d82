"""What CONTRIBUTING.md shows works as it stands there: its sink, installed as its package, receives messages."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.behaviour.daemon import daemon, until
from tests.conftest import ROOT
from tests.docs.plugins import install
from tests.messages import checked

GUIDE = ROOT / "CONTRIBUTING.md"


def fence(language: str) -> str:
    """The only example in `language` of the section about sinks."""
    section = GUIDE.read_text().split("\n## Write a sink in thirty lines\n")[1].split("\n## ")[0]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("udp")
    package = folder / "package"
    package.mkdir()
    (package / "udp_sink.py").write_text(fence("python"))
    (package / "pyproject.toml").write_text(fence("toml"))
    return install(package, folder / "installed")


def test_the_sink_has_thirty_lines() -> None:
    assert sum(bool(line.strip()) for line in fence("python").splitlines()) <= 30


def test_the_sink_receives_every_frame(plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", plugin)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reader:
        reader.bind(("127.0.0.1", 0))
        reader.settimeout(20)
        config = f"""
model: {{path: none}}
engine: {{kind: "null"}}
streams: [{{id: a, kind: synthetic, width: 64, height: 64, fps: 50}}]
sinks: [{{kind: udp, host: 127.0.0.1, port: {reader.getsockname()[1]}}}]
"""
        with daemon(tmp_path, config) as running:
            received = [reader.recv(65_536) for _ in range(20)]
            # A message is counted after it was sent.
            until(lambda: running.value("streamd_sink_messages_total", sink="udp0") >= 20)
    messages = [checked([b"streamd/1/a/detections", payload]) for payload in received]
    assert [getattr(m, "seq", None) for m in messages] == list(range(20))
    assert json.loads(received[0])["detections"]


def test_a_wrong_field_is_named_with_its_line(plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", plugin)
    config = tmp_path / "streamd.yaml"
    config.write_text("model: {path: none}\nsinks:\n  - {kind: udp, host: 127.0.0.1, port: 70000}\n")
    command = [sys.executable, "-m", "streamd", "check", "--no-model", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"{config}:3: sinks[0].port: " in done.stdout
