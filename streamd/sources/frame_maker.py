"""From a source's packets and the decoder's pictures to frames: their times, which are wanted, which are damaged."""

from __future__ import annotations

import math
import time
from collections import deque
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from streamd.errors import SourceError
from streamd.security.redact import redact
from streamd.sources.clock import StreamClock
from streamd.sources.holdback import Holdback
from streamd.sources.pacing import MediaClock, RateLimit
from streamd.sources.picture import aspect_of, orientation_of, picture_of, top_down
from streamd.sources.quarantine import JpegListener, Quarantine
from streamd.sources.skipping import PacketSkipper
from streamd.types import Box, Clock, Frame, Rotation, rotated_size

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamd.sources.av import AvStreamSettings
    from streamd.sources.av_open import InputKind

_Arrival = tuple[int, int, Clock, bool, int]
"""Passed through the decoder with a packet: monotonic arrival, wall time of capture and its origin, whether the picture
is damaged or predicted from a damaged one, and the packet's number."""
REORDERED = 64
"""More pictures than any decoder holds back."""


class FrameMaker:
    """Follows the packets of one source through the decoder. For the thread that reads it.

    Args:
        settings: the stream.
        device: CUDA device whose decoder gives the pictures; None for software.
    """

    def __init__(self, settings: AvStreamSettings, device: int | None) -> None:
        self._settings = settings
        self.device = device
        self.clock = StreamClock(settings.clock_max_offset_s)
        self.skipped = 0
        """Frames skipped by max_fps so far."""
        self.pictures = 0
        """Decoded in this pass."""
        self.left_out = 0
        """Packets of this pass that were not decoded because of max_fps."""
        self.begin_ns = 0
        """Time stamp of the first frame wanted, until it has been reached."""
        self.served_ns = 0
        """Pictures of packets that arrived earlier are decoded for the sake of later ones only; monotonic."""
        self.again = False
        """The next frame is the first of another pass."""
        self.packet: Packet[Any] | None = None
        """The latest one that was decoded."""
        self.quarantine = Quarantine()
        self.jpeg: JpegListener | None = None
        """None for other codecs."""
        self.holdback = Holdback()
        self._withhold = settings.on_corruption == "quarantine"
        self._kind: InputKind | None = None
        self._live = settings.live
        self._limit = RateLimit(settings.max_fps) if settings.max_fps else None
        self._skipper: PacketSkipper | None = None
        self._media: MediaClock | None = None
        self._packet_clock: MediaClock | None = None
        self._arrivals: deque[int] = deque(maxlen=REORDERED)
        """Of packets whose pictures have not come out yet, where a limit needs them."""
        self._reorders = False
        """Packets come in another order than pictures."""
        self._time_base_ns = 0.0
        self._tick_ns = (0, 1)
        """One unit of the stream's time stamps in nanoseconds, as a fraction."""
        crop = settings.crop
        self._roi = Box(crop.x, crop.y, crop.width, crop.height) if crop else None
        self._pixel_aspect = 1.0
        self._orientation: tuple[Rotation, bool] | None = None
        self._raw = False  # raw video's rows may be stored bottom-up

    def opened(self, stream: VideoStream, kind: InputKind, frame_ns: int) -> None:
        """The input is open.

        Args:
            stream: its video.
            kind: of input.
            frame_ns: from one picture to the next, nominally.
        """
        context, settings = stream.codec_context, self._settings
        self._kind, self._live = kind, kind.live
        self.jpeg = JpegListener() if context.name == "mjpeg" else None
        self._raw = context.name == "rawvideo"
        if settings.pixel_aspect == "display":
            self._pixel_aspect = aspect_of(stream.sample_aspect_ratio)
        base = stream.time_base or Fraction(0)
        self._time_base_ns = float(base) * 1e9
        self._tick_ns = (base.numerator * 10**9, base.denominator)
        self._reorders = bool(context.has_b_frames)
        if not kind.live and not kind.paced and not kind.still:
            self._media = self._media or MediaClock(frame_ns)
            self._packet_clock = self._packet_clock or MediaClock(frame_ns)
        if self._limit is not None:
            self._limit.jittery = kind.live
            self._skip_packets(context)

    def recoded(self, context: VideoCodecContext) -> None:
        """The packets that follow are of another codec. `context`: of their decoder."""
        self.again, self._orientation, self.holdback = True, None, Holdback()
        if self._limit is not None:
            self._skip_packets(context)

    def _skip_packets(self, context: VideoCodecContext) -> None:
        if self._settings.frames != "key" and self._limit is not None:
            self._skipper = PacketSkipper(context.name, context.extradata, self._limit)

    def forget(self) -> None:
        """The decoder has given out all that it had, and goes on with packets that do not follow."""
        self._arrivals.clear()

    def change_limit(self, settings: AvStreamSettings, context: VideoCodecContext | None) -> None:
        """Another max_fps holds from now on. `context`: of the decoder, if the input is open."""
        self._settings = settings
        if self._limit is not None:
            self._limit.change(settings.max_fps)
            return
        limit = RateLimit(settings.max_fps or math.inf)
        limit.jittery = self._live
        self._limit = limit
        if context is not None:
            self._skip_packets(context)

    @property
    def keys_only(self) -> bool:
        """Only key frames are decoded now, as max_fps allows no more."""
        return self._skipper is not None and self._skipper.level == "keys"

    @property
    def limit(self) -> RateLimit | None:
        """Chooses among decoded pictures; None if all are wanted."""
        return None if self.keys_only else self._limit

    def media_ns(self, packet: Packet[Any]) -> int | None:
        """The packet's time on the sender's media clock, in the order of decoding where that is known."""
        stamp, (ticks, per) = packet.dts, self._tick_ns
        if stamp is None:
            stamp = packet.pts
        return stamp * ticks // per if stamp is not None and ticks else None

    def stamp_ns(self, packet: Packet[Any]) -> int | None:
        """When the packet is to be decoded, by the file. Matroska does not tell it of the first packets. If there are
        B-frames, their presentation time is no substitute: it may be later than that of packets behind them."""
        stamp = packet.pts if packet.dts is None and not self._reorders else packet.dts
        return None if stamp is None else int(stamp * self._time_base_ns)

    def decoded(self) -> tuple[int, int | None]:
        """Pictures of this pass so far, and the time stamp of the latest packet among them; nanoseconds."""
        return self.pictures, self.stamp_ns(self.packet) if self.packet is not None else None

    def before(self, packet: Packet[Any]) -> bool:
        """True if the frame only precedes the first frame wanted."""
        return self.begin_ns > 0 and packet.pts is not None and packet.pts * self._time_base_ns < self.begin_ns

    def passes_over(self, packet: Packet[Any], now_ns: int) -> bool:
        """Whether `packet` is not decoded: fewer pictures are asked for. `now_ns`: its arrival, monotonic."""
        if self._skipper is None or self.begin_ns or not packet.size:
            return False
        clock = self._packet_clock
        time_ns = now_ns if clock is None else clock.at(self.stamp_ns(packet))
        if not self._skipper.skip(packet, time_ns):
            return False
        self.skipped += 1
        self.left_out += 1
        return True

    def arrived(self, packet: Packet[Any], now_ns: int, wall_ns: int, damaged: bool) -> _Arrival:
        """What goes through the decoder with `packet`, which is decoded next.

        Args:
            packet: of the video.
            now_ns: its arrival; monotonic.
            wall_ns: the same, Unix time.
            damaged: data is missing in or before it.
        """
        if self._limit is not None:
            self._arrivals.append(now_ns)
        clock: Clock = "arrival"
        if self._live:
            wall_ns, clock = self.clock.stamp(packet, wall_ns, self._time_base_ns)
        tainted = self.quarantine.packet(key=packet.is_keyframe, damaged=damaged, now_ns=now_ns)
        if packet.size:
            self.packet = packet
        return now_ns, wall_ns, clock, tainted, self.holdback.packet()

    def frame(self, native: VideoFrame) -> Frame | None:
        """A picture of the decoder as a frame; None if it is not wanted.

        Raises:
            SourceError: the decoder delays its output for good.
        """
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
            self._check_delay(native, number, decoded_ns)
        corrupt = native.is_corrupt or (self.jpeg is not None and self.jpeg.damaged())
        quarantined = self.quarantine.frame(tainted=tainted, corrupt=corrupt, key=native.key_frame, now_ns=decoded_ns)
        if kind.invented_clock:
            pts_ns = None
        if self._live and pts_ns is not None:
            self.clock.tick(pts_ns, captured_ns)
        if self.begin_ns:
            if pts_ns is not None and pts_ns < self.begin_ns:
                return None
            self.begin_ns = 0
        if captured_ns < self.served_ns:
            return None
        limit = self.limit
        if limit is not None and not limit.admit(arrived_ns if self._media is None else self._media.at(pts_ns)):
            self.skipped += 1
            return None
        if native.key_frame or self._orientation is None:
            # Cameras do not turn between key frames, and asking takes time.
            self._orientation = orientation_of(native, self.packet)
        rotation, mirrored = self._orientation
        if self._raw:
            native = top_down(native)
        picture = picture_of(
            native, rotation=rotation, mirrored=mirrored, pixel_aspect=self._pixel_aspect, device=self.device
        )
        width, height = picture.width, picture.height
        if rotation:
            width, height = rotated_size(width, height, rotation)
        begins, self.again = self.again, False
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

    def _check_delay(self, native: VideoFrame, number: int, decoded_ns: int) -> None:
        self.holdback.size(native.width, native.height)
        late = self.holdback.picture(number, decoded_ns)
        if late:
            text = f"damage made the decoder delay its output by {late} more pictures; reconnecting restores it"
            raise SourceError("corrupt", redact(f"{self._settings.url}: {text}"))
