"""The subscribers in docs/examples, each beside a real daemon that watches real traffic."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streamd.cli.demo import clip
from tests.behaviour.daemon import Running, daemon, until
from tests.conftest import ROOT

EXAMPLES = ROOT / "docs" / "examples"


@contextmanager
def watching(folder: Path) -> Iterator[tuple[Running, str]]:
    """A daemon and the address that it publishes at."""
    endpoint = f"ipc://{folder}/z"
    config = f"""
model: {{path: "builtin:road6"}}
sinks: [{{kind: zmq, bind: "{endpoint}"}}]
streams:
  - {{id: street, url: "{clip()}", loop: true, ring: 1}}
  - {{id: gone, url: "{folder}/none.mp4"}}
"""
    with daemon(folder, config) as running:
        yield running, endpoint


@contextmanager
def example(out: Path, *command: str | Path) -> Iterator[subprocess.Popen[str]]:
    with out.open("w") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def found(out: Path, pattern: str) -> bool:
    text = out.read_text()
    assert "Traceback" not in text, text
    return re.search(pattern, text, re.MULTILINE) is not None


def test_the_python_subscribers(tmp_path: Path) -> None:
    simple, follow = tmp_path / "simple", tmp_path / "follow"
    with (
        watching(tmp_path) as (running, endpoint),
        example(simple, sys.executable, EXAMPLES / "subscribe.py", endpoint),
        example(follow, sys.executable, EXAMPLES / "follow.py", endpoint) as follower,
    ):
        until(lambda: found(simple, r"^street \d+ .*(car|person) 0\.\d\d at \["), 60, "the simple one sees")
        until(lambda: found(follow, r"^street: \d+ .*(car|person) 0\.\d\d"), 60, "the other one sees")
        assert found(follow, "^street: is LIVE")  # and why it is degraded, on a slow machine
        until(lambda: found(follow, "^gone: is FAILED \\(not_found: .*none.mp4"), 60, "it says what has failed")
        running.stop()
        until(lambda: found(follow, "^street: is ENDED"), 10, "the end is told")
        with watching(tmp_path):
            until(lambda: found(follow, "^streamd was restarted"), 60, "the restart is told")
            until(lambda: follow.read_text().rfind("street: is LIVE") > follow.read_text().find("restarted"), 20)
        assert follower.poll() is None
    assert "lost in transit" not in follow.read_text()


def test_whose_a_gap_is() -> None:
    spec = importlib.util.spec_from_file_location("follow", EXAMPLES / "follow.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    follower = module.Follower()

    def take(seq: int, dropped: int, boot: str = "a") -> str:
        message = {"boot_id": boot, "stream": "s", "seq": seq, "dropped": dropped, "detections": []}
        return "; ".join(follower.take(message))

    assert take(100, 100) == ""
    assert take(101, 0) == ""
    assert "dropped 3 before 105" in take(105, 3)
    assert take(109, 0) == "s: 3 before 109 were lost in transit: we were too slow"
    both = take(115, 2)
    assert "dropped 2 before 115" in both
    assert "3 before 115 were lost" in both
    assert take(0, 0, "b") == "streamd was restarted: its counters start from zero"
    follower.heard["s"] -= module.SILENCE_S + 1
    assert "nothing for 15 s" in follower.silent()[0]
    assert follower.silent() == []


def node_client(source: Path, folder: Path, script: str = "subscribe.mjs") -> tuple[str, Path]:
    """Installs the subscriber for Node.js that lies in `source`, with its package; the command that runs it."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        message = "Node.js and npm are not installed (Debian's packages nodejs and npm)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    folder.mkdir()
    for name in ("package.json", script):
        shutil.copy(source / name, folder)
    # The package brings libzmq built: no script of its own has to run.
    install = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return node, folder / script


def test_the_node_subscriber(tmp_path: Path) -> None:
    command = node_client(EXAMPLES, tmp_path / "node")
    out = tmp_path / "out"
    with watching(tmp_path) as (_, endpoint), example(out, *command, endpoint):
        until(lambda: found(out, r"^street: \d+ .*(car|person) 0\.\d\d"), 60, "it sees")
        until(lambda: found(out, "^gone: is FAILED not_found"), 20, "it tells states")
        assert found(out, "^street: is LIVE")


def zone(name: str, *points: tuple[float, float]) -> str:
    return f"zones: [{{name: {name}, anchor: center, points: {[list(p) for p in points]}}}]"


@contextmanager
def alerted(folder: Path, *command: str | Path) -> Iterator[tuple[Path, Path]]:
    """The outputs of two alert subscribers: one wants the label of the object in the zone, the other does not.

    The null engine sees one "thing" in the middle of every picture. When a subscriber is connected cannot be seen from
    outside, so the zone is moved to the middle again until there is an alert.
    """
    wanted, other = folder / "wanted", folder / "other"
    endpoint = f"ipc://{folder}/z"

    def config(zones: str) -> str:
        return (
            'model: {path: none}\nengine: {kind: "null"}\nevents: {state_dir: state}\n'
            f"sinks: [{{kind: zmq, bind: '{endpoint}'}}]\n"
            f"streams: [{{id: yard, kind: synthetic, width: 64, height: 64, fps: 25, {zones}}}]\n"
        )

    corner = config(zone("corner", (0, 0), (0.2, 0), (0.2, 0.2), (0, 0.2)))
    middle = config(zone("middle", (0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7)))
    with (
        daemon(folder, corner) as running,
        example(wanted, *command, endpoint, "thing") as first,
        example(other, *command, endpoint) as second,
    ):
        until(lambda: running.get("/readyz")[0] == 200, 60, "the daemon is ready")
        deadline = time.monotonic() + 60
        while not found(wanted, "^ALERT"):
            assert time.monotonic() < deadline, "no alert"
            running.reload(middle)
            time.sleep(1)
            running.reload(corner)
        until(lambda: running.value("streamd_events_total", stream="yard", rule="middle", type="zone_rule_changed"), 20)
        time.sleep(0.5)  # What is not to be printed has had its time.
        assert first.poll() is None
        assert second.poll() is None
        yield wanted, other


def check_alerts(wanted: Path, other: Path) -> None:
    lines = wanted.read_text().splitlines()
    assert lines
    pattern = r"ALERT yard: thing in middle \(zone_(entered|appeared|resumed), \S+\)"
    assert all(re.fullmatch(pattern, line) for line in lines), lines
    assert len(set(lines)) == len(lines), "one alert for each begin; none for an end"
    assert other.read_text() == "", "no person was there"


def test_the_python_alert(tmp_path: Path) -> None:
    with alerted(tmp_path, sys.executable, EXAMPLES / "alert.py") as outputs:
        check_alerts(*outputs)


def test_the_node_alert(tmp_path: Path) -> None:
    command = node_client(EXAMPLES, tmp_path / "node", "alert.mjs")
    with alerted(tmp_path, *command) as outputs:
        check_alerts(*outputs)


@pytest.mark.parametrize("name", ["follow.py", "subscribe.py"])
def test_the_python_subscribers_explain_themselves(name: str) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / name, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "tcp://127.0.0.1:5555" in done.stdout
