"""The folder of the workers' sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamd.errors import ConfigError
from streamd.workers import folder as module
from streamd.workers.folder import SocketFolder


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="f-") as short:  # a test's own folder may be too long
        monkeypatch.setenv("TMPDIR", short)
        yield Path(short)


def test_it_is_private_and_removed(base: Path) -> None:
    made = SocketFolder()
    assert made.path.parent == base
    assert made.path.stat().st_mode & 0o777 == 0o700
    (made.path / "socket").touch()
    made.remove()
    made.remove()
    assert list(base.iterdir()) == []


def test_what_a_killed_daemon_left_is_removed_and_nothing_else(base: Path) -> None:
    script = "import os; from streamd.workers.folder import SocketFolder; print(SocketFolder().path); os._exit(0)"
    left = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert Path(left).exists()
    mine = SocketFolder()
    assert not Path(left).exists()
    (base / "streamd-unlocked").mkdir()  # another program's, or one that is being made
    other = SocketFolder()
    assert set(base.iterdir()) == {mine.path, other.path, base / "streamd-unlocked"}
    mine.remove()
    other.remove()


@pytest.mark.parametrize("name", ["RUNTIME_DIRECTORY", "TMPDIR"])
@pytest.mark.parametrize("kind", ["long", "missing"])
def test_another_folder_takes_the_place_of_one_that_cannot_be_used(
    base: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    path = base / ("x" * 100 if kind == "long" else "missing")
    if kind == "long":
        path.mkdir()
    monkeypatch.setenv(name, str(path))
    made = SocketFolder()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{made.path}/pictures")
    made.remove()
    assert kind == "missing" or list(path.iterdir()) == []


def test_without_any_folder_it_says_what_to_do(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_candidates", lambda: iter([base / "a", base / "b"]))
    with pytest.raises(ConfigError, match=r"set TMPDIR to a writable folder.*Tried .*a \(No such file.*b \("):
        SocketFolder()


def test_a_link_is_not_followed(base: Path) -> None:
    (base / "real").mkdir()
    (base / "real" / "lock").touch()
    os.symlink(base / "real", base / "streamd-link")
    made = SocketFolder()
    assert (base / "real" / "lock").exists()
    made.remove()
