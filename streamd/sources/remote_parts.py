"""Recordings over HTTP that consist of several, one behind the other: found without reading anything twice.

Where the time of the packets goes back, or the last one is not at the end, what lies between is looked at; what follows
is opened as a recording of its own. That needs a server that sends parts of a file (RFC 9110, 14).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from streamd.errors import SourceError
from streamd.security.redact import redact
from streamd.sources.av_open import read_bytes
from streamd.sources.part_search import AsfSearch, AviSearch, FlvSearch, MatroskaSearch, Mp4Search
from streamd.sources.parts import PartEnds, Watch
from streamd.sources.search import CHUNK, NEVER, PartSearch

if TYPE_CHECKING:
    from av.packet import Packet

    from streamd.sources.av import AvStreamSettings
    from streamd.sources.av_connection import AvConnection
    from streamd.sources.slices import SliceJoiner

_SEARCHES: dict[str, type[PartSearch]] = {
    "matroska": MatroskaSearch, "mov": Mp4Search, "avi": AviSearch, "flv": FlvSearch, "asf": AsfSearch
}  # fmt: skip
_BLOCK = 64 << 10
"""Bytes that are asked for at least."""
_MOST = 64 << 20
"""Bytes that are looked at between two packets, or behind the last one, at most."""
_TRAILER = 1024
"""Bytes behind the last packet in which there is no other recording."""


class RemoteBytes:
    """The bytes of a recording. The thread that reads.

    Args:
        settings: of the stream.
        size: number of its bytes.
        closed: ends a search.
    """

    def __init__(self, settings: AvStreamSettings, size: int, closed: threading.Event) -> None:
        self._settings, self.size, self._closed = settings, size, closed
        self._at, self._block = 0, b""
        self._parts: bool | None = None
        """The server sends parts of a file. Others begin at its begin, whatever they are asked for."""

    def __call__(self, at: int, size: int) -> bytes:
        """Bytes from one on; fewer at the end, or if they cannot be had."""
        size = min(size, self.size - at)
        if size <= 0 or self._closed.is_set():
            return b""
        if self._parts is None:
            head = read_bytes(self._settings, 0, 16)
            self._parts = len(head) == 16 and read_bytes(self._settings, 1, 15) == head[1:]
        if not self._parts:
            return b""
        if at < self._at or at + size > self._at + len(self._block):
            self._at, self._block = at, read_bytes(self._settings, at, min(max(size, _BLOCK), self.size - at))
        return self._block[at - self._at : at - self._at + size]


class _TimeWatch(Watch):
    """Notices that the time of the packets goes back."""

    def __init__(self, connection: AvConnection, slices: SliceJoiner | None) -> None:
        super().__init__(slices)
        assert connection.stream is not None
        base = connection.stream.time_base
        self._second, self._dts = int(1 / base) if base else 0, -NEVER
        """One in units of the time stamps, and when the latest packet is decoded."""

    def _goes_back(self, packet: Packet[Any]) -> bool:
        """Whether a packet is decoded more than a second before the one before it."""
        dts = packet.dts
        if dts is None:
            return False
        before, self._dts = self._dts, dts
        return dts < before - self._second


class RemoteWatch(_TimeWatch):
    """Notices where the packets of a recording over HTTP are those of its next part.

    Args:
        connection: open.
        slices: see `Watch`.
    """

    def __init__(self, connection: AvConnection, slices: SliceJoiner | None) -> None:
        super().__init__(connection, slices)
        assert connection.parts is not None
        self._connection, self._search, self._begin = connection, connection.parts, connection.begin
        self._known = connection.parts.next_at
        self._latest: Packet[Any] | None = None
        self._searched = False
        """What is behind the last packet was looked at."""

    @classmethod
    def of(cls, connection: AvConnection, slices: SliceJoiner | None) -> RemoteWatch | None:
        """None for other inputs, and where the end of a part is known."""
        container, settings = connection.container, connection.settings
        assert container is not None
        kind = _SEARCHES.get(container.format.name.partition(",")[0])
        if not connection.network or connection.kind.live or connection.end or kind is None:
            return None
        if not settings.url.lower().startswith(("http:", "https:")) or container.size <= 0:
            return None
        if connection.parts is None:
            read = RemoteBytes(settings, container.size, connection.closed)
            connection.parts = kind(read, lambda: read.size)
            if kind is AviSearch:  # its time does not go back: a recording tells its length in its first bytes
                with connection.limited():
                    connection.parts.start(0)
        return cls(connection, slices)

    def put(self, packet: Packet[Any]) -> tuple[Packet[Any], ...]:
        """See `SliceJoiner.put`.

        Raises:
            PartEnds: the packet is of the next part.
        """
        if packet.size:
            if self._known is not None and (at := packet.pos) is not None and self._begin + at >= self._known:
                raise PartEnds
            if self._goes_back(packet):
                self._look(packet)
            self._latest = packet
        return self._pass_on(packet)

    def _look(self, packet: Packet[Any]) -> None:
        """Looks for the next part between the latest packet and one whose time goes back."""
        at, search = packet.pos, self._search
        if at is None or search.next_at is not None:
            return
        begin = self._end()
        # Fragments may tell where they are in their own file: then FFmpeg reads anything.
        until = self._begin + at if self._begin + at > begin else min(begin + CHUNK, search.size)
        if until - begin < _MOST:
            with self._connection.limited():
                search.find(begin, until)
            if search.next_at is not None:
                raise PartEnds

    def _end(self) -> int:
        """Where the latest packet ends."""
        last = self._latest
        return self._begin + (0 if last is None or last.pos is None else last.pos + last.size)

    def next_at(self) -> int | None:
        """Where the next part begins; None at the end. To be asked after a pass."""
        search, end = self._search, self._end()
        rest = search.size - end
        once, self._searched = not self._searched, True
        if search.next_at is None and rest > _TRAILER and once:
            with self._connection.limited():
                if isinstance(search, Mp4Search):
                    search.start(self._begin)
                elif rest < _MOST:
                    search.find(end, search.size)
        return search.next_at


class RestartWatch(_TimeWatch):
    """Notices that another Matroska document begins in a live stream, whose begin FFmpeg does not read.

    Args:
        connection: open.
        slices: see `Watch`.
    """

    def __init__(self, connection: AvConnection, slices: SliceJoiner | None) -> None:
        super().__init__(connection, slices)
        self._url = connection.settings.url

    @classmethod
    def of(cls, connection: AvConnection, slices: SliceJoiner | None) -> RestartWatch | None:
        """None for other inputs."""
        assert connection.container is not None
        matroska = connection.container.format.name.startswith("matroska")
        return cls(connection, slices) if matroska and connection.network and connection.kind.live else None

    def put(self, packet: Packet[Any]) -> tuple[Packet[Any], ...]:
        """See `SliceJoiner.put`.

        Raises:
            SourceError: it needs a new connection.
        """
        if self._goes_back(packet):
            text = "another recording begins in mid-stream (its time goes back), of which FFmpeg reads no parameters"
            raise SourceError("disconnected", redact(f"{self._url}: {text}; reconnecting"))
        return self._pass_on(packet)
