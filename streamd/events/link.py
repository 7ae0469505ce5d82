"""The channel over ZeroMQ: a thread in each worker, one in the parent, and an ipc:// address between them.

The parent's socket is a ROUTER, which answers each sender separately; the address is in the daemon's own folder.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import structlog

from streamd.errors import SinkError
from streamd.events.channel import BOUND, Inbox, Link, Outbox, decode_ack, decode_burst, encode
from streamd.events.record import Event, Media, RuleStates
from streamd.flow.threads import NamedThread

if TYPE_CHECKING:
    from streamd.events.journal import Journal

log = structlog.get_logger(__name__)

HWM = 64
"""Messages in a socket's queue: more would only become stale."""
POLL_MS = 500
LINGER_S = 0.25
"""After this long, everything that a process sent before it died has been received."""


class _Waker:
    """Wakes a thread that polls sockets."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._set = False

    def wake(self) -> None:
        """Any thread."""
        if not self._set:
            self._set = True
            with contextlib.suppress(OSError):
                os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        """Called by the woken thread before it looks for work."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        self._set = False

    def close(self) -> None:
        """To be called once nothing wakes it any more."""
        os.close(self.fd)


class EventSender:
    """The worker's side.

    Args:
        endpoint: ipc:// address that the parent binds, now or later.
        origin: `boot_id/life` of this process.
        bound: largest number of events kept until acknowledged.
    """

    def __init__(self, endpoint: str, origin: str, *, bound: int = BOUND) -> None:
        self.endpoint = endpoint
        self.outbox = Outbox(origin, bound=bound)
        self._waker = _Waker()
        self._stop = False
        self._give_up_at = float("inf")
        self._thread = NamedThread(self._run, "events")

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, event: Event) -> bool:
        """Sends an event; False if there is no room: it is lost, counted, and reported. Never waits. Any thread."""
        kept = self.outbox.put(event)
        self._waker.wake()
        return kept

    def link(self, event_id: str, role: str, media: Media) -> bool:
        """Hands over a file of an event that was submitted before; see `Journal.link`. Never waits. Any thread."""
        kept = self.outbox.note(Link(event_id, role, media))
        self._waker.wake()
        return kept

    def keep(self, told: RuleStates) -> bool:
        """Hands over what rules have counted without an event; see `Journal.keep`. Never waits. Any thread."""
        kept = self.outbox.note(told)
        self._waker.wake()
        return kept

    def close(self, timeout: float) -> bool:
        """Waits until all kept events are acknowledged, then ends; False if that took longer than `timeout` seconds."""
        self._give_up_at = time.monotonic() + timeout
        self._stop = True
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join(timeout + 1)
        return not len(self.outbox)

    def _run(self) -> None:
        import zmq

        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, HWM)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        # Nothing is queued without a connection: it would be stale once there is one.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._waker.fd, zmq.POLLIN)
        try:
            socket.connect(self.endpoint)
            while not (self._stop and (not len(self.outbox) or time.monotonic() > self._give_up_at)):
                wait = min(POLL_MS, int(self.outbox.due_s() * 1000) + 1)
                poller.poll(50 if self._stop else wait)
                self._waker.clear()
                self._hear(socket)
                self._send(socket)
        finally:
            socket.close(0)
            context.term()

    def _hear(self, socket: Any) -> None:
        import zmq

        while True:
            try:
                data = socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                self.outbox.acknowledge(decode_ack(data))
            except SinkError as error:
                log.error("events cannot be sent", error=str(error))

    def _send(self, socket: Any) -> None:
        import zmq

        # Nothing is taken from the outbox before the socket can send: it would have to wait for a retransmission.
        while socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
            burst = self.outbox.burst()
            if burst is None:
                return
            try:
                socket.send(encode(burst), zmq.DONTWAIT)
            except zmq.Again:
                return  # it will be sent again


class EventReceiver:
    """The parent's side: passes the workers' events to the journal, and acknowledges committed ones.

    Args:
        endpoint: ipc:// address.
        journal: receives the events.
    """

    def __init__(self, endpoint: str, journal: Journal) -> None:
        self.endpoint = endpoint
        self._journal = journal
        self.inbox = Inbox(journal)
        self._waker = _Waker()
        self._stop = False
        self._context: Any = None
        self._socket: Any = None
        self._peers: dict[str, tuple[bytes, int]] = {}
        """By origin: its address, and the last acknowledgement."""
        self._unheard: set[str] = set()
        """Origins that must be answered even if nothing is new."""
        self._ending: dict[str, tuple[float, str]] = {}
        """By origin: when nothing can be in transit any more (monotonic seconds), and why it ended."""
        self._ended: set[str] = set()
        """Nothing is accepted from these any more: a begin received now would never be ended."""
        self._lock = threading.Lock()
        self._thread = NamedThread(self._run, "events-in")

    def start(self) -> None:
        """Binds, and starts the thread.

        Raises:
            SinkError: the address cannot be bound.
        """
        import zmq

        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, HWM)
        try:
            self._socket.bind(self.endpoint)
        except zmq.ZMQError as error:
            self._socket.close(0)
            self._context.term()
            raise SinkError(f"event channel: {self.endpoint} cannot be bound: {error.strerror}") from error
        self._journal.listen(lambda _: self._waker.wake())
        self._thread.start()

    def finish(self, origin: str, reason: str) -> None:
        """The process has ended: its events in transit are still accepted, then its open events are ended. Any thread.

        Args:
            origin: origin of its sender.
            reason: stored in the details of each end, e.g. worker_died. A process that has ended all its events itself
                leaves none to end.
        """
        with self._lock:
            self._ending[origin] = time.monotonic() + LINGER_S, reason
        self._waker.wake()

    def close(self, timeout: float = 2.0) -> bool:
        """Ends it; False if that takes longer than `timeout` seconds. Remaining senders keep what is not
        acknowledged."""
        self._stop = True
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        import zmq

        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._waker.fd, zmq.POLLIN)
        try:
            while not self._stop:
                poller.poll(50 if self._ending else POLL_MS)
                self._waker.clear()
                self._take()
                self._tell()
                self._finish()
        finally:
            self._socket.close(0)
            self._context.term()

    def _take(self) -> None:
        import zmq

        for _ in range(HWM):
            try:
                parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                if len(parts) != 2:
                    raise SinkError(f"event channel: expected [address, burst], got {len(parts)} parts")
                burst = decode_burst(parts[1])
            except SinkError as error:
                log.error("events cannot be received", error=str(error))
                continue
            if burst.origin in self._ended:
                continue
            self.inbox.take(burst)
            with self._lock:
                _, told = self._peers.get(burst.origin, (b"", 0))
                self._peers[burst.origin] = parts[0], told
                self._unheard.add(burst.origin)

    def _tell(self) -> None:
        import zmq

        with self._lock:
            peers, unheard = list(self._peers.items()), self._unheard
            self._unheard = set()
        for origin, (address, told) in peers:
            ack = self.inbox.ack(origin)
            # A sender that repeats committed events has missed our answer.
            if ack.committed > told or (origin in unheard and ack.committed):
                with contextlib.suppress(zmq.Again, zmq.ZMQError):
                    self._socket.send_multipart([address, encode(ack)], zmq.DONTWAIT)
                with self._lock:
                    if origin in self._peers:
                        self._peers[origin] = address, ack.committed

    def _finish(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [(origin, reason) for origin, (at, reason) in self._ending.items() if now >= at]
            for origin, _ in due:
                del self._ending[origin]
                self._peers.pop(origin, None)
        for origin, reason in due:
            self._ended.add(origin)
            self._journal.end_open(reason, origin=origin)
