"""NATS: events to JetStream with acknowledgement and de-duplication; statuses, counts and detections to core NATS.

Subjects are the topics of a `zmq` sink with dots, below a prefix; a dot in a stream's id is `%2E`:

    PREFIX.event.1.STREAM           CloudEvents, JetStream; header Nats-Msg-Id
    PREFIX.1.STREAM.status          status message, version 1
    PREFIX.1.STREAM.detections      detections message, version 1
    PREFIX.counts.1.STREAM          occupancy and crossings
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import structlog
from pydantic import Field

from streamd.errors import ConfigError, SinkError
from streamd.security.redact import remember
from streamd.settings import ExternalSecret, FieldPath, Pattern, Problems
from streamd.sinks import SINKS, Sink
from streamd.sinks.asyncsink import AsyncEventSink
from streamd.sinks.connection import Address, ClientLoginSettings, ServerSinkSettings, host_port, lacking
from streamd.sinks.envelope import CLASSIFIED, COUNTS, EVENT, GLANCE, Message, MessageKind
from streamd.sinks.events import CONTENT_TYPE, JournalEvent
from streamd.sinks.message import TOPIC_PREFIX

log = structlog.get_logger(__name__)

CONNECT_S = 3
ACK_S = 5.0
"""Longest wait for JetStream's acknowledgement of an event."""
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


@SINKS.register
class NatsSettings(ServerSinkSettings):
    """NATS client (`pip install streamd[nats]`): events to JetStream, status and counts to core NATS."""

    kind: Literal["nats"] = "nats"
    servers: tuple[Address, ...] = Field(
        min_length=1, max_length=16, description="Servers of the cluster, as HOST or HOST:PORT. Default port: 4222."
    )
    login: ClientLoginSettings | None = Field(None, description="User name and password.")
    token: ExternalSecret | None = Field(None, description="Authentication token, instead of `login`.")
    nkey: ExternalSecret | None = Field(None, description="Seed of the user's nkey (`SU…`), instead of `login`.")
    credentials: ExternalSecret | None = Field(
        None, description="Content of the user's `.creds` file, as ${file:PATH}, instead of `login`."
    )
    prefix: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=128),
        Pattern("expected words of letters, digits, dashes and underscores, joined by dots"),
    ] = Field("streamd", description="Prefix of all subjects. Daemons with the same stream ids need different ones.")
    jetstream: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9_-]{1,64}$"),
        Pattern("expected at most 64 letters, digits, dashes and underscores"),
    ] = Field(
        "STREAMD",
        description="Name of the JetStream stream that is created if none takes the subjects of events. It stores "
        "them in files for 30 days.",
    )

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        yield from super().check()
        ways = [name for name in ("login", "token", "nkey", "credentials") if getattr(self, name) is not None]
        for name in ways[1:]:
            yield (name,), f"give either {ways[0]} or {name}"
        if self.nkey is not None and not _SEED.fullmatch(self.nkey.get_secret_value()):
            yield ("nkey",), "expected the seed of a user's nkey: SU and 56 more letters and digits"
        if self.credentials is not None and "USER NKEY SEED" not in self.credentials.get_secret_value():
            yield ("credentials",), "expected the content of a .creds file, with a JWT and an nkey seed"

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """See `SinkSettings.claims`."""
        yield ("prefix",), "prefix", f"{self.prefix} at {self.servers[0]}"

    def look(self) -> Iterator[tuple[FieldPath, str]]:
        """See `SinkSettings.look`."""
        signs = self.nkey is not None or self.credentials is not None
        yield from lacking(vendor, *[_check_nkeys] * signs)

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


class NatsSink(AsyncEventSink):
    """See `streamd.sinks.events.EventSink`.

    Args:
        settings: servers, subjects, and what is published.
    """

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._addresses = [host_port(server, 4222) for server in settings.servers]
        super().__init__("nats", ", ".join(map(str, self._addresses)), events=settings.events)
        self._context: ssl.SSLContext | None = None
        self._client: Any = None
        self._stream: Any = None
        """JetStream, of the connection."""
        self._lost: str | None = None
        """What the library told last of a connection that is over."""
        self._subjects: dict[tuple[str, str], str] = {}

    def _prepare(self) -> type[Exception]:
        nats, settings = vendor(), self._settings
        if settings.nkey is not None or settings.credentials is not None:
            _check_nkeys()
        if settings.credentials is not None:
            # The file as a whole is known; an error may tell a line of it.
            lines = settings.credentials.get_secret_value().split()
            remember(line for line in lines if len(line) > _WORD)
        if settings.tls is not None:
            self._context = settings.tls.context("nats sink")
        error: type[Exception] = nats.errors.Error
        return error

    @staticmethod
    def _text(error: BaseException) -> str:
        if isinstance(error, SinkError):
            return str(error)  # in words already
        text = str(error).removeprefix("nats: ").strip("'") or type(error).__name__
        refused = "authorization" in text.lower() or "authentication" in text.lower()
        return f"{text}; check login, token, nkey or credentials" if refused else text

    # ------------------------------------------------------------------------------------------------------ connection

    async def _connect(self) -> str:
        nats, settings = vendor(), self._settings
        from nats.aio.client import RawCredentials

        scheme = "nats" if self._context is None else "tls"
        login, token, nkey, credentials = settings.login, settings.token, settings.nkey, settings.credentials
        self._lost = None
        client = self._client = nats.NATS()
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
            self._stream = client.jetstream(timeout=ACK_S)
            if settings.events:
                await self._ensure_stream(self._stream)
        except Exception as error:
            raise SinkError(self._lost or self._text(error)) from error
        return str(client.connected_url.netloc.rpartition("@")[2])

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _alive(self) -> bool:
        return not self._client.is_closed

    def _step(self) -> None:
        self._run(asyncio.sleep(0.001))
        if self._client.is_closed:
            self._end(self._lost or "connection lost")

    async def _flush(self) -> None:
        await self._client.flush(1)

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
        self._lost = self._text(error)

    # ------------------------------------------------------------------------------------------------------- core NATS

    def _publish(self, message: Message) -> None:
        client = self._client
        if client.pending_data_size > MAX_PENDING_BYTES:
            raise SinkError(f"{self._who} does not keep up; messages are lost")
        key = message.kind.name, message.stream
        name = self._subjects.get(key)
        if name is None:
            name = self._subjects[key] = subject(self._settings.prefix, message.kind, message.stream)
        try:
            self._run(self._write(client, name, message.payload))
        except vendor().errors.Error as error:
            raise SinkError(f"{self._who}: cannot publish {name}: {self._text(error)}") from error

    @staticmethod
    async def _write(client: Any, name: str, payload: bytes) -> None:
        await client.publish(name, payload)
        await asyncio.sleep(0)  # the library's flusher takes it, …
        await asyncio.sleep(0)  # … and writes it

    # ------------------------------------------------------------------------------------------------------- JetStream

    async def _deliver(self, streams: Sequence[Sequence[JournalEvent]]) -> None:
        """Publishes the events of different streams at the same time, and those of one stream one after the other: a
        refusal in between must not change their order."""
        await asyncio.gather(*map(self._publish_in_order, streams))

    async def _publish_in_order(self, events: Sequence[JournalEvent]) -> None:
        nats = vendor()
        for event in events:
            name = subject(self._settings.prefix, EVENT, event.stream)
            headers = {"Nats-Msg-Id": event.id, "Content-Type": CONTENT_TYPE}
            try:
                await self._stream.publish(name, event.payload, timeout=ACK_S, headers=headers)
            except nats.errors.MaxPayloadError as error:
                self._refuse(event, self._text(error))
            except nats.js.errors.NoStreamResponseError:
                self._refusal = f"no JetStream stream takes {name}"
                return
            except nats.js.errors.APIError as error:
                if error.err_code != _TOO_LARGE:
                    self._refusal = f"JetStream refuses {name}: {error.description} ({error.err_code})"
                    return
                self._refuse(event, str(error.description))
            except (nats.errors.Error, OSError) as error:
                self._refusal = f"no acknowledgement of {name}: {self._text(error)}"
                return
            else:
                self._settled[event.key] = "delivered"

    def _refuse(self, event: JournalEvent, why: str) -> None:
        self._settled[event.key] = "refused"
        log.error("nats server refuses an event", server=self._server, id=event.id, why=why)
