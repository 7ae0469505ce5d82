"""`streamd kinds` lists all kinds with their packages, and those that cannot be used."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

CODE = '''
from typing import Literal
from streamd.sinks import SinkSettings

class SoundSettings(SinkSettings):
    """A sound sink,
    in two lines.

    More of it.
    """

    kind: Literal["sound"] = "sound"

    def open(self): ...
'''


def kinds(*options: str, path: Path | None = None) -> tuple[int, str]:
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(path), environment.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "streamd", "kinds", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_every_built_in_kind_is_listed_with_what_it_is() -> None:
    code, told = kinds("--json")
    assert code == 0
    found = json.loads(told)
    assert list(found) == ["streamd.sources", "streamd.engines", "streamd.heads", "streamd.trackers", "streamd.sinks"]
    assert {"av", "synthetic"} <= {each["kind"] for each in found["streamd.sources"]}
    for each in (each for group in found.values() for each in group):
        assert each["package"].startswith("streamd ")
        assert each["description"].endswith(".")


def test_kinds_of_other_packages_and_why_some_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "more_sinks.py").write_text(CODE)
    info = tmp_path / "more_sinks-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-sinks\nVersion: 2.1\n")
    entries = "[streamd.sinks.1]\nsound = more_sinks:SoundSettings\n"
    (info / "entry_points.txt").write_text(entries)
    code, told = kinds(path=tmp_path)
    assert code == 0
    (line,) = [line for line in told.splitlines() if line.startswith("  sound ")]
    assert line.split(maxsplit=3) == ["sound", "more-sinks", "2.1", "A sound sink, in two lines."]
    (info / "entry_points.txt").write_text(entries + "zmq = more_sinks:Z\nlost = more_sinks:Nothing\n")
    code, told = kinds(path=tmp_path)
    assert code == 2
    said = {line.split()[0]: line for line in told.splitlines() if "more-sinks 2.1" in line}
    assert sorted(said) == ["lost", "sound", "zmq"]
    assert "is not used, since streamd has a kind of that name; rename it" in said["zmq"]
    assert "cannot be used (AttributeError: module 'more_sinks' has no attribute 'Nothing'" in said["lost"]
    (zmq,) = [line for line in told.splitlines() if line.startswith("  zmq ") and "streamd 0" in line]
    assert "ZeroMQ publisher" in zmq


def test_the_contract_that_each_was_written_for(tmp_path: Path) -> None:
    (tmp_path / "more_sinks.py").write_text(CODE)
    info = tmp_path / "more_sinks-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-sinks\nVersion: 2.1\n")

    def entry(group: str) -> tuple[int, dict[str, Any], str]:
        """The code, and what is told of the sink."""
        (info / "entry_points.txt").write_text(f"[{group}]\nsound = more_sinks:SoundSettings\n")
        code, told = kinds("--json", path=tmp_path)
        (found,) = (each for listed in json.loads(told).values() for each in listed if each["kind"] == "sound")
        (line,) = [line for line in kinds(path=tmp_path)[1].splitlines() if line.startswith("  sound ")]
        return code, found, line

    fitting = {
        "kind": "sound",
        "package": "more-sinks 2.1",
        "contract": 1,
        "description": "A sound sink, in two lines.",
    }
    code, found, _ = entry("streamd.sinks.1")
    assert (code, found) == (0, fitting)
    code, found, line = entry("streamd.sinks")
    assert (code, found["contract"]) == (0, None)
    assert line.endswith("in two lines. (Names no contract; the group streamd.sinks.1 would be of this one.)")
    code, found, line = entry("streamd.sinks.2")
    assert (code, found["contract"]) == (2, 2)
    assert "was written for version 2 of the contract (streamd.sinks.2); this streamd" in line
    code, found, line = entry("streamd.sink")
    assert code == 2
    assert "is in no group that streamd reads (streamd.sources, " in line
    assert kinds()[1].startswith("streamd.sources: contract 1\n")


def test_on_a_terminal_descriptions_are_broken_between_words() -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with subprocess.Popen([sys.executable, "-m", "streamd", "kinds"], stdout=slave, env=environment) as process:
        os.close(slave)
        told = b""
        with contextlib.suppress(OSError):  # the end of a terminal is an error
            while piece := os.read(master, 65_536):
                told += piece
    os.close(master)
    assert process.returncode == 0
    lines = told.decode().splitlines()
    assert max(map(len, lines)) <= 80
    at = next(n for n, line in enumerate(lines) if line.startswith("  rtdetr "))
    column = lines[at].index("RT-DETR")
    assert lines[at + 1][:column].strip() == ""
    assert lines[at + 1][column] != " "
