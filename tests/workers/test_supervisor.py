"""The parent of workers that are small scripts: the test reads their orders and sends their reports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from streamd.config.loader import load
from streamd.errors import NO_ROOM, BackendError, ConfigError, ModelError, SourceError
from streamd.runtime.reload import Reread
from streamd.telemetry.notify import Notifier
from streamd.types import StreamStatus
from streamd.workers.report import Report, parts_of
from streamd.workers.supervisor import WorkerSupervisor
from tests.behaviour.daemon import until

WORKER = """#!%s -IS
import os, signal, sys

folder, number = os.environ["ORDERS"], sys.argv[-1]
path = f"{folder}/worker{number}-{os.getpid()}"


def leave(*_):
    os._exit(int(open(f"{folder}/exit").read()))


signal.signal(signal.SIGUSR1, leave)
lines = ""
for line in sys.stdin:
    lines += line
    with open(f"{path}.new", "w") as file:
        file.write(lines)
    os.rename(f"{path}.new", path)
    if os.environ["EXIT"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif os.environ["EXIT"]:
        os._exit(int(os.environ["EXIT"]))
"""
"""Notes its orders, and exits at the end of its input, after the first order with `EXIT`, or when a signal says so."""


class Parent:
    """A supervisor with two workers in a thread of its own, and the other ends of its pipes and socket."""

    def __init__(self, folder: Path, *streams: str) -> None:
        self.orders_at = folder / "orders"
        self.path = folder / "c.yaml"
        self.write(*streams)
        self.reread = Reread(self.path)
        self.supervisor = WorkerSupervisor(load(self.path).config, notifier=Notifier({}), reread=self.reread)
        self.code: int | None = None
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.connect(self.supervisor._channels.endpoint("reports"))
        self._thread = threading.Thread(target=self._run)

    def write(self, *streams: str) -> None:
        listed = "".join(f"  - {{id: {s}, kind: synthetic}}\n" for s in streams)
        self.path.write_text(
            f'model: {{path: none}}\nengine: {{kind: "null"}}\nworkers: 2\nmetrics: {{listen: null}}\ndrain_s: 2\n'
            f"sinks: [{{kind: jsonl, path: {self.path.parent / 'out'}}}]\nstreams:\n{listed}"
        )

    def _run(self) -> None:
        self.code = self.supervisor.run(handle_signals=False)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float = 20) -> int | None:
        """The exit code."""
        self._thread.join(timeout)
        return self.code

    def close(self) -> None:
        self.supervisor.stop()
        if self._thread.ident is not None:
            self.join()
        self._socket.close(0)
        self._context.term()

    def orders(self, worker: int) -> list[dict[str, Any]]:
        """Those that the newest process of a worker has received."""
        pid = self.supervisor.workers[worker].pid
        path = self.orders_at / f"worker{worker}-{pid}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def report(self, worker: int, *states: str, refused: bool = False, code: int | None = None) -> None:
        """Reports the newest order as done, with `stream:state` each."""
        until(lambda: self.orders(worker), 10)
        newest = self.orders(worker)[-1]
        statuses = [StreamStatus(s, state, "eof" if state == "ENDED" else "", "", 0, 1)  # type: ignore[arg-type]
                    for s, state in (text.split(":") for text in states)]  # fmt: skip
        number = newest["number"]
        report = Report(
            worker, newest["life"], number, None, statuses, {}, [], code, refused=number if refused else 0
        )  # fmt: skip
        self._socket.send_multipart(parts_of(report))

    def up(self) -> None:
        """Starts, and both workers report that they are up, the first with stream a, the second with b."""
        self.start()
        self.report(0, "a:LIVE")
        self.report(1, "b:LIVE")
        until(lambda: self.supervisor.ready()[0], 10)

    def end(self, worker: int, code: int | None) -> None:
        """Makes the process of a worker exit with `code`; None for a kill."""
        pid = self.supervisor.workers[worker].pid
        assert pid is not None
        (self.orders_at / "exit").write_text(str(code))
        os.kill(pid, signal.SIGUSR1 if code is not None else signal.SIGKILL)

    def states(self) -> dict[str, tuple[str, str]]:
        return {s: (v["state"], v["reason"]) for s, v in self.supervisor.ready()[1]["streams"].items()}


Make = Callable[..., Parent]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    made: list[Parent] = []
    for name in ("orders", "run"):
        (tmp_path / name).mkdir()
    script = tmp_path / "worker"
    script.write_text(WORKER % sys.executable)
    script.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(script))
    monkeypatch.setenv("ORDERS", str(tmp_path / "orders"))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))

    def parent(*streams: str, exits: str = "") -> Parent:
        monkeypatch.setenv("EXIT", exits)
        made.append(Parent(tmp_path, *streams))
        return made[-1]

    yield parent
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (str(ModelError.exit_code), ModelError.exit_code),
        (str(NO_ROOM), NO_ROOM),
        ("kill", BackendError.exit_code),
    ],
)
def test_workers_that_end_before_all_are_up_end_the_daemon(make: Make, ends: str, code: int) -> None:
    parent = make("a", "b", exits=ends)
    parent.start()
    assert parent.join() == code
    assert {w.state for w in parent.supervisor.workers} <= {"FINISHED", "FAILED", "EXITED"}


@pytest.mark.parametrize("code", [None, ConfigError.exit_code, ModelError.exit_code, BackendError.exit_code, NO_ROOM])
def test_a_worker_that_dies_beside_another_is_started_again_with_its_streams(make: Make, code: int | None) -> None:
    parent = make("a", "b")
    parent.up()
    worker = parent.supervisor.workers[0]
    life = worker.life
    parent.end(0, code)
    until(lambda: parent.states()["a"] == ("BACKOFF", "worker_died"), 5)
    assert parent.states()["b"] == ("LIVE", "")
    assert not parent.supervisor.ready()[0]
    assert parent.supervisor.health()[0]
    until(lambda: worker.state == "STARTING", 5)
    parent.report(0, "a:LIVE")
    until(lambda: parent.supervisor.ready()[0], 5)
    assert worker.life > life
    assert [s["id"] for s in parent.orders(0)[0]["config"]["streams"]] == ["a"]
    assert worker.deaths == 0


@pytest.mark.parametrize(
    ("code", "result"),
    [(ConfigError.exit_code, ConfigError.exit_code), (ModelError.exit_code, ModelError.exit_code), (None, None)],
)
def test_what_a_restart_cannot_mend_ends_the_daemon_if_no_other_worker_runs(
    make: Make, code: int | None, result: int | None
) -> None:
    parent = make("a")
    parent.start()
    parent.report(0, "a:LIVE")
    worker = parent.supervisor.workers[0]
    until(lambda: parent.supervisor.ready()[0], 5)
    parent.end(0, code)
    if result is None:
        until(lambda: worker.state == "STARTING", 5)
    else:
        assert parent.join() == result
        assert worker.state == "FAILED"


def test_a_worker_that_never_shows_a_sign_of_life_is_killed_and_another_started_five_times(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamd.workers.starting.SILENT_S", 0.5)
    parent = make("a", "b")
    parent.start()
    parent.report(1, "b:LIVE")
    assert parent.join(60) == BackendError.exit_code
    silent, other = parent.supervisor.workers
    assert silent.killed == "worker 0: has not started and shown no sign of life for 0.5 s"
    assert (silent.deaths, other.deaths) == (5, 0)
    assert len(list(parent.orders_at.glob("worker0-*[0-9]"))) == 5


def test_a_worker_that_hung_before_all_had_started_does_not_end_the_daemon(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamd.workers.starting.SILENT_S", 5.0)
    parent = make("a", "b")
    parent.start()
    parent.report(1, "b:LIVE")
    until(lambda: len(list(parent.orders_at.glob("worker0-*[0-9]"))) == 2, 30)
    parent.report(0, "a:LIVE")
    until(lambda: parent.supervisor.ready()[0], 10)
    assert parent.supervisor.workers[0].deaths == 0


def test_a_worker_whose_streams_have_ended_is_not_started_again(make: Make) -> None:
    parent = make("a", "b")
    parent.up()
    parent.report(0, "a:ENDED", code=0)
    parent.end(0, 0)
    worker = parent.supervisor.workers[0]
    until(lambda: worker.state == "FINISHED", 5)
    assert parent.states() == {"a": ("ENDED", "eof"), "b": ("LIVE", "")}
    assert parent.supervisor.ready()[0]
    parent.report(1, "b:ENDED", code=SourceError.exit_code)
    parent.end(1, SourceError.exit_code)
    assert parent.join() == 0  # one of the two came to a good end


def test_a_worker_that_ends_of_itself_after_it_refused_an_order_is_started_with_that_order(make: Make) -> None:
    """Streams that it never had have not ended with it."""
    parent = make("a", "b")
    with sighup(parent):
        parent.up()
        parent.write("a", "b", "c")
        os.kill(os.getpid(), signal.SIGHUP)
        until(lambda: len(parent.orders(0)) == 2, 5)
        parent.report(0, "a:ENDED", refused=True)
        until(lambda: not parent.supervisor.workers[0].busy, 5)
        life = parent.supervisor.workers[0].life
        parent.end(0, 0)
        until(lambda: parent.supervisor.workers[0].life > life, 5)
        until(lambda: parent.orders(0), 5)
    assert [s["id"] for s in parent.orders(0)[0]["config"]["streams"]] == ["c"]


def test_a_reload_waits_for_the_order_before_and_not_for_one_that_was_refused(make: Make) -> None:
    parent = make("a", "b")
    with sighup(parent):
        parent.up()
        parent.write("a", "b", "c", "d")
        os.kill(os.getpid(), signal.SIGHUP)
        until(lambda: len(parent.orders(0)) == len(parent.orders(1)) == 2, 5)
        parent.write("a", "b", "c", "e")
        os.kill(os.getpid(), signal.SIGHUP)
        parent.report(1, "b:LIVE", "d:LIVE")
        until(lambda: parent.supervisor.workers[1].applied, 5)
        assert len(parent.orders(1)) == 2  # the other one is still busy
        parent.report(0, "a:LIVE", refused=True)
        until(lambda: len(parent.orders(0)) == len(parent.orders(1)) == 3, 5)
    assert [[s["id"] for s in parent.orders(n)[-1]["config"]["streams"]] for n in (0, 1)] == [["a", "c"], ["b", "e"]]


@contextlib.contextmanager
def sighup(parent: Parent) -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    parent.reread.install()
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
