"""One connection to an MQTT broker after the other, driven by the caller's thread.

paho-mqtt is used without its own thread: `step` reads, writes and keeps alive. Every connection has a new client, so
that nothing of an earlier one is sent by the library itself.
"""

from __future__ import annotations

import contextlib
import select
import ssl
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import structlog

from streamd.errors import ConfigError, SinkError
from streamd.events.retry import RetryPolicy
from streamd.sinks.connection import ClientTlsSettings, HostPort
from streamd.sinks.events import CONTENT_TYPE

log = structlog.get_logger(__name__)

CONNECT_S = 3.0
"""For the TCP connection; the sink's thread waits for it."""
ANSWER_S = 10.0
"""For the broker's answer to our greeting."""
_EVENTS, _BROKER = "events", "broker"
_PERMANENT = frozenset({0x83, 0x90, 0x95, 0x99})
"""MQTT 5 reasons of an acknowledgement after which trying again is of no use: the broker is not willing to accept this
message, topic name invalid, packet too large, payload format invalid."""
_NO_LOGIN = frozenset({0x86, 0x87})
"""Reasons to refuse a connection: bad user name or password, not authorized."""
_UNSPECIFIED, _PROTOCOL_ERROR = 0x80, 0x82
_MAX_HEAD_BYTES = 128
"""Of a publication's packet, besides topic and payload."""


def vendor() -> Any:
    """`paho.mqtt.client`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import paho.mqtt.client as mqtt
    except ImportError:
        raise ConfigError("mqtt sink: needs paho-mqtt; install it with: pip install 'streamd[mqtt]'") from None
    return mqtt


class Refusal(NamedTuple):
    """What a broker answered instead of accepting a message."""

    text: str
    permanent: bool


class Link:
    """For one thread, except `problem`.

    Args:
        address: of the broker.
        client_id: unique at the broker.
        protocol: version of MQTT.
        will: topic and payload that the broker publishes, retained, if the connection is lost.
        keepalive_s: longest silence before the broker is asked for a sign of life; after another one it is lost.
        tls: None for plain TCP.
        login: user name and password.
    """

    def __init__(
        self,
        address: HostPort,
        client_id: str,
        protocol: Literal["5", "3.1.1"],
        will: tuple[str, bytes],
        keepalive_s: int,
        *,
        tls: ClientTlsSettings | None,
        login: tuple[str, str] | None,
    ) -> None:
        self.address = address
        self._client_id, self._protocol, self._will, self._keepalive_s = client_id, protocol, will, keepalive_s
        self._tls, self._login = tls, login
        self._context: ssl.SSLContext | None = None
        self._retry = RetryPolicy()
        self._client: Any = None
        self._answered = False
        """The broker has accepted the connection."""
        self._deadline = 0.0
        """For the broker's answer; monotonic seconds."""
        self._lost: str | None = None
        """Why the connection is over, as the library told."""
        self._settled: dict[int, Refusal | None] = {}
        """Answers to messages whose sender asks for them, by packet number."""
        self._asked: set[int] = set()
        """Numbers of these messages that have no answer yet."""
        self._received: list[tuple[str, bytes, bool]] = []
        self._properties: Any = None
        self._max_bytes = 0
        """Of a packet, as the broker has said; it hangs up at larger ones. 0: no limit."""
        self.not_understood = False
        """The last connection ended because the broker sent something that the library does not take for MQTT:
        mosquitto 2 answers a message above its `message_size_limit` with a reason that is not one of this answer's."""
        self.problem: str | None = None
        """Why there is no connection, or events are not accepted; None while all is well. Any thread reads it."""

    def prepare(self) -> None:
        """Loads the library and the files of TLS.

        Raises:
            ConfigError: the library is missing.
            SinkError: a file cannot be used.
        """
        mqtt = vendor()
        if self._tls is not None:
            self._context = self._tls.context("mqtt sink")
        if self._protocol == "5":
            from paho.mqtt.packettypes import PacketTypes
            from paho.mqtt.properties import Properties

            self._properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            self._properties.ContentType = f"{CONTENT_TYPE}; charset=utf-8"
        self._success = mqtt.MQTT_ERR_SUCCESS

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection, and it is not known to be lost."""
        return self._answered

    @property
    def congested(self) -> bool:
        """Whether the broker does not read what was sent: whatever is published now would wait in memory."""
        return self._client is not None and bool(self._client.want_write())

    # -------------------------------------------------------------------------------------------------- connection

    def connect_if_due(self) -> bool:
        """Connects if there is no connection and it is time to try; completes a connection that was begun.

        Returns:
            True once for each connection, when the broker has accepted it.

        Raises:
            SinkError: the attempt has failed.
        """
        if self._answered:
            return False
        if self._client is None:
            if self._retry.wait_s(_BROKER) > 0:
                return False
            self._connect()
        self.step(0.01)
        if self._answered:
            self._retry.succeeded(_BROKER)
            self.problem = None
            log.info("mqtt connected", broker=str(self.address), client_id=self._client_id)
        return self._answered

    def _connect(self) -> None:
        mqtt = vendor()
        v5 = self._protocol == "5"
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, self._client_id, clean_session=None if v5 else True,
            protocol=mqtt.MQTTv5 if v5 else mqtt.MQTTv311,
        )  # fmt: skip
        client.connect_timeout = CONNECT_S
        client.will_set(*self._will, qos=1, retain=True)
        if self._login is not None:
            client.username_pw_set(*self._login)
        if self._context is not None:
            client.tls_set_context(self._context)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_publish, client.on_message = self._on_publish, self._on_message
        self._lost, self.not_understood = None, False
        self._settled.clear()
        self._asked.clear()
        try:
            client.connect(self.address.host, self.address.port, keepalive=self._keepalive_s)
        except (OSError, ValueError) as error:
            self._end(str(error) or type(error).__name__)
        self._client, self._deadline = client, time.monotonic() + ANSWER_S

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        self._max_bytes = getattr(properties, "MaximumPacketSize", 0)
        if reason.is_failure:
            advice = "; check login" if reason.value in _NO_LOGIN else ""
            self._lost = f"the broker refuses the connection: {reason}{advice}"
        else:
            self._answered = True

    def _on_disconnect(self, _client: Any, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if flags.is_disconnect_packet_from_server and "taken over" in str(reason).lower():
            self._lost = self._lost or f"another client has the id {self._client_id}; give each daemon its own `node`"
        self.not_understood = not flags.is_disconnect_packet_from_server and reason.value == _PROTOCOL_ERROR
        # What the library says of a connection that was closed without a word is "Unspecified error".
        why = "" if reason.value == _UNSPECIFIED else f": {reason}"
        self._lost = self._lost or f"connection lost{why}"

    def _on_publish(self, _client: Any, _data: Any, number: int, reason: Any, _properties: Any) -> None:
        if number in self._asked:
            self._asked.discard(number)
            refused = reason is not None and reason.is_failure
            self._settled[number] = Refusal(str(reason), reason.value in _PERMANENT) if refused else None

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        self._received.append((message.topic, message.payload, message.retain))

    def step(self, timeout: float) -> None:
        """Reads, writes and keeps alive; waits at most `timeout` seconds for something to read.

        Raises:
            SinkError: the connection is lost.
        """
        client = self._client
        if client is None:
            return
        sock = client.socket()
        if sock is not None:
            # Not the library's `loop`, whose select() takes no descriptor above 1023.
            poller = select.poll()
            poller.register(sock, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
            pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            ready = poller.poll(0 if pending else int(timeout * 1000))
            mask = ready[0][1] if ready else 0
            if mask & ~select.POLLOUT or pending:
                client.loop_read()
            if mask & select.POLLOUT and client.socket() is not None:
                client.loop_write()
            client.loop_misc()
        if self._lost is None and client.socket() is None:
            self._lost = "connection lost"
        if self._lost is None and not self._answered and time.monotonic() > self._deadline:
            self._lost = f"no answer within {ANSWER_S:g} s"
        if self._lost is not None:
            self._end(self._lost)

    def _end(self, why: str) -> None:
        """The connection is over.

        Raises:
            SinkError: always.
        """
        self._drop()
        wait = self._retry.failed(_BROKER)
        self.problem = f"mqtt sink: {self.address}: {why}"
        raise SinkError(f"{self.problem}; next attempt in {wait:.1f} s, events wait in the journal")

    def _drop(self) -> None:
        client, self._client, self._answered = self._client, None, False
        if client is not None and (sock := client.socket()) is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def close(self, timeout: float) -> None:
        """Sends what is still to be sent and takes leave, within `timeout` seconds. Idempotent."""
        client, deadline = self._client, time.monotonic() + timeout
        if client is not None:
            with contextlib.suppress(SinkError):
                while self._answered and client.want_write() and time.monotonic() < deadline:
                    self.step(0.02)
                if self._answered:
                    client.disconnect()
                while client.socket() is not None and client.want_write() and time.monotonic() < deadline:
                    client.loop_write()
        self._drop()
        self.problem = None

    # -------------------------------------------------------------------------------------------------- publishing

    def subscribe(self, filters: Iterable[str]) -> None:
        """Subscribes; what arrives is in `received`."""
        if self._client is not None:
            self._client.subscribe([(each, 1) for each in filters])

    def received(self) -> list[tuple[str, bytes, bool]]:
        """What arrived since the last call: topic, payload, whether the broker had kept it."""
        received, self._received = self._received, []
        return received

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, acknowledge: bool = False, event: bool = False
    ) -> int:
        """Publishes at QoS 1.

        Args:
            topic: where.
            payload: what.
            retain: the broker keeps it for later subscribers.
            acknowledge: `settled` is to tell the answer.
            event: it is a CloudEvent.

        Returns:
            The packet's number.
        """
        more = {"properties": self._properties} if event and self._properties is not None else {}
        info = self._client.publish(topic, payload, qos=1, retain=retain, **more)
        if acknowledge:
            self._asked.add(info.mid)
            self._settled.pop(info.mid, None)  # numbers repeat after 65,535
        return int(info.mid)

    def too_large(self, topic: str, payload: bytes) -> bool:
        """Whether the broker has said that it takes no packet of this size."""
        return 0 < self._max_bytes < len(topic) + len(payload) + _MAX_HEAD_BYTES

    def publish_now(self, topic: str, payload: bytes) -> bool:
        """Publishes at QoS 0; False if there is no connection, or the broker does not read."""
        if not self._answered or self.congested:
            return False
        return bool(self._client.publish(topic, payload, qos=0).rc == self._success)

    def settled(self, numbers: Sequence[int]) -> list[Refusal | None]:
        """The answers to these messages, from the first one on without a gap; None is an acknowledgement."""
        found: list[Refusal | None] = []
        for number in numbers:
            if number not in self._settled:
                break
            found.append(self._settled[number])
        return found

    def forget(self, number: int) -> None:
        """The answer to this message has been dealt with."""
        self._settled.pop(number, None)

    def may_publish(self) -> bool:
        """Whether the broker is to be given events now; False for a while after it has refused one."""
        return self._retry.wait_s(_EVENTS) <= 0

    def delay_events(self, stream: str, why: str) -> str:
        """The broker did not accept an event, but may later. Returns the description of the problem."""
        wait = self._retry.failed(_EVENTS)
        self.problem = f"mqtt sink: {self.address} refuses events of {stream}: {why}"
        return f"{self.problem}; next attempt in {wait:.1f} s, events wait in the journal"

    def events_flow(self) -> None:
        """The broker accepts events."""
        if self._retry.attempts(_EVENTS):
            self._retry.succeeded(_EVENTS)
            self.problem = None
