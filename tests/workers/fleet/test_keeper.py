"""The process that keeps a box's daemon running, with programs of the shell in the daemon's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from streamd.errors import ConfigError
from streamd.workers.fleet import keeper
from streamd.workers.fleet.cluster import stop_here
from streamd.workers.fleet.place import BoxFolder, fleet_folder
from streamd.workers.fleet.process import Process
from tests.events.journals import until

FOREVER = ["/bin/sh", "-c", "exec sleep 1000"]


@pytest.fixture
def box() -> Iterator[BoxFolder]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:  # short, as sockets need it
        made = BoxFolder(Path(folder) / "box-1")
        made.make()
        yield made
        keeper.stop(made, grace_s=1.0)


def running(box: BoxFolder) -> bool:
    notes = keeper.read_notes(box)
    return all(process is not None and process.alive for process in (notes.keeper, notes.daemon))


def begin(
    box: BoxFolder, command: list[str], grace_s: float = 5.0, environment: Mapping[str, str] = os.environ
) -> tuple[Process, Process]:
    """Keeper and daemon, running."""
    keeper.start(box, command, environment, grace_s=grace_s)
    until(lambda: running(box), 30)
    notes = keeper.read_notes(box)
    assert notes.keeper is not None
    assert notes.daemon is not None
    return notes.keeper, notes.daemon


def test_it_belongs_to_nobody_and_starts_a_dead_daemon_again(box: BoxFolder) -> None:
    kept, daemon = begin(box, FOREVER)
    assert os.getsid(kept.pid) != os.getsid(0)
    assert os.getsid(daemon.pid) not in (os.getsid(0), os.getsid(kept.pid))
    assert Path(f"/proc/{kept.pid}/stat").read_text().rpartition(")")[2].split()[1] != str(os.getpid())
    keeper.start(box, FOREVER, os.environ, grace_s=5.0)  # there is one
    assert keeper.read_notes(box).daemon == daemon
    daemon.send(signal.SIGKILL)
    until(
        lambda: (found := keeper.read_notes(box).daemon) not in (None, daemon) and found is not None and found.alive, 30
    )
    notes = keeper.read_notes(box)
    assert (notes.restarts, notes.ended) == (1, "the daemon was killed by signal 9")
    assert notes.keeper == kept
    keeper.stop(box, grace_s=5.0)
    assert not keeper.kept(box)
    assert notes.daemon is not None
    assert not notes.daemon.alive
    assert not kept.alive
    assert box.path.stat().st_mode & 0o077 == 0


def test_a_daemon_whose_keeper_was_killed_goes_on_and_is_adopted(box: BoxFolder) -> None:
    kept, daemon = begin(box, FOREVER)
    kept.send(signal.SIGKILL)
    assert kept.wait(10)
    assert daemon.alive
    successor, same = begin(box, FOREVER)
    assert (successor != kept, same) == (True, daemon)
    successor.send(signal.SIGKILL)
    assert successor.wait(10)
    keeper.stop(box, grace_s=5.0)  # without any keeper
    assert not daemon.alive


def test_a_daemon_that_was_told_to_end_stays_ended(box: BoxFolder) -> None:
    keeper.start(box, ["/bin/sh", "-c", "exit 0"], os.environ, grace_s=5.0)
    until(lambda: not keeper.kept(box), 30)
    assert keeper.read_notes(box).daemon is None


def owned_by(owner: subprocess.Popen[bytes]) -> dict[str, str]:
    return {**os.environ, keeper.OWNER: str(Process.of(owner.pid))}


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as made:
        yield made
        made.kill()


def test_a_daemon_ends_with_its_owner(box: BoxFolder, owner: subprocess.Popen[bytes]) -> None:
    kept, daemon = begin(box, FOREVER, environment=owned_by(owner))
    assert not kept.wait(0.5), "its owner lives"
    owner.kill()  # nobody has collected it: it is dead all the same
    assert kept.wait(30)
    assert not daemon.alive
    assert not keeper.kept(box)


def test_a_daemon_that_waits_for_its_next_start_is_not_started_without_its_owner(
    box: BoxFolder, owner: subprocess.Popen[bytes]
) -> None:
    starts = box.path / "starts"
    command = ["/bin/sh", "-c", f"echo >> {starts}; exit 3"]
    keeper.start(box, command, owned_by(owner), grace_s=5.0)
    until(lambda: keeper.read_notes(box).restarts >= 2, 30)  # waits 2 s from now
    owner.kill()
    until(lambda: not keeper.kept(box), 1.5)
    assert len(starts.read_text()) <= 3


def test_a_keeper_that_comes_after_its_owner_starts_nothing_and_ends_what_is_there(
    box: BoxFolder, owner: subprocess.Popen[bytes]
) -> None:
    kept, daemon = begin(box, FOREVER)
    kept.send(signal.SIGKILL)
    assert kept.wait(10)
    environment = owned_by(owner)
    owner.kill()
    keeper.start(box, FOREVER, environment, grace_s=5.0)
    until(lambda: not keeper.kept(box), 30)
    assert not daemon.alive
    notes = keeper.read_notes(box)
    assert notes.daemon is None
    assert notes.keeper not in (None, kept)
    keeper.start(box, FOREVER, environment, grace_s=5.0)  # by a box that lives a moment longer
    assert keeper.read_notes(box) == notes


def test_what_was_stopped_on_its_node_is_not_started_by_a_keeper_that_was_on_its_way(box: BoxFolder) -> None:
    box.config.touch()
    assert stop_here(str(box.path.parent)) == []
    keeper.start(box, FOREVER, os.environ, grace_s=5.0)
    assert not keeper.kept(box)
    assert keeper.read_notes(box).daemon is None


def test_boxes_of_a_machine_are_stopped_at_the_same_time() -> None:
    slow = ["/bin/sh", "-c", "trap 'sleep 2; exit 0' TERM; while :; do sleep 0.1; done"]
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        boxes = [BoxFolder(Path(folder) / f"box-{i}") for i in range(1, 4)]
        (Path(folder) / "other").mkdir()
        for each in boxes:
            each.make()
            each.config.touch()
            begin(each, slow)
        told: list[str] = []
        began = time.monotonic()
        assert stop_here(folder, told.append) == told == ["box-1", "box-2", "box-3"]
        assert time.monotonic() - began < 5.5, "one after the other takes 6 s"
        assert not any(map(running, boxes))
        assert not any(map(keeper.kept, boxes))
        assert list((Path(folder) / "other").iterdir()) == [], "it is no box"


def test_a_daemon_that_does_not_end_is_killed(box: BoxFolder) -> None:
    ready = box.path / "ready"
    code = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(1000)"
    _, daemon = begin(box, [sys.executable, "-c", code], grace_s=0.3)
    until(ready.exists, 30)
    keeper.stop(box, grace_s=0.3)
    assert not daemon.alive


def test_one_that_cannot_be_started_is_said(box: BoxFolder) -> None:
    keeper.start(box, ["/no/such/program"], os.environ, grace_s=1.0)
    until(lambda: keeper.read_notes(box).ended == "cannot be started", 30)
    assert "No such file" in box.log.read_text()


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("model m.onnx: does not exist", ": model m.onnx: does not exist"),
        ("rtsp://user:secret@camera/1: refused", ": rtsp://***@camera/1: refused"),
        ('{"event": "running"}', ""),
    ],
)
def test_a_daemon_that_ends_by_itself_says_why(box: BoxFolder, last: str, said: str) -> None:
    keeper.start(box, ["/bin/sh", "-c", 'echo "$1"; exit 3', "sh", last], os.environ, grace_s=1.0)
    until(lambda: keeper.read_notes(box).ended, 30)
    assert keeper.read_notes(box).ended == f"the daemon exited with code 3{said}"


def test_a_number_that_another_process_has_now_is_not_the_daemon(box: BoxFolder) -> None:
    _, daemon = begin(box, FOREVER)
    other = Process(daemon.pid, daemon.started - 1)
    assert not other.alive
    assert not other.send(signal.SIGKILL)
    assert other.wait(0)
    assert daemon.alive


def test_folders(tmp_path: Path) -> None:
    assert fleet_folder("/there") == Path("/there")
    assert fleet_folder(None, {"STATE_DIRECTORY": "/s:/t"}) == Path("/s/fleet")
    assert fleet_folder(None, {"XDG_STATE_HOME": "/x"}) == Path("/x/streamd/fleet")
    with pytest.raises(ConfigError, match=r"fleet\.state_dir: .* is too long"):
        BoxFolder(tmp_path / ("n" * 100) / "box").make()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"fleet\.state_dir: .*Not a directory"):
        BoxFolder(tmp_path / "file" / "box").make()
