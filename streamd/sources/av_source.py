"""Files, cameras and network streams through FFmpeg (PyAV)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

from streamd.errors import SourceError
from streamd.flow.contracts import Source, SourceInfo
from streamd.flow.packets import PacketSink
from streamd.flow.settings import StreamSettings
from streamd.security.redact import redact
from streamd.sources.av_connection import AvConnection
from streamd.sources.av_errors import NO_FAULT_OF_INPUT, describe
from streamd.sources.backlog import Arrived, Backlog
from streamd.sources.behind import JITTER_NS, Gauge
from streamd.sources.catch_up import ALARM_NS, CatchUp
from streamd.sources.clock import StreamClock
from streamd.sources.decoding import Decoding
from streamd.sources.exif import JPEG_IN_TIFF, is_jpeg_in_tiff
from streamd.sources.files import begin_at, too_short
from streamd.sources.frame_maker import FrameMaker
from streamd.sources.gauges import PaceGauge, QueueGauge
from streamd.sources.pacing import Pacer
from streamd.sources.packet_reader import PacketReader
from streamd.sources.recording import PacketFeed
from streamd.sources.wire import Unread
from streamd.types import Frame

if TYPE_CHECKING:
    from av.packet import Packet

    from streamd.sources.av import AvStreamSettings
    from streamd.sources.av_open import InputKind

MOST_UNREADABLE, UNKNOWN_LIMIT = 100, 25
"""Parts of a file in a row that cannot be opened: the rest is no video. Packets of tracks that were unknown when the
file was opened: fewer are considered damage."""


class AvSource(Source):
    """See `streamd.flow.contracts.Source`. Decodes what `PacketReader` reads from its `AvConnection`, or catches up.

    `close` from another thread ends sleeps at once, and a read at its next packet or its time limit, whichever comes
    first. A hanging resolver, file system or driver cannot be interrupted: `deadline` reveals it.

    Args:
        settings: the stream.
        device: CUDA device whose decoder `decode: auto` uses; None for software.
        packets: takes every packet before it is skipped or decoded; None where nobody ever wants them.
        alone: no other stream is read by this process.
    """

    def __init__(
        self,
        settings: AvStreamSettings,
        *,
        device: int | None = None,
        packets: PacketSink | None = None,
        alone: bool = False,
    ) -> None:
        self._settings = settings
        self._feed = PacketFeed(packets) if packets is not None else None
        self._device = device if settings.decode != "software" else None
        if settings.decode == "nvdec" and device is None:
            self._device = 0
        self._network = settings.live
        """It is retried; a file on a disk is not."""
        self._live = settings.live
        """The sender sets the pace; known for certain once it is open."""
        self._closed = threading.Event()
        self._connection = AvConnection(settings, self._closed, alone=alone)
        self._maker = FrameMaker(settings, self._device)
        # Nothing that is kept here refers back to the source: a decoder of a failed connection must not wait for the
        # garbage collector.
        self._reader = PacketReader(self._connection, self._closed, self._feed, self._maker.decoded)
        self._decoding = Decoding(settings, self._connection, self._maker)
        self._pacer: Pacer | None = None
        self._by_media_clock = True
        self._admission = self._connection.admission
        self._backlog = Backlog(settings.frames == "key")
        self._lost_before = 0
        self.codec = ""
        self._first_pass = True
        """Only this one begins at `start_s`."""
        self._unreadable: set[int] = set()
        """Bytes of a file from which on it cannot be opened."""

    @property
    def clock(self) -> StreamClock:
        """See `Source.clock`."""
        return self._maker.clock

    @property
    def corrupt(self) -> int:  # type: ignore[override]
        """Packets that the decoder has rejected so far, and those that could not be used at all."""
        return self._reader.corrupt + self._decoding.refused

    @property
    def lost(self) -> int:  # type: ignore[override]
        """Lost RTP packets."""
        return self._reader.lost

    @property
    def skipped(self) -> int:  # type: ignore[override]
        """Frames skipped by max_fps so far."""
        catch_up = self._decoding.catch_up
        return self._maker.skipped + (catch_up.skipped if catch_up is not None else 0)

    @property
    def overtaken(self) -> int:  # type: ignore[override]
        """Frames left out so far because the stream is read too slowly."""
        catch_up = self._decoding.catch_up
        return catch_up.overtaken if catch_up is not None else 0

    @property
    def discarded(self) -> int:  # type: ignore[override]
        """See `Source.discarded`."""
        return self._decoding.discarded

    @property
    def behind_s(self) -> float | None:
        """See `Source.behind_s`."""
        catch_up = self._decoding.catch_up
        return catch_up.gauge.behind_s if catch_up is not None else None

    @property
    def deadline(self) -> float:  # type: ignore[override]
        """See `Source.deadline`."""
        return self._connection.deadline

    def open(self) -> SourceInfo:
        """See `Source.open`."""
        if not self._network:
            self._connection.check_file()
        return self._open_part(0)

    def _open_part(self, begin: int) -> SourceInfo:
        """Opens a file from a byte on, or another input. Decodes in software where the GPU cannot."""
        if self._device is None:
            return self._open(None, begin)
        try:
            return self._open(self._device, begin)
        except SourceError as error:
            if self._settings.decode == "nvdec" or error.reason not in ("decoder", "unsupported"):
                raise
            self._connection.warn("hardware decoder not available; decoding in software", error=str(error))
            self._device = self._maker.device = None
            return self._open(None, begin)

    def _open(self, device: int | None, begin: int = 0) -> SourceInfo:
        self._connection.begin = begin
        info = self._connection.open(device)
        self.codec = info.codec
        try:
            self._opened()
        except BaseException:
            self._release()
            raise
        return info

    def _opened(self) -> None:
        """The connection is open."""
        settings, connection = self._settings, self._connection
        container, stream, kind = connection.container, connection.stream, connection.kind
        assert container is not None
        assert stream is not None
        self._reader.opened()
        self._lost_before = self._reader.lost
        self._backlog.opened(connection.opened_ns)
        self._maker.quarantine.opened(connection.opened_ns, connection.waited_ns, connection.lost)
        if settings.start_s and not self._network and self._first_pass:
            self._maker.begin_ns = begin_at(container, settings.url, settings.start_s)
        self._live = kind.live
        frame_ns = int(1e9 / float(stream.average_rate or stream.guessed_rate or 25))
        if kind.paced and not kind.still:
            self._pacer = self._pacer or Pacer(frame_ns, live=kind.live)
        self._maker.opened(stream, kind, frame_ns)
        self._decoding.catch_up = self._catching_up(kind) if kind.live else None

    def _catching_up(self, kind: InputKind) -> CatchUp | None:
        """What tells how late a live input is read, and catches up; None where nothing can be told."""
        settings = self._settings
        gauge: Gauge | None = None
        unread, reader = Unread(settings.url, tcp=settings.transport == "tcp").bytes, self._reader
        if kind.segments:
            if self._pacer is None:
                return None
            gauge, unread = PaceGauge(ALARM_NS, self._pacer), lambda: None
        elif kind.invented_clock:
            gauge = QueueGauge(ALARM_NS, unread, lambda: reader.began_s)
            unread = lambda: None  # noqa: E731 - that there is nothing for a moment does not tell what the sender has
        self._by_media_clock = gauge is None
        return CatchUp(settings.max_behind_ns, settings.frames == "key", unread, gauge)

    def frames(self) -> Generator[Frame, None, None]:
        """See `Source.frames`."""
        try:
            while not self._closed.is_set():
                began = time.monotonic()
                self._decoding.begin(self._reader.silence_s)
                try:
                    yield from self._play()
                except SourceError:
                    if not self._closed.is_set():
                        with contextlib.suppress(SourceError):
                            yield from self._decoding.end()
                    raise
                if self._closed.is_set():
                    break
                yield from self._decoding.end()
                self._first_pass = False
                if self._goes_on():
                    continue
                self._check_pass()
                if not self._begin_again(began):
                    break
                self._maker.again = True
        finally:
            self._decoding.discard(self._reader.held())
            self._release()
        if self._live and not self._closed.is_set():
            raise SourceError("disconnected", describe(self._settings.url, "disconnected"))

    def _goes_on(self) -> bool:
        """Opens the next part of a file, or a decoder where a network's stream goes on with another codec."""
        if self._reader.next_codec:
            self._recode(self._reader.next_codec)
            return True
        for _ in range(MOST_UNREADABLE):
            begin, parts = self._reader.next_at, self._connection.parts
            if parts is None or begin is None or begin <= self._connection.begin or self._closed.is_set():
                return False
            self._maker.begin_ns, self._maker.again = 0, True
            self._release()
            try:
                if begin not in self._unreadable:
                    self._open_part(begin)
                    return True
                parts.start(begin)
            except SourceError as error:
                if error.reason in NO_FAULT_OF_INPUT:
                    raise
                self._unreadable.add(begin)
                self._connection.warn("part of the file not read", from_byte=begin, error=str(error))
        self._connection.warn("rest of the file not read: too many parts of it cannot be")
        return False

    def _recode(self, codec: str) -> None:
        if self._device is not None:
            text = f"{self._settings.url}: was {self.codec}, is {codec}"
            text += "" if self._live else "; for a recording over a network that changes, set decode: software"
            raise SourceError("codec_changed", redact(text), permanent=not self._live)
        self._connection.recode(codec)
        self.codec = codec
        self._reader.recoded()
        self._maker.recoded(self._connection.context)

    def _check_pass(self) -> None:
        """A pass is over.

        Raises:
            SourceError: it was not a complete pass.
        """
        url = self._settings.url
        if self._maker.begin_ns:
            raise too_short(url, self._settings.start_s)
        if not self._maker.pictures and not self._maker.left_out and not self._live and not self._connection.begin:
            self._decoding.check("corrupt")
            text = f"{describe(url, 'corrupt')}; it ended without a decodable picture"
            raise SourceError("corrupt", text, permanent=not self._network)
        if self._reader.unknown >= UNKNOWN_LIMIT and not self._network:
            text = f"{url}: its video continues in a track that starts in mid-file (another PID), which is not read"
            raise SourceError("codec_changed", redact(f"{text}; remux it: ffmpeg -i IN -c copy OUT"), permanent=True)

    def _begin_again(self, began: float) -> bool:
        """Prepares the next pass, if there is one. `began`: this one, monotonic seconds."""
        kind = self._connection.kind
        # A GIF of one picture has the rate of an animation, which nobody meant.
        if kind.still or (kind.animation and self._maker.pictures == 1):
            if not (self._settings.loop or self._network):
                return False
            if self._closed.wait(max(0.0, began + self._settings.every_s - time.monotonic())):
                return False
            self._release()
            self._open(self._device)
            return True
        if self._settings.loop:
            self._rewind()
        return self._settings.loop

    def _rewind(self) -> None:
        container = self._connection.container
        if container is not None and not self._connection.begin:
            with contextlib.suppress(Exception):  # a container that cannot seek is reopened
                container.seek(0)
                return
        self._release()
        self._open_part(0)

    def _play(self) -> Iterator[Frame]:
        """One pass over the input."""
        reader, pacer, maker = self._reader, self._pacer, self._maker
        catch_up = self._decoding.catch_up
        gauge = catch_up.gauge if catch_up is not None else None
        tiff = self._connection.stream is not None and self._connection.stream.codec_context.name == "tiff"
        for packet in reader.packets():
            if tiff and packet.size and is_jpeg_in_tiff(bytes(packet)):
                text = redact(f"{self._settings.url}: {JPEG_IN_TIFF}")
                raise SourceError("unsupported", text, permanent=not self._network)
            if pacer is not None and packet.size and not maker.before(packet):
                read_ns = time.monotonic_ns()
                due = pacer.due(maker.stamp_ns(packet), read_ns, read_ns - int(reader.began_s * 1e9))
                delay = (due - time.monotonic_ns()) / 1e9
                if delay > 0 and self._closed.wait(delay):
                    reader.put_back(packet)
                    return
            # A packet of a paced file "arrives" when it is due: its latency is measured from there.
            held: Any = packet.opaque if self._live else None
            now_ns, wall_ns = held or (time.monotonic_ns(), time.time_ns())
            if gauge is not None and packet.size:
                before_ns, arrived_ns = gauge.now_ns, now_ns
                now_ns = gauge.add(maker.media_ns(packet) if self._by_media_clock else packet.size, arrived_ns)
                wall_ns += now_ns - arrived_ns
                if gauge.wait_ns > JITTER_NS and catch_up is not None and not catch_up.active:
                    catch_up.worked(int(reader.began_s * 1e9) - before_ns)
            if self._feed is not None and packet.size:
                self._feed.put(packet, now_ns, wall_ns)
            ready: Iterable[Arrived]
            if self._admission.waiting:
                ready = self._admitted(Arrived(packet, now_ns, wall_ns, self._damaged(packet)))
            elif maker.passes_over(packet, now_ns):
                if maker.keys_only:
                    self._lost_before = reader.lost  # no picture to come is predicted from what was lost
                continue
            else:
                ready = (Arrived(packet, now_ns, wall_ns, self._damaged(packet)),)
                if catch_up is not None and gauge is not None and (gauge.late or gauge.suspect or catch_up.active):
                    catch_up.limit = maker.limit
                    ready = catch_up.take(ready[0])
                    if catch_up.cut:
                        catch_up.cut = False
                        yield from self._decoding.before_a_cut(ready)
                    maker.served_ns = max(maker.served_ns, catch_up.served_ns)
            if ready:
                yield from self._decoding.frames(ready)
        if pacer is not None and (end := pacer.end()) is not None:
            self._closed.wait(max(0.0, (end - time.monotonic_ns()) / 1e9))  # the last picture is seen as long as others

    def _admitted(self, arrived: Arrived) -> Iterator[Arrived]:
        """What is to be decoded while the decoder may not be created yet: nothing, and then all that was kept."""
        if arrived.packet.size:
            if not (self._backlog.put(arrived) and self._admission.may_decode()):
                return
        elif len(self._backlog):
            self._admission.may_decode(wait=True)
        found = self._backlog.take()
        if found:
            self._maker.served_ns = found[-1].now_ns
        while found and not self._closed.is_set():
            yield found.popleft()
        if not arrived.packet.size:
            yield arrived

    def _damaged(self, packet: Packet[Any]) -> bool:
        """Whether data is missing in or before the packet that was read last. To be asked once for each."""
        lost, self._lost_before = self._lost_before, self._reader.lost
        return self._lost_before > lost or packet.is_corrupt

    def _release(self) -> None:
        self._backlog.clear()
        if self._decoding.catch_up is not None:
            self._decoding.catch_up.clear()
        self._maker.served_ns = 0
        self._connection.close()

    def adapt(self, settings: StreamSettings) -> None:
        """See `Source.adapt`."""
        new = cast("AvStreamSettings", settings)
        before, self._settings = self._settings, new
        if self._decoding.catch_up is not None:
            self._decoding.catch_up.change(new.max_behind_ns)
        if new.max_fps != before.max_fps:
            connection = self._connection
            self._maker.change_limit(new, connection.context if connection.stream is not None else None)

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()
        self._admission.leave()
