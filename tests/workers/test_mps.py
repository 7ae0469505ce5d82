"""The MPS control daemon as a child: a program of its name stands in for it, for it answers only where a GPU is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import psutil
import pytest

from streamd.errors import BackendError
from streamd.workers import mps
from streamd.workers.mps import LOGS, PIPES, VISIBLE, Mps, visible_to_clients
from tests.behaviour.daemon import until

FOREGROUND = """#!/bin/sh
cd "$CUDA_MPS_PIPE_DIRECTORY" || exit 9
if [ "$1" = -f ]; then
  echo "$$" > pid
  {start}
  while [ ! -e quit ]; do sleep 0.02; done
  exit 0
fi
read -r command
echo "$command" >> asked
[ -e ready ] || exit 1
[ "$command" != quit ] || touch quit
"""


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program lies; `{start}` is what it does at its start."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv(PIPES, raising=False)
    monkeypatch.delenv(VISIBLE, raising=False)
    return folder / mps.CONTROL


def install(control: Path, start: str) -> None:
    control.write_text(FOREGROUND.replace("{start}", start))
    control.chmod(0o755)


def test_it_answers_before_workers_come_and_ends_after_them(control: Path, tmp_path: Path) -> None:
    install(control, "sleep 0.2; touch ready")
    server = Mps(tmp_path, wanted=True)
    server.open()
    folder = Path(server.environment[PIPES])
    assert server.environment == {PIPES: str(folder), LOGS: str(folder)}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    pid = int((folder / "pid").read_text())
    assert psutil.pid_exists(pid)
    server.close(5)
    assert not psutil.pid_exists(pid)
    assert (folder / "asked").read_text().splitlines()[-2:] == ["get_server_list", "quit"]
    server.close(5)


def test_one_that_does_not_quit_is_killed(control: Path, tmp_path: Path) -> None:
    install(control, "touch ready; exec sleep 100")
    server = Mps(tmp_path, wanted=True)
    server.open()
    pid = int((tmp_path / "mps" / "pid").read_text())
    server.close(0.2)
    assert not psutil.pid_exists(pid)


def test_nothing_starts_unless_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    server = Mps(tmp_path, wanted=False)
    server.open()
    server.close(1)
    assert server.environment == {}
    assert not list(tmp_path.iterdir())


def test_the_server_that_is_there_is_used(control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(control, "touch ready")
    monkeypatch.setenv(PIPES, str(tmp_path))
    server = Mps(tmp_path, wanted=True)
    server.open()
    assert server.environment == {}
    assert not (tmp_path / "mps").exists()
    server.close(1)


def test_why_it_does_not_start(control: Path, tmp_path: Path) -> None:
    install(control, "echo 'first'  > control.log; echo 'Failed to start : not supported' >> control.log; exit 1")
    with pytest.raises(BackendError, match=r"engine\.mps: .* ended with code 1 \(Failed to start : not supported\);"):
        Mps(tmp_path, wanted=True).open()


def test_one_that_never_answers(control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(control, "true")
    monkeypatch.setattr(mps, "START_S", 0.3)
    server = Mps(tmp_path, wanted=True)
    with pytest.raises(BackendError, match=r"did not respond within 0\.3 s; it is part of the NVIDIA driver"):
        server.open()
    pid = int((tmp_path / "mps" / "pid").read_text())
    until(lambda: not psutil.pid_exists(pid), 5)


def test_a_machine_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(PIPES, raising=False)
    with pytest.raises(BackendError, match="nvidia-cuda-mps-control cannot be started: No such file or directory"):
        Mps(tmp_path, wanted=True).open()


def test_one_that_dies_is_started_again_for_the_next_worker(control: Path, tmp_path: Path) -> None:
    install(control, "touch ready")
    server = Mps(tmp_path, wanted=True)
    server.revive()
    assert not server.environment, "it was never started"
    server.open()
    first = Path(server.environment[PIPES])
    server.revive()
    assert Path(server.environment[PIPES]) == first, "it is alive"
    pid = int((first / "pid").read_text())
    psutil.Process(pid).kill()
    assert server._process is not None
    server._process.wait(5)
    server.revive()
    again = Path(server.environment[PIPES])
    assert again != first
    assert psutil.pid_exists(int((again / "pid").read_text()))
    server.close(5)
    assert not psutil.pid_exists(int((again / "pid").read_text()))


def test_workers_run_without_it_until_it_can_be_started_again(
    control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(control, "touch ready")
    server = Mps(tmp_path, wanted=True)
    server.open()
    pid = int((Path(server.environment[PIPES]) / "pid").read_text())
    control.rename(control.with_name("away"))
    psutil.Process(pid).kill()
    assert server._process is not None
    server._process.wait(5)
    server.revive()
    assert server.environment == {}
    control.with_name("away").rename(control)
    server.revive()
    assert server.environment == {}, "not at every start of a worker"
    monkeypatch.setattr(mps, "WAIT_S", 0.0)
    server._not_before = 0.0
    server.revive()
    assert psutil.pid_exists(int((Path(server.environment[PIPES]) / "pid").read_text()))
    server.close(5)


def test_where_it_was_only_chosen_its_failure_is_no_reason_not_to_start(control: Path, tmp_path: Path) -> None:
    install(control, "exit 3")
    server = Mps(tmp_path, wanted="auto")
    server.open()
    assert server.environment == {}
    server.revive()
    assert server.environment == {}, "it is tried again later"
    server._not_before = 0.0
    install(control, "touch ready")
    server.revive()
    assert server.environment
    server.close(5)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, {}),
        ("", {}),
        ("1", {VISIBLE: "0"}),
        ("3, 1", {VISIBLE: "0,1"}),
        ("GPU-221d464e", {}),
        ("0,GPU-221d464e", {}),
    ],
)
def test_workers_see_the_gpus_by_the_servers_numbers(visible: str | None, expected: dict[str, str]) -> None:
    assert visible_to_clients(visible) == expected


def test_the_server_sees_the_gpus_that_the_daemon_sees(
    control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, "1")
    install(control, f'echo "${VISIBLE}" > visible; touch ready')
    server = Mps(tmp_path, wanted=True)
    server.open()
    folder = Path(server.environment[PIPES])
    try:
        assert (folder / "visible").read_text() == "1\n"
        assert server.environment == {PIPES: str(folder), LOGS: str(folder), VISIBLE: "0"}
    finally:
        server.close(5)
