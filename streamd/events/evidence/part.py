"""One file of a clip: compressed packets as they came, in MP4 or Matroska."""

from __future__ import annotations

import contextlib
import io
from fractions import Fraction
from pathlib import Path
from typing import Any

from streamd.events.evidence.files import EvidenceError, NewFile
from streamd.flow.packets import FRAME_NS, Packet, PacketPart, SoundHead

MP4_CODECS = ("h264", "hevc", "av1", "mpeg4", "mjpeg", "vp9")
"""What MP4 holds and players expect there; everything else goes into Matroska."""
JUMP_NS = 10_000_000_000
"""A step of the time stamps that is longer than this, and not of the arrival, is a jump of the sender's clock."""
MP4_SOUND = ("aac", "mp3", "opus", "ac3", "eac3", "alac", "flac")
MOV_CODECS = ("h264", "hevc", "mpeg4", "mjpeg")
MOV_SOUND = ("pcm_alaw", "pcm_mulaw", "pcm_s16le", "pcm_s16be")
"""What telephones and cameras use (G.711), and MP4 lacks: with it, the clip is a QuickTime file."""
MATROSKA_SOUND = (*MP4_SOUND, "mp2", "vorbis", "pcm_s16le", "pcm_s16be")
SOUND_OFF_NS = 2_000_000_000
"""Sound that is further than this from the pictures beside it has another clock."""


TAIL_NS = 1_000_000_000
"""A packet whose picture is shown before one that came earlier is no later than this."""
ENDINGS = {"mp4": ".mp4", "mov": ".mov", "matroska": ".mkv"}


def container_of(video: str, sound: str) -> str | None:
    """FFmpeg's name of the container for these codecs.

    Args:
        video: FFmpeg's name.
        sound: likewise; empty without sound.

    Returns:
        None if none holds this sound beside this video.
    """
    if video in MP4_CODECS and (not sound or sound in MP4_SOUND):
        return "mp4"
    if video in MOV_CODECS and sound in MOV_SOUND:
        return "mov"
    return "matroska" if not sound or sound in MATROSKA_SOUND else None


class PartFile:
    """One file of a clip. Time begins at 0 with the first packet; jumps of the sender's clock are taken out.

    Args:
        stem: path of the file without its ending.
        part: the parameters of its packets.
        sound: it has the sound, too, if the stream has any that FFmpeg can store.

    Raises:
        OSError: the file cannot be made.
        EvidenceError: `not_recordable`: FFmpeg cannot store these packets.
        av.error.FFmpegError: something else.
    """

    def __init__(self, stem: Path, part: PacketPart, *, sound: bool = False) -> None:
        self.part = part
        head = part.head
        self._base = Fraction(*head.time_base)
        self._tick_ns = float(self._base) * 1e9
        self.packets = 0
        self.first: Packet | None = None
        self.last: Packet | None = None
        self.stamps: dict[int, float] = {}
        """Of each picture, by `Frame.captured_ns`: its time in the file, in seconds."""
        self._in = self._out = self._offset = 0
        self._step = 0
        self._top: int | None = None
        """Latest presentation time in the packets since the sender's clock has jumped."""
        self._leading = True
        """Within the first group of pictures."""
        self.sound: SoundHead | None = None
        """Of the sound in the file."""
        self._sound_stream: Any = None
        self._sound_offset_ns: int | None = None
        """Where the sound has a clock of its own."""
        self._sound_dts = -1
        heard = head.sound if sound else None
        kind = container_of(head.codec, heard.codec if heard is not None else "")
        if kind is None:
            heard, kind = None, container_of(head.codec, "")
        assert kind is not None
        try:
            self._open(stem, kind, heard)
        except Exception:
            if heard is None or self.file.error is not None:
                raise
            # Parameters are missing that this container needs: better without sound than not at all.
            self._open(stem, kind, None)

    def _open(self, stem: Path, kind: str, sound: SoundHead | None) -> None:
        import av

        head = self.part.head
        self.file = NewFile(stem.with_name(stem.name + ENDINGS[kind]))
        try:
            with contextlib.ExitStack() as opened:
                parameters = opened.enter_context(av.open(io.BytesIO(head.data), format=head.container))
                options = _options(head.codec, sound=sound is not None) if kind != "matroska" else {}
                self._container = av.open(self.file, "w", format=kind, options=options, buffer_size=1 << 18)
                self._stream = self._container.add_stream_from_template(parameters.streams.video[0], opaque=True)
                self._stream.time_base = self._base
                if sound is not None:
                    beside = opened.enter_context(av.open(io.BytesIO(sound.data), format="nut"))
                    self._sound_stream = self._container.add_stream_from_template(beside.streams.audio[0], opaque=True)
                    self._sound_stream.time_base = Fraction(*sound.time_base)
                self._container.start_encoding()
        except BaseException as error:
            self.file.discard()
            if isinstance(error, ValueError) and self.file.error is None:
                # Of FFmpeg, as of a codec that the container does not take.
                text = f"{head.codec} packets cannot be recorded: {error}"
                raise EvidenceError("not_recordable", text) from error
            raise
        self.sound = sound

    def write(self, packet: Packet) -> None:
        """Adds a packet.

        Raises:
            OSError, av.error.FFmpegError: it could not be written.
        """
        import av

        if self._leads(packet):
            return
        dts, pts = self._place(packet)
        out = av.Packet(packet.data)
        out.stream, out.time_base, out.is_keyframe = self._stream, self._base, packet.key
        out.dts, out.pts, out.duration = dts, pts, packet.duration or self._step
        self._container.mux_one(out)
        self.stamps[packet.captured_ns] = round(pts * self._tick_ns / 1e9, 6)
        self.packets += 1
        if packet.pts is not None:
            self._top = packet.pts if self._top is None else max(self._top, packet.pts)
        if self.first is None:
            self.first = packet
        self.last = packet

    def write_sound(self, packet: Packet) -> None:
        """Adds a packet of the sound, at the time that it has beside the pictures. See `write` for errors."""
        import av

        sound, last = self.sound, self.last
        if sound is None or last is None or packet.pts is None:
            return
        base = Fraction(*sound.time_base)
        stamp_ns = int(packet.pts * base * 1_000_000_000)
        shown_ns = int((self._in + self._offset) * self._tick_ns)
        offset_ns = int(self._offset * self._tick_ns)
        if abs(stamp_ns + offset_ns - shown_ns) > SOUND_OFF_NS:
            if self._sound_offset_ns is None or abs(stamp_ns + self._sound_offset_ns - shown_ns) > SOUND_OFF_NS:
                self._sound_offset_ns = shown_ns - stamp_ns
            offset_ns = self._sound_offset_ns
        else:
            self._sound_offset_ns = None
        dts = round((stamp_ns + offset_ns) / 1e9 / base)
        if dts < 0 or dts <= self._sound_dts:
            return  # before the first picture, or what was heard already
        self._sound_dts = dts
        out = av.Packet(packet.data)
        out.stream, out.time_base, out.is_keyframe = self._sound_stream, base, True
        out.dts = out.pts = dts
        out.duration = packet.duration
        self._container.mux_one(out)

    def _leads(self, packet: Packet) -> bool:
        """Whether it follows the first key frame and is shown before it: it may be predicted from what is not here."""
        if packet.key or self.first is None or packet.pts is None or self.first.pts is None:
            self._leading = self._leading and self.first is None
            return False
        return self._leading and packet.pts < self.first.pts

    def precedes(self, packet: Packet) -> bool:
        """Whether the packet's picture is shown before one that is here already."""
        if packet.part is not self.part or packet.pts is None or self._top is None:
            return False
        return 0 < (self._top - packet.pts) * self._tick_ns < TAIL_NS

    def _place(self, packet: Packet) -> tuple[int, int]:
        """Decoding and presentation time in the file, in ticks: ascending, whatever the sender's clock does."""
        first, last = self.first, self.last
        stamp = packet.dts if packet.dts is not None else packet.pts
        if first is None or last is None:
            self._in = stamp or 0
            self._offset = -self._in
            self._step = max(1, round(FRAME_NS / self._tick_ns))
        else:
            arrived = max(1, round((packet.at_ns - last.at_ns) / self._tick_ns))
            if stamp is None:
                stamp = self._in + arrived
            step = stamp - self._in
            if step <= 0 or (step * self._tick_ns > JUMP_NS and arrived < step // 2):
                self._offset += arrived - step
                self._top = None
                step = arrived
            self._step = step
            self._in = stamp
        dts = self._in + self._offset
        pts = packet.pts + self._offset if packet.pts is not None else dts
        return dts, max(pts, dts)

    @property
    def seconds(self) -> float:
        """Length so far."""
        return max(self.stamps.values(), default=0.0) + self._step * self._tick_ns / 1e9 if self.stamps else 0.0

    def finish(self) -> None:
        """Writes what is left and puts the file under its name.

        Raises:
            OSError, av.error.FFmpegError: it is not complete; nothing of it is left.
        """
        try:
            self._container.close()
        except BaseException:
            self.file.discard()
            raise
        self.file.finish()

    def discard(self) -> None:
        """Removes it."""
        with contextlib.suppress(Exception):
            self._container.close()
        self.file.discard()


def _options(codec: str, *, sound: bool) -> dict[str, str]:
    # Fragments: what is on the disk can be played whatever happens to the rest. One a group of pictures; where every
    # picture is a key frame, one a second.
    fragments = "" if codec == "mjpeg" else "frag_keyframe+"
    # Sound begins later than the pictures: without frag_discont, FFmpeg would move it to the beginning.
    options = {"movflags": f"{fragments}empty_moov+default_base_moof{'+frag_discont' if sound else ''}"}
    return options | {"frag_duration": "1000000"} if codec == "mjpeg" else options
