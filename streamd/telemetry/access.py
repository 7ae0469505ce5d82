"""Access to the HTTP port: TLS with a certificate that can be renewed in place, and one user name with a password."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import socket
import ssl
from pathlib import Path

import structlog

from streamd.errors import ConfigError, SinkError
from streamd.security.trust import check_file

log = structlog.get_logger(__name__)


class Tls:
    """The server's certificate, reloaded when its file changes, since daemons outlive certificates.

    Args:
        certificate: PEM file, including the chain.
        key: PEM file, without a passphrase.

    Raises:
        SinkError: names the file that cannot be used.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self._files = (Path(certificate), Path(key))
        self._stamp = self._stamps()
        self._context = self._load()

    def _stamps(self) -> tuple[int, ...]:
        try:
            return tuple(file.stat().st_mtime_ns for file in self._files)
        except OSError:
            return ()

    def _load(self) -> ssl.SSLContext:
        certificate, key = self._files
        for file in self._files:
            try:
                check_file(file, what=str(file), expected="a PEM file")
            except ConfigError as error:
                raise SinkError(f"metrics.tls: {error}") from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # OpenSSL rejects an empty passphrase; without one, it would ask for it on the terminal.
            context.load_cert_chain(certificate, key, password=lambda: b"")
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise SinkError(
                f"metrics.tls: {certificate} and {key} cannot be used: {reason}; expected a PEM certificate and its "
                "PEM key without a passphrase"
            ) from error
        return context

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """Wraps `connection` in TLS; the caller does the handshake. One thread at a time."""
        stamp = self._stamps()
        if stamp and stamp != self._stamp:
            self._stamp = stamp
            try:
                self._context = self._load()
                log.info("metrics port: certificate reloaded", certificate=str(self._files[0]))
            except SinkError as error:
                log.warning("metrics port: new certificate rejected; keeping the old one", error=str(error))
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)


class Login:
    """HTTP basic authentication, compared in constant time.

    Args:
        username: the user name that clients must send.
        password: the password that clients must send.
    """

    def __init__(self, username: str, password: str) -> None:
        self._digest = hashlib.sha256(f"{username}:{password}".encode()).digest()

    def allows(self, header: str) -> bool:
        """Whether the Authorization header contains the right user name and password."""
        scheme, _, value = header.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(value.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(hashlib.sha256(given).digest(), self._digest)
