"""The coordinator with all that surrounds it: a clock, FLEET.yaml, the boxes of the cluster, a log and an HTTP port."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog
from prometheus_client import CollectorRegistry

from streamd.config.loader import load
from streamd.errors import ConfigError, SinkError, StreamdError
from streamd.fleet import BOX_VARIABLES, BoxSettings, FleetSettings
from streamd.fleet.coordinator import Coordinator
from streamd.fleet.placement import Demand
from streamd.fleet.plan import boxes_of, demands_of, idle_entries, single_sessions
from streamd.fleet.records import BoxReport, FleetStatus, Order, encode
from streamd.telemetry.http import HttpServer
from streamd.telemetry.routes import Request, Response
from streamd.workers.fleet.box import Configuration
from streamd.workers.fleet.metrics import FleetMetrics
from streamd.workers.fleet.roster import Node, Roster, Wanted

log = structlog.get_logger(__name__)

TICK_S = 0.25
CLUSTER_S = 1.0
"""Seconds between two looks at the cluster's nodes."""
MOST_SAID = 1000
"""Happenings that are kept for `happenings`."""
FORGET_S = 600.0
"""A box is forgotten once its node has been gone for so long."""


class Cluster(Protocol):
    """What the coordinator needs of Ray."""

    def nodes(self, box: BoxSettings) -> list[Node]:
        """Those that are alive, with as many boxes as they have room for."""

    def boxes(self) -> set[str]:
        """`Wanted.actor` of the boxes that are there or being started again."""

    def start(self, box: Wanted, settings: FleetSettings) -> None:
        """Starts a box, which reports by itself."""

    def keep(self, key: str, value: bytes) -> None:
        """Stores a value beyond the end of this process."""

    def kept(self, key: str) -> bytes | None:
        """A stored value."""


@dataclass(frozen=True)
class Fleet:
    """What FLEET.yaml says to the coordinator."""

    settings: FleetSettings
    demands: Sequence[Demand]
    single_session: frozenset[str]
    idle: Sequence[str] = ()
    """See `idle_entries`."""


def read_fleet(configuration: Configuration, environment: Mapping[str, str] = os.environ) -> Fleet:
    """Reads FLEET.yaml.

    Raises:
        ConfigError: what is wrong with it, or that it has no section `fleet`.
    """
    with tempfile.TemporaryDirectory(prefix="streamd-fleet-") as folder:
        file = Path(folder) / "FLEET.yaml"
        file.write_text(configuration.text)
        file.chmod(0o600)
        base = Path(configuration.base)
        try:
            config = load(file, {**BOX_VARIABLES, **environment}, secrets=False, share=False, base=base).config
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{folder}/", "")) from error
    if config.fleet is None:
        raise ConfigError("there is no section `fleet`; it says what a box can do: fleet: {box: {fps: 2000}}")
    if config.workers not in (1, "auto"):
        raise ConfigError("workers: a box of a fleet has one process; remove it, and give a node several boxes")
    if config.share is not None:
        raise ConfigError("share: the coordinator divides the streams of a fleet; remove it")
    boxes_of(config.fleet)
    single = frozenset(single_sessions(config.fleet, config.streams))
    idle = idle_entries(config.fleet, config.streams)
    return Fleet(config.fleet, demands_of(config.fleet, config.streams), single, idle)


class CoordinatorHost:
    """Runs the coordinator. Methods may be called by any thread.

    Args:
        configuration: FLEET.yaml at the start of the fleet; a newer one that the cluster keeps replaces it.
        cluster: see `Cluster`.
    """

    def __init__(self, configuration: Configuration, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        if (newer := cluster.kept("configuration")) is not None:
            configuration = Configuration(**json.loads(newer))
        else:
            self._keep(configuration)
        self._configuration = configuration
        self._drained: set[str] = set(json.loads(cluster.kept("drained") or b"[]"))
        fleet = read_fleet(configuration)
        self._settings = fleet.settings
        self._core = Coordinator(
            fleet.settings, fleet.demands, now=time.monotonic(), start_generation=int(time.time() * 1000),
            revision=configuration.revision, single_session=fleet.single_session,
        )  # fmt: skip
        self._roster = Roster()
        self._known: set[str] = set()
        self._node_of: dict[str, str] = {}
        self._gone: dict[str, float] = {}
        """Boxes whose node is gone, and since when."""
        self._said: collections.deque[dict[str, str]] = collections.deque(maxlen=MOST_SAID)
        self._said_count = 0
        self._stopping = threading.Event()
        if cluster.kept("stopping") is not None:  # its predecessor has died meanwhile
            self._stopping.set()
        self._http: HttpServer | None = None
        try:
            self._open_http()
        except SinkError as error:
            if newer is None:
                raise
            # Restarted beside its predecessor, which is stopped and not dead, say: the fleet matters more.
            log.error("coordinator: no HTTP port yet", error=str(error))
        self._threads = [
            threading.Thread(target=self._every, args=(TICK_S, self._tick), name="tick", daemon=True),
            threading.Thread(target=self._every, args=(CLUSTER_S, self._look), name="nodes", daemon=True),
        ]

    def start(self) -> None:
        """Starts the threads and the HTTP port."""
        for thread in self._threads:
            thread.start()
        log.info("coordinator started", listen=self.listens)

    def stop(self) -> list[str]:
        """Starts no more boxes, and takes no more orders; returns the names of the actors that there may be.

        Not even after a restart, else it would start the boxes again that have been stopped.
        """
        self._cluster.keep("stopping", b"1")
        self._stopping.set()
        self._threads[1].join()
        return sorted(self._cluster.boxes())

    def close(self) -> None:
        """Ends everything."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self._http is not None:
            self._http.close()

    @property
    def listens(self) -> str | None:
        """HOST:PORT of the HTTP port."""
        if self._http is None or self._settings.listen is None:
            return None
        return f"{self._settings.listen.rpartition(':')[0]}:{self._http.port}"

    def _every(self, seconds: float, what: Any) -> None:
        while not self._stopping.wait(seconds):
            try:
                what()
            except Exception:
                log.exception("coordinator", task=what.__name__.strip("_"))

    # -------------------------------------------------------------------------------------------------- for the boxes

    def report(self, report: BoxReport) -> Order:
        """See `Coordinator.report`."""
        with self._lock:
            now = time.monotonic()
            order = self._core.report(now, report)
            self._node_of[report.box] = report.node
            if report.box not in self._known:
                self._known.add(report.box)
                if report.box in self._drained:
                    self._core.drain(now, report.box)
            return order

    def configuration(self) -> Configuration:
        """FLEET.yaml."""
        return self._configuration

    # -------------------------------------------------------------------------------------------------- for operators

    def status(self) -> FleetStatus:
        """The whole fleet."""
        with self._lock:
            return self._core.status(time.monotonic())

    def happenings(self, since: int) -> tuple[int, list[dict[str, str]]]:
        """What was logged from number `since` on, and the number to ask with next."""
        with self._lock:
            return self._said_count, list(self._said)[max(0, since - self._said_count + len(self._said)) :]

    def apply(self, configuration: Configuration) -> None:
        """Takes over a changed FLEET.yaml.

        Raises:
            ConfigError: it is wrong, or differs in what cannot change; nothing is changed.
            StreamdError: the fleet is being stopped.
        """
        self._check_runs()
        fleet = read_fleet(configuration)
        for name in ("listen", "state_dir"):
            if getattr(fleet.settings, name) != getattr(self._settings, name):
                raise ConfigError(f"fleet.{name}: cannot be changed while the fleet runs; stop it first")
        with self._lock:
            self._core.apply(
                time.monotonic(), fleet.settings, fleet.demands, configuration.revision, fleet.single_session
            )
            self._configuration, self._settings = configuration, fleet.settings
        self._keep(configuration)
        log.info("configuration applied", streams=len(fleet.demands), revision=configuration.revision[:12])

    def drain(self, name: str, *, undo: bool = False) -> list[str]:
        """Drains a box, or all boxes of a node; `undo` lets them take streams again.

        Returns:
            The names of the boxes.

        Raises:
            ConfigError: there is none of this name.
            StreamdError: the fleet is being stopped.
        """
        self._check_runs()
        with self._lock:
            boxes = sorted(b for b, node in self._node_of.items() if name in (b, node))
            if not boxes:
                known = ", ".join(sorted({*self._node_of, *self._node_of.values()})) or "none yet"
                raise ConfigError(f"{name}: no such box or node; there are {known}")
            for box in boxes:
                (self._core.undrain if undo else self._core.drain)(time.monotonic(), box)
            self._drained = self._drained.difference(boxes) if undo else self._drained.union(boxes)
            drained = sorted(self._drained)
        self._cluster.keep("drained", json.dumps(drained).encode())
        return boxes

    def _check_runs(self) -> None:
        if self._stopping.is_set():
            raise StreamdError("the fleet is being stopped, or its stop was cut short; `streamd fleet stop` ends it")

    def _keep(self, configuration: Configuration) -> None:
        kept = {"text": configuration.text, "base": configuration.base}
        self._cluster.keep("configuration", json.dumps(kept).encode())

    # ------------------------------------------------------------------------------------------------------ by itself

    def _tick(self) -> None:
        with self._lock:
            happened = self._core.tick(time.monotonic())
            self._said_count += len(happened)
            self._said.extend(
                {k: v for k in ("kind", "box", "stream", "reason", "detail") if (v := str(getattr(h, k)))}
                for h in happened
            )
        for each in happened:
            log.info(
                each.kind, box=each.box or None, stream=each.stream or None, reason=each.reason or None,
                detail=each.detail or None,
            )  # fmt: skip

    def _look(self) -> None:
        """Starts the boxes that are missing; forgets those whose nodes have long been gone."""
        with contextlib.suppress(SinkError):
            self._open_http()
        settings = self._settings
        there = self._cluster.boxes()
        boxes = self._roster.wanted(self._cluster.nodes(settings.box), there, settings.most)
        for box in boxes:
            if box.actor not in there and not self._stopping.is_set():
                log.info("box started", box=box.name, node=box.node.name)
                self._cluster.start(box, settings)
        now, names = time.monotonic(), {b.name for b in boxes}
        with self._lock:
            self._gone = {b: self._gone.get(b, now) for b in self._known if b not in names}
            for box_name in [b for b, since in self._gone.items() if now - since > FORGET_S]:
                with contextlib.suppress(ConfigError):
                    self._core.forget(now, box_name)
                self._known.discard(box_name)
                self._node_of.pop(box_name, None)

    # -------------------------------------------------------------------------------------------------- the HTTP port

    def _open_http(self) -> None:
        listen = self._settings.listen
        if listen is None or self._http is not None:
            return
        registry = CollectorRegistry()
        registry.register(FleetMetrics(self._samples))
        try:
            http = HttpServer(listen, registry, lambda: (True, {"healthy": True}), self._ready)
        except SinkError as error:
            raise SinkError(str(error).replace("metrics.listen", "fleet.listen")) from error
        http.route("/sd", self._sd)
        http.route("/status", self._status)
        http.start()
        self._http = http

    def _samples(self) -> Any:
        with self._lock:
            return self._core.metrics(time.monotonic())

    def _ready(self) -> tuple[bool, dict[str, Any]]:
        with self._lock:
            rebuilding = self._core.rebuilding(time.monotonic())
        return not rebuilding, {"ready": not rebuilding, "rebuilding": rebuilding}

    def _sd(self, _: Request) -> Response:
        with self._lock:
            targets = self._core.targets()
        return Response(json.dumps(targets).encode() + b"\n", "application/json")

    def _status(self, _: Request) -> Response:
        return Response(encode(self.status()) + b"\n", "application/json")
