"""A cluster on this machine: a head without boxes, and nodes of real raylets that can be killed and stopped."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import os
import signal
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import psutil

from streamd.cli import main
from streamd.fleet.coordinator import REPLAN_S
from streamd.fleet.records import FleetStatus, decode
from streamd.workers.fleet import keeper
from streamd.workers.fleet.place import BoxFolder
from tests.events.journals import until
from tests.sinks.brokers import free_port, nats_server

PATIENCE_S = 60.0
STEADY_S = REPLAN_S + 1.0
STORE_BYTES = 80 << 20
NULL = "model: {path: none}\nengine: {kind: 'null'}\n"


@dataclass(frozen=True)
class Heard:
    """A frame's message as it came in."""

    at: float
    """Monotonic seconds."""
    generation: int
    epoch: int
    seq: int
    boot_id: str


class Listener:
    """Receives the detections of all streams over NATS, in a thread."""

    def __init__(self, port: int) -> None:
        self._heard: dict[str, list[Heard]] = defaultdict(list)
        self._ready, self._stop = threading.Event(), False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(port)), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    async def _run(self, port: int) -> None:
        client = await nats.connect(f"nats://127.0.0.1:{port}")

        async def take(message: Any) -> None:
            m = json.loads(message.data)
            if "generation" not in m:
                return  # of a daemon that is in no fleet: see `overhead`
            heard = Heard(time.monotonic(), m["generation"], m["epoch"], m["seq"], m["boot_id"])
            self._heard[m["stream"]].append(heard)

        await client.subscribe("streamd.1.*.detections", cb=take)
        await client.flush()
        self._ready.set()
        while not self._stop:
            await asyncio.sleep(0.02)
        await client.close()

    def streams(self) -> dict[str, list[Heard]]:
        """By stream, in the order of arrival."""
        return {stream: list(heard) for stream, heard in list(self._heard.items())}

    def since(self, stream: str, at: float) -> list[Heard]:
        """What came in after this moment, monotonic seconds."""
        heard = self._heard.get(stream, [])
        return heard[bisect.bisect_right(heard, at, key=lambda h: h.at) :]

    def close(self) -> None:
        """Leaves."""
        self._stop = True
        self._thread.join(10)


def accepted(heard: list[Heard]) -> list[Heard]:
    """What is left once messages of a generation below one that was seen are dropped, as consumers do."""
    found: list[Heard] = []
    newest = 0
    for message in heard:
        newest = max(newest, message.generation)
        if message.generation == newest:
            found.append(message)
    return found


class Rays:
    """The cluster. Ray is told not to ask for a token, since a home folder is not ours.

    Args:
        folder: short, since sockets are in it.
        nodes: names.
    """

    def __init__(self, folder: Path, nodes: list[str]) -> None:
        os.environ |= {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "XDG_STATE_HOME": str(folder / "xdg"),
        }
        from ray.cluster_utils import Cluster

        self.folder = folder
        self._options = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        head = {**self._options, "node_name": "head", "labels": {"streamd-boxes": "0"}}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: dict[str, Any] = {}
        for name in nodes:
            self.add(name)

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return str(self._cluster.address)

    def add(self, name: str) -> None:
        """Starts a node."""
        self._nodes[name] = self._cluster.add_node(**self._options, node_name=name, wait=False)

    def box(self, name: str) -> BoxFolder:
        """The box of a node."""
        return BoxFolder(self.folder / "boxes" / name)

    def processes(self, name: str) -> list[psutil.Process]:
        """All of a node: Ray's own, the keeper, the daemon."""
        found = []
        notes = keeper.read_notes(self.box(name))
        own = [p for p in (notes.keeper, notes.daemon) if p is not None and p.alive]
        roots = [info.process.pid for kind in self._nodes[name].all_processes.values() for info in kind]
        for pid in (*roots, *(p.pid for p in own)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                found += [process, *process.children(recursive=True)]
        return list(dict.fromkeys(found))

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to all of a node's processes."""
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def head(self) -> list[psutil.Process]:
        """The head's own processes, with the coordinator, which is on it."""
        head = self._cluster.head_node
        roots = [psutil.Process(info.process.pid) for kind in head.all_processes.values() for info in kind]
        return [each for root in roots for each in (root, *root.children(recursive=True))]

    def kill_coordinator(self) -> None:
        """As a crash would."""
        [found] = [p for p in self.head() if " ".join(p.cmdline()).startswith("ray::Coordinator")]
        found.kill()

    def kill_head(self) -> None:
        """All of it, at once."""
        for process in self.head():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def close(self) -> None:
        """Ends everything."""
        for name in self._nodes:  # a stopped process does not see that its parent has ended
            self.signal(name, signal.SIGCONT)
        # First those that would start a keeper again.
        for node in (*self._nodes.values(), self._cluster.head_node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        for folder in sorted((self.folder / "boxes").iterdir()):
            keeper.stop(BoxFolder(folder), grace_s=1.0)


@dataclass
class Running:
    """A fleet with a NATS server, and what it publishes."""

    rays: Rays
    file: Path
    http: str
    listener: Listener

    def status(self) -> FleetStatus:
        """As the coordinator's port tells it."""
        with urllib.request.urlopen(f"http://{self.http}/status", timeout=10) as answer:
            return decode(answer.read(), FleetStatus)

    def command(self, *arguments: str) -> int:
        """Runs `streamd fleet …`."""
        return main(["fleet", *arguments, "--address", self.rays.address])

    def command_here(self, *arguments: str) -> int:
        """The same without the cluster."""
        return main(["fleet", *arguments, "--here", "--state-dir", str(self.rays.folder / "boxes")])

    def homes(self) -> dict[str, str | None]:
        """The box of each stream."""
        return {s.stream: s.box for s in self.status().streams}

    def whole(self) -> bool:
        """Whether every stream runs and every box is up."""
        try:
            status = self.status()
        except OSError:
            return False
        return {b.state for b in status.boxes} <= {"UP"} and {s.state for s in status.streams} == {"RUNNING"}

    def wait_steady(self, timeout_s: float = 2 * PATIENCE_S) -> None:
        """Waits until every stream runs and nothing will move: a box that has just come takes streams of others."""
        before: dict[str, int] | None = None
        since = 0.0

        def steady() -> bool:
            nonlocal before, since
            now = time.monotonic()
            found = {s.stream: s.generation for s in self.status().streams} if self.whole() else None
            if found is None or found != before:
                before, since = found, now
            return found is not None and now - since > STEADY_S

        until(steady, timeout_s)

    def wait_published(self, streams: set[str], since: float, *, generation: dict[str, int] | None = None) -> float:
        """Waits until each has published after `since`, above its `generation`; returns when the last one did."""
        found: dict[str, float] = {}

        def all_there() -> bool:
            for stream in streams - found.keys():
                least = (generation or {}).get(stream, 0)
                first = next((h.at for h in self.listener.since(stream, since) if h.generation > least), None)
                if first is not None:
                    found[stream] = first
            return streams <= found.keys()

        until(all_there, PATIENCE_S)
        return max(found[s] for s in streams)


@contextlib.contextmanager
def fleet(
    nodes: int, streams: int, *, fps: float = 5.0, more: str = "", rates: Sequence[float] = (), model: str = NULL
) -> Iterator[Running]:
    """A cluster with a fleet that serves generated streams.

    Args:
        nodes: beside the head.
        streams: how many.
        fps: of each.
        more: lines of the section `fleet`.
        rates: of the streams, where they differ.
        model: sections of the configuration.
    """
    with tempfile.TemporaryDirectory(prefix="fl-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(nats_server(folder))
        port = free_port()
        file = folder / "FLEET.yaml"
        rates = rates or [fps] * streams
        listed = "\n".join(f"  - {{id: s{i:02}, kind: synthetic, fps: {rate:.4f}}}" for i, rate in enumerate(rates))
        file.write_text(
            f"{model}fleet:\n  box: {{fps: 1000}}\n  stream_fps: {fps}\n  boxes: {nodes}\n  listen: 127.0.0.1:{port}\n"
            f"  state_dir: {folder}/boxes\n{more}"
            f"sinks:\n  - {{kind: nats, servers: ['127.0.0.1:{server.port}'], prefix: streamd, detections: true}}\n"
            f"streams:\n{listed}\n"
        )
        listener = Listener(server.port)
        stack.callback(listener.close)
        rays = Rays(folder, [f"n{i + 1}" for i in range(nodes)])
        stack.callback(rays.close)
        running = Running(rays, file, f"127.0.0.1:{port}", listener)
        assert running.command("run", str(file)) == 0
        running.wait_steady()
        until(lambda: len(running.listener.streams()) == streams, PATIENCE_S)
        yield running
