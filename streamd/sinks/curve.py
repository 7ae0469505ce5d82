"""ZeroMQ CURVE: keys, and who may listen.

The publisher holds the server's key whichever side binds. libzmq asks about each newcomer over ZAP (RFC 27), on an
inproc endpoint of the sink's own context; `ZapAuthenticator` answers from the sink's own thread, so no other
thread can outlive the sink.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import structlog
from pydantic import Field

from streamd.errors import ConfigError, SinkError
from streamd.security.trust import read_text
from streamd.settings import ExternalSecret, PathMark, Pattern, Settings

log = structlog.get_logger(__name__)

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
DOMAIN = "streamd"
MAX_FILE_BYTES = 1 << 20
KEY_PATTERN = r"^[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$"
"""A CURVE key in Z85."""
_KEY = re.compile(KEY_PATTERN)
Key = Annotated[
    str,
    Field(pattern=KEY_PATTERN),
    Pattern("expected a public key of 40 characters, as `streamd keygen` makes them"),
]


class CurveSettings(Settings):
    """Encryption, and who may listen: ZeroMQ CURVE. Keys are made by `streamd keygen`."""

    secret_key: ExternalSecret = Field(description="The daemon's own secret key, as ${file:server.key} or ${NAME}.")
    clients: Annotated[str, PathMark(("any",))] | tuple[Key, ...] = Field(
        description="Who may listen: public keys, a file with one a line (read again when it changes), or any."
    )


def vendor() -> Any:
    """pyzmq, where its libzmq can do CURVE.

    Raises:
        ConfigError: it was built without.
    """
    import zmq

    if not zmq.has("curve"):
        raise ConfigError(
            f"libzmq {zmq.zmq_version()} was built without CURVE (libsodium or tweetnacl); install pyzmq's own wheel: "
            "pip install --force-reinstall --only-binary=:all: pyzmq"
        )
    return zmq


def new_pair() -> tuple[str, str]:
    """A new (public, secret) pair, 40 characters each.

    Raises:
        ConfigError: see `vendor`.
    """
    public, secret = vendor().curve_keypair()
    return public.decode(), secret.decode()


def public_of(secret: str, what: str) -> str:
    """The public key of a secret one.

    Raises:
        ConfigError: it is none, or see `vendor`; `what` names it, the key is not told.
    """
    zmq = vendor()
    if not _KEY.fullmatch(secret):
        raise ConfigError(f"{what}: expected a key of 40 characters, as `streamd keygen` makes them")
    try:
        return str(zmq.curve_public(secret.encode()).decode())
    except (zmq.ZMQError, ValueError):
        raise ConfigError(f"{what}: 40 characters, but no key; make one with `streamd keygen`") from None


def read_keys(path: Path, what: str) -> frozenset[str]:
    """Public keys from a file, one a line; what follows a key on its line, and lines that begin with #, are comments.

    Raises:
        ConfigError: unreadable, or a line without a key; `what` names the setting.
    """
    text = read_text(path, MAX_FILE_BYTES, what=f"{what}: {path}", expected="a file with one public key a line")
    keys = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not _KEY.fullmatch(words[0]):
            raise ConfigError(
                f"{what}: {path}:{number}: expected a public key of 40 characters, as `streamd keygen` makes them"
            )
        keys.add(words[0])
    return frozenset(keys)


class Clients:
    """Who may listen; a file is read again when it has changed.

    Args:
        listed: keys, the path of a file, or `any`.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, listed: str | tuple[str, ...]) -> None:
        self._any = listed == "any"
        self._file = Path(listed) if isinstance(listed, str) and not self._any else None
        self._keys = frozenset(listed) if isinstance(listed, tuple) else frozenset()
        self._stamp: tuple[int, ...] = ()
        if self._file is not None:
            self._stamp = self._now()
            self._keys = self._read()

    def _read(self) -> frozenset[str]:
        assert self._file is not None
        return read_keys(self._file, "zmq sink: curve.clients")

    def _now(self) -> tuple[int, ...]:
        assert self._file is not None
        try:
            found = self._file.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def allow(self, key: str) -> bool:
        """Whether the client with this public key may listen."""
        if self._any:
            return True
        if self._file is not None and (stamp := self._now()) != self._stamp:
            self._stamp = stamp
            try:
                self._keys = self._read()
                log.info("zmq sink: clients read again", file=str(self._file), clients=len(self._keys))
            except ConfigError as error:
                log.warning("zmq sink: the new list of clients is not used, the old one is kept", error=str(error))
        return key in self._keys


class ZapAuthenticator:
    """Makes a publishing socket a CURVE server, and answers libzmq's questions about its clients.

    Args:
        context: the sink's.
        socket: not bound or connected yet.
        settings: key and clients.

    Raises:
        ConfigError: a key or the file of clients cannot be used, or see `vendor`.
        SinkError: the context has another doorkeeper.
    """

    def __init__(self, context: Any, socket: Any, settings: CurveSettings) -> None:
        zmq = vendor()
        self._zmq = zmq
        secret = settings.secret_key.get_secret_value()
        public_key = public_of(secret, "zmq sink: curve.secret_key")
        self._clients = Clients(settings.clients)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, secret.encode())
        socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
        self._questions = context.socket(zmq.REP)
        self._questions.setsockopt(zmq.LINGER, 0)
        try:
            # Before the socket is bound: without anybody to ask, libzmq lets everybody in.
            self._questions.bind(ZAP_ENDPOINT)
        except zmq.ZMQError as error:
            self.close()
            raise SinkError(f"zmq sink: cannot bind {ZAP_ENDPOINT}: {error.strerror}") from error
        log.info("zmq sink: encrypted", public_key=public_key)

    def answer(self) -> None:
        """Answers what has been asked since; never waits."""
        from zmq.utils import z85

        zmq = self._zmq
        while True:
            try:
                version, number, _domain, address, _identity, mechanism, *credentials = self._questions.recv_multipart(
                    zmq.DONTWAIT
                )
            except zmq.Again:
                return
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else ""
            welcome = bool(key) and self._clients.allow(key)
            if not welcome:
                log.warning("zmq sink: client refused", address=address.decode(errors="replace"), public_key=key)
            status = [b"200", b"OK", key.encode()] if welcome else [b"400", b"key not listed", b""]
            self._questions.send_multipart([version, number, *status, b""])

    def close(self) -> None:
        """Idempotent."""
        self._questions.close()


def secure_client(socket: Any, server_key: str, secret_key: str | None) -> None:
    """Makes a subscribing socket a CURVE client.

    Args:
        socket: not connected yet.
        server_key: the daemon's public key.
        secret_key: the client's own; a new pair that lasts as long as the socket where there is none.

    Raises:
        ConfigError: a key is none, or see `vendor`.
    """
    zmq = vendor()
    if secret_key is None:
        public, secret_key = new_pair()
    else:
        public = public_of(secret_key, "the client's secret key")
    if not _KEY.fullmatch(server_key):
        raise ConfigError("the server's public key: expected 40 characters, as `streamd keygen` makes them")
    socket.setsockopt(zmq.CURVE_PUBLICKEY, public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret_key.encode())
    try:
        socket.setsockopt(zmq.CURVE_SERVERKEY, server_key.encode())
    except zmq.ZMQError:
        raise ConfigError("the server's public key: 40 characters, but no key") from None
