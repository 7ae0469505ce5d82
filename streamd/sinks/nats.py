"""NATS: events to JetStream with acknowledgement and de-duplication; statuses, counts and detections to core NATS.

nats-py is built on asyncio. Its event loop belongs to the sink and runs only while one of the sink's methods does, on
the sink's own thread. A connection that is lost is not revived by the library: `poll` makes a new one.

Subjects are the topics of a `zmq` sink with dots, below a prefix; a dot in a stream's id is `%2E`:

    PREFIX.event.1.STREAM           CloudEvents, JetStream; header Nats-Msg-Id
    PREFIX.1.STREAM.status          status message, version 1
    PREFIX.1.STREAM.detections      detections message, version 1
    PREFIX.counts.1.STREAM          occupancy and crossings
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import structlog
from pydantic import Field

from streamd.errors import ConfigError, SinkError
from streamd.events.retry import RetryPolicy
from streamd.events.upkeep import Outcome
from streamd.security.redact import remember
from streamd.settings import ExternalSecret, FieldPath, Pattern, Problems
from streamd.sinks import SINKS, Sink
from streamd.sinks.connection import Address, ClientLoginSettings, ClientTlsSettings, host_port
from streamd.sinks.envelope import CLASSIFIED, COUNTS, DETECTIONS, EVENT, GLANCE, STATUS, Message, MessageKind
from streamd.sinks.events import CONTENT_TYPE, EventSink, EventSinkSettings, JournalEvent
from streamd.sinks.message import TOPIC_PREFIX

log = structlog.get_logger(__name__)

CONNECT_S = 3
ACK_S = 5.0
"""Longest wait for JetStream's acknowledgement of an event."""
TURN_S = 0.05
"""Longest time that one call waits for the server."""
PING_S = 5
"""The server is asked for a sign of life this often; after two without an answer it is lost."""
MAX_PENDING_BYTES = 1 << 20
"""Detections and statuses that may wait for a server that does not read."""
STREAM_AGE_S = 30 * 86_400
DUPLICATES_S = 120
_SEED = re.compile(r"SU[A-Z2-7]{56}")
_TOO_LARGE = 10054
"""JetStream's error code for a message that is larger than the stream allows."""
_WORD = 30
"""The words that explain a .creds file are shorter than its secrets."""
_SERVER, _EVENTS = "server", "events"


@SINKS.register
class NatsSettings(EventSinkSettings):
    """NATS client (`pip install streamd[nats]`): events to JetStream, statuses and counts to core NATS."""

    kind: Literal["nats"] = "nats"
    servers: tuple[Address, ...] = Field(
        min_length=1, max_length=16, description="HOST or HOST:PORT of each server of the cluster. Default port: 4222."
    )
    tls: ClientTlsSettings | None = Field(None, description="TLS; `{}` verifies by the system's authorities.")
    login: ClientLoginSettings | None = Field(None, description="User name and password.")
    token: ExternalSecret | None = Field(None, description="Token, instead of a login.")
    nkey: ExternalSecret | None = Field(None, description="Seed of a user's nkey (`SU…`), instead of a login.")
    credentials: ExternalSecret | None = Field(
        None, description="Content of a user's `.creds` file, as ${file:PATH}, instead of a login."
    )
    prefix: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=128),
        Pattern("expected words of letters, digits, dashes and underscores, joined by dots"),
    ] = Field("streamd", description="Start of all subjects. Daemons with the same stream ids need different ones.")
    jetstream: str = Field(
        "STREAMD",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="JetStream stream that is created if none takes the subjects of events: kept in files for 30 days.",
    )
    events: bool = Field(True, description="Publish events.")
    detections: bool = Field(False, description="Publish the detections of each frame.")
    glances: bool = Field(
        False, description="Publish a message for each frame that the network did not look at (look.when: motion)."
    )

    @property
    def wants(self) -> frozenset[MessageKind]:
        """See `SinkSettings.wants`."""
        frames = ((DETECTIONS, CLASSIFIED), self.detections), ((GLANCE,), self.glances)
        return frozenset({STATUS, COUNTS, *(kind for kinds, wanted in frames if wanted for kind in kinds)})

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        ways = [name for name in ("login", "token", "nkey", "credentials") if getattr(self, name) is not None]
        for name in ways[1:]:
            yield (name,), f"give either {ways[0]} or {name}"
        if self.nkey is not None and not _SEED.fullmatch(self.nkey.get_secret_value()):
            yield ("nkey",), "expected the seed of a user's nkey: SU and 56 more letters and digits"
        if self.credentials is not None and "USER NKEY SEED" not in self.credentials.get_secret_value():
            yield ("credentials",), "expected the content of a .creds file, with a JWT and an nkey seed"
        if self.tls is not None:
            yield from ((("tls", *path), message) for path, message in self.tls.problems())

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """See `SinkSettings.claims`."""
        yield ("prefix",), "prefix", f"{self.prefix} at {self.servers[0]}"

    def open(self) -> Sink:
        """See `SinkSettings.open`."""
        return NatsSink(self)


def subject(prefix: str, kind: MessageKind, stream: str) -> str:
    """The subject of a stream's messages."""
    id_ = stream.replace(".", "%2E")
    if kind in (EVENT, COUNTS, CLASSIFIED, GLANCE):
        return f"{prefix}.{kind.name}.1.{id_}"
    version = TOPIC_PREFIX.strip("/").rpartition("/")[2]
    return f"{prefix}.{version}.{id_}.{kind.name}"


def stream_of(token: str) -> str:
    """The id of the stream from its token of a subject."""
    return unquote(token)


def vendor() -> Any:
    """`nats`, with its errors loaded.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import nats.errors
        import nats.js.errors
    except ImportError:
        raise ConfigError("nats sink: needs nats-py; install it with: pip install 'streamd[nats]'") from None
    return nats


def _check_nkeys() -> None:
    """
    Raises:
        ConfigError: what signs with nkeys is not installed.
    """
    try:
        import nkeys  # noqa: F401
    except ImportError:
        raise ConfigError("nats sink: needs nkeys; install it with: pip install 'streamd[nats]'") from None


class NatsSink(EventSink):
    """See `streamd.sinks.events.EventSink`.

    Args:
        settings: servers, subjects, and what is published.
    """

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._addresses = [host_port(server, 4222) for server in settings.servers]
        self._name = ", ".join(map(str, self._addresses))
        self._context: ssl.SSLContext | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry = RetryPolicy()
        self._connecting: asyncio.Task[Any] | None = None
        self._client: Any = None
        self._stream: Any = None
        """JetStream, of the connection."""
        self._lost: str | None = None
        """What the library told last of a connection that is over."""
        self._batch: asyncio.Task[None] | None = None
        """Publishes events; goes on while the sink does other things."""
        self._settled: dict[tuple[str, int], Outcome] = {}
        self._refusal: str | None = None
        """Why the batch ended early."""
        self._unreachable: str | None = None
        self._subjects: dict[tuple[str, str], str] = {}

    @property
    def unreachable(self) -> str | None:
        """See `EventSink.unreachable`."""
        return self._unreachable

    def open(self) -> None:
        """See `Sink.open`. A server that is away is not an error; `poll` connects."""
        vendor()
        if self._settings.nkey is not None or self._settings.credentials is not None:
            _check_nkeys()
        if self._settings.credentials is not None:
            # The file as a whole is known; an error may tell a line of it.
            lines = self._settings.credentials.get_secret_value().split()
            remember(line for line in lines if len(line) > _WORD)
        if self._settings.tls is not None:
            self._context = self._settings.tls.context("nats sink")
        self._loop = asyncio.new_event_loop()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        assert self._loop is not None
        return self._loop.run_until_complete(work)

    # -------------------------------------------------------------------------------------------------- connection

    def poll(self) -> None:
        """See `Sink.poll`. Connects, and lets the library work."""
        if self._client is None:
            self._connect_if_due()
            return
        self._run(asyncio.sleep(0.001))
        if self._client.is_closed:
            self._end(self._lost or "connection lost")

    def _connect_if_due(self) -> None:
        if self._connecting is None:
            if self._retry.wait_s(_SERVER) > 0:
                return
            assert self._loop is not None
            self._lost = None
            self._connecting = self._loop.create_task(self._connect())
        self._run(asyncio.wait({self._connecting}, timeout=TURN_S))
        if not self._connecting.done():
            return
        task, self._connecting = self._connecting, None
        if (error := task.exception()) is not None:
            self._end(self._lost or _text(error))
        self._client, self._stream = task.result()
        self._retry.succeeded(_SERVER)
        self._unreachable = None
        log.info("nats connected", server=str(self._client.connected_url.netloc.rpartition("@")[2]))

    async def _connect(self) -> tuple[Any, Any]:
        nats, settings = vendor(), self._settings
        from nats.aio.client import RawCredentials

        scheme = "nats" if self._context is None else "tls"
        login, token, nkey, credentials = settings.login, settings.token, settings.nkey, settings.credentials
        client = nats.NATS()
        try:
            await client.connect(
                [f"{scheme}://{address}" for address in self._addresses], name="streamd", allow_reconnect=False,
                max_reconnect_attempts=1, connect_timeout=CONNECT_S, ping_interval=PING_S, max_outstanding_pings=2,
                error_cb=self._on_error, tls=self._context,
                user=None if login is None else login.username,
                password=None if login is None else login.password.get_secret_value(),
                token=None if token is None else token.get_secret_value(),
                nkeys_seed_str=None if nkey is None else nkey.get_secret_value(),
                user_credentials=None if credentials is None else RawCredentials(credentials.get_secret_value()),
            )  # fmt: skip
            stream = client.jetstream(timeout=ACK_S)
            if settings.events:
                await self._ensure_stream(stream)
        except BaseException:
            with contextlib.suppress(Exception):
                await client.close()
            raise
        return client, stream

    async def _ensure_stream(self, stream: Any) -> None:
        errors = vendor().js.errors
        wanted = f"{self._settings.prefix}.{EVENT.name}.1.>"
        try:
            await stream.find_stream_name_by_subject(wanted)
        except errors.NotFoundError:
            name = self._settings.jetstream
            await stream.add_stream(
                name=name, subjects=[wanted], max_age=STREAM_AGE_S, duplicate_window=DUPLICATES_S,
                description="Events of streamd",
            )  # fmt: skip
            log.info("nats: stream created", stream=name, subjects=wanted)
        except errors.ServiceUnavailableError as error:
            raise SinkError("JetStream is not enabled; start the server with -js, or set events to false") from error

    async def _on_error(self, error: Exception) -> None:
        self._lost = _text(error)

    def _end(self, why: str) -> None:
        """The connection is over.

        Raises:
            SinkError: always.
        """
        self._abandon()
        wait = self._retry.failed(_SERVER)
        self._unreachable = f"nats sink: {self._name}: {why}"
        raise SinkError(f"{self._unreachable}; next attempt in {wait:.1f} s, events wait in the journal")

    def _abandon(self) -> None:
        client, self._client = self._client, None
        tasks = [task for task in (self._batch, self._connecting) if task is not None]
        self._batch = self._connecting = None
        self._settled.clear()
        self._refusal = None
        if self._loop is None:
            return
        for task in tasks:
            task.cancel()

        async def leave() -> None:
            await asyncio.gather(*tasks, return_exceptions=True)
            if client is not None:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(client.close(), 0.5)
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self._run(leave())

    # -------------------------------------------------------------------------------------------------- core NATS

    def send(self, message: Message) -> str | None:
        """See `Sink.send`."""
        client = self._client
        if client is None or client.is_closed:
            if message.kind in (DETECTIONS, CLASSIFIED, GLANCE):
                raise SinkError(
                    f"{self._unreachable or f'nats sink: {self._name}: not connected yet'}; frames are lost"
                )
            return None
        if client.pending_data_size > MAX_PENDING_BYTES:
            raise SinkError(f"nats sink: {self._name} does not keep up; messages are lost")
        key = message.kind.name, message.stream
        name = self._subjects.get(key)
        if name is None:
            name = self._subjects[key] = subject(self._settings.prefix, message.kind, message.stream)
        try:
            self._run(self._publish(client, name, message.payload))
        except vendor().errors.Error as error:
            raise SinkError(f"nats sink: {self._name}: cannot publish {name}: {_text(error)}") from error
        return None

    @staticmethod
    async def _publish(client: Any, name: str, payload: bytes) -> None:
        await client.publish(name, payload)
        await asyncio.sleep(0)  # the library's flusher takes it, …
        await asyncio.sleep(0)  # … and writes it

    # -------------------------------------------------------------------------------------------------- JetStream

    def takes_events(self) -> bool:
        """See `EventSink.takes_events`."""
        return (
            self._settings.events
            and self._client is not None
            and not self._client.is_closed
            and self._retry.wait_s(_EVENTS) <= 0
        )

    def deliver(self, events: Sequence[JournalEvent]) -> list[Outcome]:
        """See `EventSink.deliver`. Waits a moment for acknowledgements."""
        if self._batch is None:
            assert self._loop is not None
            self._settled.clear()
            self._refusal = None
            self._batch = self._loop.create_task(self._publish_all(self._stream, list(events)))
        self._run(asyncio.wait({self._batch}, timeout=TURN_S))
        if not self._batch.done():
            return []
        batch, self._batch = self._batch, None
        batch.result()
        outcomes: list[Outcome] = []
        for event in events:
            outcome = self._settled.get(event.key)
            if outcome is None:
                break
            outcomes.append(outcome)
        if self._refusal is not None and not outcomes:
            wait = self._retry.failed(_EVENTS)
            self._unreachable = f"nats sink: {self._name}: {self._refusal}"
            raise SinkError(f"{self._unreachable}; next attempt in {wait:.1f} s, events wait in the journal")
        if outcomes and self._retry.attempts(_EVENTS):
            self._retry.succeeded(_EVENTS)
            self._unreachable = None
        return outcomes

    async def _publish_all(self, stream: Any, events: Sequence[JournalEvent]) -> None:
        """Publishes the events of different streams at the same time, and those of one stream one after the other: a
        refusal in between must not change their order."""
        groups: defaultdict[str, list[JournalEvent]] = defaultdict(list)
        for event in events:
            groups[event.stream].append(event)
        await asyncio.gather(*(self._publish_in_order(stream, group) for group in groups.values()))

    async def _publish_in_order(self, stream: Any, events: Sequence[JournalEvent]) -> None:
        nats = vendor()
        for event in events:
            name = subject(self._settings.prefix, EVENT, event.stream)
            headers = {"Nats-Msg-Id": event.id, "Content-Type": CONTENT_TYPE}
            try:
                await stream.publish(name, event.payload, timeout=ACK_S, headers=headers)
            except nats.errors.MaxPayloadError as error:
                self._refuse(event, _text(error))
            except nats.js.errors.NoStreamResponseError:
                self._refusal = f"no JetStream stream takes {name}"
                return
            except nats.js.errors.APIError as error:
                if error.err_code != _TOO_LARGE:
                    self._refusal = f"JetStream refuses {name}: {error.description} ({error.err_code})"
                    return
                self._refuse(event, str(error.description))
            except (nats.errors.Error, OSError) as error:
                self._refusal = f"no acknowledgement of {name}: {_text(error)}"
                return
            else:
                self._settled[event.key] = "delivered"

    def _refuse(self, event: JournalEvent, why: str) -> None:
        self._settled[event.key] = "refused"
        log.error("nats server refuses an event", server=self._name, id=event.id, why=why)

    def close(self) -> None:
        """See `Sink.close`."""
        if self._loop is None:
            return
        client = self._client
        if client is not None and not client.is_closed:
            with contextlib.suppress(Exception):
                self._run(asyncio.wait_for(client.flush(1), 1))
        self._abandon()
        self._loop.close()
        self._loop = None
        self._unreachable = None


def _text(error: BaseException) -> str:
    return str(error).removeprefix("nats: ") or type(error).__name__
