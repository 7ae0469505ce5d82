"""Redis Streams: events with XADD, one Redis stream for each camera; statuses, counts and detections by PUBLISH.

    PREFIX:event:1:STREAM           Redis stream; an entry has the fields `id` and `event` (CloudEvents)
    PREFIX:1:STREAM:status          channel; status message, version 1
    PREFIX:1:STREAM:detections      channel; detections message, version 1
    PREFIX:counts:1:STREAM          channel; occupancy and crossings
    PREFIX:classified:1:STREAM      channel; classes of boxes without a track, with detections
    PREFIX:glance:1:STREAM          channel; frames that the network did not look at

XADD has no de-duplication. After every new connection the sink therefore reads the newest entries of a camera's stream
before it adds to it: an event that is among them was added by the connection before, whose answer got lost.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from streamd.errors import ConfigError, SinkError
from streamd.settings import ExternalSecret, FieldPath, Pattern, Problems
from streamd.sinks import SINKS, Sink
from streamd.sinks.asyncsink import AsyncEventSink, cancel
from streamd.sinks.connection import Address, ServerSinkSettings, host_port, lacking
from streamd.sinks.envelope import CLASSIFIED, COUNTS, EVENT, GLANCE, Message, MessageKind
from streamd.sinks.events import WINDOW, JournalEvent
from streamd.sinks.message import TOPIC_PREFIX

ANSWER_S = 5.0
"""Longest wait for the server's answer."""
IDLE_S = 5.0
"""A connection on which nothing happens is tried this often."""


@SINKS.register
class RedisSettings(ServerSinkSettings):
    """Redis client (`pip install streamd[redis]`): events to Redis Streams, status and counts to channels.

    Needs a server of version 5 or newer.
    """

    kind: Literal["redis"] = "redis"
    server: Address = Field(description="Server, as HOST or HOST:PORT. Default port: 6379.")
    database: int = Field(0, ge=0, le=65_535, description="Number of the database.")
    username: str | None = Field(None, min_length=1, max_length=256, description="User name, for Redis 6 or newer.")
    password: ExternalSecret | None = Field(None, description="Password, as ${file:PATH} or ${NAME}.")
    prefix: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9_-]+(:[A-Za-z0-9_-]+)*$", max_length=128),
        Pattern("expected words of letters, digits, dashes and underscores, joined by colons"),
    ] = Field("streamd", description="Prefix of all keys. Daemons with the same stream ids need different ones.")
    max_len: int = Field(
        100_000,
        ge=1,
        le=1_000_000_000,
        description="Approximate number of events to keep for each camera. The oldest are removed.",
    )

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        yield from super().check()
        if self.username is not None and self.password is None:
            yield ("username",), "a user name needs a password"

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """See `SinkSettings.claims`."""
        yield ("prefix",), "prefix", f"{self.prefix} at {self.server}, database {self.database}"

    def look(self) -> Iterator[tuple[FieldPath, str]]:
        """See `SinkSettings.look`."""
        yield from lacking(vendor)

    def open(self) -> Sink:
        """See `SinkSettings.open`."""
        return RedisSink(self)


def key(prefix: str, kind: MessageKind, stream: str) -> str:
    """The key or the channel of a camera's messages."""
    if kind in (EVENT, COUNTS, CLASSIFIED, GLANCE):
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


class RedisSink(AsyncEventSink):
    """See `streamd.sinks.events.EventSink`.

    Args:
        settings: server, keys, and what is published.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._address = host_port(settings.server, 6379)
        super().__init__("redis", str(self._address), events=settings.events)
        self._client: Any = None
        self._seen: set[str] = set()
        """Streams whose newest entries have been read on this connection."""
        self._publishing: asyncio.Task[None] | None = None
        self._waiting: list[tuple[str, bytes]] = []
        """Messages for channels."""
        self._idle_until = 0.0

    def _prepare(self) -> type[Exception]:
        error: type[Exception] = vendor().exceptions.RedisError
        if self._settings.tls is not None:
            self._settings.tls.context("redis sink")  # whether the files can be used
        return error

    @staticmethod
    def _text(error: BaseException) -> str:
        text = AsyncEventSink._text(error)
        # Without a login, the server answers with how its protocol is to be spoken.
        refused = isinstance(error, vendor().exceptions.AuthenticationError)
        return f"the server refuses the login: {text.rstrip('.')}; check username and password" if refused else text

    # ------------------------------------------------------------------------------------------------------ connection

    async def _connect(self) -> str:
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
        self._idle_until = time.monotonic() + IDLE_S
        return str(self._address)

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        publishing, self._publishing = self._publishing, None
        self._seen.clear()
        self._waiting.clear()
        await cancel([publishing] if publishing is not None else [])
        if client is not None:
            await client.aclose(close_connection_pool=True)

    def _alive(self) -> bool:
        return True  # as far as is known: what is sent next finds out, and `_step` sends something now and then

    def _step(self) -> None:
        self._publish_waiting()
        if self._publishing is not None and self._publishing.done():
            task, self._publishing = self._publishing, None
            if (error := task.exception()) is not None:
                self._end(self._text(error))

    async def _flush(self) -> None:
        if self._publishing is not None:
            await self._publishing
        if self._waiting:
            await self._publish_all(self._waiting)

    # -------------------------------------------------------------------------------------------------------- channels

    def _publish(self, message: Message) -> None:
        if len(self._waiting) >= self._settings.ring:
            raise SinkError(f"{self._who} does not keep up; messages are lost")
        self._waiting.append((key(self._settings.prefix, message.kind, message.stream), message.payload))
        self._publish_waiting()

    def _publish_waiting(self) -> None:
        if self._publishing is None and (self._waiting or time.monotonic() >= self._idle_until):
            self._idle_until = time.monotonic() + IDLE_S
            waiting, self._waiting = self._waiting, []
            self._publishing = self._start(self._publish_all(waiting))
        if self._publishing is not None:
            self._done(self._publishing, 0.001)

    async def _publish_all(self, messages: Sequence[tuple[str, bytes]]) -> None:
        if not messages:
            await self._client.ping()
            return
        pipe = self._client.pipeline(transaction=False)
        for channel, payload in messages:
            pipe.publish(channel, payload)
        await pipe.execute()

    # ---------------------------------------------------------------------------------------------------------- events

    async def _deliver(self, streams: Sequence[Sequence[JournalEvent]]) -> None:
        """Adds the events of each camera in one transaction, so that a refusal in between cannot change their order."""
        redis = vendor()
        for group in streams:
            name = key(self._settings.prefix, EVENT, group[0].stream)
            try:
                there = await self._there(name)
                pipe = self._client.pipeline(transaction=True)
                for event in group:
                    if event.id.encode() not in there:
                        fields = {"id": event.id, "event": event.payload}
                        pipe.xadd(name, fields, maxlen=self._settings.max_len, approximate=True)
                if len(pipe):
                    await pipe.execute()
            except redis.exceptions.ResponseError as error:  # no memory, no permission, a key of another type
                self._refusal = f"refuses {name}: {self._text(error)}"
                continue
            self._seen.add(name)
            self._settled.update((event.key, "delivered") for event in group)

    async def _there(self, name: str) -> set[bytes]:
        """Ids of events that the connection before has added, perhaps without hearing of it."""
        if name in self._seen:
            return set()
        newest = await self._client.xrevrange(name, count=WINDOW)
        return {fields.get(b"id", b"") for _, fields in newest}
