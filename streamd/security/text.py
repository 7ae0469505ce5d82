"""Text that cannot be encoded: lone surrogates from the environment, file names and models."""

from __future__ import annotations

import re

MAX_TEXT = 200
"""More of one text is of no use in a table."""


def printable(text: str) -> str:
    r"""`text` itself, or with each lone surrogate as `\udcXX`: it can be encoded as UTF-8 in any case."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def is_encodable(text: str) -> bool:
    """True if `text` has no lone surrogate, so that it can be written as JSON, YAML and UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_bytes(text: str) -> bytes:
    """UTF-8. Bytes that `os.fsdecode` could not decode are restored; other lone surrogates become three bytes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


def visible(text: str) -> str:
    """`text` without what a terminal obeys (escape sequences); line breaks and tabs stay."""
    return _CONTROL.sub("?", text)


def plain(text: str) -> str:
    """`text` made safe to print in one line: a terminal obeys escape sequences, whoever sent them."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_TEXT])
