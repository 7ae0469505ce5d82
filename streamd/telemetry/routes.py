"""What a route of the HTTP port is asked and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

Check = Callable[[], tuple[bool, dict[str, Any]]]
"""(healthy, response text)"""


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or HEAD request; there is no body."""

    path: str
    """Percent-decoded path, without the query."""
    query: Mapping[str, str]
    """The last value of each query parameter."""
    headers: Message[str, str]
    """Header names are case-insensitive."""


@dataclass(frozen=True, slots=True)
class Response:
    """A handler's response."""

    body: bytes | Iterable[bytes]
    """Bytes, or an iterator of pieces, which is closed (as generators are) when the client has gone."""
    kind: str = "text/plain; charset=utf-8"
    """The media type."""
    code: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers."""


Handler = Callable[[Request], Response]
"""Called by the workers, several at once."""
