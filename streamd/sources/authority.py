"""Host and port of a camera's URL, as far as they can be wrong whatever the network."""

from __future__ import annotations

import re

WITH_HOST = frozenset(("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "rtmpt", "rtmpts", "rtmpe", "rtmpte", "srt"))
"""Schemes whose URLs name a host, unless it is the camera that connects."""
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]\s]+\]|[^:\[\]\s]*)(?::(?P<port>[^:\[\]]*))?")
_PLACEHOLDER = re.compile(r"[<>{}]")
_PORT = re.compile(r"[0-9]{1,5}")


def authority_problem(url: str, *, listens: bool) -> str | None:
    """What is wrong with host and port of `url`; None if nothing is, or if a password cannot be told from them.

    The message names neither: without the `@`, a password stands where a port is expected.

    Args:
        url: with a scheme of `WITH_HOST`.
        listens: it is the camera that connects, so no host is needed.
    """
    rest = url[url.find("://") + 3 :]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in rest and "@" not in authority:
        return None  # a raw delimiter in a password: `streamd.security.address.unencoded` names it
    found = _AUTHORITY.fullmatch(authority.rpartition("@")[2])
    if found is None:
        return "its host cannot be read; expected a name or an address without spaces, IPv6 in brackets"
    if _PLACEHOLDER.search(found["host"]):
        return "its host is still a placeholder in brackets or braces; put the camera's address there"
    if not found["host"] and not listens:
        return "names no host after the ://"
    port = found["port"]
    if port and not (_PORT.fullmatch(port) and 0 < int(port) < 65_536):
        return "its port is no number from 1 to 65535; if that is a password, an @ and the host follow it"
    return None
