"""A sink that survives its own errors."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import get_args

import structlog

from streamd.errors import StreamdError
from streamd.events.record import Media
from streamd.events.upkeep import Outcome
from streamd.flow.backoff import Backoff
from streamd.flow.settings import StreamSettings
from streamd.settings.plugins import maker
from streamd.sinks import Sink
from streamd.sinks.envelope import Message
from streamd.sinks.events import EventSink, JournalEvent
from streamd.telemetry.logs import Throttle
from streamd.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

REOPEN_INITIAL_S, REOPEN_MAX_S = 0.5, 30.0
OUTCOMES = frozenset(get_args(Outcome))
SLOW_S = 5.0
"""Seconds after which the start says which sink it waits for."""
STEADY_S = 10.0
"""A sink that was open for this long has recovered: its next failure starts with the shortest wait again."""
_ERROR_LOG_S = 10.0


class SinkErrorLog:
    """The errors of one sink: each is counted, and at most one in ten seconds is logged.

    Args:
        name: of the sink.
        metrics: counts.
        package: whose sink it is; None for one of streamd's own.
    """

    def __init__(self, name: str, metrics: Metrics, package: str | None = None) -> None:
        self._name, self._package = name, package
        self._errors = metrics.sink_errors.labels(sink=name)
        self._throttle = Throttle(_ERROR_LOG_S)

    def tell(self, error: BaseException) -> None:
        """Counts an error."""
        self._errors.inc()
        held = self._throttle.take()
        if held is None:
            return
        text = str(error) if isinstance(error, StreamdError) else f"{type(error).__name__}: {error}"
        trace = None if isinstance(error, StreamdError) else error
        log.error(
            "sink failed", sink=self._name, error=text, not_logged=held or None, exc_info=trace, package=self._package
        )


class GuardedSink:
    """A sink that survives its own errors: after an undeclared exception, it is closed and opened again.

    For one thread, except `problem`.

    Args:
        name: in metrics and logs.
        sink: used and closed only through this object.
        metrics: counts, and shows whether the sink is up.
    """

    def __init__(self, name: str, sink: Sink, metrics: Metrics) -> None:
        self._name, self._sink = name, sink
        self._event_sink = sink if isinstance(sink, EventSink) else None
        self.package = maker(sink)
        """Whose sink it is; None for one of streamd's own."""
        self._errors = SinkErrorLog(name, metrics, self.package)
        self._up = metrics.sink_up.labels(sink=name)
        self._up.set(0)
        self._dropped = metrics.sink_dropped
        self._metrics = metrics
        self._refused: dict[str, int] = {}
        self._tells_readers = False
        self._backoff = Backoff(REOPEN_INITIAL_S, REOPEN_MAX_S)
        self._retry_at = self._opened_at = 0.0
        self.problem: str | None = "not open yet"
        """Why the sink is not open; None while it is. Any thread reads it."""
        self._refuses: str | None = None
        """Why the open sink has not taken the latest message: a full disk, for example."""

    def open(self) -> None:
        """Opens the sink for the first time.

        Raises:
            SinkError: see `Sink.open`.
        """
        late = threading.Timer(SLOW_S, self._still_opening)
        late.daemon = True
        with contextlib.suppress(RuntimeError):  # no further thread is allowed
            late.start()
        try:
            self._sink.open()
        finally:
            late.cancel()
        self._opened()

    def _still_opening(self) -> None:
        log.warning("sink is still being opened, and the start waits for it", sink=self._name, package=self.package)

    def _opened(self) -> None:
        self.problem = self._refuses = None
        self._opened_at = time.monotonic()
        self._up.set(1)
        if not self._tells_readers and self._sink.readers is not None:
            self._tells_readers = True
            # Asked for by each scrape: what this thread set last would go on being told while it fails or waits.
            self._metrics.sink_subscribers.labels(sink=self._name).set_function(self._connected)

    def _connected(self) -> int:
        """The readers at this moment; none while the sink is not open. Any thread."""
        if self.problem is not None:
            return 0
        try:
            readers = self._sink.readers
            return 0 if readers is None else int(readers.connected)
        except Exception:  # noqa: BLE001 - no sink may fail the metrics of all others
            return 0

    @property
    def unreachable(self) -> str | None:
        """Why the sink, although open, cannot reach its receiver or write; None while it can. Any thread."""
        if self.problem is not None:
            return None
        try:
            away = self._event_sink.unreachable if self._event_sink is not None else None
        except Exception as error:  # noqa: BLE001 - asked for by whoever asks for the daemon's health
            return f"{type(error).__name__}: {error}"
        if away is not None and type(away) is not str:
            return f"{type(self._sink).__qualname__}.unreachable is {away!r:.80}; expected None or a reason"
        return away if away is not None else self._refuses

    def lost(self, reason: str) -> None:
        """Counts a message that some or all readers did not receive."""
        self._dropped.labels(sink=self._name, reason=reason).inc()

    def send(self, message: Message, *, counted: bool = True) -> bool:
        """Sends a message; False if it was not sent at all, which is logged and, if `counted`, counted as a drop."""
        if self.problem is not None:
            if counted:
                self.lost("error")
            return False
        try:
            reason = self._sink.send(message)
            if reason is not None and type(reason) is not str:
                raise TypeError(f"{type(self._sink).__qualname__}.send returned {reason!r}; expected None or a reason")
        except BaseException as error:  # noqa: BLE001 - whatever a sink does, its thread continues: asyncio's CancelledError
            if counted:
                self.lost("error")
            if isinstance(error, StreamdError):
                self._refuses = str(error)
                self._up.set(0)
            self._failed(error)
            return False
        if self._refuses is not None:
            self._refuses = None
            self._up.set(self.unreachable is None)
        if reason is not None:
            self.lost(reason)
        return True

    def poll(self) -> None:
        """Calls the sink's housekeeping, or opens it again when it is time."""
        try:
            if self.problem is None:
                self._sink.poll()
                if self._event_sink is not None:
                    if self._event_sink.unreachable is None:
                        # What it refused while its server was away is past, even if nothing was sent since.
                        self._refuses = None
                    self._up.set(self.unreachable is None)
                self._count_refused()
            elif time.monotonic() >= self._retry_at:
                self._sink.open()
                self._opened()
                log.info("sink reopened", sink=self._name)
        except BaseException as error:  # noqa: BLE001 - see `send`
            self._failed(error)

    def _count_refused(self) -> None:
        readers = self._sink.readers
        if readers is None:
            return
        for reason, count in readers.refused.items():
            self._metrics.sink_refused.labels(sink=self._name, reason=reason).inc(count - self._refused.get(reason, 0))
        self._refused = dict(readers.refused)

    def failed_outside(self, error: BaseException) -> None:
        """Counts and logs an error of what is around the sink: the thread goes on."""
        self._errors.tell(error)

    def set_streams(self, streams: Sequence[StreamSettings]) -> None:
        """See `Sink.set_streams`."""
        try:
            self._sink.set_streams(streams)
        except BaseException as error:  # noqa: BLE001 - see `send`
            self._failed(error)

    def takes_events(self) -> bool:
        """See `EventSink.takes_events`; False if the sink fails."""
        if self.problem is not None or self._event_sink is None:
            return False
        try:
            return bool(self._event_sink.takes_events())
        except BaseException as error:  # noqa: BLE001 - see `send`
            self._failed(error)
            return False

    def deliver(self, events: Sequence[JournalEvent]) -> list[Outcome]:
        """See `EventSink.deliver`; nothing is settled if the sink fails."""
        assert self._event_sink is not None
        try:
            outcomes = self._event_sink.deliver(events)
            if self.package is not None and (len(outcomes) > len(events) or not OUTCOMES.issuperset(outcomes)):
                # Else events would count as settled that are not.
                deliver = f"{type(self._sink).__qualname__}.deliver"
                raise TypeError(f"{deliver} returned {outcomes!r:.80} for {len(events)} events; expected one of "
                                f"{', '.join(sorted(OUTCOMES))} for each that is settled")  # fmt: skip
            return outcomes
        except BaseException as error:  # noqa: BLE001 - see `send`
            self._failed(error)
            return []

    def media(self, stream: str, role: str, media: Media) -> None:
        """See `EventSink.media`."""
        assert self._event_sink is not None
        try:
            self._event_sink.media(stream, role, media)
        except BaseException as error:  # noqa: BLE001 - see `send`
            self._failed(error)

    def interrupt(self) -> None:
        """See `EventSink.interrupt`. Any thread."""
        if self._event_sink is not None:
            try:
                self._event_sink.interrupt()
            except Exception as error:  # noqa: BLE001 - called by who closes all sinks
                self._errors.tell(error)

    def _failed(self, error: BaseException) -> None:
        self._errors.tell(error)
        if self.problem is None and isinstance(error, StreamdError):
            return  # it has reported the problem, and keeps trying
        now = time.monotonic()
        if self.problem is None and now - self._opened_at >= STEADY_S:
            self._backoff.reset()
        self.problem = str(error) if isinstance(error, StreamdError) else f"{type(error).__name__}: {error}"
        self._up.set(0)
        self._retry_at = now + self._backoff.next()
        self._close()

    def _close(self) -> None:
        try:
            self._count_refused()
        except BaseException as error:  # noqa: BLE001 - see `send`
            self._errors.tell(error)
        self._refused = {}  # a sink that is opened again counts from 0
        try:
            self._sink.close()
        except BaseException as error:  # noqa: BLE001 - see `send`
            self._errors.tell(error)

    def close(self) -> None:
        """Closes the sink for good."""
        self._close()
        self.problem = "closed"
        self._up.set(0)
