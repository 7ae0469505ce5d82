"""Redis Streams: events with XADD, one Redis stream for each camera; statuses, counts and detections by PUBLISH.

redis-py's asyncio client is used as nats-py is (`sinks/nats`): its event loop belongs to the sink and runs only while
one of the sink's methods does, on the sink's own thread.

    PREFIX:event:1:STREAM           Redis stream; an entry has the fields `id` and `event` (CloudEvents)
    PREFIX:1:STREAM:status          channel; status message, version 1
    PREFIX:1:STREAM:detections      channel; detections message, version 1
    PREFIX:counts:1:STREAM          channel; occupancy and crossings

XADD has no de-duplication. After every new connection the sink therefore reads the newest entries of a camera's stream
before it adds to it: an event that is among them was added by the connection before, whose answer got lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Sequence
from typing import Annotated, Any, Literal

import structlog
from pydantic import Field

from streamd.errors import ConfigError, SinkError
from streamd.events.retry import RetryPolicy
from streamd.events.upkeep import Outcome
from streamd.settings import ExternalSecret, FieldPath, Pattern, Problems
from streamd.sinks import SINKS, Sink
from streamd.sinks.connection import Address, ClientTlsSettings, host_port
from streamd.sinks.envelope import COUNTS, DETECTIONS, EVENT, STATUS, Message, MessageKind
from streamd.sinks.events import WINDOW, EventSink, EventSinkSettings, JournalEvent
from streamd.sinks.message import TOPIC_PREFIX

log = structlog.get_logger(__name__)

ANSWER_S = 5.0
"""Longest wait for the server's answer."""
TURN_S = 0.05
"""Longest time that one call waits for the server."""
IDLE_S = 5.0
"""A connection on which nothing happens is tried this often."""
_SERVER, _EVENTS = "server", "events"


@SINKS.register
class RedisSettings(EventSinkSettings):
    """Redis 5 or newer (`pip install streamd[redis]`): events to Redis Streams, statuses and counts to channels."""

    kind: Literal["redis"] = "redis"
    server: Address = Field(description="HOST or HOST:PORT. Default port: 6379.")
    database: int = Field(0, ge=0, le=65_535, description="Number of the database.")
    tls: ClientTlsSettings | None = Field(None, description="TLS; `{}` verifies by the system's authorities.")
    username: str | None = Field(None, min_length=1, max_length=256, description="User name (Redis 6 or newer).")
    password: ExternalSecret | None = Field(None, description="Password, as ${file:PATH} or ${NAME}.")
    prefix: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9_-]+(:[A-Za-z0-9_-]+)*$", max_length=128),
        Pattern("expected words of letters, digits, dashes and underscores, joined by colons"),
    ] = Field("streamd", description="Start of all keys. Daemons with the same stream ids need different ones.")
    max_len: int = Field(
        100_000,
        ge=1,
        le=1_000_000_000,
        description="Entries that are kept of each camera's events, approximately; the oldest are removed.",
    )
    events: bool = Field(True, description="Add events.")
    detections: bool = Field(False, description="Publish the detections of each frame.")

    @property
    def wants(self) -> frozenset[MessageKind]:
        """See `SinkSettings.wants`."""
        return frozenset({STATUS, COUNTS, *([DETECTIONS] if self.detections else [])})

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        if self.username is not None and self.password is None:
            yield ("username",), "a user name needs a password"
        if self.tls is not None:
            yield from ((("tls", *path), message) for path, message in self.tls.problems())

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """See `SinkSettings.claims`."""
        yield ("prefix",), "prefix", f"{self.prefix} at {self.server}, database {self.database}"

    def open(self) -> Sink:
        """See `SinkSettings.open`."""
        return RedisSink(self)


def key(prefix: str, kind: MessageKind, stream: str) -> str:
    """The key or the channel of a camera's messages."""
    if kind is EVENT or kind is COUNTS:
        return f"{prefix}:{kind.name}:1:{stream}"
    version = TOPIC_PREFIX.strip("/").rpartition("/")[2]
    return f"{prefix}:{version}:{stream}:{kind.name}"


def vendor() -> Any:
    """`redis`, with its asyncio client.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import redis
        import redis.asyncio
    except ImportError:
        raise ConfigError("redis sink: needs redis-py; install it with: pip install 'streamd[redis]'") from None
    return redis


class RedisSink(EventSink):
    """See `streamd.sinks.events.EventSink`.

    Args:
        settings: server, keys, and what is published.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._address = host_port(settings.server, 6379)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry = RetryPolicy()
        self._client: Any = None
        self._up = False
        self._connecting: asyncio.Task[None] | None = None
        self._batch: asyncio.Task[None] | None = None
        """Adds events; goes on while the sink does other things."""
        self._settled: dict[tuple[str, int], Outcome] = {}
        self._refusal: str | None = None
        """Why the batch ended early, while the connection is good."""
        self._seen: set[str] = set()
        """Streams whose newest entries have been read on this connection."""
        self._publishing: asyncio.Task[None] | None = None
        self._waiting: list[tuple[str, bytes]] = []
        """Messages for channels."""
        self._unreachable: str | None = None
        self._idle_until = 0.0

    @property
    def unreachable(self) -> str | None:
        """See `EventSink.unreachable`."""
        return self._unreachable

    def open(self) -> None:
        """See `Sink.open`. A server that is away is not an error; `poll` connects."""
        vendor()
        if self._settings.tls is not None:
            self._settings.tls.context("redis sink")  # whether the files can be used
        self._loop = asyncio.new_event_loop()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        assert self._loop is not None
        return self._loop.run_until_complete(work)

    # -------------------------------------------------------------------------------------------------- connection

    def poll(self) -> None:
        """See `Sink.poll`. Connects, and publishes what waits."""
        assert self._loop is not None
        if not self._up:
            self._connect_if_due()
            return
        self._publish_waiting()
        if self._publishing is not None and self._publishing.done():
            task, self._publishing = self._publishing, None
            if (error := task.exception()) is not None:
                self._end(_text(error))

    def _publish_waiting(self) -> None:
        assert self._loop is not None
        if self._publishing is None and (self._waiting or self._loop.time() >= self._idle_until):
            self._idle_until = self._loop.time() + IDLE_S
            waiting, self._waiting = self._waiting, []
            self._publishing = self._loop.create_task(self._publish_all(waiting))
        if self._publishing is not None:
            self._run(asyncio.wait({self._publishing}, timeout=0.001))

    def _connect_if_due(self) -> None:
        assert self._loop is not None
        if self._connecting is None:
            if self._retry.wait_s(_SERVER) > 0:
                return
            self._connecting = self._loop.create_task(self._connect())
        self._run(asyncio.wait({self._connecting}, timeout=TURN_S))
        if not self._connecting.done():
            return
        task, self._connecting = self._connecting, None
        if (error := task.exception()) is not None:
            self._end(_text(error))
        self._retry.succeeded(_SERVER)
        self._unreachable, self._up = None, True
        self._idle_until = self._loop.time() + IDLE_S
        log.info("redis connected", server=str(self._address))

    async def _connect(self) -> None:
        redis, settings = vendor(), self._settings
        retry = redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0)  # the library's would add an event twice
        options: dict[str, Any] = {}
        if (tls := settings.tls) is not None:
            options = {
                "connection_class": redis.asyncio.SSLConnection, "ssl_ca_certs": tls.ca,
                "ssl_certfile": tls.certificate, "ssl_keyfile": tls.key, "ssl_min_version": ssl.TLSVersion.TLSv1_2,
            }  # fmt: skip
        pool = redis.asyncio.ConnectionPool(
            host=self._address.host, port=self._address.port, db=settings.database, username=settings.username,
            password=None if settings.password is None else settings.password.get_secret_value(),
            socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S, retry=retry, client_name="streamd",
            max_connections=2, **options,
        )  # fmt: skip
        self._client = redis.asyncio.Redis(connection_pool=pool)
        await self._client.ping()

    def _end(self, why: str) -> None:
        """The connection is over.

        Raises:
            SinkError: always.
        """
        self._abandon()
        wait = self._retry.failed(_SERVER)
        self._unreachable = f"redis sink: {self._address}: {why}"
        raise SinkError(f"{self._unreachable}; next attempt in {wait:.1f} s, events wait in the journal")

    def _abandon(self) -> None:
        client, self._client = self._client, None
        tasks = [task for task in (self._batch, self._connecting, self._publishing) if task is not None]
        self._batch = self._connecting = self._publishing = None
        self._up = False
        self._settled.clear()
        self._seen.clear()
        self._waiting.clear()
        self._refusal = None
        if self._loop is None:
            return

        async def leave() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if client is not None:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(client.aclose(close_connection_pool=True), 0.5)

        self._run(leave())

    # ---------------------------------------------------------------------------------------------------- channels

    def send(self, message: Message) -> str | None:
        """See `Sink.send`."""
        if not self._up:
            if message.kind is DETECTIONS:
                raise SinkError(
                    f"{self._unreachable or f'redis sink: {self._address}: not connected yet'}; frames are lost"
                )
            return None
        if len(self._waiting) >= self._settings.ring:
            raise SinkError(f"redis sink: {self._address} does not keep up; messages are lost")
        self._waiting.append((key(self._settings.prefix, message.kind, message.stream), message.payload))
        self._publish_waiting()
        return None

    async def _publish_all(self, messages: Sequence[tuple[str, bytes]]) -> None:
        if not messages:
            await self._client.ping()
            return
        pipe = self._client.pipeline(transaction=False)
        for channel, payload in messages:
            pipe.publish(channel, payload)
        await pipe.execute()

    # ------------------------------------------------------------------------------------------------------ events

    def takes_events(self) -> bool:
        """See `EventSink.takes_events`."""
        return self._settings.events and self._up and self._retry.wait_s(_EVENTS) <= 0

    def deliver(self, events: Sequence[JournalEvent]) -> list[Outcome]:
        """See `EventSink.deliver`. Waits a moment for answers."""
        if self._batch is None:
            assert self._loop is not None
            self._settled.clear()
            self._refusal = None
            self._batch = self._loop.create_task(self._add_all(list(events)))
        self._run(asyncio.wait({self._batch}, timeout=TURN_S))
        if not self._batch.done():
            return []
        batch, self._batch = self._batch, None
        if (error := batch.exception()) is not None:
            self._end(_text(error))
        outcomes: list[Outcome] = []
        for event in events:
            outcome = self._settled.get(event.key)
            if outcome is None:
                break
            outcomes.append(outcome)
        if self._refusal is not None and not outcomes:
            wait = self._retry.failed(_EVENTS)
            self._unreachable = f"redis sink: {self._address}: {self._refusal}"
            raise SinkError(f"{self._unreachable}; next attempt in {wait:.1f} s, events wait in the journal")
        if outcomes and self._retry.attempts(_EVENTS):
            self._retry.succeeded(_EVENTS)
            self._unreachable = None
        return outcomes

    async def _add_all(self, events: Sequence[JournalEvent]) -> None:
        """Adds the events of each camera in one transaction, so that a refusal in between cannot change their order."""
        groups: defaultdict[str, list[JournalEvent]] = defaultdict(list)
        for event in events:
            groups[event.stream].append(event)
        redis = vendor()
        for stream, group in groups.items():
            name = key(self._settings.prefix, EVENT, stream)
            try:
                there = await self._there(name)
                pipe = self._client.pipeline(transaction=True)
                for event in group:
                    if event.id.encode() not in there:
                        fields = {"id": event.id, "event": event.payload}
                        pipe.xadd(name, fields, maxlen=self._settings.max_len, approximate=True)
                if len(pipe):
                    await pipe.execute()
            except redis.exceptions.ConnectionError:
                raise
            except redis.exceptions.ResponseError as error:  # no memory, no permission, a key of another type
                self._refusal = f"refuses {name}: {_text(error)}"
                return
            self._seen.add(name)
            self._settled.update((event.key, "delivered") for event in group)

    async def _there(self, name: str) -> set[bytes]:
        """Ids of events that the connection before has added, perhaps without hearing of it."""
        if name in self._seen:
            return set()
        newest = await self._client.xrevrange(name, count=WINDOW)
        return {fields.get(b"id", b"") for _, fields in newest}

    def close(self) -> None:
        """See `Sink.close`."""
        if self._loop is None:
            return
        if self._up:
            with contextlib.suppress(Exception):
                self._run(asyncio.wait_for(self._rest(), 1))
        self._abandon()
        self._loop.close()
        self._loop = None
        self._unreachable = None

    async def _rest(self) -> None:
        if self._publishing is not None:
            await self._publishing
        if self._waiting:
            await self._publish_all(self._waiting)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
