"""One clip: compressed packets in a file or several, and the JSON beside them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamd.events.evidence.files import NewFile
from streamd.events.evidence.part import TAIL_NS, PartFile
from streamd.flow.packets import Packet
from streamd.types import Detections

SCHEMA = 1


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
    sound: bool = False
    """With sound, if the stream has any."""
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
            if packet.sound:
                # A group of pictures is lost as a whole: what is behind a gap begins with a picture.
                if before is not None and before.part is packet.part:
                    before.write_sound(packet)
                    self.next = packet.serial + 1
                continue
            beyond_ns = packet.at_ns - until_ns
            if beyond_ns > 0 and (before is None or beyond_ns > TAIL_NS or not before.precedes(packet)):
                return True
            if before is None or before.part is not packet.part:
                if before is not None and before.last is not None:
                    self._gap(before.last, packet, "parameters" if packet.part.head.changed else "reconnect")
                stem = self.stem if before is None else self.stem.with_name(f"{self.stem.name}.{len(self.parts) + 1}")
                self.parts.append(PartFile(stem, packet.part, sound=self.sound))
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
            "audio": part.sound.codec if part.sound is not None else None,
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
