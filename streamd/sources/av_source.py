"""Files, cameras and network streams through FFmpeg (PyAV)."""

from __future__ import annotations

import contextlib
import errno
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
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
from streamd.sources.clock import StreamClock
from streamd.sources.closing import deferred, shelf
from streamd.sources.files import begin_at, check_file, too_short
from streamd.sources.hardware import HardwareDecoder, video_of
from streamd.sources.holdback import Holdback
from streamd.sources.no_picture import NoPictureWatch
from streamd.sources.pacing import MediaClock, Pacer, RateLimit
from streamd.sources.picture import aspect_of, orientation_of, picture_of, top_down
from streamd.sources.quarantine import JpegListener, PacketLossListener, Quarantine
from streamd.sources.recording import PacketFeed
from streamd.sources.redirects import OpeningListener
from streamd.sources.second_opinion import NO_DECODER, is_external, plays_in_software
from streamd.sources.skipping import PacketSkipper, held_back
from streamd.sources.slices import SLICED, SliceJoiner
from streamd.sources.wire import heard_since
from streamd.types import Box, Clock, Frame, Rotation, rotated_size

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamd.sources.av import AvStreamSettings

_Arrival = tuple[int, int, Clock, bool, int]
"""Passed through the decoder with a packet: monotonic arrival, wall time of capture and its origin, whether the picture
is damaged or predicted from a damaged one, and the packet's number."""
REORDERED = 64
"""More pictures than any decoder holds back."""
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
    """

    def __init__(
        self, settings: AvStreamSettings, *, device: int | None = None, packets: PacketSink | None = None
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
        self._media: MediaClock | None = None
        self._silence_s = settings.read_timeout_s
        self._pictures = self._unknown = 0
        """Of this pass: pictures decoded, and packets of tracks that appeared in mid-stream."""
        self._rtp = settings.url.startswith(("rtsp", "rtp:"))
        self._closed = threading.Event()
        self._container: InputContainer | None = None
        self._stream: VideoStream | None = None
        self._decoder: HardwareDecoder | None = None
        """None for software."""
        self._broke = False
        """The connection has ended, and the decoder is as good as before."""
        self._limit = RateLimit(settings.max_fps) if settings.max_fps else None
        self._skipper: PacketSkipper | None = None
        crop = settings.crop
        self._roi = Box(crop.x, crop.y, crop.width, crop.height) if crop else None
        self._time_base_ns = 0.0
        self._tick_ns = (0, 1)
        """One unit of the stream's time stamps in nanoseconds, as a fraction."""
        self._again = False
        """The next frame is the first of another pass."""
        self._begin_ns = 0
        """Time stamp of the first frame wanted, until it has been reached."""
        self._pixel_aspect = 1.0
        self._arrivals: deque[int] = deque(maxlen=REORDERED)
        """Of packets whose pictures have not come out yet, where a limit needs them."""
        self._reorders = False
        """Packets come in another order than pictures."""
        self._left_out = 0
        """Packets of this pass that were not decoded because of max_fps."""
        self._packet_clock: MediaClock | None = None
        self._packet: Packet[Any] | None = None
        """The latest one that was decoded."""
        self._orientation: tuple[Rotation, bool] | None = None
        self._raw = False  # raw video's rows may be stored bottom-up
        self.corrupt = 0
        """Packets that the decoder has rejected so far."""
        self.skipped = 0
        """Frames skipped by max_fps so far."""
        self.lost = 0
        """Lost RTP packets."""
        self.deadline = math.inf
        self.clock = StreamClock(settings.clock_max_offset_s)
        self._slices: SliceJoiner | None = None
        self._admission = Admission(settings.id, self._network, self._closed)
        self._backlog = Backlog(settings.frames == "key")
        self._served_ns = 0
        """Pictures of packets that arrived earlier are decoded for the sake of later ones only; monotonic."""
        self._lost_before = 0
        self._quarantine = Quarantine()
        self._jpeg: JpegListener | None = None
        """None for other codecs."""
        self._holdback = Holdback()
        self._withhold = settings.on_corruption == "quarantine"

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
            self._device = None
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
        self._admission.connected()
        self._backlog.opened(time.monotonic_ns())
        waited = time.monotonic() - started
        lost = ear.take()
        self.lost = self._lost_before = self.lost + lost
        self._quarantine.opened(time.monotonic_ns(), int(waited * 1e9), lost)
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
        self._jpeg = JpegListener() if context.name == "mjpeg" else None
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
        elif self._limit is not None:
            self._skipper = PacketSkipper(context.name, context.extradata, self._limit)
        context.copy_opaque = True
        self._raw = context.name == "rawvideo"
        if settings.pixel_aspect == "display":
            self._pixel_aspect = aspect_of(stream.sample_aspect_ratio)
        self._stream = stream
        self._slices = SliceJoiner(context) if context.codec.canonical_name in SLICED else None
        if self._feed is not None:
            self._sound = sound_beside(container, stream) if settings.clip_audio else None
            self._feed.opened(stream, live=kind_of(container, settings).live, sound=self._sound)
        base = stream.time_base or Fraction(0)
        self._time_base_ns = float(base) * 1e9
        self._tick_ns = (base.numerator * 10**9, base.denominator)
        if settings.start_s and not self._network:
            self._begin_ns = begin_at(container, settings.url, settings.start_s)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        self._reorders = bool(stream.codec_context.has_b_frames)
        kind = self._kind = kind_of(container, settings)
        self._live = kind.live
        self._silence_s = kind.silence_s or settings.read_timeout_s
        frame_ns = int(1e9 / (rate or 25))
        if kind.paced and not kind.still:
            self._pacer = self._pacer or Pacer(frame_ns)
        elif not kind.live and not kind.still:
            self._media = self._media or MediaClock(frame_ns)
            self._packet_clock = self._packet_clock or MediaClock(frame_ns)
        if self._limit is not None:
            self._limit.jittery = kind.live
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
                self._pictures = self._unknown = self._left_out = 0
                yield from self._play()
                if self._closed.is_set():
                    break
                self._check_pass()
                if not self._begin_again(began):
                    break
                self._again = True
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
        if self._begin_ns:
            raise too_short(url, self._settings.start_s)
        if not self._pictures and not self._left_out and not self._live:
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
            self._begin_ns = 0

    def _packets(self) -> Iterator[Packet[Any]]:
        slices = self._slices
        assert self._container is not None
        # All streams of a live input are read: otherwise PyAV would block inside on one that has gone silent.
        wanted = () if self._network else (self._stream, *([self._sound] if self._sound is not None else []))
        packets = self._container.demux(*wanted)
        ear = PacketLossListener(True) if self._rtp else None
        limit_s = self._silence_s + HUNG_S if self._network else FILE_LIMIT_S
        last = time.monotonic()
        while not self._closed.is_set():
            started = time.monotonic()
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
                packets = self._container.demux(*wanted)
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

    def _is_whole(self, error: Exception) -> bool:
        """Whether the input is complete although FFmpeg reports an I/O error: so it calls the end of an answer over
        HTTP/1.0 that has no length."""
        kind, packet, container = self._kind, self._packet, self._container
        if getattr(error, "errno", None) != errno.EIO or not self._network or kind is None or kind.live:
            return False
        if kind.still:
            return self._pictures > 0
        stamp = self._stamp_ns(packet) if packet is not None else None
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
        pacer = self._pacer
        barren = NoPictureWatch(self._network, self._silence_s)
        for packet in self._packets():
            if pacer is not None and packet.size and not self._before(packet):
                due = pacer.due(self._stamp_ns(packet), time.monotonic_ns())
                delay = (due - time.monotonic_ns()) / 1e9
                if delay > 0 and self._closed.wait(delay):
                    return
            # A packet of a paced file "arrives" when it is due: its latency is measured from there.
            held: Any = packet.opaque if self._live else None
            now_ns, wall_ns = held or (time.monotonic_ns(), time.time_ns())
            if self._feed is not None and packet.size:
                self._feed.put(packet, now_ns, wall_ns)
            ready: Iterable[Arrived]
            if self._admission.waiting:
                ready = self._admitted(Arrived(packet, now_ns, wall_ns, self._damaged(packet)))
            elif self._skipper is not None and packet.size and self._passes_over(packet):
                continue
            else:
                ready = (Arrived(packet, now_ns, wall_ns, self._damaged(packet)),)
            for arrived in ready:
                packet = arrived[0]
                packet.opaque = self._arrived(*arrived)
                refused = self.corrupt
                self._packet = packet if packet.size else self._packet
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
                    frame = self._frame(native)
                    if frame is not None:
                        yield frame
                natives = []
        if pacer is not None and (end := pacer.end()) is not None:
            self._closed.wait(max(0.0, (end - time.monotonic_ns()) / 1e9))  # the last picture is seen as long as others

    def _check_decoder(self, reason: SourceReason) -> None:
        """A file gave no picture.

        Raises:
            SourceError: it is the GPU that has none to give, not the file; a later attempt may succeed.
        """
        never = self._device is not None and not self._network and not self._pictures and not self._again
        if reason == "corrupt" and never and plays_in_software(self._settings):
            raise SourceError("decoder", redact(f"{self._settings.url}: {NO_DECODER}"))

    def _stamp_ns(self, packet: Packet[Any]) -> int | None:
        """When the packet is to be decoded, by the file. Matroska does not tell it of the first packets. If there are
        B-frames, their presentation time is no substitute: it may be later than that of packets behind them."""
        stamp = packet.pts if packet.dts is None and not self._reorders else packet.dts
        return None if stamp is None else int(stamp * self._time_base_ns)

    def _before(self, packet: Packet[Any]) -> bool:
        """True if the frame only precedes the first frame wanted."""
        return self._begin_ns > 0 and packet.pts is not None and packet.pts * self._time_base_ns < self._begin_ns

    def _admitted(self, arrived: Arrived) -> Iterator[Arrived]:
        """What is to be decoded while the decoder may not be created yet: nothing, and then all that was kept."""
        if arrived.packet.size:
            if not (self._backlog.put(arrived) and self._admission.may_decode()):
                return
        elif len(self._backlog):
            self._admission.may_decode(wait=True)
        found = self._backlog.take()
        if found:
            self._served_ns = found[-1].now_ns
        while found and not self._closed.is_set():
            yield found.popleft()
        if not arrived.packet.size:
            yield arrived

    def _damaged(self, packet: Packet[Any]) -> bool:
        """Whether data is missing in or before the packet that was read last. To be asked once for each."""
        lost, self._lost_before = self._lost_before, self.lost
        return self.lost > lost or packet.is_corrupt

    def _passes_over(self, packet: Packet[Any]) -> bool:
        """Whether `packet` is not decoded: fewer pictures are asked for."""
        if self._skipper is None or self._begin_ns:
            return False
        clock = self._packet_clock
        time_ns = time.monotonic_ns() if clock is None else clock.at(self._stamp_ns(packet))
        if not self._skipper.skip(packet, time_ns):
            return False
        self.skipped += 1
        self._left_out += 1
        if self._skipper.level == "keys":
            self._lost_before = self.lost  # no picture to come is predicted from what was lost
        return True

    def _arrived(self, packet: Packet[Any], now_ns: int, wall_ns: int, damaged: bool) -> _Arrival:
        if self._limit is not None:
            self._arrivals.append(now_ns)
        clock: Clock = "arrival"
        if self._live:
            wall_ns, clock = self.clock.stamp(packet, wall_ns, self._time_base_ns)
        tainted = self._quarantine.packet(key=packet.is_keyframe, damaged=damaged, now_ns=now_ns)
        return now_ns, wall_ns, clock, tainted, self._holdback.packet()

    def _decode(self, packet: Packet[Any]) -> list[VideoFrame]:
        self.deadline = time.monotonic() + DECODE_LIMIT_S
        try:
            decoder = self._decoder
            natives: list[VideoFrame]
            if self._jpeg is None:
                natives = packet.decode() if decoder is None else decoder.decode(packet)
            else:
                with self._jpeg:
                    natives = packet.decode() if decoder is None else decoder.decode(packet)
            if self._skipper is not None and self._skipper.level == "keys" and packet.size:
                natives += held_back(natives, self._holdback.fed, decoder or packet.stream.codec_context)
            return natives
        except Exception as error:
            from av.error import FFmpegError

            if not isinstance(error, FFmpegError):
                raise
            if isinstance(error, EOFError):
                return []
            # One bad packet never ends a stream: the decoder resumes at the next decodable picture.
            self.corrupt += 1
            self._quarantine.refused(time.monotonic_ns())
            return []
        finally:
            self.deadline = math.inf
            if self._admission.ticket is not None:
                self._admission.created()

    def _frame(self, native: VideoFrame) -> Frame | None:
        decoded_ns = time.monotonic_ns()
        # Integers: a Fraction takes 2 µs more, as much as the clock and the quarantine together.
        stamp, (ticks, per) = native.pts, self._tick_ns
        pts_ns = stamp * ticks // per if stamp is not None and ticks else None
        kind = self._kind
        assert kind is not None
        carried: Any = native.opaque
        told: _Arrival = carried or (decoded_ns, time.time_ns(), "arrival", False, 0)
        captured_ns, wall_ns, clock, tainted, number = told
        # With B-frames, pictures come out in another order than their packets came in. The n-th picture is limited by
        # the arrival of the n-th packet, which is even.
        arrived_ns = self._arrivals.popleft() if self._arrivals else captured_ns
        if self._live and number and self._settings.frames == "all":
            self._holdback.size(native.width, native.height)
            late = self._holdback.picture(number, decoded_ns)
            if late:
                text = f"damage made the decoder delay its output by {late} more pictures; reconnecting restores it"
                raise SourceError("corrupt", redact(f"{self._settings.url}: {text}"))
        corrupt = native.is_corrupt or (self._jpeg is not None and self._jpeg.damaged())
        quarantined = self._quarantine.frame(tainted=tainted, corrupt=corrupt, key=native.key_frame, now_ns=decoded_ns)
        if kind.invented_clock:
            pts_ns = None
        if self._live and pts_ns is not None:
            self.clock.tick(pts_ns, captured_ns)
        if self._begin_ns:
            if pts_ns is not None and pts_ns < self._begin_ns:
                return None
            self._begin_ns = 0
        if captured_ns < self._served_ns:
            return None
        limit = None if self._skipper is not None and self._skipper.level == "keys" else self._limit
        if limit is not None and not limit.admit(arrived_ns if self._media is None else self._media.at(pts_ns)):
            self.skipped += 1
            return None
        if native.key_frame or self._orientation is None:
            # Cameras do not turn between key frames, and asking takes time.
            self._orientation = orientation_of(native, self._packet)
        rotation, mirrored = self._orientation
        if self._raw:
            native = top_down(native)
        picture = picture_of(
            native, rotation=rotation, mirrored=mirrored, pixel_aspect=self._pixel_aspect, device=self._device
        )
        width, height = picture.width, picture.height
        if rotation:
            width, height = rotated_size(width, height, rotation)
        begins, self._again = self._again, False
        return Frame(
            self._settings.id,
            picture,
            width,
            height,
            captured_ns,
            wall_ns,
            decoded_ns,
            pts_ns,
            self._roi,
            clock=clock,
            begins=begins,
            quarantined=quarantined and self._withhold,
        )

    def _release(self) -> None:
        self._admission.leave()
        self._backlog.clear()
        self._served_ns = 0
        container, self._container, self._stream = self._container, None, None
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
        if new.max_fps != self._settings.max_fps:
            self._settings = new
            if self._limit is not None:
                self._limit.change(new.max_fps)
                return
            limit = RateLimit(new.max_fps or math.inf)
            limit.jittery = self._live
            self._limit = limit
            stream = self._stream
            if stream is not None and new.frames != "key":
                context = stream.codec_context
                self._skipper = PacketSkipper(context.name, context.extradata, self._limit)

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()
        self._admission.leave()
