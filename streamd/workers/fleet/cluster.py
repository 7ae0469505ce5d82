"""The cluster as the command line sees it: connecting, or starting one on this machine; the coordinator's methods."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from streamd.errors import ConfigError, NoAnswerError, SinkError, StreamdError
from streamd.fleet.records import FleetStatus, decode
from streamd.workers.fleet import keeper
from streamd.workers.fleet.actors import BOXES_LABEL, COORDINATOR, NAMESPACE, RayCluster, start_coordinator
from streamd.workers.fleet.box import GRACE_S, Configuration
from streamd.workers.fleet.place import BoxFolder, fleet_folder, write_whole
from streamd.workers.fleet.process import Process

CALL_S = 30.0
KNOCK_S = 5.0
"""Longest time that a head takes to accept a connection."""
LOCAL_NODE = "box"
_OBJECT_STORE = 80 << 20
"""Bytes; nothing is kept in it, and this is about the least that Ray accepts."""
_STOP_S = 120.0
_LOOK_S = 0.5
TOKEN_VARIABLES = frozenset({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"})


class FleetError(StreamdError):
    """The cluster or its coordinator has failed."""


class FleetAwayError(FleetError, NoAnswerError):
    """There is no cluster, there is no fleet in it, or its coordinator does not answer."""


class GivenUpError(FleetError):
    """The answer is no longer wanted."""


def _ray() -> Any:
    # Ray protects the clusters that it starts by a token of the user, but does not send it by itself.
    if "RAY_AUTH_MODE" not in os.environ and (
        TOKEN_VARIABLES.intersection(os.environ) or os.path.exists(os.path.expanduser("~/.ray/auth_token"))
    ):
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"a fleet needs Ray ({error}): pip install 'streamd[fleet]'") from error
    return ray


def address_file() -> Path:
    """Where the address of a cluster on this machine is kept while `streamd fleet run` runs."""
    return fleet_folder() / "address"


def _quiet(ray: Any) -> dict[str, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else every daemon has the priority of Ray's workers, 15
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else each start prints a warning about it
    return {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connects to a cluster: `address`, else $RAY_ADDRESS, else the one that runs on this machine.

    Raises:
        ConfigError: what is given is no address.
        FleetAwayError: there is none.
    """
    ray = _ray()
    given = address or os.environ.get("RAY_ADDRESS")
    if given is not None and ":" not in given and given not in ("auto", "local"):
        raise ConfigError(f"{'--address' if address else 'RAY_ADDRESS'}: {given}: expected HOST:PORT of a Ray cluster")
    found = given or "auto"
    if given is None:
        with contextlib.suppress(OSError):
            found = address_file().read_text().strip()
    try:
        _knock(found)
        ray.init(address=found, **_quiet(ray))
    except Exception as error:  # Ray raises plain ones
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if given is not None:
            advice = "check the address; `ray start --head` on that machine starts one"
            raise FleetAwayError(f"no Ray cluster at {given}: {text}; {advice}") from error
        why = "" if found == "auto" else f" ({found}: {text})"
        advice = "`streamd fleet run FLEET.yaml` starts one, --address HOST:PORT or $RAY_ADDRESS names a cluster"
        raise FleetAwayError(f"no fleet runs on this machine{why}; {advice}") from error
    _hush()
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray remembers the address of a cluster that has died, and tries to reach it for minutes.

    Raises:
        OSError: nobody listens there.
    """
    try:
        from ray._private.services import canonicalize_bootstrap_address

        head = canonicalize_bootstrap_address(address)
        host, port = head.rsplit(":", 1)
        where = host.strip("[]"), int(port)
    except Exception:  # noqa: BLE001 - another version of Ray, another kind of address, no cluster: Ray says what it is
        return
    socket.create_connection(where, KNOCK_S).close()


def _hush() -> None:
    """Ray prints a page on standard output whenever an actor dies, also without `log_to_driver`."""
    with contextlib.suppress(ImportError, AttributeError, KeyError, ValueError):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        dispatcher.remove_handler("ray_print_logs")


@contextlib.contextmanager
def local(boxes: int, state_dir: str | None, told: Callable[[str], None] = lambda _: None) -> Iterator[Any]:
    """Starts a cluster on this machine, with one node, which ends with this process, with every daemon.

    Nothing is asked of Ray at the end: a signal to the whole process group has ended a part of it by then.

    Args:
        boxes: how many boxes the node is to have.
        state_dir: see `FleetSettings`.
        told: is given the name of each box that has been stopped at the end.
    """
    # Keepers inherit it from the node: they end with this process, however it ends.
    os.environ[keeper.OWNER] = str(Process.of(os.getpid()))
    try:
        with only_one(), contextlib.ExitStack() as last, _local(boxes) as ray:
            last.callback(stop_here, state_dir, told)  # once no box is left that would start a daemon again
            yield ray
    finally:
        del os.environ[keeper.OWNER]


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Of several clusters on this machine, all would find the same daemons, and `status` only the last one.

    Raises:
        ConfigError: there is one.
    """
    file = address_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file.with_name("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{file.parent}: {error.strerror}; choose another folder with $XDG_STATE_HOME") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = "a fleet runs on this machine already: `streamd fleet stop` ends it, `apply` changes it"
            raise ConfigError(message) from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _local(boxes: int) -> Iterator[Any]:
    ray = _ray()
    options: dict[str, Any] = {"labels": {BOXES_LABEL: str(boxes)}, "_node_name": LOCAL_NODE}
    for last in (False, True):
        try:
            context = ray.init(
                address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE, **options, **_quiet(ray)
            )
            break
        except Exception as error:  # Ray raises plain ones
            ray.shutdown()
            if last:  # on a busy machine, its own 30 s may be too short
                raise FleetError(f"Ray cannot be started: {str(error).splitlines()[0]}") from error
    _hush()
    file = address_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, context.address_info["address"].encode())
        yield ray
    finally:
        file.unlink(missing_ok=True)
        ray.shutdown()


class Fleet:
    """The running fleet of a cluster.

    Args:
        ray: connected.
        given_up: whether an answer is no longer waited for; asked twice a second.
    """

    def __init__(self, ray: Any, given_up: Callable[[], bool] = lambda: False) -> None:
        self._ray, self._given_up = ray, given_up
        self._actor: Any = None

    def start(self, configuration: Configuration) -> bool:
        """Starts the coordinator, or has the one that runs take the configuration; True if it was started.

        Raises:
            StreamdError: it cannot run, or rejects the configuration.
        """
        if self.runs():
            self.apply(configuration)
            return False
        RayCluster().forget()  # of a fleet that was not stopped, but lost with its cluster
        self._actor = start_coordinator(configuration)
        self._call("listens")
        return True

    def runs(self) -> bool:
        """Whether there is a coordinator."""
        try:
            self._actor = self._ray.get_actor(COORDINATOR, namespace=NAMESPACE)
        except ValueError:
            return False
        return True

    def _call(self, method: str, *arguments: Any, patience_s: float = CALL_S) -> Any:
        ray = self._ray
        if self._actor is None and not self.runs():
            raise FleetAwayError("no fleet runs in this cluster: streamd fleet run FLEET.yaml starts one")
        end = time.monotonic() + patience_s
        while True:
            try:
                task = getattr(self._actor, method).remote(*arguments)
                asked = time.monotonic()
                while not ray.wait([task], timeout=_LOOK_S)[0]:
                    if self._given_up():
                        raise GivenUpError
                    if time.monotonic() - asked > patience_s:
                        raise FleetAwayError(f"the coordinator has not answered within {patience_s:g} s")
                return ray.get(task)
            except ray.exceptions.ActorUnavailableError as error:
                if self._given_up():
                    raise GivenUpError from error
                if time.monotonic() > end:
                    raise FleetAwayError("the coordinator is being restarted, and does not answer yet") from error
                time.sleep(0.2)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, StreamdError) else FleetError(str(cause)) from error
            except ray.exceptions.ActorDiedError as error:
                self._actor = None
                raise _cause_of(error) from error

    def apply(self, configuration: Configuration) -> None:
        """See `CoordinatorHost.apply`."""
        self._call("apply", configuration.text, configuration.base)

    def status(self, patience_s: float = CALL_S) -> FleetStatus:
        """See `CoordinatorHost.status`."""
        return decode(self._call("status", patience_s=patience_s), FleetStatus)

    def listens(self) -> str | None:
        """See `CoordinatorHost.listens`."""
        found: str | None = self._call("listens")
        return found

    def happenings(self, since: int) -> tuple[int, list[dict[str, str]]]:
        """See `CoordinatorHost.happenings`."""
        number, found = self._call("happenings", since)
        return number, found

    def drain(self, name: str, *, undo: bool = False) -> list[str]:
        """See `CoordinatorHost.drain`."""
        found: list[str] = self._call("drain", name, undo)
        return found

    def stop(self, told: Callable[[str], None] = lambda _: None) -> list[str]:
        """Ends every daemon with its keeper, then the actors.

        Args:
            told: is given the name of each box that has been stopped.

        Returns:
            The names of boxes that did not answer: their daemons may still run.
        """
        ray = self._ray
        actors = {name: self._box(name) for name in self._call("stop")}
        tasks = {actor.stop.remote(): name for name, actor in actors.items() if actor is not None}
        left = {name for name, actor in actors.items() if actor is None}
        stopped: set[str] = set()
        waiting, end = list(tasks), time.monotonic() + _STOP_S
        while waiting and time.monotonic() < end:
            ready, waiting = ray.wait(waiting, timeout=1.0)
            for task in ready:
                name = tasks[task]
                try:
                    ray.get(task)
                    # At once: if its process died before, Ray would start it again, and it the daemon.
                    ray.kill(actors[name], no_restart=True)
                    told(_box_of(name))
                    stopped.add(_box_of(name))
                except ray.exceptions.ActorUnavailableError:  # Ray starts it again, and it its daemon
                    time.sleep(0.2)
                    tasks[again := actors[name].stop.remote()] = name
                    waiting.append(again)
                except ray.exceptions.RayError:
                    left.add(name)
        left.update(tasks[task] for task in waiting)
        for name in left:
            if (box := actors[name]) is not None:
                ray.kill(box, no_restart=True)
        RayCluster().forget()
        # Last: `run` on one machine ends the cluster as soon as it is gone.
        ray.kill(self._actor, no_restart=True)
        self._actor = None
        # A node that died and came back has two actors of the same box, and the one that answers ends its daemon.
        return sorted(set(map(_box_of, left)) - stopped)

    def _box(self, name: str) -> Any:
        try:
            return self._ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return None


def _box_of(actor: str) -> str:
    return actor.split(":")[1]


def _cause_of(error: Any) -> StreamdError:
    """Why an actor could not start, from the message that Ray makes of its exception."""
    lines = [line for line in str(error).splitlines() if "Error: " in line]
    for line in reversed(lines):
        for kind in (ConfigError, SinkError):
            name = f"{kind.__name__}: "
            if name in line:
                return kind(line.partition(name)[2])
    return FleetError(f"the coordinator has ended: {lines[-1] if lines else error}")


def stop_here(state_dir: str | None = None, told: Callable[[str], None] = lambda _: None) -> list[str]:
    """Ends every daemon of a fleet on this machine, with its keeper, without asking a cluster.

    A box whose actor still lives does not start its daemon again, see `BoxFolder.stopped`.

    Args:
        state_dir: see `FleetSettings`.
        told: is given the name of each box that has been stopped.

    Returns:
        The names of the boxes.
    """
    folder = fleet_folder(state_dir)
    boxes = [BoxFolder(path) for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    for box in (b for b in boxes if b.config.exists()):  # also where nothing runs yet: a keeper may be about to
        with contextlib.suppress(OSError):  # a full disk
            box.stopped.touch(0o600)
    running = [box for box in boxes if _runs(box)]
    if not running:
        return []
    with ThreadPoolExecutor(len(running)) as pool:  # each takes as long as its daemon drains
        for box, _ in zip(running, pool.map(lambda b: keeper.stop(b, grace_s=GRACE_S), running), strict=True):
            told(box.path.name)
    return [box.path.name for box in running]


def _runs(box: BoxFolder) -> bool:
    notes = keeper.read_notes(box)
    return keeper.kept(box) or (notes.daemon is not None and notes.daemon.alive)
