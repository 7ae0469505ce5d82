"""Reads the packets of an open input: time limits, silence, losses, the slices of a picture, and the sound beside."""

from __future__ import annotations

import errno
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from streamd.errors import SourceError, SourceReason
from streamd.sources.av_connection import FILE_LIMIT_S, HUNG_S, AvConnection
from streamd.sources.av_errors import describe, translate
from streamd.sources.av_open import sound_beside
from streamd.sources.init_watch import InitWatch
from streamd.sources.parts import CodecWatch, PartEnds, PartWatch, Watch
from streamd.sources.quarantine import PacketLossListener
from streamd.sources.recording import PacketFeed
from streamd.sources.remote_parts import RemoteWatch, RestartWatch
from streamd.sources.search import NEVER
from streamd.sources.slices import SLICED, SliceJoiner
from streamd.sources.wire import heard_since

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet
    from av.video.stream import VideoStream


class PacketReader:
    """The packets of a connection's video. For the thread that reads.

    PyAV's `timeout` interrupts a read, which covers every network hang.

    Args:
        connection: the input; open while packets are read.
        closed: ends reading at the next packet.
        feed: takes the packets of the sound; None where nobody ever wants them.
        decoded: how many pictures of this pass, and the time stamp of the latest packet, in nanoseconds. Asked at an
            error that may be the end of the input.
    """

    def __init__(
        self,
        connection: AvConnection,
        closed: threading.Event,
        feed: PacketFeed | None,
        decoded: Callable[[], tuple[int, int | None]],
    ) -> None:
        self._connection, self._closed, self._feed, self._decoded = connection, closed, feed, decoded
        self._network = connection.network
        self._rtp = connection.settings.url.startswith(("rtsp", "rtp:"))
        self._sound: AudioStream | None = None
        """Where clips are to have it."""
        self._slices: SliceJoiner | Watch | None = None
        """A watch where the input may go on with another video."""
        self._first: Packet[Any] | None = None
        """With which the next pass begins."""
        self._given: Iterator[Packet[Any]] = iter(())
        """Whole pictures that are passed on now."""
        self.silence_s = connection.settings.read_timeout_s
        """How long a network may be silent."""
        self.began_s = 0.0
        """When the latest read began, monotonic seconds."""
        self.corrupt = 0
        """Packets so far that cannot be used."""
        self.unknown = 0
        """Packets of this pass of tracks that appeared in mid-stream."""
        self.lost = 0
        """RTP packets lost so far."""

    def opened(self) -> None:
        """The connection is open."""
        connection, settings = self._connection, self._connection.settings
        container, stream = connection.container, connection.stream
        assert container is not None
        assert stream is not None
        context, self._first = stream.codec_context, None
        slices = SliceJoiner(context) if context.codec.canonical_name in SLICED else None
        watches = PartWatch, CodecWatch, InitWatch, RemoteWatch, RestartWatch
        self._slices = next((watch for each in watches if (watch := each.of(connection, slices))), slices)
        if self._feed is not None:
            self._sound = sound_beside(container, stream) if settings.clip_audio else None
            self._feed.opened(stream, live=connection.kind.live, sound=self._sound)
        self.silence_s = connection.kind.silence_s or settings.read_timeout_s
        self.lost += connection.lost

    def recoded(self) -> None:
        """The connection has another decoder, for the codec with which the stream goes on."""
        context, codec = self._connection.context, self.next_codec
        self._slices = CodecWatch(codec, SliceJoiner(context) if codec in SLICED else None)

    def packets(self) -> Iterator[Packet[Any]]:
        """One pass over the input.

        Raises:
            SourceError: it failed, or is silent for too long.
        """
        packets, watch = self._packets(), self._slices
        return watch.hearing(packets) if isinstance(watch, InitWatch) else packets

    def _packets(self) -> Iterator[Packet[Any]]:
        connection, feed, sound, slices = self._connection, self._feed, self._sound, self._slices
        stream, limit = connection.stream, connection.limit
        # All streams of a live input are read: otherwise PyAV would block inside on one that has gone silent.
        wanted = () if self._network else (stream, *([sound] if sound is not None else []))
        self.unknown = 0
        packets = self._demux(wanted)
        ear = PacketLossListener(True) if self._rtp else None
        limit_s = self.silence_s + HUNG_S if self._network else FILE_LIMIT_S
        last = time.monotonic()
        failure: SourceError | None = None
        ended = False
        if self._first is not None:
            first, self._first = self._first, None
            self._given = iter((first,) if slices is None else slices.put(first))
            yield from self._given
        while not self._closed.is_set():
            started = self.began_s = time.monotonic()
            connection.deadline = started + limit_s
            try:
                if ear is None:
                    packet = next(packets)
                else:
                    with ear:
                        packet = next(packets)
            except StopIteration:
                connection.broke = ended = True
            except IndexError:
                # A damaged table can make FFmpeg report a stream that PyAV does not know: ignore its packets.
                self.corrupt += 1
                self.unknown += 1
                packets = self._demux(wanted)
                continue
            except Exception as error:  # noqa: BLE001
                connection.broke = ended = True
                failure = self._failure(error, started, last)
            finally:
                connection.deadline = math.inf
            if ended:
                break
            if limit is not None and limit.is_set:
                limit.lift()
            late = self._network and self._timed_out(last)
            if packet.stream is stream:
                if ear is not None:
                    self.lost += ear.take()
                if slices is None:
                    yield packet
                else:
                    try:
                        self._given = iter(slices.put(packet))
                    except PartEnds as part:
                        self._given, self._first = iter(part.given), part.first
                        ended = True
                    except SourceError as error:
                        self.corrupt += 1
                        self._given, failure, ended = iter(()), error, True
                    yield from self._given
                    if ended:
                        break
                last = time.monotonic()
            elif sound is not None and packet.stream is sound and feed is not None and packet.size:
                feed.put_sound(packet, time.monotonic_ns(), time.time_ns())
            if late:
                # A packet that arrives when the time is up was still held by FFmpeg's parser: it is no sign of life.
                failure = self._silent(started)
                break
        if slices is not None and not self._closed.is_set():
            self._given = iter(slices.flush())
            yield from self._given
        if failure is not None:
            raise failure

    @property
    def next_codec(self) -> str:
        """FFmpeg's name of the codec with which a network's stream goes on; empty at its end."""
        return self._slices.next_codec if isinstance(self._slices, CodecWatch) else ""

    @property
    def next_at(self) -> int | None:
        """The byte of a file at which it goes on with another video; None at its end. To be asked after a pass."""
        search, watch = self._connection.parts, self._slices
        if isinstance(watch, RemoteWatch):
            return watch.next_at()
        if search is not None and not self._network:
            search.look(NEVER)
        return search.next_at if search is not None else None

    def put_back(self, packet: Packet[Any]) -> None:
        """The packet that was passed on last is not used: reading ends."""
        self._given = iter((packet, *self._given))

    def held(self) -> list[Packet[Any]]:
        """What was read and is not passed on any more, as reading was ended; it is forgotten."""
        rest = [
            *self._given,
            *([self._first] if self._first is not None else []),
            *(self._slices.flush() if self._slices is not None else ()),
        ]
        return [packet for packet in rest if packet.size]

    def _failure(self, error: Exception, started: float, last: float) -> SourceError | None:
        """Why a read that began at `started` has ended the pass; None if the input is complete.

        Args:
            error: that was raised.
            started: monotonic seconds.
            last: when the latest packet came.
        """
        import av

        if self._timed_out(last):
            return self._silent(last)
        if self._is_whole(error):
            return None
        if isinstance(error, av.InvalidDataError):
            self.corrupt += 1
            if not self._network:
                return None  # a truncated file ends here; everything before it is valid
        return self._translate(error, started)

    def _demux(self, wanted: Sequence[AudioStream | VideoStream | None]) -> Iterator[Packet[Any]]:
        container, limit = self._connection.container, self._connection.limit
        assert container is not None
        if limit is not None:
            limit.is_set = True
        return container.demux(*wanted)

    def _is_whole(self, error: Exception) -> bool:
        """Whether the input is complete although FFmpeg reports an I/O error: so it calls the end of an answer over
        HTTP/1.0 that has no length."""
        kind, container = self._connection.kind, self._connection.container
        if getattr(error, "errno", None) != errno.EIO or not self._network or kind.live:
            return False
        pictures, stamp = self._decoded()
        if kind.still:
            return pictures > 0
        if stamp is None or container is None or not container.duration:
            return False
        return stamp / 1e3 - (container.start_time or 0) + 1e6 > container.duration

    def _translate(self, error: Exception, started: float) -> SourceError:
        if isinstance(error, SourceError):
            return error
        settings = self._connection.settings
        return translate(
            error, settings.url, opening=False, live=self._network,
            waited_s=time.monotonic() - started, limit_s=settings.read_timeout_s,
        )  # fmt: skip

    def _silent(self, since: float) -> SourceError:
        """No video has arrived since `since`."""
        url = self._connection.settings.url
        silence_s = time.monotonic() - since
        reason: SourceReason = "rtcp_only" if heard_since(url, silence_s) else "timeout_read"
        return SourceError(reason, describe(url, reason, f"after {self.silence_s:g} s"))

    def _timed_out(self, started: float) -> bool:
        return self._network and time.monotonic() - started >= self.silence_s * 0.98
