"""One clip: compressed packets in a file or several, and the JSON beside them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from streamd.events.evidence.files import NewFile
from streamd.flow.packets import FRAME_NS, Packet, PacketPart
from streamd.types import Detections

MP4_CODECS = ("h264", "hevc", "av1", "mpeg4", "mjpeg", "vp9")
"""What MP4 holds and players expect there; everything else goes into Matroska."""
JUMP_NS = 10_000_000_000
"""A step of the time stamps that is longer than this, and not of the arrival, is a jump of the sender's clock."""
TAIL_NS = 1_000_000_000
"""A packet whose picture is shown before one that came earlier is no later than this."""
SCHEMA = 1


class PartFile:
    """One file of a clip. Time begins at 0 with the first packet; jumps of the sender's clock are taken out.

    Args:
        stem: path of the file without its ending.
        part: the parameters of its packets.

    Raises:
        OSError: the file cannot be made.
        av.error.FFmpegError, ValueError: FFmpeg cannot store these packets.
    """

    def __init__(self, stem: Path, part: PacketPart) -> None:
        import av

        self.part = part
        head = part.head
        self._base = Fraction(*head.time_base)
        self._tick_ns = float(self._base) * 1e9
        mp4 = head.codec in MP4_CODECS
        self.file = NewFile(stem.with_name(stem.name + (".mp4" if mp4 else ".mkv")))
        self.packets = 0
        self.first: Packet | None = None
        self.last: Packet | None = None
        self.stamps: dict[int, float] = {}
        """Of each picture, by `Frame.captured_ns`: its time in the file, in seconds."""
        self._in = self._out = self._offset = 0
        self._step = 0
        self._top: int | None = None
        """Latest presentation time in the packets."""
        self._leading = True
        """Within the first group of pictures."""
        try:
            with av.open(io.BytesIO(head.data), format=head.container) as parameters:
                template = parameters.streams.video[0]
                self._container = av.open(
                    self.file, "w", format="mp4" if mp4 else "matroska", options=_options(head.codec) if mp4 else {},
                    buffer_size=1 << 18,
                )  # fmt: skip
                self._stream = self._container.add_stream_from_template(template, opaque=True)
                self._stream.time_base = self._base
                self._container.start_encoding()
        except BaseException:
            self.file.discard()
            raise

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

    def _leads(self, packet: Packet) -> bool:
        """Whether it follows the first key frame and is shown before it: it may be predicted from what is not here."""
        if packet.key or self.first is None or packet.pts is None or self.first.pts is None:
            self._leading = self._leading and self.first is None
            return False
        return self._leading and packet.pts < self.first.pts

    def precedes(self, packet: Packet) -> bool:
        """Whether the packet's picture is shown before one that is here already."""
        return packet.part is self.part and packet.pts is not None and self._top is not None and packet.pts < self._top

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


def _options(codec: str) -> dict[str, str]:
    # Fragments: what is on the disk can be played whatever happens to the rest. One a group of pictures; where every
    # picture is a key frame, one a second.
    fragments = "" if codec == "mjpeg" else "frag_keyframe+"
    options = {"movflags": f"{fragments}empty_moov+default_base_moof"}
    return options | {"frag_duration": "1000000"} if codec == "mjpeg" else options


@dataclass(slots=True)
class ClipEvent:
    """One event of a clip. Times are `Packet.at_ns`."""

    id: str
    rule: str
    label: str
    track: str | int | None
    post_ns: int
    wall_ns: int
    """Unix time of its begin."""
    began_ns: int
    asked_ns: int
    """The moment from which the clip is to show it."""
    ended_ns: int | None = None
    ended_wall_ns: int | None = None


@dataclass(slots=True)
class Clip:
    """What is written and known of one clip. For one thread."""

    stream: str
    stem: Path
    begun_at: float
    """Monotonic seconds."""
    max_ns: int
    events: dict[str, ClipEvent] = field(default_factory=dict)
    parts: list[PartFile] = field(default_factory=list)
    first: Packet | None = None
    next: int = 0
    """Serial number of the next packet to write."""
    frames: list[tuple[int, Detections]] = field(default_factory=list)
    """Part, counted from 0, and what was seen in it."""
    gaps: list[dict[str, Any]] = field(default_factory=list)
    seen: int = 0
    """How many detections of the stream were looked at; see `BoxLog.count`."""
    lost: int = 0
    """Packets that the ring had dropped before they could be written."""
    cut: str = ""
    """Why it ends before `until_ns`."""
    due_at: float | None = None
    """Monotonic seconds at which its last packet was written."""
    quiet_since: float | None = None
    """Monotonic seconds since when the ring has brought nothing, once the end is known."""
    quiet_ns: int = 0
    """`Packet.at_ns` of the newest packet then."""

    @property
    def until_ns(self) -> int | None:
        """`Packet.at_ns` up to which it goes; None while an event is going on."""
        if any(event.ended_ns is None for event in self.events.values()):
            return None
        return max((e.ended_ns or 0) + e.post_ns for e in self.events.values())

    def write(self, packets: Iterable[Packet], until_ns: int) -> bool:
        """Adds packets in order, up to the pictures of a moment (`Packet.at_ns`). See `PartFile.write` for errors.

        Returns:
            True if a later picture has come: the clip is complete up to there.
        """
        for packet in packets:
            before = self.parts[-1] if self.parts else None
            beyond_ns = packet.at_ns - until_ns
            if beyond_ns > 0 and (before is None or beyond_ns > TAIL_NS or not before.precedes(packet)):
                return True
            if before is None or before.part is not packet.part:
                if before is not None and before.last is not None:
                    self._gap(before.last, packet, "parameters" if packet.part.head.changed else "reconnect")
                stem = self.stem if before is None else self.stem.with_name(f"{self.stem.name}.{len(self.parts) + 1}")
                self.parts.append(PartFile(stem, packet.part))
            elif packet.serial != self.next and before.last is not None:
                self.lost += packet.serial - self.next
                self._gap(before.last, packet, "disk_slow")
            self.parts[-1].write(packet)
            self.first = self.first or packet
            self.next = packet.serial + 1
        return False

    def _gap(self, before: Packet, after: Packet, reason: str) -> None:
        seconds = (after.at_ns - before.at_ns) / 1e9
        at = self.parts[-1].stamps[before.captured_ns]
        self.gaps.append(
            {"part": len(self.parts) - 1, "t": at, "at": before.wall_ns / 1e9, "s": round(seconds, 3), "reason": reason}
        )

    def see(self, seen: Sequence[Detections], count: int, *, last: bool) -> None:
        """Takes the detections of the frames whose packets are in the files.

        Args:
            seen: what was not looked at yet, in the order of the pictures.
            count: number of the last one.
            last: False where further packets are to come: those whose packets are not there yet are left for later.
        """
        newest_ns = self.parts[-1].last.captured_ns if self.parts and self.parts[-1].last is not None else 0
        self.seen = count
        for position, detections in enumerate(seen):
            captured_ns = detections.times.captured
            if captured_ns > newest_ns and not last:
                self.seen = count - len(seen) + position
                return
            for index in range(len(self.parts) - 1, -1, -1):
                if captured_ns in self.parts[index].stamps:
                    self.frames.append((index, detections))
                    break

    def finish(self, facts: Mapping[str, Any]) -> list[Path]:
        """Completes all files, the JSON first.

        Args:
            facts: what else the JSON says.

        Returns:
            Paths of the parts, in order.

        Raises:
            OSError, av.error.FFmpegError: nothing of the clip is left.
        """
        beside = NewFile(self.json_path)
        try:
            beside.write(json.dumps(self.describe(facts), separators=(",", ":")).encode())
            for part in self.parts:
                part.finish()
            beside.finish()
        except BaseException:
            beside.discard()
            self.discard()
            for part in self.parts:
                with contextlib.suppress(OSError):
                    part.file.path.unlink()
            raise
        return [part.file.path for part in self.parts]

    @property
    def json_path(self) -> Path:
        """Of the JSON."""
        return self.stem.with_name(self.stem.name + ".json")

    @property
    def path(self) -> Path:
        """Of the first file."""
        return self.parts[0].file.path if self.parts else self.stem.with_name(self.stem.name + ".mp4")

    def discard(self) -> None:
        """Removes what was written."""
        for part in self.parts:
            part.discard()

    # --------------------------------------------------------------------------------------------------------- JSON

    def describe(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What the JSON says; docs/evidence.md explains it."""
        # Frames have the camera's own time where it is believed; packets have the time of arrival.
        offset_ns = self._clock_offset()
        return {
            "schema": SCHEMA,
            "stream": self.stream,
            "starts_at": self._wall(self.first, offset_ns),
            "ends_at": self._wall(self.parts[-1].last if self.parts else None, offset_ns),
            "cut": self.cut or None,
            **facts,
            "parts": [self._part(part, offset_ns) for part in self.parts],
            "gaps": self.gaps,
            "events": [self._event(event) for event in self.events.values()],
            "frames": [self._frame(index, detections) for index, detections in self.frames],
        }

    def _clock_offset(self) -> int:
        for index, detections in self.frames:
            for packet in (self.parts[index].first, self.parts[index].last):
                if packet is not None:
                    # wall - captured is the same for all frames of a clock.
                    return (detections.wall_ns - detections.times.captured) - (packet.wall_ns - packet.captured_ns)
        return 0

    @staticmethod
    def _wall(packet: Packet | None, offset_ns: int) -> float | None:
        return (packet.wall_ns + offset_ns) // 1000 / 1e6 if packet is not None else None

    def _part(self, part: PartFile, offset_ns: int) -> dict[str, Any]:
        head = part.part.head
        return {
            "file": part.file.path.name, "codec": head.codec, "width": head.width, "height": head.height,
            "starts_at": self._wall(part.first, offset_ns), "s": round(part.seconds, 6), "packets": part.packets,
        }  # fmt: skip

    def _event(self, event: ClipEvent) -> dict[str, Any]:
        shown = self.first is not None and self.first.at_ns <= event.asked_ns
        return {
            "id": event.id, "rule": event.rule, "label": event.label, "track": event.track,
            "began_at": event.wall_ns // 1000 / 1e6,
            "ended_at": event.ended_wall_ns // 1000 / 1e6 if event.ended_wall_ns is not None else None,
            "t": round((event.began_ns - self.first.at_ns) / 1e9, 3) if self.first is not None else None,
            "complete": shown,
        }  # fmt: skip

    def _frame(self, index: int, d: Detections) -> dict[str, Any]:
        tracks = d.tracks.number.tolist() if d.tracks is not None else [0] * len(d.score)
        boxes = [
            [*(round(v, 1) for v in box), round(score, 3), d.model.labels[class_id], track]
            for box, score, class_id, track in zip(
                d.xyxy.tolist(), d.score.tolist(), d.class_id.tolist(), tracks, strict=True
            )
        ]
        return {
            "part": index, "t": self.parts[index].stamps[d.times.captured], "epoch": d.epoch, "seq": d.seq,
            "at": d.wall_ns // 1000 / 1e6, "width": d.width, "height": d.height, "boxes": boxes,
        }  # fmt: skip
