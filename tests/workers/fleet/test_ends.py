"""However `streamd fleet run` ends on one machine, its boxes end with it: real Ray, real keepers, real daemons."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from streamd.workers.fleet import keeper
from streamd.workers.fleet.place import BoxFolder
from tests.events.journals import until

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
PATIENCE_S = 120.0
"""Ray alone takes half of it to start on a busy machine."""
GONE_S = 30.0
QUIET_S = 3.0
"""Whoever would start a daemon again does so within this time."""
MARK = "STREAMD_TEST_RUN"
TEXT = """
model: {path: none}
engine: {kind: "null"}
fleet: {boxes: 2, box: {fps: 100}, listen: "127.0.0.1:0"}
streams:
  - {id: gate, kind: synthetic, fps: 5}
  - {id: yard, kind: synthetic, fps: 5}
"""


@dataclass
class Run:
    """`streamd fleet run`, the leader of its process group."""

    process: subprocess.Popen[str]
    folder: Path
    mark: str
    environment: dict[str, str]

    @property
    def output(self) -> str:
        """What it has printed."""
        return (self.folder / "output").read_text()

    def boxes(self) -> list[BoxFolder]:
        """Those that have a folder."""
        return [BoxFolder(path) for path in (self.folder / "streamd" / "fleet").glob("box-*")]

    def starting(self) -> bool:
        """Whether the first keeper has come."""
        return any(keeper.kept(box) for box in self.boxes())

    def runs(self) -> bool:
        """Whether nothing is about to change."""
        return "\n2 streams: " in self.output

    def left(self) -> list[str]:
        """Its keepers and daemons, with any that nobody has written down."""
        found = []
        for each in psutil.process_iter():
            try:
                if each.environ().get(MARK) == self.mark and each.pid != self.process.pid:
                    found.append(" ".join(each.cmdline()))
            except psutil.Error:
                continue
        return [line for line in found if "streamd." in line]

    def group(self, *numbers: signal.Signals) -> None:
        """Signals to the group, as a terminal's Ctrl+C and `timeout` send them."""
        for number in numbers:
            os.killpg(self.process.pid, number)
            time.sleep(0.3)


@pytest.fixture
def run() -> Iterator[Run]:
    with tempfile.TemporaryDirectory(prefix="fe-") as name:  # short, as sockets need it
        folder, mark = Path(name), uuid.uuid4().hex
        (folder / "fleet.yaml").write_text(TEXT)
        environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "STATE_DIRECTORY")}
        environment |= {"XDG_STATE_HOME": name, MARK: mark, "RAY_AUTH_MODE": "disabled"}
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "streamd", "fleet", "run", str(folder / "fleet.yaml")], env=environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True, start_new_session=True,
            )  # fmt: skip
        found = Run(process, folder, mark, environment)
        try:
            yield found
        finally:
            process.kill()
            process.wait(10)
            for box in found.boxes():
                keeper.stop(box, grace_s=1.0)


def is_over(run: Run, within_s: float = GONE_S) -> None:
    """Nothing is left, and nothing comes back."""
    until(lambda: not run.left(), within_s)
    end = time.monotonic() + QUIET_S
    while time.monotonic() < end:
        assert run.left() == []
        time.sleep(0.1)


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM)], ids=["timeout", "Ctrl+C in timeout"]
)
def test_a_fleet_ends_with_a_signal_to_its_process_group(run: Run, numbers: tuple[signal.Signals, ...]) -> None:
    """A part of Ray takes SIGTERM for itself: whom the end would ask, is gone."""
    until(run.runs, PATIENCE_S)
    assert len(run.left()) >= 4, "two keepers and two daemons"
    run.group(*numbers)
    assert run.process.wait(GONE_S) == 0
    assert run.output.endswith("box-1 stopped\nbox-2 stopped\n")
    is_over(run)


def test_a_fleet_ends_with_a_stop_from_elsewhere(run: Run) -> None:
    until(run.runs, PATIENCE_S)
    stop = subprocess.run(
        [sys.executable, "-m", "streamd", "fleet", "stop"], env=run.environment | {MARK: ""}, capture_output=True,
        text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (sorted(stop.stdout.split("\n")), stop.stderr, stop.returncode) == (
        ["", "box-1 stopped", "box-2 stopped"], "", 0,
    )  # fmt: skip
    assert run.process.wait(GONE_S) == 0
    assert run.output.endswith("the fleet was stopped\n")
    is_over(run)


def test_a_fleet_ends_with_a_signal_during_its_start(run: Run) -> None:
    """A box that starts its daemon while the fleet ends, say."""
    until(run.starting, PATIENCE_S)
    run.group(signal.SIGTERM)
    run.process.wait(2 * GONE_S)
    is_over(run)


@pytest.mark.parametrize(
    "numbers", [(signal.SIGKILL,), (signal.SIGINT, signal.SIGINT)], ids=["kill -9", "Ctrl+C twice"]
)
def test_a_fleet_ends_with_the_death_of_its_process(run: Run, numbers: tuple[signal.Signals, ...]) -> None:
    until(run.runs, PATIENCE_S)
    for number in numbers:
        run.process.send_signal(number)
        time.sleep(0.3)
    assert run.process.wait(GONE_S) < 0, "by the signal"
    is_over(run)
