"""Keys and signed documents of NATS's decentralised authentication, as `nsc` makes them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from typing import Any

import nkeys


class Key:
    """A new key pair.

    Args:
        prefix: `nkeys.PREFIX_BYTE_USER` and so on.
    """

    def __init__(self, prefix: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), prefix).decode()
        pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.pair, self.public = pair, pair.public_key.decode()

    def signed(self, subject: Key, name: str, nats: dict[str, Any]) -> str:
        """A JWT of this issuer about `subject`."""

        def text(value: Any) -> str:
            return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")

        claims = {"iat": int(time.time()), "iss": self.public, "name": name, "sub": subject.public,
                  "nats": {**nats, "version": 2}}  # fmt: skip
        claims["jti"] = base64.b32encode(hashlib.sha256(json.dumps(claims).encode()).digest()).decode().rstrip("=")
        body = f"{text({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{text(claims)}"
        return f"{body}.{base64.urlsafe_b64encode(self.pair.sign(body.encode())).decode().rstrip('=')}"


def credentials() -> tuple[list[str], str]:
    """Lines of a server's configuration, and the .creds file of a user that it accepts."""
    operator, account, system, user = (
        Key(getattr(nkeys, f"PREFIX_BYTE_{kind}")) for kind in ("OPERATOR", "ACCOUNT", "ACCOUNT", "USER")
    )
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage",
                            "disk_storage", "streams", "consumer"), -1) | {"wildcards": True}  # fmt: skip
    without_storage = limits | {"mem_storage": 0, "disk_storage": 0, "streams": 0, "consumer": 0}
    cameras = operator.signed(account, "cameras", {"type": "account", "limits": limits})
    own = operator.signed(system, "SYS", {"type": "account", "limits": without_storage})
    lines = [
        f"operator: {operator.signed(operator, 'streamd', {'type': 'operator', 'system_account': system.public})}",
        f"system_account: {system.public}",
        "resolver: MEMORY",
        f"resolver_preload: {{ {account.public}: {cameras}, {system.public}: {own} }}",
    ]
    jwt = account.signed(user, "box", {"type": "user", "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}})
    text = (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
    )
    return lines, text
