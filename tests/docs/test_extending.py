"""What docs/extending.md shows works as it stands there, installed as a package."""

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
from tests.docs.plugins import install, passed
from tests.messages import checked

MORE = ["centroid", "archive"]
TRACKER = '[project.entry-points."streamd.trackers.1"]\ncentroid = "centroid:CentroidSettings"\n'
GUIDE = ROOT / "docs" / "extending.md"


def fence(language: str, section: str = "Write a sink in thirty lines") -> str:
    """The only example in `language` of a section."""
    section = GUIDE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("udp")
    package = folder / "package"
    package.mkdir()
    (package / "udp_sink.py").write_text(fence("python"))
    (package / "centroid.py").write_text(fence("python", "Trackers"))
    (package / "archive.py").write_text(fence("python", "Settings"))
    toml = fence("toml").replace("[tool.", f"{TRACKER}\n[tool.").replace('["udp_sink"]', str(["udp_sink", *MORE]))
    (package / "pyproject.toml").write_text(
        toml.replace('udp = "udp', 'archive = "archive:ArchiveSettings"\nudp = "udp')
    )
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


def test_its_kinds_pass_the_contract_suites(plugin: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", plugin)
    (tmp_path / "test_udp.py").write_text(fence("python", "Test a plugin"))
    assert passed(tmp_path / "test_udp.py") == "4 passed, 3 skipped"
    tracker = "from streamd.testing.trackers import TrackerContract as Suite\nclass TestIt(Suite): kind = 'centroid'\n"
    (tmp_path / "test_centroid.py").write_text(tracker)
    assert re.fullmatch(r"\d\d passed", passed(tmp_path / "test_centroid.py"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("least: 0.9, most: 0.3", "sinks[0].least: must not be above most (0.3)"),
        ("token: sesame", "sinks[0].token: must not be written in the file itself; use ${file:PATH} or ${NAME}"),
        ("timeout_s: soon", "sinks[0].timeout_s: expected a number of seconds"),
        ("leest: 0.1", "sinks[0].leest: unknown field"),
    ],
)
def test_its_settings_are_checked(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, words: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", plugin)
    config = tmp_path / "streamd.yaml"
    config.write_text(
        'model: {path: none}\nengine: {kind: "null"}\nstreams: [{id: a, kind: synthetic}]\nsinks:\n'
        f"  - {{kind: archive, path: a, {settings}}}\n"
    )
    command = [sys.executable, "-m", "streamd", "check", "--no-model", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"{config}:5: {words}" in done.stdout
