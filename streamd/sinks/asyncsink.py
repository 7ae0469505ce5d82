"""Sinks that deliver events through a client library built on asyncio.

The event loop belongs to the sink and runs only while one of the sink's methods does, on the sink's own thread. A
connection that is lost is not revived by the library: `poll` makes a new one, as the sink's `RetryPolicy` says.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, NoReturn

import structlog

from streamd.errors import SinkError
from streamd.events.retry import RetryPolicy
from streamd.events.upkeep import Outcome
from streamd.sinks.envelope import FRAME_KINDS, Message
from streamd.sinks.events import EventSink, JournalEvent

log = structlog.get_logger(__name__)

TURN_S = 0.05
"""Longest time that one call waits for the server."""
_SERVER, _EVENTS = "server", "events"


class AsyncEventSink(EventSink):
    """See `streamd.sinks.events.EventSink`.

    A kind implements the methods that begin with an underscore and are abstract here. Those that are coroutines run in
    the sink's event loop, which stands still between the sink's calls.

    Args:
        kind: of the sink, for errors and the log.
        server: address of the server, or of several, for people.
        events: whether events are delivered at all.
    """

    def __init__(self, kind: str, server: str, *, events: bool) -> None:
        self._kind, self._server, self._events = kind, server, events
        self._who = f"{kind} sink: {server}"
        self._errors: tuple[type[Exception], ...] = ()
        """What is raised where the server or the network is at fault."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry = RetryPolicy()
        self._connecting: asyncio.Task[str] | None = None
        self._up = False
        self._batch: asyncio.Task[None] | None = None
        """Delivers events; goes on while the sink does other things."""
        self._settled: dict[tuple[str, int], Outcome] = {}
        """Events whose outcome is known and was not returned: an earlier one is still in the way."""
        self._refusal: str | None = None
        """Why the batch ended early, while the connection is good."""
        self._unreachable: str | None = None

    # ------------------------------------------------------------------------------------------------- what a kind does

    @abstractmethod
    def _prepare(self) -> type[Exception]:
        """Loads the library and checks files, before anything connects.

        Returns:
            The base class of the library's errors.

        Raises:
            ConfigError: the library is not installed.
            SinkError: a file cannot be used.
        """

    @abstractmethod
    async def _connect(self) -> str:
        """Connects. Any exception means that it failed.

        Returns:
            The server, for the log.
        """

    @abstractmethod
    async def _disconnect(self) -> None:
        """Ends what `_connect` began, even where that failed half-way. Gets half a second."""

    @abstractmethod
    def _alive(self) -> bool:
        """Whether the connection, once made, is still there."""

    @abstractmethod
    def _step(self) -> None:
        """Housekeeping on a connection, at every `poll`. Calls `_end` if the connection turns out to be over."""

    @abstractmethod
    def _publish(self, message: Message) -> None:
        """Publishes a message without waiting.

        Raises:
            SinkError: it was not published.
        """

    @abstractmethod
    async def _flush(self) -> None:
        """Lets the server have what was published, before the connection is closed. Gets a second."""

    @abstractmethod
    async def _deliver(self, streams: Sequence[Sequence[JournalEvent]]) -> None:
        """Delivers events, and notes in `_settled` what has become of each.

        Where the server does not take an event now, `_refusal` says why, and the later ones of its stream wait.

        Args:
            streams: the events of one stream each, in order.

        Raises:
            Exception: one of `_errors`: the connection is over.
        """

    @staticmethod
    def _text(error: BaseException) -> str:
        """An error of the library in words."""
        return str(error) or type(error).__name__

    # ------------------------------------------------------------------------------------------------------ connection

    @property
    def unreachable(self) -> str | None:
        """See `EventSink.unreachable`."""
        return self._unreachable

    @property
    def _connected(self) -> bool:
        return self._up and self._alive()

    def open(self) -> None:
        """See `Sink.open`. A server that is away is not an error; `poll` connects."""
        self._errors = (OSError, asyncio.TimeoutError, self._prepare())
        self._loop = asyncio.new_event_loop()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        assert self._loop is not None
        return self._loop.run_until_complete(work)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        assert self._loop is not None
        return self._loop.create_task(work)

    def _done(self, task: asyncio.Task[Any], wait_s: float = TURN_S) -> bool:
        """Lets the loop run until the task is done, at most for `wait_s`."""
        self._run(asyncio.wait({task}, timeout=wait_s))
        return task.done()

    def poll(self) -> None:
        """See `Sink.poll`. Connects, and lets the library work."""
        if self._up:
            self._step()
        else:
            self._connect_if_due()

    def _connect_if_due(self) -> None:
        if self._connecting is None:
            if self._retry.wait_s(_SERVER) > 0:
                return
            self._connecting = self._start(self._connect())
        if not self._done(self._connecting):
            return
        task, self._connecting = self._connecting, None
        if (error := task.exception()) is not None:
            self._end(self._text(error))
        self._retry.succeeded(_SERVER)
        self._unreachable, self._up = None, True
        log.info("sink connected", kind=self._kind, server=task.result())

    def _end(self, why: str) -> NoReturn:
        """The connection is over.

        Raises:
            SinkError: always.
        """
        self._abandon()
        self._later(_SERVER, why)

    def _later(self, target: str, why: str) -> NoReturn:
        """The target is tried again later.

        Raises:
            SinkError: always.
        """
        wait = self._retry.failed(target)
        self._unreachable = f"{self._who}: {why}"
        raise SinkError(f"{self._unreachable}; next attempt in {wait:.1f} s, events wait in the journal")

    def _abandon(self) -> None:
        self._up = False
        tasks = [task for task in (self._batch, self._connecting) if task is not None]
        self._batch = self._connecting = None
        self._refusal = None
        if self._loop is not None:
            self._run(self._leave(tasks))

    async def _leave(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        await cancel(tasks)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._disconnect(), 0.5)
        await cancel(task for task in asyncio.all_tasks() if task is not asyncio.current_task())

    def close(self) -> None:
        """See `Sink.close`."""
        if self._loop is None:
            return
        if self._connected:
            with contextlib.suppress(Exception):
                self._run(asyncio.wait_for(self._flush(), 1))
        self._abandon()
        self._loop.close()
        self._loop = None
        self._unreachable = None

    # -------------------------------------------------------------------------------------------- messages and events

    def send(self, message: Message) -> str | None:
        """See `Sink.send`. What describes the present is dropped without a connection: the next one tells it again."""
        if self._connected:
            self._publish(message)
        elif message.kind in FRAME_KINDS:
            raise SinkError(f"{self._unreachable or f'{self._who}: not connected yet'}; frames are lost")
        return None

    def takes_events(self) -> bool:
        """See `EventSink.takes_events`."""
        return self._events and self._connected and self._retry.wait_s(_EVENTS) <= 0

    def deliver(self, events: Sequence[JournalEvent]) -> list[Outcome]:
        """See `EventSink.deliver`. Waits a moment for the server's answers."""
        if self._batch is None:
            # What was settled behind an event that was not taken is not sent again with it.
            self._settled = {e.key: self._settled[e.key] for e in events if e.key in self._settled}
            self._refusal = None
            streams: defaultdict[str, list[JournalEvent]] = defaultdict(list)
            for event in events:
                if event.key not in self._settled:
                    streams[event.stream].append(event)
            self._batch = self._start(self._deliver(list(streams.values())))
        if not self._done(self._batch):
            return []
        batch, self._batch = self._batch, None
        if (error := batch.exception()) is not None:
            if not isinstance(error, self._errors):
                raise error
            self._end(self._text(error))
        outcomes: list[Outcome] = []
        for event in events:
            outcome = self._settled.get(event.key)
            if outcome is None:
                break
            outcomes.append(outcome)
        if self._refusal is not None and not outcomes:
            self._later(_EVENTS, self._refusal)
        if outcomes and self._retry.attempts(_EVENTS):
            self._retry.succeeded(_EVENTS)
            self._unreachable = None
        return outcomes


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks and waits for their end, however they end."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
