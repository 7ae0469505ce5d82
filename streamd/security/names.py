"""Names whose values are secrets: in URLs, options of FFmpeg, headers, settings."""

from __future__ import annotations

import re

USER_KEYS = frozenset(("user", "username", "usr", "login", "loginuse", "u", "account", "uid"))
SECRET_KEYS = frozenset(
    (
        "password", "passwd", "pass", "pwd", "pw", "p", "psw", "loginpas", "loginpass", "passphrase", "token", "jwt",
        "code", "key", "apikey", "api_key", "secret", "auth", "sig", "sign", "signature", "hmac", "hash", "session",
        "sid", "sessionid", "ticket", "access_token", "credential", "x-amz-signature", "x-amz-credential",
        "x-amz-security-token", "streamid", "hdnea", "hdnts", "policy", "nonce", "pin", "playpath",
    )
)  # fmt: skip
"""In a URL."""
_AMBIGUOUS = frozenset(("p", "code", "key", "hash", "pin", "sign", "policy", "session", "auth", "pass"))
"""Those that are also words of prose."""
_WORD = re.compile(
    r"pass(?:w|phr|$)|pwd|token|secret|credential|signature|loginpas|authorization|playpath|streamid$|crypto(?:key|iv)$|"
    r"(?:^|[_-])(?:api|access|private|auth|enc|audible|decryption|encryption|signing)[_-]?(?:keys?|iv)$|"
    r"^rtmp_(?:app|conn|subscribe)$|^srtp_(?:in|out)_params$|^activation_bytes$"
)
"""Also outside of a URL, with the secrets among FFmpeg's options."""
_OPTIONS = frozenset(("key", "iv", "conn", "app", "subscribe", "headers", "cookies"))
"""Further ones where it is known that they are options."""


def is_secret(name: str) -> bool:
    """Whether `name=value` tells a secret, wherever it is."""
    name = name.lower()
    return (name in SECRET_KEYS and name not in _AMBIGUOUS) or _WORD.search(name) is not None


def is_secret_option(name: str) -> bool:
    """Whether an option of FFmpeg has a secret value."""
    return name.lower() in _OPTIONS or is_secret(name)
