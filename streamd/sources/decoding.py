"""From packets that are to be decoded to frames, and what becomes of those that are left when reading ends.

One bad packet never ends a stream. What was read before a connection ended is decoded and given out, as nobody sees
these pictures again. What was read before the caller stopped is counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from streamd.errors import SourceError, SourceReason
from streamd.security.redact import redact
from streamd.sources.av_connection import AvConnection
from streamd.sources.av_errors import describe
from streamd.sources.backlog import Arrived
from streamd.sources.catch_up import CatchUp
from streamd.sources.frame_maker import FrameMaker
from streamd.sources.no_picture import NoPictureWatch
from streamd.sources.second_opinion import NO_DECODER, plays_in_software
from streamd.sources.skipping import drained, held_back
from streamd.types import Frame

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

    from streamd.sources.av import AvStreamSettings

DECODE_LIMIT_S = 10.0


class Decoding:
    """Decodes the packets of a source. For the thread that reads. `connection.deadline` is set around each call to the
    decoder.

    Args:
        settings: the stream.
        connection: has the decoder.
        maker: follows the packets through it.
    """

    def __init__(self, settings: AvStreamSettings, connection: AvConnection, maker: FrameMaker) -> None:
        self._settings, self._connection, self._maker = settings, connection, maker
        self._network = settings.live
        self.refused = 0
        """Packets that the decoder has rejected so far."""
        self.discarded = 0
        """Frames that were read and never given out so far, as reading was ended."""
        self.catch_up: CatchUp | None = None
        """Of a live stream that can tell how late it is read."""
        self._ready: Iterator[Arrived] = iter(())
        """Packets that are to be decoded now."""
        self._natives: Iterator[VideoFrame] = iter(())
        """Pictures that have been decoded."""
        self._barren = NoPictureWatch(self._network, settings.read_timeout_s)

    def begin(self, silence_s: float) -> None:
        """A pass begins. `silence_s`: how long a network may give no picture."""
        self._maker.pictures = self._maker.left_out = 0
        self._barren = NoPictureWatch(self._network, silence_s)

    def frames(self, ready: Iterable[Arrived]) -> Iterator[Frame]:
        """The frames of packets that are decoded now.

        Raises:
            SourceError: no picture ever comes.
        """
        self._ready = iter(ready)
        maker, barren, catch_up, keys = self._maker, self._barren, self.catch_up, self._settings.frames == "key"
        for arrived in self._ready:
            packet = arrived[0]
            packet.opaque = maker.arrived(*arrived)
            refused = self.refused
            alone = packet.is_keyframe if keys else maker.keys_only or (catch_up is not None and catch_up.alone)
            natives = self.decode(packet, alone=alone)
            if natives:
                maker.pictures += len(natives)
                barren.picture()
            elif packet.size and self._settings.frames == "all":
                reason = barren.packet(refused=self.refused > refused, now=time.monotonic())
                if reason is not None:
                    self.check(reason)
                    text = describe(self._settings.url, reason, f"{barren.packets} packets without a picture")
                    raise SourceError(reason, text, permanent=not self._network)
            self._natives = iter(natives)
            del natives
            for native in self._natives:
                frame = maker.frame(native)
                if frame is not None:
                    yield frame

    def before_a_cut(self, ready: Iterable[Arrived]) -> Iterator[Frame]:
        """What the decoder has kept back, before it goes on with `ready`, which does not follow."""
        self._ready = iter(ready)
        yield from self._rest()
        self._maker.forget()

    def end(self) -> Iterator[Frame]:
        """What was read before a pass ended, or its connection."""
        yield from self._frames()
        yield from self.frames(self._ready)
        if self.catch_up is not None:
            last = self.catch_up.last()
            self._maker.served_ns = max(self._maker.served_ns, self.catch_up.served_ns)
            yield from self.frames(last)
        yield from self._rest()

    def discard(self, unheard: Iterable[Packet[Any]]) -> None:
        """Counts what was read and is not given out any more: the caller has stopped reading. What a decoder was not
        given that waits for its place is not counted: see `backlog`.

        Args:
            unheard: packets that were read and not looked at.
        """
        maker, now_ns, key = self._maker, time.monotonic_ns(), self._settings.frames == "key"
        for native in (*self._natives, *self._drain()):
            try:
                self.discarded += maker.frame(native) is not None
            except SourceError:
                self.discarded += 1
        undecoded = [arrived for arrived in self._ready if arrived.packet.size]
        if self.catch_up is not None:
            undecoded += self.catch_up.held()
        if not self._connection.admission.waiting:
            unseen = (packet for packet in unheard if not maker.passes_over(packet, now_ns))
            undecoded += [Arrived(packet, now_ns, now_ns, False) for packet in unseen]
        for arrived in undecoded:
            if arrived.now_ns < maker.served_ns or (key and not arrived.packet.is_keyframe):
                continue
            wanted = maker.limit is None or maker.limit.admit(arrived.now_ns)
            self.discarded += wanted
            maker.skipped += not wanted

    def check(self, reason: SourceReason) -> None:
        """A file gave no picture.

        Raises:
            SourceError: it is the GPU that has none to give, not the file; a later attempt may succeed.
        """
        never = (
            self._maker.device is not None and not self._network and not self._maker.pictures and not self._maker.again
        )
        if reason == "corrupt" and never and plays_in_software(self._settings):
            raise SourceError("decoder", redact(f"{self._settings.url}: {NO_DECODER}"))

    def _frames(self) -> Iterator[Frame]:
        for native in self._natives:
            frame = self._maker.frame(native)
            if frame is not None:
                yield frame

    def _rest(self) -> Iterator[Frame]:
        rest = self._drain()
        self._maker.pictures += len(rest)
        self._natives = iter(rest)
        yield from self._frames()

    def decode(self, packet: Packet[Any], *, alone: bool) -> list[VideoFrame]:
        """The pictures that come out when `packet` goes in, which is empty at the end of the input.

        Args:
            packet: the next one.
            alone: it is not followed by what the decoder waits for: its picture should come out at once.
        """
        connection = self._connection
        connection.deadline = time.monotonic() + DECODE_LIMIT_S
        try:
            decoder = connection.decoder
            natives: list[VideoFrame]
            jpeg = self._maker.jpeg
            if jpeg is None:
                natives = packet.decode() if decoder is None else decoder.decode(packet)
            else:
                with jpeg:
                    natives = packet.decode() if decoder is None else decoder.decode(packet)
            if alone and packet.size:
                natives += held_back(natives, self._maker.holdback.fed, decoder or packet.stream.codec_context)
            return natives
        except Exception as error:
            import av

            if not isinstance(error, av.FFmpegError):
                raise
            if isinstance(error, EOFError):
                return []
            # The decoder resumes at the next decodable picture.
            self.refused += 1
            self._maker.quarantine.refused(time.monotonic_ns())
            return []
        finally:
            connection.deadline = math.inf
            if connection.admission.ticket is not None:
                connection.admission.created()

    def _drain(self) -> list[VideoFrame]:
        """What the decoder has kept back. It begins anew, with packets that need not follow."""
        connection = self._connection
        if connection.stream is None or connection.admission.waiting:
            return []  # there is no decoder
        connection.deadline = time.monotonic() + DECODE_LIMIT_S
        try:
            return drained(connection.using)
        except Exception:  # noqa: BLE001 - it has given out everything, or cannot
            return []
        finally:
            connection.deadline = math.inf
