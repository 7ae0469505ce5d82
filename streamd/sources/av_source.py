"""Files, cameras and network streams through FFmpeg (PyAV)."""

from __future__ import annotations

import contextlib
import errno
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from streamd.errors import SourceError, SourceReason
from streamd.flow.contracts import SourceInfo
from streamd.flow.packets import PacketSink
from streamd.flow.settings import StreamSettings
from streamd.security.redact import redact
from streamd.sources.admission import Admission
from streamd.sources.av_errors import describe, translate
from streamd.sources.av_open import InputKind, kind_of, open_container, sound_beside, video_stream
from streamd.sources.backlog import Arrived, Backlog
from streamd.sources.behind import JITTER_NS
from streamd.sources.catch_up import CatchUp
from streamd.sources.closing import deferred, shelf
from streamd.sources.files import begin_at, check_file, too_short
from streamd.sources.frame_maker import FrameMaker
from streamd.sources.hardware import HardwareDecoder, video_of
from streamd.sources.no_picture import NoPictureWatch
from streamd.sources.pacing import Pacer
from streamd.sources.quarantine import PacketLossListener
from streamd.sources.read_limit import ReadLimit
from streamd.sources.recording import PacketFeed
from streamd.sources.redirects import OpeningListener
from streamd.sources.second_opinion import NO_DECODER, is_external, plays_in_software
from streamd.sources.skipping import drained, held_back
from streamd.sources.slices import SLICED, SliceJoiner
from streamd.sources.wire import Unread, heard_since
from streamd.types import Frame

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamd.sources.av import AvStreamSettings

HUNG_S = 5.0
"""A call that FFmpeg has not ended this long after its limit will never end."""
DECODE_LIMIT_S = 10.0
UNKNOWN_LIMIT = 25
"""Packets of tracks that were unknown when the file was opened: fewer are considered damage."""
FILE_LIMIT_S = 60.0
"""Timeout for reading from a file system."""


class AvSource:
    """See `streamd.flow.contracts.Source`.

    PyAV's `timeout` interrupts a hung open or read, which covers every network hang. `close` from another thread ends
    sleeps at once, and a read at its next packet or its time limit, whichever comes first. A hanging resolver, file
    system or driver cannot be interrupted: `deadline` reveals it.

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
        self._sound: AudioStream | None = None
        """Where clips are to have it."""
        self._device = device if settings.decode != "software" else None
        if settings.decode == "nvdec" and device is None:
            self._device = 0
        self._network = settings.live
        """It has time limits and is retried; a file on a disk is not."""
        self._live = settings.live
        """The sender sets the pace; known for certain once it is open."""
        self._kind: InputKind | None = None
        self._pacer: Pacer | None = None
        self._silence_s = settings.read_timeout_s
        self._pictures = self._unknown = 0
        """Of this pass: pictures decoded, and packets of tracks that appeared in mid-stream."""
        self._rtp = settings.url.startswith(("rtsp", "rtp:"))
        self._closed = threading.Event()
        self._container: InputContainer | None = None
        self._alone = alone
        self._limit: ReadLimit | None = None
        self._stream: VideoStream | None = None
        self._decoder: HardwareDecoder | None = None
        """None for software."""
        self._broke = False
        """The connection has ended, and the decoder is as good as before."""
        self._maker = FrameMaker(settings, self._device)
        self.corrupt = 0
        """Packets that the decoder has rejected so far."""
        self.skipped = 0
        """Frames skipped by max_fps so far."""
        self.lost = 0
        """Lost RTP packets."""
        self.overtaken = 0
        """Frames left out so far because the stream is read too slowly."""
        self._catch_up: CatchUp | None = None
        """Of a live stream with a media clock."""
        self._read_s = 0.0
        """When the latest read began, monotonic seconds."""
        self.deadline = math.inf
        self.clock = self._maker.clock
        self._slices: SliceJoiner | None = None
        self._admission = Admission(settings.id, self._network, self._closed)
        self._backlog = Backlog(settings.frames == "key")
        self._lost_before = 0

    def open(self) -> SourceInfo:
        """See `Source.open`."""
        if not self._network:
            check_file(self._settings.url.removeprefix("file:"))
        if self._device is None:
            return self._open(None)
        try:
            return self._open(self._device)
        except SourceError as error:
            if self._settings.decode == "nvdec" or error.reason not in ("decoder", "unsupported"):
                raise
            import structlog  # here: a decoder process never needs it, and it takes a third of its start-up time

            log = structlog.get_logger(__name__)
            log.warning(
                "hardware decoder not available; decoding in software", stream=self._settings.id, error=str(error)
            )
            self._device = self._maker.device = None
            return self._open(None)

    def _open(self, device: int | None) -> SourceInfo:
        settings = self._settings
        kept = shelf.take(settings.id, device) if device is not None else None
        info = self._connect(device, kept)
        if kept is None or self._decoder is kept:
            return info
        # Another video than before: it needs a decoder of its own.
        self._release()
        return self._connect(device, None)

    def _connect(self, device: int | None, kept: HardwareDecoder | None) -> SourceInfo:
        """Opens the input.

        Args:
            device: see `__init__`.
            kept: a decoder for it, if it still shows the same video.
        """
        settings = self._settings
        created = device if kept is None else None
        self._admission.enter(created)
        started = time.monotonic()
        ear = OpeningListener(self._network, settings.open_timeout_s)
        # The limit applies to connecting and to probing separately.
        self.deadline = started + (2 * settings.open_timeout_s + HUNG_S if self._network else FILE_LIMIT_S)
        try:
            with ear:
                container = open_container(settings, live=self._network, device=created)
        except Exception as error:  # noqa: BLE001 - PyAV raises many kinds, which are translated in one place
            self._admission.leave()
            if kept is not None and device is not None:
                shelf.put(settings.id, kept, device)
            ear.check(settings.url)
            raise self._translate(error, started, opening=True, device=device) from None
        finally:
            self.deadline = math.inf
        self._container = container
        self._limit = None if self._alone else ReadLimit.of(container, started)
        self._admission.connected()
        self._backlog.opened(time.monotonic_ns())
        waited = time.monotonic() - started
        lost = ear.take()
        self.lost = self._lost_before = self.lost + lost
        self._maker.quarantine.opened(time.monotonic_ns(), int(waited * 1e9), lost)
        try:
            return self._probe(container, device, waited, kept)
        except BaseException:
            self._release()
            ear.check(settings.url)
            raise

    def _probe(
        self, container: InputContainer, device: int | None, waited: float, kept: HardwareDecoder | None
    ) -> SourceInfo:
        settings = self._settings
        stream = video_stream(container, settings, live=self._network, waited_s=waited)
        context = stream.codec_context
        if kept is not None and kept.video == video_of(context):
            kept.flush_buffers()
            self._decoder = kept
        elif kept is not None:
            deferred.close(kept)
        elif device is not None:
            self._decoder = HardwareDecoder(context)
        # A hardware decoder needs no threads; FFmpeg would start one for each core, up to sixteen a stream.
        context.thread_count = settings.decoder_threads if device is None else 1
        if settings.frames == "key":
            context.skip_frame = "NONKEY"
        context.copy_opaque = True
        self._stream = stream
        self._slices = SliceJoiner(context) if context.codec.canonical_name in SLICED else None
        if self._feed is not None:
            self._sound = sound_beside(container, stream) if settings.clip_audio else None
            self._feed.opened(stream, live=kind_of(container, settings).live, sound=self._sound)
        if settings.start_s and not self._network:
            self._maker.begin_ns = begin_at(container, settings.url, settings.start_s)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        kind = self._kind = kind_of(container, settings)
        self._live = kind.live
        self._silence_s = kind.silence_s or settings.read_timeout_s
        frame_ns = int(1e9 / (rate or 25))
        if kind.paced and not kind.still:
            self._pacer = self._pacer or Pacer(frame_ns)
        self._maker.opened(stream, kind, frame_ns)
        if kind.live and not kind.paced and not kind.invented_clock:
            unread = Unread(settings.url, tcp=settings.transport == "tcp")
            self._catch_up = CatchUp(settings.max_behind_ns, settings.frames == "key", unread.bytes)
        return SourceInfo(
            codec=context.name,
            decoder="software" if device is None else "nvdec",
            width=stream.width,
            height=stream.height,
            fps=round(rate, 3),
            live=self._live,
            still=kind.still,
        )

    def _translate(self, error: BaseException, started: float, *, opening: bool, device: int | None) -> SourceError:
        if isinstance(error, SourceError):
            return error
        if device is not None and opening and isinstance(error, (RuntimeError, NotImplementedError)):
            return SourceError(
                "decoder", redact(f"{self._settings.url}: the GPU decoder rejected it ({error})"), permanent=True
            )
        if device is not None and opening and is_external(error):
            return SourceError("decoder", redact(f"{self._settings.url}: {NO_DECODER} ({error})"))
        limit = self._settings.open_timeout_s if opening else self._settings.read_timeout_s
        return translate(
            error, self._settings.url, opening=opening, live=self._network,
            waited_s=time.monotonic() - started, limit_s=limit,
        )  # fmt: skip

    def frames(self) -> Iterator[Frame]:
        """See `Source.frames`."""
        try:
            while not self._closed.is_set():
                began = time.monotonic()
                self._pictures = self._unknown = self._maker.left_out = 0
                yield from self._play()
                if self._closed.is_set():
                    break
                self._check_pass()
                if not self._begin_again(began):
                    break
                self._maker.again = True
        finally:
            self._release()
        if self._live and not self._closed.is_set():
            raise SourceError("disconnected", describe(self._settings.url, "disconnected"))

    def _check_pass(self) -> None:
        """A pass is over.

        Raises:
            SourceError: it was not a complete pass.
        """
        url = self._settings.url
        if self._maker.begin_ns:
            raise too_short(url, self._settings.start_s)
        if not self._pictures and not self._maker.left_out and not self._live:
            self._check_decoder("corrupt")
            text = f"{describe(url, 'corrupt')}; it ended without a decodable picture"
            raise SourceError("corrupt", text, permanent=not self._network)
        if self._unknown >= UNKNOWN_LIMIT and not self._network:
            text = f"{url}: its video continues in a track that starts in mid-file (another PID), which is not read"
            raise SourceError("codec_changed", redact(f"{text}; remux it: ffmpeg -i IN -c copy OUT"), permanent=True)

    def _begin_again(self, began: float) -> bool:
        """Prepares the next pass, if there is one. `began`: this one, monotonic seconds."""
        kind = self._kind
        # A GIF of one picture has the rate of an animation, which nobody meant.
        if kind is not None and (kind.still or (kind.animation and self._pictures == 1)):
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
        assert self._container is not None
        try:
            self._container.seek(0)
        except Exception:  # noqa: BLE001 - a container that cannot seek is reopened
            self._release()
            self._open(self._device)
            self._maker.begin_ns = 0

    def _packets(self) -> Iterator[Packet[Any]]:
        slices = self._slices
        assert self._container is not None
        # All streams of a live input are read: otherwise PyAV would block inside on one that has gone silent.
        wanted = () if self._network else (self._stream, *([self._sound] if self._sound is not None else []))
        limit = self._limit
        packets = self._demux(wanted)
        ear = PacketLossListener(True) if self._rtp else None
        limit_s = self._silence_s + HUNG_S if self._network else FILE_LIMIT_S
        last = time.monotonic()
        while not self._closed.is_set():
            started = self._read_s = time.monotonic()
            self.deadline = started + limit_s
            try:
                if ear is None:
                    packet = next(packets)
                else:
                    with ear:
                        packet = next(packets)
            except StopIteration:
                self._broke = True
                return
            except IndexError:
                # A damaged table can make FFmpeg report a stream that PyAV does not know: ignore its packets.
                self.corrupt += 1
                self._unknown += 1
                packets = self._demux(wanted)
                continue
            except Exception as error:  # noqa: BLE001
                from av.error import InvalidDataError

                self._broke = True
                if self._timed_out(last):
                    raise self._silent(last) from None
                if self._is_whole(error):
                    return
                if isinstance(error, InvalidDataError):
                    self.corrupt += 1
                    if not self._network:
                        if slices is not None:
                            yield from slices.flush()
                        return  # a truncated file ends here; everything before it is valid
                raise self._translate(error, started, opening=False, device=self._device) from None
            finally:
                self.deadline = math.inf
            if limit is not None and limit.is_set:
                limit.lift()
            late = self._network and self._timed_out(last)
            if packet.stream is self._stream:
                if ear is not None:
                    self.lost += ear.take()
                if slices is None:
                    yield packet
                else:
                    yield from slices.put(packet)
                last = time.monotonic()
            elif self._sound is not None and packet.stream is self._sound and self._feed is not None and packet.size:
                self._feed.put_sound(packet, time.monotonic_ns(), time.time_ns())
            if late:
                # A packet that arrives when the time is up was still held by FFmpeg's parser: it is no sign of life.
                raise self._silent(started)

    def _demux(self, wanted: Sequence[AudioStream | VideoStream | None]) -> Iterator[Packet[Any]]:
        assert self._container is not None
        if self._limit is not None:
            self._limit.is_set = True
        return self._container.demux(*wanted)

    def _is_whole(self, error: Exception) -> bool:
        """Whether the input is complete although FFmpeg reports an I/O error: so it calls the end of an answer over
        HTTP/1.0 that has no length."""
        kind, packet, container = self._kind, self._maker.packet, self._container
        if getattr(error, "errno", None) != errno.EIO or not self._network or kind is None or kind.live:
            return False
        if kind.still:
            return self._pictures > 0
        stamp = self._maker.stamp_ns(packet) if packet is not None else None
        if stamp is None or container is None or not container.duration:
            return False
        return stamp / 1e3 - (container.start_time or 0) + 1e6 > container.duration

    def _silent(self, since: float) -> SourceError:
        """No video has arrived since `since`."""
        settings = self._settings
        silence_s = time.monotonic() - since
        reason: SourceReason = "rtcp_only" if heard_since(settings.url, silence_s) else "timeout_read"
        return SourceError(reason, describe(settings.url, reason, f"after {self._silence_s:g} s"))

    def _timed_out(self, started: float) -> bool:
        return self._network and time.monotonic() - started >= self._silence_s * 0.98

    def _play(self) -> Iterator[Frame]:
        """One pass over the input."""
        assert self._stream is not None
        pacer, maker = self._pacer, self._maker
        catch_up = self._catch_up
        gauge = catch_up.gauge if catch_up is not None else None
        barren = NoPictureWatch(self._network, self._silence_s)
        for packet in self._packets():
            if pacer is not None and packet.size and not maker.before(packet):
                due = pacer.due(maker.stamp_ns(packet), time.monotonic_ns())
                delay = (due - time.monotonic_ns()) / 1e9
                if delay > 0 and self._closed.wait(delay):
                    return
            # A packet of a paced file "arrives" when it is due: its latency is measured from there.
            held: Any = packet.opaque if self._live else None
            now_ns, wall_ns = held or (time.monotonic_ns(), time.time_ns())
            if gauge is not None and packet.size:
                before_ns, arrived_ns = gauge.now_ns, now_ns
                now_ns = gauge.add(maker.media_ns(packet), arrived_ns)
                wall_ns += now_ns - arrived_ns
                if gauge.wait_ns > JITTER_NS and catch_up is not None and not catch_up.active:
                    catch_up.worked(int(self._read_s * 1e9) - before_ns)
            if self._feed is not None and packet.size:
                self._feed.put(packet, now_ns, wall_ns)
            ready: Iterable[Arrived]
            if self._admission.waiting:
                ready = self._admitted(Arrived(packet, now_ns, wall_ns, self._damaged(packet)))
            elif maker.passes_over(packet, now_ns):
                self._count()
                if maker.keys_only:
                    self._lost_before = self.lost  # no picture to come is predicted from what was lost
                continue
            else:
                ready = (Arrived(packet, now_ns, wall_ns, self._damaged(packet)),)
                if catch_up is not None and gauge is not None and (gauge.late or gauge.suspect or catch_up.active):
                    catch_up.limit = maker.limit
                    ready = catch_up.take(ready[0])
                    if catch_up.cut:
                        yield from self._rest()
                        catch_up.cut = False
                    maker.served_ns = max(maker.served_ns, catch_up.served_ns)
                    self._count()
            for arrived in ready:
                packet = arrived[0]
                packet.opaque = maker.arrived(*arrived)
                refused = self.corrupt
                natives = self._decode(packet)
                if natives:
                    self._pictures += len(natives)
                    barren.picture()
                elif packet.size and self._settings.frames == "all":
                    reason = barren.packet(refused=self.corrupt > refused, now=time.monotonic())
                    if reason is not None:
                        self._check_decoder(reason)
                        text = describe(self._settings.url, reason, f"{barren.packets} packets without a picture")
                        raise SourceError(reason, text, permanent=not self._network)
                for native in natives:
                    frame = maker.frame(native)
                    if frame is not None:
                        yield frame
                    else:
                        self._count()
                natives = []
        if pacer is not None and (end := pacer.end()) is not None:
            self._closed.wait(max(0.0, (end - time.monotonic_ns()) / 1e9))  # the last picture is seen as long as others

    @property
    def behind_s(self) -> float | None:
        """See `Source.behind_s`."""
        return self._catch_up.gauge.behind_s if self._catch_up is not None else None

    def _count(self) -> None:
        """Brings the counters up to date."""
        self.skipped = self._maker.skipped
        if self._catch_up is not None:
            self.skipped += self._catch_up.skipped
            self.overtaken = self._catch_up.overtaken

    def _rest(self) -> Iterator[Frame]:
        """What the decoder has kept back, before it goes on with packets that do not follow."""
        assert self._stream is not None
        try:
            natives = drained(self._decoder or self._stream.codec_context)
        except Exception:  # noqa: BLE001 - what cannot be decoded is lost, and the decoder begins anew
            natives = []
        for native in natives:
            frame = self._maker.frame(native)
            if frame is not None:
                yield frame
        self._maker.forget()

    def _check_decoder(self, reason: SourceReason) -> None:
        """A file gave no picture.

        Raises:
            SourceError: it is the GPU that has none to give, not the file; a later attempt may succeed.
        """
        never = self._device is not None and not self._network and not self._pictures and not self._maker.again
        if reason == "corrupt" and never and plays_in_software(self._settings):
            raise SourceError("decoder", redact(f"{self._settings.url}: {NO_DECODER}"))

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
        lost, self._lost_before = self._lost_before, self.lost
        return self.lost > lost or packet.is_corrupt

    def _decode(self, packet: Packet[Any]) -> list[VideoFrame]:
        self.deadline = time.monotonic() + DECODE_LIMIT_S
        try:
            decoder = self._decoder
            natives: list[VideoFrame]
            jpeg = self._maker.jpeg
            if jpeg is None:
                natives = packet.decode() if decoder is None else decoder.decode(packet)
            else:
                with jpeg:
                    natives = packet.decode() if decoder is None else decoder.decode(packet)
            alone = self._maker.keys_only or (self._catch_up is not None and self._catch_up.alone)
            if alone and packet.size:
                natives += held_back(natives, self._maker.holdback.fed, decoder or packet.stream.codec_context)
            return natives
        except Exception as error:
            from av.error import FFmpegError

            if not isinstance(error, FFmpegError):
                raise
            if isinstance(error, EOFError):
                return []
            # One bad packet never ends a stream: the decoder resumes at the next decodable picture.
            self.corrupt += 1
            self._maker.quarantine.refused(time.monotonic_ns())
            return []
        finally:
            self.deadline = math.inf
            if self._admission.ticket is not None:
                self._admission.created()

    def _release(self) -> None:
        self._admission.leave()
        self._backlog.clear()
        if self._catch_up is not None:
            self._catch_up.clear()
            self._count()
        self._maker.served_ns = 0
        container, self._container, self._stream = self._container, None, None
        if self._limit is not None:
            self._limit.end()
            self._limit = None
        decoder, self._decoder = self._decoder, None
        if decoder is not None and self._device is not None:
            if self._network and self._broke and not self._closed.is_set():
                shelf.put(self._settings.id, decoder, self._device)
            else:
                deferred.close(decoder)
        self._broke = False
        del decoder
        if container is not None and self._closed.is_set() and self._device is not None:
            deferred.close(container)
        elif container is not None:
            with contextlib.suppress(Exception):
                container.close()

    def adapt(self, settings: StreamSettings) -> None:
        """See `Source.adapt`."""
        new = cast("AvStreamSettings", settings)
        before, self._settings = self._settings, new
        if self._catch_up is not None:
            self._catch_up.change(new.max_behind_ns)
        if new.max_fps != before.max_fps:
            stream = self._stream
            self._maker.change_limit(new, stream.codec_context if stream is not None else None)

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()
        self._admission.leave()
