"""Webhook: each event as a POST request with a CloudEvents envelope, signed on request.

Signatures follow Standard Webhooks (https://www.standardwebhooks.com): the headers `webhook-id`, `webhook-timestamp`
and `webhook-signature`. Its libraries verify them, and receivers drop duplicates by `webhook-id`.

One event is sent at a time, on a connection that is kept. What an answer means is in `judge`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Literal, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

import structlog
from pydantic import Field

from streamd import __version__
from streamd.errors import SinkError
from streamd.events.retry import RetryPolicy
from streamd.events.upkeep import Outcome
from streamd.settings import ExternalSecret, FieldPath, Pattern, Problems, Seconds
from streamd.sinks import SINKS, Sink
from streamd.sinks.connection import ClientTlsSettings, HostPort, tls_problems
from streamd.sinks.envelope import Message, MessageKind
from streamd.sinks.events import CONTENT_TYPE, EventSink, EventSinkSettings, JournalEvent

log = structlog.get_logger(__name__)

MAX_ANSWER_BYTES = 1 << 16
"""The rest of a longer answer is not read: its connection is closed."""
MAX_REDIRECTS = 3
KEY_PREFIX = "whsec_"
_REFUSED = frozenset({400, 413, 414, 415, 422})
"""The receiver will never take this event; it may take the next."""
_BUSY = frozenset({408, 425, 429})
_REDIRECTS = frozenset({307, 308})
"""Those that keep method and body."""


@SINKS.register
class WebhookSettings(EventSinkSettings):
    """HTTP client: sends each event in a POST request, with a CloudEvents envelope in JSON."""

    kind: Literal["webhook"] = "webhook"
    url: Annotated[
        str,
        Field(pattern=r"^https?://[^\s/?#@]+([/?][^\s#]*)?$"),
        Pattern("expected a URL that begins with http:// or https://, without a login"),
    ] = Field(description="URL of the receiver. Give a secret in it as ${file:PATH} or ${NAME}.")
    tls: ClientTlsSettings | None = Field(None, description="TLS for an https URL: authority and client certificate.")
    bearer_token: ExternalSecret | None = Field(None, description="Token for the header `Authorization: Bearer`.")
    signing_key: ExternalSecret | None = Field(
        None,
        min_length=16,
        description="Key for signing requests (HMAC): `whsec_` and base64, or any text of at least 16 characters. "
        "Default: requests are not signed.",
    )
    timeout_s: Seconds = Field(10.0, description="Time limit for a request and its response, in seconds.")
    max_per_s: float = Field(
        20.0,
        gt=0,
        le=10_000,
        description="Largest number of requests per second to the host. Sinks that send to the same host share the "
        "lowest of their limits.",
    )

    @property
    def wants(self) -> frozenset[MessageKind]:
        """See `SinkSettings.wants`."""
        return frozenset()

    def check(self) -> Problems:
        """See `KindSettings.check`."""
        try:
            port = urlsplit(self.url).port
        except ValueError:
            yield ("url",), "expected a port from 1 to 65535"
            return
        if port == 0:
            yield ("url",), "expected a port from 1 to 65535"
        if self.tls is not None:
            if urlsplit(self.url).scheme != "https":
                yield ("tls",), "is for https only"
            yield from tls_problems(self.tls)
        if self.signing_key is not None:
            try:
                key_of(self.signing_key.get_secret_value())
            except ValueError:
                yield ("signing_key",), f"expected base64 after {KEY_PREFIX}"

    def claims(self) -> Iterator[tuple[FieldPath, str, str]]:
        """See `SinkSettings.claims`. Two sinks with the same URL would deliver everything twice."""
        yield ("url",), "receiver", self.url

    def open(self) -> Sink:
        """See `SinkSettings.open`."""
        return WebhookSink(self)


def key_of(secret: str) -> bytes:
    """The bytes of a signing key.

    Raises:
        ValueError: no base64 after the prefix.
    """
    if not secret.startswith(KEY_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(KEY_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def signature(key: bytes, id_: str, timestamp: int, payload: bytes) -> str:
    """The value of `webhook-signature` (Standard Webhooks, version 1: HMAC-SHA256)."""
    digest = hmac.digest(key, f"{id_}.{timestamp}.".encode() + payload, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


class Verdict(NamedTuple):
    """What becomes of an event after an answer."""

    outcome: Outcome | None
    """None: it is sent again later."""
    why: str = ""
    retry_after_s: float | None = None


def judge(status: int, retry_after: str | None, now: float) -> Verdict:
    """What an answer means: 2xx is a delivery; 400, 413, 414, 415 and 422 refuse the event; all others are tried again.

    Args:
        status: of the answer.
        retry_after: its Retry-After header.
        now: Unix seconds.
    """
    if 200 <= status < 300:
        return Verdict("delivered")
    with contextlib.suppress(ValueError):
        name = f"{status} {HTTPStatus(status).phrase}"
        if status in _REFUSED:
            return Verdict("refused", f"answers {name}")
        hint = {
            401: "; check bearer_token", 403: "; check bearer_token and signing_key", 404: "; check url",
            405: "; check url: it takes no POST", 410: "; the receiver is gone, remove the sink",
        }.get(status, "")  # fmt: skip
        what = "is busy, answers" if status in _BUSY else "fails, answers" if status >= 500 else "rejects us, answers"
        return Verdict(None, f"{what} {name}{hint}", _seconds(retry_after, now))
    return Verdict(None, f"answers {status}, which is no status of HTTP", _seconds(retry_after, now))


def _seconds(retry_after: str | None, now: float) -> float | None:
    """A Retry-After header, which is a number of seconds or a date, in seconds."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - now)
    except (ValueError, OverflowError):
        return None


class HostLimit:
    """Requests per second to one host, for all sinks of the process. Any thread."""

    _hosts: ClassVar[dict[HostPort, HostLimit]] = {}
    _hosts_lock = threading.Lock()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._interval_s = 0.0
        self._next = 0.0

    @classmethod
    def of(cls, host: HostPort, per_s: float) -> HostLimit:
        """The limit of a host, at most `per_s` from now on."""
        with cls._hosts_lock:
            limit = cls._hosts.setdefault(host, cls())
        with limit._lock:
            limit._interval_s = max(limit._interval_s, 1 / per_s)
        return limit

    def free(self) -> bool:
        """Whether a request may begin now."""
        return time.monotonic() >= self._next

    def take(self) -> bool:
        """Begins a request, if one may begin now."""
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return False
            self._next = max(self._next, now - self._interval_s) + self._interval_s
            return True


class WebhookSink(EventSink):
    """See `streamd.sinks.events.EventSink`.

    Args:
        settings: receiver, signature, limits.
    """

    def __init__(self, settings: WebhookSettings) -> None:
        self._settings = settings
        self._url = urlsplit(settings.url)
        secure = self._url.scheme == "https"
        self._host = HostPort(self._url.hostname or "", self._url.port or (443 if secure else 80))
        self._origin = f"{self._url.scheme}://{self._host}"
        """Shown in logs: the rest of the URL may be a secret."""
        self._key = key_of(settings.signing_key.get_secret_value()) if settings.signing_key is not None else None
        self._context: ssl.SSLContext | None = None
        self._limit = HostLimit.of(self._host, settings.max_per_s)
        self._retry = RetryPolicy()
        self._connection: http.client.HTTPConnection | None = None
        self._unreachable: str | None = None
        self._interrupted = False
        self._overdue = False
        """The request under way was ended for taking too long."""

    @property
    def unreachable(self) -> str | None:
        """See `EventSink.unreachable`."""
        return self._unreachable

    def open(self) -> None:
        """See `Sink.open`. The first event connects."""
        if self._url.scheme == "https":
            self._context = (self._settings.tls or ClientTlsSettings()).context("webhook sink")

    def send(self, message: Message) -> str | None:
        """See `Sink.send`. There are no messages for this sink: see `WebhookSettings.wants`."""
        return None

    def takes_events(self) -> bool:
        """See `EventSink.takes_events`."""
        return not self._interrupted and self._retry.wait_s(self._origin) <= 0 and self._limit.free()

    def deliver(self, events: Sequence[JournalEvent]) -> list[Outcome]:
        """See `EventSink.deliver`. Sends the first event and waits for the answer, at most `timeout_s`."""
        if not self._limit.take():
            return []
        event = events[0]
        try:
            verdict = self._post(event)
        except (OSError, http.client.HTTPException) as error:
            self._disconnect()
            if self._interrupted:
                return []
            if self._overdue or isinstance(error, TimeoutError):
                verdict = Verdict(None, f"is slow: no answer within {self._settings.timeout_s:g} s")
            else:
                verdict = Verdict(None, f"is down: {str(error) or type(error).__name__}")
        if verdict.outcome is None:
            wait = self._retry.failed(self._origin, retry_after_s=verdict.retry_after_s)
            self._unreachable = f"webhook sink: {self._origin} {verdict.why}"
            raise SinkError(f"{self._unreachable}; next attempt in {wait:.1f} s, events wait in the journal")
        self._retry.succeeded(self._origin)
        self._unreachable = None
        if verdict.outcome == "refused":
            log.error("webhook refuses an event", receiver=self._origin, id=event.id, why=verdict.why)
        return [verdict.outcome]

    # ------------------------------------------------------------------------------------------------------ requests

    def _headers(self, event: JournalEvent) -> dict[str, str]:
        now = int(time.time())
        headers = {
            "Content-Type": f"{CONTENT_TYPE}; charset=utf-8",
            "User-Agent": f"streamd/{__version__}",
            "webhook-id": event.id,
            "webhook-timestamp": str(now),
        }
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, event.id, now, event.payload)
        if self._settings.bearer_token is not None:
            headers["Authorization"] = f"Bearer {self._settings.bearer_token.get_secret_value()}"
        return headers

    def _post(self, event: JournalEvent) -> Verdict:
        """Sends an event.

        Raises:
            OSError, http.client.HTTPException: there is no answer.
        """
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            status, headers = self._request(_target(url), event)
            if not 300 <= status < 400:
                return judge(status, headers.get("Retry-After"), time.time())
            try:
                following = urlsplit(urljoin(url.geturl(), headers.get("Location", "")))
                _target(following).encode("ascii")
            except ValueError:
                return Verdict(None, f"redirects ({status}) to what is no URL; check url")
            if (following.scheme, following.netloc) != (url.scheme, url.netloc):
                return Verdict(None, f"redirects to another host ({status}), which is not followed; check url")
            if status not in _REDIRECTS:
                return Verdict(None, f"redirects ({status}) in a way that is not followed with POST; check url")
            url = following
        return Verdict(None, f"redirects more than {MAX_REDIRECTS} times")

    def _request(self, target: str, event: JournalEvent) -> tuple[int, Any]:
        """One request; a kept connection that turns out to be closed is replaced once."""
        kept = self._connection is not None
        try:
            return self._exchange(target, event)
        except (ConnectionError, http.client.RemoteDisconnected, http.client.BadStatusLine):
            self._disconnect()
            if not kept or self._interrupted or self._overdue:
                raise
            return self._exchange(target, event)

    def _exchange(self, target: str, event: JournalEvent) -> tuple[int, Any]:
        self._overdue = False
        connection = self._connection
        if connection is None:
            connection = self._connection = self._connect()
        # A timeout of the socket is for each read alone: a receiver that drips its answer would never run into it.
        alarm = threading.Timer(self._settings.timeout_s, self._too_late, (connection,))
        alarm.daemon = True
        alarm.start()
        try:
            connection.request("POST", target, event.payload, self._headers(event))
            answer = connection.getresponse()
            rest = answer.read(MAX_ANSWER_BYTES + 1)
        finally:
            alarm.cancel()
        if len(rest) > MAX_ANSWER_BYTES or answer.will_close:
            self._disconnect()
        return answer.status, answer.headers

    def _connect(self) -> http.client.HTTPConnection:
        host, port, timeout = self._host.host, self._host.port, self._settings.timeout_s
        if self._context is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._context)
        return http.client.HTTPConnection(host, port, timeout=timeout)

    def _too_late(self, connection: http.client.HTTPConnection) -> None:
        self._overdue = True
        _shut(connection)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def interrupt(self) -> None:
        """See `EventSink.interrupt`."""
        self._interrupted = True
        if (connection := self._connection) is not None:
            _shut(connection)

    def close(self) -> None:
        """See `Sink.close`."""
        self._disconnect()
        self._interrupted = False


def _target(url: SplitResult) -> str:
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def _shut(connection: http.client.HTTPConnection) -> None:
    if (sock := connection.sock) is not None:
        with contextlib.suppress(OSError):
            # Of a TLS socket only the connection itself, without its farewell, which may wait.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
