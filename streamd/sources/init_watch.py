"""HLS of fragmented MP4 whose init segment changes (RFC 8216, 4.3.2.5): another encoder, another camera profile.

FFmpeg gives the new one to its demuxer, which skips it: what follows keeps the parameters of the first one, and decodes
to garbage, or not at all. Only its log tells: of the addresses that it opens, and that it has skipped something. A live
playlist's init segment is skipped at every update, too, mostly without having changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from streamd.errors import SourceError
from streamd.security.redact import redact
from streamd.sources.parts import Watch
from streamd.sources.redirects import listen
from streamd.sources.skipping import nal_length_size
from streamd.sources.slices import SLICED, SliceJoiner

if TYPE_CHECKING:
    from fractions import Fraction

    from av.packet import Packet

    from streamd.sources.av_connection import AvConnection

_NEW_EXTRADATA = 1
"""AV_PKT_DATA_NEW_EXTRADATA of libavcodec/packet.h."""
_PADDING = bytes(64)
"""AV_INPUT_BUFFER_PADDING_SIZE: FFmpeg may read so far behind what it is given."""
_LATEST = 8
"""Addresses among which that of an init segment is: of a few playlists, each with a segment that is fetched ahead."""
_VAIN = 3
"""So often it is asked what an init segment tells while the time goes on. Some servers have one in every segment."""
_MOST_KNOWN = 100
"""Addresses: each part of some playlists has a new one."""
_FROM_NETWORK, _FROM_FILE = "http,https,tls,tcp,httpproxy,crypto,data", "file,crypto,data"
"""Protocols that FFmpeg allows for what is named by an input of the one kind and the other."""
_GAP_S = 10.0
"""Time stamps that go on within so much are those of the same encoder."""


class _Parameters(NamedTuple):
    codec: str
    extradata: bytes
    time_base: Fraction | None


class InitWatch(Watch):
    """Gives the decoder the parameters of the init segments that FFmpeg skips.

    Args:
        connection: HLS, open.
        slices: see `Watch`.
    """

    def __init__(self, connection: AvConnection, slices: SliceJoiner | None) -> None:
        super().__init__(slices)
        self._connection = connection
        stream = connection.stream
        assert stream is not None
        context = stream.codec_context
        self._now = _Parameters(context.codec.canonical_name, context.extradata or b"", stream.time_base)
        self._asked: deque[str] = deque(maxlen=_LATEST)
        """Addresses, since the latest init segment."""
        self._known: dict[str, _Parameters] = {}
        """What init segments told, by address."""
        self._vain = 0
        """How often nothing had changed."""
        self._skipped = False
        """An init segment comes before the next packet."""
        self._dts: int | None = None

    @classmethod
    def of(cls, connection: AvConnection, slices: SliceJoiner | None) -> InitWatch | None:
        """None for other inputs."""
        container, stream = connection.container, connection.stream
        assert container is not None
        assert stream is not None
        context = stream.codec_context
        codec = context.codec.canonical_name
        if container.format.name != "hls" or codec not in SLICED or not nal_length_size(codec, context.extradata):
            return None
        return cls(connection, slices)

    def hearing(self, packets: Iterator[Packet[Any]]) -> Iterator[Packet[Any]]:
        """Passes on what is read, and hears FFmpeg's log meanwhile."""
        listen(self)
        try:
            yield from packets
        finally:
            listen(None)

    def line(self, text: str) -> None:
        """Takes a line of FFmpeg's log. The thread that reads."""
        if text.startswith("Opening '"):
            address = text[len("Opening '") : text.rindex("'")]
            if not address.partition("?")[0].endswith((".m3u8", ".m3u")):
                self._asked.append(address)
        elif text.startswith("Found duplicated MOOV"):
            self._skipped = True

    def put(self, packet: Packet[Any]) -> tuple[Packet[Any], ...]:
        """See `SliceJoiner.put`.

        Raises:
            SourceError: it goes on with what cannot be decoded without a new connection.
        """
        if not packet.size:
            return self._pass_on(packet)
        if packet.is_discard:
            packet = _wanted(packet)
        if self._skipped:
            self._skipped = False
            self._look(packet)
        self._dts = packet.dts
        return self._pass_on(packet)

    def _look(self, packet: Packet[Any]) -> None:
        asked, before, base = list(self._asked), self._dts, self._now.time_base
        self._asked.clear()
        goes_on = (
            before is not None and packet.dts is not None and base is not None
            and 0 < (packet.dts - before) * base < _GAP_S
        )  # fmt: skip
        known = [address for address in reversed(asked) if address in self._known]
        if goes_on and (self._known[known[0]] == self._now if known else self._vain >= _VAIN):
            return
        # It is opened before its segment, and the segment before that may be fetched ahead.
        order = known or [*asked[-2:-1], *asked[-3:-2], *asked[-1:], *reversed(asked[:-3])]
        found = next((each for address in dict.fromkeys(order) if (each := self._read(address)) is not None), None)
        self._vain += 1
        if found is None or found == self._now:
            return
        self._vain = 0
        now, self._now = self._now, found
        length = nal_length_size(now.codec, now.extradata)
        if found.codec != now.codec or found.time_base != now.time_base:
            what = f"was {now.codec}, is {found.codec}" if found.codec != now.codec else "its time scale changed"
            raise self._error(what)
        if nal_length_size(found.codec, found.extradata) != length:
            raise self._error("the length of its NAL units changed")
        import av
        import av.packet

        told = found.extradata + _PADDING
        data = av.packet.PacketSideData(_NEW_EXTRADATA, len(told))  # type: ignore[call-arg]
        data.update(told)
        packet.set_sidedata(data)

    def _error(self, what: str) -> SourceError:
        connection = self._connection
        live = connection.kind.live
        text = f"{connection.settings.url}: {what} in mid-stream (EXT-X-MAP), which FFmpeg does not take on"
        text += "; reconnecting" if live else "; give the playlist of each part, or one of transport stream segments"
        return SourceError("codec_changed", redact(text), permanent=not live)

    def _read(self, address: str) -> _Parameters | None:
        """What an init segment tells; None if it is none, or has no video, or nobody reads the stream any more."""
        import av

        connection = self._connection
        if connection.closed.is_set():
            return None
        settings, limit_s = connection.settings, connection.settings.open_timeout_s
        options = _options(settings.options, network=connection.network)
        listen(None)
        try:
            with (
                connection.limited(2 * limit_s + 5),
                av.open(address, format="mov", options=options, timeout=limit_s) as opened,
            ):
                stream = opened.streams.video[0]
                context = stream.codec_context
                told = _Parameters(context.codec.canonical_name, context.extradata or b"", stream.time_base)
        except Exception:  # noqa: BLE001 - a segment, or what is no longer there
            return None
        finally:
            listen(self)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[address] = told
        return told


def _options(given: dict[str, str], *, network: bool) -> dict[str, str]:
    """A playlist names what it likes: from a network, no file of this machine, as in FFmpeg itself."""
    allowed = {"protocol_whitelist": _FROM_NETWORK if network else _FROM_FILE}
    return allowed | {name: value for name, value in given.items() if name != "format_whitelist"}


def _wanted(packet: Packet[Any]) -> Packet[Any]:
    """The same without the mark that its picture is not to be shown: the time of fragments that begin anew goes back,
    for which FFmpeg marks them until the next one."""
    made = SliceJoiner.cut(bytes(packet), packet)
    made.pts, made.dts, made.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
    for each in packet.iter_sidedata():
        made.set_sidedata(each)
    return made
