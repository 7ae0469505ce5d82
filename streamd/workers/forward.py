"""The parent's side of a sink: takes what the workers hand over and passes it on."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

from streamd.errors import SinkError
from streamd.flow.threads import NamedThread
from streamd.sinks import Sink
from streamd.sinks.message import STATUS_SUFFIX, encoder, status_message, topic
from streamd.sinks.thread import POLL_S, SinkErrorLog
from streamd.telemetry.metrics import Metrics
from streamd.types import StreamCounts, StreamStatus
from streamd.workers.relay import HEAD, HWM


class _Passed:
    """What has been passed on of one stream."""

    __slots__ = ("count", "head")

    def __init__(self) -> None:
        self.count = 0
        self.head = b""
        """Of the last message."""


class Forwarder:
    """One sink with its thread. What a worker sends waits in the relay's socket, bounded, while the sink is busy.

    Args:
        name: in metrics and logs.
        sink: used and closed by this thread alone (but `open` runs in the caller's, to fail early).
        endpoint: ipc:// address to bind for the workers.
        encoding: of this sink's messages.
        metrics: counts.
        heartbeat_s: statuses of streams without a living worker are sent at least this often, seconds.
        boot_id: in every message.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        endpoint: str,
        encoding: Literal["json", "msgpack"],
        metrics: Metrics,
        *,
        heartbeat_s: float,
        boot_id: str,
    ) -> None:
        self.name, self.encoding, self.endpoint = name, encoding, endpoint
        self._sink = sink
        self._encode = encoder(encoding)
        self._metrics = metrics
        self._heartbeat_s = heartbeat_s
        self._boot_id = boot_id
        self._sent = metrics.sink_messages.labels(sink=name)
        self._troubles = SinkErrorLog(name, metrics)
        self._uncounted = 0
        """Messages that the metrics do not show yet."""
        self._passed: dict[bytes, _Passed] = {}
        """By topic."""
        self._held: dict[bytes, tuple[StreamStatus, StreamCounts]] = {}
        """Statuses that no worker tells any more."""
        self._ended: dict[bytes, int] = {}
        """By topic: the last life whose statuses are old news."""
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._context: Any = None
        self._socket: Any = None
        self._thread = NamedThread(self._run, f"sink-{name}")

    def open(self) -> None:
        """Opens the sink and binds the relay.

        Raises:
            SinkError: see `Sink.open`.
        """
        import zmq

        self._sink.open()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, HWM)
        # A receive that waits by itself costs half of a poll before each.
        self._socket.setsockopt(zmq.RCVTIMEO, int(POLL_S * 1000))
        self._socket.bind(self.endpoint)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def hold(self, life: int, statuses: Iterable[tuple[StreamStatus, StreamCounts]]) -> None:
        """Tells these statuses, now and as a heartbeat, until another worker tells of the streams. Any thread.

        Args:
            life: of the worker that has ended: what is still under way from it is older.
            statuses: of its streams.
        """
        held = {topic(status.stream, "status"): (status, counts) for status, counts in statuses}
        self._orders.put(lambda: self._hold(life, held))

    def release(self, streams: Iterable[str]) -> None:
        """Tells what is held of these streams no more. Any thread."""
        names = [topic(stream, "status") for stream in streams]
        self._orders.put(lambda: self._release(names))

    def passed(self, stream: str) -> tuple[int, int, int]:
        """Of a stream's detections: how many were passed on, the epoch of the last and the seq after it. Any thread."""
        found = self._passed.get(topic(stream, "detections"))
        if found is None:
            return 0, -1, 0
        _, epoch, seq = HEAD.unpack_from(found.head)
        return found.count, epoch, seq + 1

    def close(self, timeout: float) -> bool:
        """Passes on what is still there, then closes; False where that took longer than `timeout` seconds."""
        self._stopping = True
        if not self._thread.is_alive():
            self._close()
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _close(self) -> None:
        self._sink.close()
        if self._socket is not None:
            self._socket.close(0)
            self._context.term()
            self._socket = None

    def _run(self) -> None:
        import zmq

        receive, pass_on = self._socket.recv, self._pass_on
        next_poll = 0.0
        next_beat = time.monotonic() + self._heartbeat_s
        try:
            while True:
                now = time.monotonic()
                if now >= next_poll:
                    next_poll = now + POLL_S
                    self._housekeep()
                    if now >= next_beat:
                        next_beat = now + self._heartbeat_s
                        self._tell(self._held)
                try:
                    head = receive()
                except zmq.Again:  # nothing for POLL_S
                    if self._stopping:
                        return
                    continue
                pass_on(head, receive())
        finally:
            self._housekeep()
            self._troubles.guard(self._close)

    def _housekeep(self) -> None:
        self._troubles.guard(self._sink.poll)
        self._take_orders()
        if self._uncounted:
            self._sent.inc(self._uncounted)
            self._uncounted = 0

    def _pass_on(self, head: bytes, payload: bytes) -> None:
        name = head[HEAD.size :]
        if name.endswith(STATUS_SUFFIX):
            if not self._news(name, HEAD.unpack_from(head)[0]):
                return
        else:
            known = self._passed.get(name)
            if known is None:
                known = self._passed[name] = _Passed()
            known.head = head
            known.count += 1
            self._uncounted += 1
        try:
            reason = self._sink.forward(name, payload)
        except SinkError as error:
            self._troubles.tell(error)
            reason = "error"
        if reason is not None:
            self._metrics.sink_dropped.labels(sink=self.name, reason=reason).inc()

    def _news(self, name: bytes, life: int) -> bool:
        if life <= self._ended.get(name, 0):
            return False
        self._held.pop(name, None)
        return True

    def _take_orders(self) -> None:
        while True:
            try:
                order = self._orders.get_nowait()
            except queue.Empty:
                return
            order()

    def _hold(self, life: int, held: dict[bytes, tuple[StreamStatus, StreamCounts]]) -> None:
        self._held |= held
        self._ended |= dict.fromkeys(held, life)
        self._tell(held)

    def _release(self, names: Iterable[bytes]) -> None:
        for name in names:
            self._held.pop(name, None)

    def _tell(self, held: dict[bytes, tuple[StreamStatus, StreamCounts]]) -> None:
        for name, (status, counts) in held.items():
            payload = self._encode(status_message(status, counts, self._boot_id))
            try:
                self._sink.forward(name, payload)
            except SinkError as error:
                self._troubles.tell(error)
