"""One worker: a daemon whose sinks are relays. It reads orders from standard input and reports over a socket.

`python -m streamd.workers.child PIPE NUMBER` is only started by `starting`. The end of standard input, which the
parent's death also causes, means drain and exit; the parent handles signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from streamd.config import Config
from streamd.errors import NO_ROOM, StreamdError, is_passing
from streamd.events.link import EventSender
from streamd.flow.threads import NamedThread
from streamd.runtime.daemon import Daemon
from streamd.runtime.drain import leave
from streamd.security.redact import remember
from streamd.telemetry.logs import bind_everywhere, configure, recent
from streamd.telemetry.notify import Notifier
from streamd.web.tap import Tap
from streamd.workers.pictures import PictureSender
from streamd.workers.relay import RelaySink
from streamd.workers.report import REPORT_S, Look, Order, Report, collect, origin_of, parts_of
from streamd.workers.starting import beat

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.1
"""Changes are reported this soon, between two regular reports."""
_LAST_MS = 1000
"""Longest time to wait for the parent to accept the last report, which has the final counters."""
_EVENTS_S = 2.0
"""Longest time for passing on the last events."""
_GRACE_S = 3.0
"""Added to `drain_s`, for calls that should not hang but might."""


def lines(descriptor: int) -> Iterator[bytes]:
    """Yields lines as they arrive. It does not use a file object: a thread that waits in one blocks the interpreter's
    exit."""
    rest = b""
    while piece := os.read(descriptor, 1 << 16):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole


@dataclass(frozen=True, slots=True)
class _Orders:
    """Numbers of orders. Replaced as a whole, since two threads use it."""

    newest: int
    accepted: int = 0
    """The latest one that the daemon has accepted; 0 for the first, which it was built from. A refused order leaves
    this unchanged, so it counts as done once the daemon has carried out the orders before it."""
    refused: int = 0


class Worker:
    """Follows the parent's orders.

    Args:
        number: number of this worker.
        order: the first order.

    Raises:
        StreamdError: see `Daemon`.
    """

    def __init__(self, number: int, order: Order, orders: Iterator[bytes]) -> None:
        self._number = number
        self._life, self._reports = order.life, order.reports
        self._pictures = order.pictures
        self._orders = _Orders(order.number)
        self._config = Config.model_validate(order.config)
        self._parent = order.parent
        self._daemon: Daemon | None = None
        self._relays = {r.name: RelaySink(r.endpoint, life=order.life) for r in order.relays}
        self._tap = Tap() if self._config.metrics.page else None
        self._over = threading.Event()
        self._events = EventSender(order.events, origin_of(order.boot_id, order.life))
        self._code: int | None = None
        # Before the daemon exists, so that no worker is left behind if the parent dies while a model is compiled.
        NamedThread(lambda: self._follow(orders), "orders").start()
        self._daemon = Daemon(
            self._config, relays=self._relays, past=order.past, boot_id=order.boot_id, notifier=Notifier({}),
            record_as=order.record_as, tap=self._tap, events=(self._events, order.life),
        )  # fmt: skip
        if self._daemon.recorder is not None:
            self._daemon.recorder.listen()

    def run(self) -> tuple[int, bool]:
        """Runs to the end. Returns the exit code, and whether a thread was left running."""
        assert self._daemon is not None
        reporter = NamedThread(self._report_all, "report")
        reporter.start()
        if self._config.tracker is not None:
            self._events.start()
        if self._tap is not None:
            PictureSender(self._tap, self._pictures)
        code = self._code = self._daemon.run(handle_signals=False)
        if self._config.tracker is not None and not self._events.close(_EVENTS_S):
            log.error("events could not be handed over in time", lost=len(self._events.outbox))
        self._over.set()
        reporter.join(2)
        self._clear()
        return code, self._daemon.left_running

    def _clear(self) -> None:
        """Removes what a killed parent has left behind."""
        if os.getppid() != self._parent:
            shutil.rmtree(Path(self._reports.removeprefix("ipc://")).parent, ignore_errors=True)

    def _follow(self, orders: Iterator[bytes]) -> None:
        for line in orders:
            order = msgspec.json.decode(line, type=Order | Look)
            while self._daemon is None:
                time.sleep(0.1)
            if isinstance(order, Look):
                if self._tap is not None:
                    self._tap.want(order.wishes)
                continue
            remember(order.secrets)
            self._daemon.streams.remember(order.past)
            try:
                config = Config.model_validate(order.config)
                self._daemon.reload(config, number=order.number)
            except (StreamdError, ValueError) as error:  # pydantic's errors are ValueErrors
                log.error("order cannot be carried out", error=str(error))
                self._orders = replace(self._orders, newest=order.number, refused=order.number)
            else:
                self._config = config
                self._orders = replace(self._orders, newest=order.number, accepted=order.number)
        if self._daemon is not None:
            self._daemon.stop()
            time.sleep(self._config.drain_s + _GRACE_S)
        self._clear()
        os._exit(1 if self._daemon is not None else 0)

    def _report_all(self) -> None:
        import zmq

        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.setsockopt(zmq.SNDHWM, 2)
            socket.setsockopt(zmq.LINGER, 500)
            socket.connect(self._reports)
            over, change, told, due, pause = False, 0, 0, 0.0, _LOOK_S
            assert self._daemon is not None
            while not over:
                over = self._over.wait(pause)
                now = time.monotonic()
                newest, _ = self._daemon.board.since(change)
                if not self._daemon.started or (
                    now < due and newest == change and told == self._orders.newest and not over
                ):
                    continue
                report = self._report(self._daemon)
                change, told, due = newest, report.order, now + REPORT_S
                parts = parts_of(report)
                # While hundreds of streams open, there are changes all the time: reports take at most a fifth of it.
                pause = min(max(_LOOK_S, 4 * (time.monotonic() - now)), REPORT_S)
                # The parent is busy: a late report is useless, unless it is the last.
                socket.setsockopt(zmq.SNDTIMEO, _LAST_MS if over else 0)
                with contextlib.suppress(zmq.Again):
                    socket.send_multipart(parts)

    def _report(self, daemon: Daemon) -> Report:
        orders = self._orders
        done = daemon.applied == orders.accepted and not daemon.streams.changing
        counts = {s.stream: s.counts() for s in daemon.metrics.streams()}
        health = daemon.health()[1]
        return Report(
            self._number, self._life, orders.newest if done else orders.newest - 1, health["problem"],
            daemon.board.all(), counts, collect(daemon.registry), self._code, orders.refused,
            daemon.seen(), health.get("media"), recent.lately() if self._tap is not None else [],
        )  # fmt: skip


def main() -> int:
    """Runs one worker until it ends."""
    beat(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # A worker that is stopped (SIGSTOP) when the parent dies is continued by the kernel: it has to notice and leave.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)
    orders = lines(0)
    first = next(orders, None)
    if first is None:
        return 0  # the parent ended before it sent an order
    order = msgspec.json.decode(first, type=Order)
    logging = order.config["logging"]
    remember(order.secrets)
    configure(logging["level"], logging["format"])
    worker = int(sys.argv[2])
    bind_everywhere(worker=worker)
    try:
        code, left_running = Worker(worker, order, orders).run()
    except StreamdError as error:
        log.error(str(error))
        return error.exit_code
    except (OSError, RuntimeError, MemoryError) as error:
        if not is_passing(error):
            raise
        log.error("the system lacks resources for a worker at the moment", error=str(error))
        return NO_ROOM
    return leave(code, left_running=left_running)


if __name__ == "__main__":
    sys.exit(main())
