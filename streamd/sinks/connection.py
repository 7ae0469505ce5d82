"""Settings that sinks with a connection to a server share: address, TLS, login, what is published, name of the node."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from streamd.errors import ConfigError, SinkError
from streamd.security.trust import check_file
from streamd.settings import PORT_PATTERN, ConfigPath, ExternalSecret, FieldPath, Pattern, Problems, Settings
from streamd.sinks.envelope import CLASSIFIED, COUNTS, DETECTIONS, GLANCE, STATUS, MessageKind
from streamd.sinks.events import EventSinkSettings

ADDRESS_PATTERN = rf"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:{PORT_PATTERN})?$"
Address = Annotated[
    str,
    Field(pattern=ADDRESS_PATTERN),
    Pattern("expected HOST or HOST:PORT, as in broker.lan or 10.0.0.2:1883; an IPv6 address in brackets"),
]


class HostPort(NamedTuple):
    """A server's address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def host_port(address: str, default_port: int) -> HostPort:
    """Host and port of an address that matches `ADDRESS_PATTERN`."""
    found = re.match(ADDRESS_PATTERN, address)
    assert found is not None
    return HostPort(found[1].strip("[]"), int(found[2][1:]) if found[2] else default_port)


class ClientTlsSettings(Settings):
    """TLS to a server. Its certificate is always verified."""

    ca: ConfigPath | None = Field(None, description="PEM file of the authority to trust. Default: the system's.")
    certificate: ConfigPath | None = Field(None, description="PEM file with the client certificate, if required.")
    key: ConfigPath | None = Field(None, description="PEM file with its private key, without a passphrase.")

    def problems(self) -> Problems:
        """Problems across the fields."""
        if (self.certificate is None) != (self.key is None):
            yield (), "a client certificate needs both certificate and key"

    def context(self, what: str) -> ssl.SSLContext:
        """A context for connections.

        Raises:
            SinkError: a file cannot be used; `what` names the sink.
        """
        for path in filter(None, (self.ca, self.certificate, self.key)):
            try:
                check_file(Path(path), what=path, expected="a PEM file")
            except ConfigError as error:
                raise SinkError(f"{what}: {error}") from error
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
        except (OSError, ValueError) as error:
            files = ", ".join(path for path in (self.ca, self.certificate, self.key) if path is not None)
            raise SinkError(f"{what}: cannot use {files}: {error}; expected PEM files, the key unencrypted") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


class ClientLoginSettings(Settings):
    """Login at a server."""

    username: str = Field(min_length=1, max_length=256, description="User name.")
    password: ExternalSecret = Field(min_length=1, max_length=1024, description="Password, as ${file:PATH} or ${NAME}.")


def tls_problems(tls: ClientTlsSettings | None) -> Problems:
    """Problems of the field `tls`."""
    if tls is not None:
        yield from ((("tls", *path), message) for path, message in tls.problems())


def lacking(*loaders: Callable[[], object]) -> Iterator[tuple[FieldPath, str]]:
    """For `SinkSettings.look`: what says each of `loaders` that cannot load its library."""
    for load in loaders:
        try:
            load()
        except ConfigError as error:
            yield ("kind",), str(error)


class ServerSinkSettings(EventSinkSettings):
    """Settings common to sinks that publish events, state and counts through a server."""

    tls: ClientTlsSettings | None = Field(
        None, description="Use TLS. `{}` verifies the server against the system's certificate authorities."
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
        yield from tls_problems(self.tls)


def node_name(configured: str | None) -> str:
    """The configured name of this machine, else its host name with characters that are safe in topics."""
    return configured or re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().split(".")[0])[:63] or "streamd"
