"""The zones and lines of every stream, as configured, for the page to draw and to edit."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from streamd.flow.settings import StreamSettings


class Rules:
    """Made again only when the configuration was replaced. Any thread.

    Args:
        streams: the settings of all streams; another sequence after a reload.
    """

    def __init__(self, streams: Callable[[], Sequence[StreamSettings]] = tuple) -> None:
        self._streams = streams
        self._made: tuple[Sequence[StreamSettings], bytes, int] = ((), b"{}", 0)

    def _current(self) -> tuple[Sequence[StreamSettings], bytes, int]:
        streams = self._streams()
        if streams is not self._made[0]:
            body = msgspec.json.encode({s.id: _plain(s) for s in streams if s.zones or s.lines})
            self._made = streams, body, zlib.crc32(body)
        return self._made

    def json(self) -> bytes:
        """`{stream: {"zones": […], "lines": […]}}`, each rule with the fields that its configuration gives."""
        return self._current()[1]

    @property
    def revision(self) -> int:
        """Another number once `json` is another."""
        return self._current()[2]


def _plain(stream: StreamSettings) -> dict[str, Any]:
    return {
        "zones": [zone.model_dump(mode="json", exclude_unset=True) for zone in stream.zones],
        "lines": [line.model_dump(mode="json", exclude_unset=True) for line in stream.lines],
    }
