"""Keeps credentials out of everything a person or a machine reads."""

from __future__ import annotations

import re

# userinfo runs to the LAST @ before the path: passwords with @ in them are common and rarely escaped.
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#]*@(?P<host>[^\s@/?#]*)")
_SECRET_QUERY = re.compile(
    r"(?P<key>[?&;](?:[^=&\s;]*(?:pass|pwd|token|secret|auth|key|sig|credential)[^=&\s;]*|user(?:name)?|usr|login))=[^&\s;'\"]*",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Returns `text` with the user part of every URL and every secret-looking query value replaced by `***`."""
    if "://" not in text and "=" not in text:
        return text
    text = _USERINFO.sub(r"\g<scheme>***@\g<host>", text)
    return _SECRET_QUERY.sub(r"\g<key>=***", text)
