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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import psutil

from streamd.cli import main
from streamd.fleet.coordinator import REPLAN_S
from streamd.fleet.records import FleetStatus, FleetStream, decode
from streamd.workers.fleet import keeper
from streamd.workers.fleet.place import BoxFolder
from tests.events.journals import until
from tests.sinks.brokers import Server, free_port, nats_server

PATIENCE_S = 60.0
STEADY_S = REPLAN_S + 1.0
NODE_STARTS = 3
"""Ray gives a raylet 30 s to start, which is too short for a busy machine."""
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
        labels: of nodes that have any.
        environments: of nodes that have variables of their own; the head is called `head`.
    """

    def __init__(
        self,
        folder: Path,
        nodes: list[str],
        labels: Mapping[str, Mapping[str, str]] | None = None,
        environments: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        os.environ |= {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "XDG_STATE_HOME": str(folder / "xdg"),
        }
        from ray.cluster_utils import Cluster

        self.folder = folder
        self._labels, self._environments = labels or {}, environments or {}
        self._options = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        head = {**self._options, "node_name": "head", "labels": {"streamd-boxes": "0"}}
        with self._environment("head"):
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
        options = {**self._options, "node_name": name, "labels": dict(self._labels.get(name, {})), "wait": False}
        for i in range(NODE_STARTS):
            before = set(psutil.Process().children())
            try:
                with self._environment(name):
                    self._nodes[name] = self._cluster.add_node(**options)
                return
            except Exception as error:  # Ray raises plain ones
                if "timed out during startup" not in str(error) or i == NODE_STARTS - 1:
                    raise
            # What has been started is known to nobody, and would be another node of this name.
            for process in set(psutil.Process().children()) - before:
                for each in (*process.children(recursive=True), process):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()

    @contextlib.contextmanager
    def _environment(self, name: str) -> Iterator[None]:
        before = dict(os.environ)
        os.environ |= self._environments.get(name, {})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ |= before

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

    def coordinator(self) -> psutil.Process:
        """Its actor's process."""
        [found] = [p for p in self.head() if _title(p).startswith("ray::Coordinator")]
        return found

    def actor(self, name: str) -> psutil.Process:
        """The process of the box's actor on a node."""
        [found] = [p for p in self.processes(name) if _title(p).startswith("ray::BoxActor")]
        return found

    def kill_coordinator(self) -> None:
        """As a crash would."""
        self.coordinator().kill()

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


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@dataclass
class Running:
    """A fleet with a NATS server, and what it publishes."""

    rays: Rays
    file: Path
    http: str
    listener: Listener
    nats: Server | None = None

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

    def stream(self, name: str) -> FleetStream:
        """One of them."""
        return next(s for s in self.status().streams if s.stream == name)

    def whole(self, drained: Collection[str] = ()) -> bool:
        """Whether every stream runs and every box is up, or drained if it is one of `drained`."""
        try:
            status = self.status()
        except OSError:
            return False
        boxes = all(b.state == ("DRAINED" if b.box in drained else "UP") for b in status.boxes)
        return boxes and {s.state for s in status.streams} == {"RUNNING"}

    def wait_steady(self, timeout_s: float = 2 * PATIENCE_S, *, drained: Collection[str] = ()) -> None:
        """Waits until every stream runs and nothing will move: a box that has just come takes streams of others."""
        before: dict[str, int] | None = None
        since = 0.0

        def steady() -> bool:
            nonlocal before, since
            now = time.monotonic()
            found = {s.stream: s.generation for s in self.status().streams} if self.whole(drained) else None
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
    nodes: int,
    streams: int,
    *,
    fps: float = 5.0,
    box_fps: float = 1000.0,
    more: str = "",
    rates: Sequence[float] = (),
    model: str = NULL,
    labels: Mapping[str, Mapping[str, str]] | None = None,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[Running]:
    """A cluster with a fleet that serves generated streams.

    Args:
        nodes: beside the head.
        streams: how many.
        fps: of each.
        box_fps: capacity of a box.
        more: lines of the section `fleet`.
        rates: of the streams, where they differ.
        model: sections of the configuration.
        labels: see `Rays`.
        environments: see `Rays`.
    """
    with tempfile.TemporaryDirectory(prefix="fl-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(nats_server(folder))
        port = free_port()
        file = folder / "FLEET.yaml"
        rates = rates or [fps] * streams
        listed = "\n".join(f"  - {{id: s{i:02}, kind: synthetic, fps: {rate:.4f}}}" for i, rate in enumerate(rates))
        file.write_text(
            f"{model}fleet:\n  box: {{fps: {box_fps}}}\n  stream_fps: {fps}\n  boxes: {nodes}\n"
            f"  listen: 127.0.0.1:{port}\n  state_dir: {folder}/boxes\n{more}"
            f"sinks:\n  - {{kind: nats, servers: ['127.0.0.1:{server.port}'], prefix: streamd, detections: true}}\n"
            f"streams:\n{listed}\n"
        )
        listener = Listener(server.port)
        stack.callback(listener.close)
        rays = Rays(folder, [f"n{i + 1}" for i in range(nodes)], labels, environments)
        stack.callback(rays.close)
        running = Running(rays, file, f"127.0.0.1:{port}", listener, server)
        assert running.command("run", str(file)) == 0
        running.wait_steady()
        until(lambda: len(running.listener.streams()) == streams, PATIENCE_S)
        yield running
