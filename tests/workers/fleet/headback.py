"""A head with Redis dies as a whole and is started again: `ray start` as in docs/fleet.md, real raylets, a real Redis.

usage: pytest -n 0 tests/workers/fleet/headback.py

By hand, on an idle machine, like `deaths`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from streamd.cli import main
from streamd.workers.fleet import keeper
from streamd.workers.fleet.place import BoxFolder
from tests.conftest import program
from tests.events.journals import until
from tests.sinks.brokers import free_port, nats_server
from tests.workers.fleet.deaths import check_once, check_untouched, generations
from tests.workers.fleet.rays import NODE_STARTS, PATIENCE_S, STORE_BYTES, Listener, Running

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
STREAMS = 6
STARTED = b"Ray runtime started"


class Started:
    """A cluster that `ray start` has started, with its head's data in Redis."""

    def __init__(self, folder: Path, redis_port: int) -> None:
        self.folder, self.port = folder, free_port()
        self._environment = {
            **os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
            "XDG_STATE_HOME": str(folder / "xdg"), "RAY_TMPDIR": str(folder / "ray"),
        }  # fmt: skip
        self._redis = f"127.0.0.1:{redis_port}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return f"127.0.0.1:{self.port}"

    def _start(self, name: str, *options: str, **more: str) -> None:
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--block", "--node-name", name, "--num-cpus", "1",
            "--object-store-memory", str(STORE_BYTES), "--node-ip-address", "127.0.0.1", *options,
        ]  # fmt: skip
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env={**self._environment, **more}, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _start_up(self, name: str, *options: str, **more: str) -> None:
        """Until it runs: on a busy machine, a raylet may not do so in the 30 s that Ray gives it."""
        for i in range(NODE_STARTS):
            self._start(name, *options, **more)
            process, log = self._processes[name], self.folder / f"{name}.log"
            until(lambda p=process, f=log: p.poll() is not None or STARTED in f.read_bytes(), 2 * PATIENCE_S)  # type: ignore[misc]
            if process.poll() is None:
                return
            log.rename(self.folder / f"{name}-failed-{i}.log")
        raise AssertionError(f"{name} has not started {NODE_STARTS} times")

    def head(self) -> None:
        """Starts the head."""
        # Ray takes the nodes of the same machine, which still look for the old head, for a head that runs.
        (self.folder / "ray" / "ray" / "ray_current_cluster").unlink(missing_ok=True)
        self._start_up(
            "head", "--head", "--port", str(self.port), "--labels", "streamd-boxes=0", "--include-dashboard", "false",
            RAY_REDIS_ADDRESS=self._redis,
        )  # fmt: skip

    def node(self, name: str) -> None:
        """Starts a node."""
        self._start_up(name, "--address", self.address)

    def kill(self, name: str) -> None:
        """All of a node's processes, at once."""
        root = psutil.Process(self._processes[name].pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self._processes[name].wait()
        (self.folder / f"{name}.log").rename(self.folder / f"{name}-killed.log")

    def box(self, name: str) -> BoxFolder:
        """The box of a node."""
        return BoxFolder(self.folder / "boxes" / name)

    def close(self) -> None:
        """Ends everything."""
        for name in list(self._processes):
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                self.kill(name)
        for folder in (self.folder / "boxes").glob("*"):
            keeper.stop(BoxFolder(folder), grace_s=1.0)


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    port = free_port()
    command = [program("redis-server", "redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "",
               "--appendonly", "yes", "--dir", str(folder)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def test_a_head_with_redis_comes_back_and_nothing_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fl-", ignore_cleanup_errors=True)))
        server = stack.enter_context(nats_server(folder))
        cluster = Started(folder, stack.enter_context(redis_server(folder)))
        stack.callback(cluster.close)
        http = f"127.0.0.1:{free_port()}"
        listed = "\n".join(f"  - {{id: s{i}, kind: synthetic, fps: 5}}" for i in range(STREAMS))
        file = folder / "FLEET.yaml"
        file.write_text(
            "model: {path: none}\nengine: {kind: 'null'}\n"
            f"fleet:\n  box: {{fps: 1000}}\n  listen: {http}\n  state_dir: {folder}/boxes\n"
            f"sinks:\n  - {{kind: nats, servers: ['127.0.0.1:{server.port}'], prefix: streamd, detections: true}}\n"
            f"streams:\n{listed}\n"
        )
        listener = Listener(server.port)
        stack.callback(listener.close)
        cluster.head()
        for name in ("n1", "n2"):
            cluster.node(name)
        running = Running(cluster, file, http, listener)  # type: ignore[arg-type]
        assert running.command("run", str(file)) == 0
        until(lambda: running.whole() and len(running.status().boxes) == 2, 2 * PATIENCE_S)
        running.wait_steady()
        before, homes = generations(running), running.homes()

        died = time.monotonic()
        cluster.kill("head")
        running.wait_published(set(before), died + 5)
        with pytest.raises(OSError, match="refused"):
            running.status()
        cluster.head()
        running.wait_steady()  # nobody has told anybody to
        print(f"whole again {time.monotonic() - died:.1f} s after the head's death, with the time to be sure")
        assert (generations(running), running.homes()) == (before, homes)
        check_untouched(running, set(before), died - 2)
        # What the coordinator needs beyond its own end was in Redis.
        assert running.command("status") == 0
        assert running.command("drain", "n1") == 0
        running.wait_published({s for s, box in homes.items() if box == "n1"}, time.monotonic())
        check_once(running)
        died = time.monotonic()
        cluster.kill("head")
        cluster.head()
        until(lambda: {b.box: b.state for b in _boxes(running)} == {"n1": "DRAINED", "n2": "UP"}, 2 * PATIENCE_S)
        assert running.command("stop") == 0
        until(lambda: not any(keeper.kept(cluster.box(name)) for name in ("n1", "n2")), PATIENCE_S)
        assert main(["fleet", "stop", "--here", "--state-dir", str(folder / "boxes")]) == 0


def _boxes(running: Running) -> list:  # type: ignore[type-arg]
    try:
        return running.status().boxes
    except OSError:
        return []
