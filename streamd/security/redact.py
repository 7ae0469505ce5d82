"""Keeps credentials out of everything a person or a machine reads.

Two nets: what looks like a credential (the user part of a URL, a query value named password), and what is known to be
one (everything that `remember` was told), wherever and in whichever encoding it turns up.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

# userinfo runs to the LAST @ before the path: passwords with @ in them are common and rarely escaped. Where what
# follows the first colon is no port, a slash, ? or # belongs to the password too: then it runs to the last @ of all.
_USERINFO = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s/?#]*|[^\s/?#:@\[\]]*:(?!\d{1,5}[/?#])\S*)@(?P<host>[^\s@/?#]*)"
)
_SECRET_QUERY = re.compile(
    r"(?P<key>[?&;](?:[^=&\s;]*(?:pass|pwd|token|secret|auth|key|sig|credential)[^=&\s;]*|user(?:name)?|usr|login))="
    r"(?P<value>[^&\s;'\"]*)",
    re.IGNORECASE,
)
MIN_LENGTH = 4
"""Shorter values would blank half of every message."""

_known: tuple[str, ...] = ()
"""The longest first, so that a secret which contains another goes whole."""


def _encodings(secret: str) -> set[str]:
    return {secret, quote(secret), quote(secret, safe=""), unquote(secret)}


def remember(secrets: Iterable[str]) -> None:
    """From now on, for the life of the process, no text that passes `redact` holds any of these."""
    global _known
    forms = {form for secret in secrets for form in _encodings(secret) if len(form) >= MIN_LENGTH}
    _known = tuple(sorted(forms.union(_known), key=len, reverse=True))


def known() -> tuple[str, ...]:
    """What has been remembered, in each encoding. For handing on to a worker process, and for tests."""
    return _known


def forget() -> None:
    """Forgets what was remembered. For tests."""
    global _known
    _known = ()


def credentials(url: str) -> set[str]:
    """The secrets in a URL: secret-looking query values, and the password, also as HTTP basic authentication has it."""
    found = {match["value"] for match in _SECRET_QUERY.finditer(url)}
    for match in _USERINFO.finditer(url):
        user, _, password = match["user"].partition(":")
        # A token may stand where the user name is.
        found.add(password or user)
        found.add(base64.b64encode(unquote(f"{user}:{password}").encode()).decode())
    return {secret for secret in found if secret}


def redact(text: str) -> str:
    """Returns `text` with every known secret, the user part of every URL and every secret-looking value as `***`."""
    for secret in _known:
        if secret in text:
            text = text.replace(secret, "***")
    if "://" not in text and "=" not in text:
        return text
    text = _USERINFO.sub(r"\g<scheme>***@\g<host>", text)
    return _SECRET_QUERY.sub(r"\g<key>=***", text)
