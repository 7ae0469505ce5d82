"""One box: keeps its daemon's keeper alive, gives the daemon its orders, and reports to the coordinator.

Nothing here stops a stream: without the coordinator, or without this process, the daemon goes on with what it has.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from streamd.config import MetricsSettings
from streamd.config.loader import load
from streamd.errors import StreamdError
from streamd.fleet.records import LEASE_S, REPORT_S, BoxReport, DaemonReport, Order
from streamd.runtime.control.client import ControlClient, ControlError
from streamd.workers.fleet import keeper
from streamd.workers.fleet.place import BoxFolder, fleet_folder, write_whole

log = structlog.get_logger(__name__)

LEAST_S = 0.05
"""Shortest time between two reports."""
MOST_GENERATION = 1 << 53
"""What is above is a damaged file. JavaScript's numbers end here, too."""
STOPPED = "stopped on its node; `streamd fleet drain` and `drain --undo` start it again"
"""Why a box has no daemon after `streamd fleet stop --here`."""
GRACE_S = 15.0
"""On top of `drain_s`, before a daemon that does not end is killed."""


@dataclass(frozen=True)
class Configuration:
    """FLEET.yaml, as the coordinator has it."""

    text: str
    base: str
    """Folder that its relative paths are relative to."""

    @property
    def revision(self) -> str:
        """Identifies the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Place:
    """Which box this is."""

    name: str
    node: str
    """Name of its node."""
    address: str
    """The node's address, for others."""
    index: int
    """Number of the box on its node, from 1."""
    labels: Sequence[str]
    environment: Mapping[str, str]
    """For the daemon."""


Report = Callable[[BoxReport], "Order | None"]
"""Tells the coordinator; None if it did not answer."""


def under_way(before: Order | None, order: Order, told: DaemonReport | None) -> bool:
    """Whether something changes, so that the next report is not to wait: its streams would wait as well.

    Args:
        before: the last order.
        order: the new one; every order has another number.
        told: what the daemon said before it was given the new one.
    """
    if before is None or msgspec.structs.replace(before, number=0, highest=0) != msgspec.structs.replace(
        order, number=0, highest=0
    ):
        return True
    if told is None:
        return False
    moves = any(each.standby or each.handover is not None for each in order.streams.values())
    return moves or bool(told.partings) or not told.streams.keys() <= order.streams.keys()


class BoxHost:
    """A box in a process that may end at any time.

    Args:
        place: which box.
        report: tells the coordinator.
        configuration: asks the coordinator for FLEET.yaml; None if it does not answer.
        state_dir: see `FleetSettings`.
        again: this process replaces one that has died.
    """

    def __init__(
        self,
        place: Place,
        report: Report,
        configuration: Callable[[], Configuration | None],
        state_dir: str | None = None,
        *,
        again: bool = False,
    ) -> None:
        self.place = place
        self._report, self._configuration = report, configuration
        self._folder = BoxFolder(fleet_folder(state_dir, place.environment) / place.name)
        self._made, self._again = False, again
        self._order: Order | None = None
        self._revision, self._highest = "", 0
        self._metrics = MetricsSettings()
        self._drain_s = 5.0
        self._client: ControlClient | None = None
        self._unknown_since: float | None = None
        """Since when there is a daemon that the last order may not be for; see `_exchange`."""
        self._drained = False
        self._ending: threading.Thread | None = None
        self._problem = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="box", daemon=True)

    def start(self) -> None:
        """Starts the thread that does everything."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the daemon, which drains, and its keeper."""
        self.leave()
        self._end_daemon()

    def leave(self) -> None:
        """Ends this object only: the daemon goes on."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._close()

    def _end_daemon(self) -> None:
        keeper.stop(self._folder, grace_s=self._drain_s + GRACE_S)

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    # ---------------------------------------------------------------------------------------------------- the loop

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                again = self.step()
            except Exception as error:  # noqa: BLE001 - a box that cannot be run now is tried again
                self._trouble(str(error))
                self._report_problem()
                again = False
            wait = LEAST_S if again else REPORT_S
            self._stopping.wait(max(0.0, wait - (time.monotonic() - began)))

    def _report_problem(self) -> None:
        """Else nobody would learn of it but those who read the log of the actor."""
        place = self.place
        with contextlib.suppress(Exception):
            self._report(BoxReport(place.name, place.node, list(place.labels), problem=self._problem))

    def _open_folder(self) -> None:
        self._folder.make()
        if not self._again:
            self._folder.stopped.unlink(missing_ok=True)
        if self._folder.config.exists():
            self._revision = hashlib.sha256(self._folder.config.read_bytes()).hexdigest()
        with contextlib.suppress(OSError, ValueError):
            found = int(self._folder.highest.read_bytes())
            self._highest = found if 0 <= found < MOST_GENERATION else 0
        self._made = True

    def step(self) -> bool:
        """One exchange with the daemon and one with the coordinator; True if the next is due at once."""
        if not self._made:
            self._open_folder()
        told = None if self._drained else self._exchange()
        port = told.metrics_port if told is not None else None
        report = BoxReport(
            self.place.name, self.place.node, list(self.place.labels), told,
            metrics=f"{self._host}:{port}" if port else None, problem=self._why(told), highest=self._highest,
            joining=self._order is not None and self._order.joining,
        )  # fmt: skip
        order = self._report(report)
        if order is None:
            if self._unknown_since is not None and time.monotonic() - self._unknown_since > LEASE_S:
                self._unknown_since = None  # there is no coordinator: it goes on with what the last one had
            return False
        if told is not None:
            self._unknown_since = None
        again = under_way(self._order, order, told)
        self._order = order
        self._remember(order.highest)
        if order.revision and order.revision != self._revision:
            self._take_configuration()
        if order.drained != self._drained:
            self._drained = order.drained
            self._close()
            log.info("box drained" if order.drained else "box takes streams again", box=self.place.name)
            if order.drained:
                # Meanwhile it is still to be seen that this box lives.
                self._ending = threading.Thread(target=self._end_daemon, name="drained", daemon=True)
                self._ending.start()
            else:
                self._folder.stopped.unlink(missing_ok=True)
        if not self._drained and not (self._ending is not None and self._ending.is_alive()):
            self._keep()
        return again

    def _remember(self, highest: int) -> None:
        """Subscribers remember it, too, and it is beyond what a clock that was set back would begin with."""
        if highest > self._highest:
            self._highest = highest
            with contextlib.suppress(OSError):  # a full disk: the daemons know it as long as they live
                write_whole(self._folder.highest, b"%d" % highest)

    def _why(self, told: DaemonReport | None) -> str:
        if told is not None:
            return ""
        if self._drained:
            return "drained"
        ended = keeper.read_notes(self._folder).ended
        return self._problem or ended or "starting"

    def _trouble(self, problem: str) -> None:
        if problem != self._problem:
            log.warning("box", box=self.place.name, problem=problem)
        self._problem = problem

    # -------------------------------------------------------------------------------------------------- the daemon

    def _keep(self) -> None:
        if keeper.kept(self._folder):
            return
        if self._folder.stopped.exists():
            self._trouble(STOPPED)
            return
        if not self._folder.config.exists() and not self._take_configuration():
            return
        self._read_settings()
        keeper.start(self._folder, self._command(), self._environment(), grace_s=self._drain_s + GRACE_S)
        log.info("daemon started", box=self.place.name, folder=str(self._folder.path))

    @property
    def _base(self) -> Path:
        return self._folder.path / "base"

    def _read_settings(self) -> None:
        """What of the configuration concerns this process; the daemon says what is wrong with it."""
        with contextlib.suppress(StreamdError):
            config = load(
                self._folder.config, self._environment(), share=False, base=Path(os.readlink(self._base))
            ).config
            self._metrics, self._drain_s = config.metrics, config.drain_s

    def _environment(self) -> dict[str, str]:
        own = {"STREAMD_BOX": self.place.name, "STREAMD_BOX_INDEX": str(self.place.index)}
        return {**self.place.environment, **own}

    def _command(self) -> list[str]:
        host = (self._metrics.listen or "127.0.0.1:0").rpartition(":")[0]
        return [
            sys.executable, "-m", "streamd.runtime.control", str(self._folder.config), "--socket",
            str(self._folder.socket), "--box", self.place.name, "--state-dir", str(self._folder.state),
            "--listen", f"{host}:0", "--base", os.readlink(self._base),
        ]  # fmt: skip

    @property
    def _host(self) -> str:
        """Under which others reach the daemon's ports."""
        host = (self._metrics.listen or "127.0.0.1:0").rpartition(":")[0]
        return self.place.address if host in ("0.0.0.0", "[::]") else host  # noqa: S104 - a comparison

    def _take_configuration(self) -> bool:
        found = self._configuration()
        if found is None:
            return False
        temporary = self._folder.path / ".base"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(found.base)
        temporary.replace(self._base)
        write_whole(self._folder.config, found.text.encode())
        self._revision = found.revision
        self._read_settings()
        if self._client is not None:
            try:
                self._client.reload()
            except (ControlError, OSError) as error:
                self._trouble(f"the new configuration was rejected: {error}")
        return True

    def _exchange(self) -> DaemonReport | None:
        """Gives the last order to the daemon, but to one that has just started only what the coordinator answers.

        The last order has generations of its predecessor, whose frames would have the same numbers.
        """
        try:
            if self._client is None:
                self._client = ControlClient(self._folder.socket)
                self._unknown_since = time.monotonic()
            told = self._client.exchange(self._order if self._unknown_since is None else None)
        except (FileNotFoundError, ConnectionRefusedError):
            self._close()  # it is starting
            return None
        except (OSError, ControlError) as error:
            self._close()
            self._trouble(str(error))
            return None
        self._problem = ""
        return told
