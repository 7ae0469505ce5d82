"""The Ray actors: a box on each node or GPU, and one coordinator. They are named and detached, and Ray restarts them.

A task of the coordinator is never retried by Ray: a box sends its next report soon.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from streamd.fleet import BoxSettings, FleetSettings
from streamd.fleet.records import BoxReport, Order, decode, encode
from streamd.telemetry.logs import configure
from streamd.workers.fleet.box import BoxHost, Configuration, Place
from streamd.workers.fleet.host import CoordinatorHost
from streamd.workers.fleet.process import as_nice_as
from streamd.workers.fleet.roster import Node, Wanted

log = structlog.get_logger(__name__)

NAMESPACE = "streamd"
COORDINATOR = "coordinator"
BOXES_LABEL = "streamd-boxes"
"""Label of a node: how many boxes it is to have, 0 for none."""
HEAD = "node:__internal_head__"
"""Resource that every head has, also one that was started again."""
ANSWER_S = 1.0
"""Longest time that a box waits for the coordinator's answer."""
CALLS = 64
"""Calls that the coordinator handles at the same time."""


class CoordinatorActor:
    """See `CoordinatorHost`. Records travel as JSON, so that both sides may be of different versions.

    Args:
        text: FLEET.yaml.
        base: see `Configuration`.
    """

    def __init__(self, text: str, base: str) -> None:
        configure("info", "json")
        _as_nice_as_the_node()
        self._host = CoordinatorHost(Configuration(text, base), RayCluster())
        self._host.start()

    def listens(self) -> str | None:
        """See `CoordinatorHost.listens`."""
        return self._host.listens

    def pid(self) -> int:
        """Its process."""
        return os.getpid()

    def report(self, report: bytes) -> bytes:
        """See `CoordinatorHost.report`."""
        return encode(self._host.report(decode(report, BoxReport)))

    def configuration(self) -> tuple[str, str]:
        """See `CoordinatorHost.configuration`."""
        found = self._host.configuration()
        return found.text, found.base

    def status(self) -> bytes:
        """See `CoordinatorHost.status`."""
        return encode(self._host.status())

    def happenings(self, since: int) -> tuple[int, list[dict[str, str]]]:
        """See `CoordinatorHost.happenings`."""
        return self._host.happenings(since)

    def apply(self, text: str, base: str) -> None:
        """See `CoordinatorHost.apply`."""
        self._host.apply(Configuration(text, base))

    def drain(self, name: str, undo: bool) -> list[str]:
        """See `CoordinatorHost.drain`."""
        return self._host.drain(name, undo=undo)

    def stop(self) -> list[str]:
        """See `CoordinatorHost.stop`."""
        return self._host.stop()


class BoxActor:
    """See `BoxHost`.

    Args:
        name: of the box.
        node: name of its node.
        index: see `Place`.
        labels: see `Place`.
        state_dir: see `FleetSettings`.
    """

    def __init__(self, name: str, node: str, index: int, labels: Sequence[str], state_dir: str | None) -> None:
        import ray

        configure("info", "json")
        _as_nice_as_the_node()
        environment = node_environment()
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        place = Place(name, node, ray.util.get_node_ip_address(), index, tuple(labels), environment)
        self._coordinator: Any = None
        self._stopped = threading.Lock()
        again = context.was_current_actor_reconstructed
        self._host = BoxHost(place, self._report, self._configuration, state_dir, again=again)
        self._host.start()

    def pid(self) -> int:
        """Its process."""
        return os.getpid()

    def stop(self) -> None:
        """Ends the daemon and its keeper; returns when both are gone."""
        with self._stopped:
            self._host.stop()

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        try:
            self._coordinator = self._coordinator or ray.get_actor(COORDINATOR, namespace=NAMESPACE)
            return ray.get(getattr(self._coordinator, method).remote(*arguments), timeout=ANSWER_S)
        except ray.exceptions.ActorUnavailableError:  # it is being restarted
            return None
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayTaskError):
            return None
        except (ray.exceptions.RayError, ValueError):  # it is gone; there may be another one
            self._coordinator = None
            return None

    def _report(self, report: BoxReport) -> Order | None:
        answer = self._ask("report", encode(report))
        return None if answer is None else decode(answer, Order)

    def _configuration(self) -> Configuration | None:
        answer = self._ask("configuration")
        return None if answer is None else Configuration(*answer)


def _as_nice_as_the_node() -> None:
    """Ray gives its workers the least priority but a few; a daemon that one starts would inherit it."""
    if not as_nice_as(os.getppid()):
        log.warning(
            "low priority", niceness=os.getpriority(os.PRIO_PROCESS, 0),
            hint="start Ray with RAY_worker_niceness=0: only root may take back what it does to its workers",
        )  # fmt: skip


def node_environment() -> dict[str, str]:
    """The environment that the node was started with, from its parent process (the raylet).

    What Ray sets for its own processes, such as OMP_NUM_THREADS or another allocator, is not for the daemon.
    """
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            pairs = (item.partition(b"=") for item in file.read().split(b"\0") if b"=" in item)
            found = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    except OSError:
        found = dict(os.environ)
    return without_rays(found)


def without_rays(environment: Mapping[str, str]) -> dict[str, str]:
    """A raylet's environment as it was before Ray added to it."""
    # Ray loads jemalloc into a raylet unless something is to be loaded already. OpenVINO aborts with it.
    loaded = environment.get("LD_PRELOAD", "")
    if loaded and (loaded == environment.get("RAY_JEMALLOC_LIB_PATH") or loaded.endswith("/ray/core/libjemalloc.so")):
        drop = {"LD_PRELOAD"} | ({"MALLOC_CONF"} if "RAY_JEMALLOC_CONF" in environment else set())
        environment = {name: value for name, value in environment.items() if name not in drop}
    return {name: value for name, value in environment.items() if not name.startswith("RAY_")}


class RayCluster:
    """The cluster that this process belongs to."""

    def nodes(self, box: BoxSettings) -> list[Node]:
        """See `Cluster`."""
        import ray

        return [_node(found, box) for found in ray.nodes() if found["Alive"]]

    def boxes(self) -> set[str]:
        """See `Cluster`."""
        import ray

        found = ray.util.list_named_actors(all_namespaces=True)
        return {each["name"] for each in found if each["namespace"] == NAMESPACE and each["name"].startswith("box:")}

    def start(self, box: Wanted, settings: FleetSettings) -> None:
        """See `Cluster`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=2)(BoxActor)
        options: dict[str, Any] = {"num_gpus": settings.box.gpus} if box.node.gpus else {}
        if settings.box.memory_gb:
            options["memory"] = int(settings.box.memory_gb * 1e9)
        actor.options(
            name=box.actor, namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
            scheduling_strategy=NodeAffinitySchedulingStrategy(box.node.id, soft=False), **options,
        ).remote(box.name, box.node.name, box.index, box.node.labels, settings.state_dir)  # fmt: skip

    def keep(self, key: str, value: bytes) -> None:
        """See `Cluster`."""
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(key.encode(), value, overwrite=True, namespace=NAMESPACE.encode())

    def kept(self, key: str) -> bytes | None:
        """See `Cluster`."""
        from ray.experimental import internal_kv

        found: bytes | None = internal_kv._internal_kv_get(key.encode(), namespace=NAMESPACE.encode())
        return found

    def forget(self) -> None:
        """Removes what was kept."""
        from ray.experimental import internal_kv

        for key in ("configuration", "drained", "stopping"):
            internal_kv._internal_kv_del(key.encode(), namespace=NAMESPACE.encode())


def _node(found: Mapping[str, Any], box: BoxSettings) -> Node:
    """A node as Ray describes it."""
    labels = {k: v for k, v in (found.get("Labels") or {}).items() if not k.startswith("ray.io/")}
    gpus = float(found["Resources"].get("GPU", 0))
    with_gpu = box.gpus > 0 and gpus > 0
    count = int(gpus / box.gpus + 1e-6) if with_gpu else 1
    stated = labels.pop(BOXES_LABEL, "")
    if stated.isdigit():
        count = min(int(stated), count) if with_gpu else int(stated)
    name = str(found.get("NodeName") or found["NodeManagerAddress"]).replace(":", "-")
    return Node(
        found["NodeID"], name, found["NodeManagerAddress"], tuple(sorted(set(labels.values()))), count, with_gpu
    )  # fmt: skip


def start_coordinator(configuration: Configuration) -> Any:
    """The coordinator's actor, started if there is none.

    It is on the head, whose address others know, and without which Ray restarts nothing. Ray puts an actor with a mere
    preference for a node on another one whenever the node is busy.
    """
    import ray

    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=CALLS)(CoordinatorActor)
    return actor.options(
        name=COORDINATOR, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, resources={HEAD: 0.001}
    ).remote(configuration.text, configuration.base)
