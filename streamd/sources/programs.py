"""The program maps of a transport stream (ISO 13818-1, 2.4.4.8), which tell where it goes on with another codec.

FFmpeg passes on what follows as packets of the track that was opened, whose decoder cannot read them; with another PID,
not at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.sources.search import AHEAD, CHUNK, PartSearch, Read

UNIT = 188
"""Bytes of a transport packet."""
_STEPS = {UNIT: 0, 192: 4, 204: 0}
"""From one packet to the next, and what precedes it: a time in M2TS (Blu-ray, camcorders); 204 with error correction
behind it."""
_PROBED = 40
_VIDEO = frozenset({0x01, 0x02, 0x10, 0x1B, 0x24, 0x33, 0xEA})
"""Stream types of MPEG-1, MPEG-2, MPEG-4, H.264, H.265, H.266, VC-1."""
_CODECS = {0x01: "mpeg2video", 0x02: "mpeg2video", 0x10: "mpeg4", 0x1B: "h264", 0x24: "hevc"}
_WINDOW = 4096
"""Bytes that are searched at a time for the begin of a unit."""
_FAR = 64
"""Units between the association table and a map that belongs to it, and between a map's first unit and its last."""
_LONGEST = 1024
"""Bytes of a section."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Bytes with their bits in the other order: that of `zlib` in a checksum."""


class Program(NamedTuple):
    """One that a map describes."""

    at: int
    """Where the tables begin, in bytes."""
    map_at: int
    """Where the map itself does."""
    number: int
    video: tuple[tuple[int, int], ...]
    """Stream type and PID of each track."""

    @property
    def types(self) -> list[int]:
        """Stream types of its tracks."""
        return [kind for kind, _ in self.video]

    @property
    def pids(self) -> list[int]:
        """PIDs of its tracks."""
        return [pid for _, pid in self.video]


class ProgramSearch(PartSearch):
    """Transport streams. What was found is kept for the parts that follow."""

    format = "mpegts"

    def __init__(self, read: Read, size: Callable[[], int]) -> None:
        self._programs: list[Program] = []
        """Those that are not the same as the one before of their number; once it is known which one is decoded, only
        those that may end the part, and the first of each number."""
        self._latest: dict[int, Program] = {}
        """By number."""
        super().__init__(read, size)
        self._unit_step = step_of(read(0, _PROBED * 204))
        self.track: int | None = None
        """PID of the video that is decoded, once that is known."""

    def start(self, begin: int) -> int:
        """See `PartSearch.start`."""
        again, seen = begin < self.begin, self.seen
        self._restart(begin)
        self.track = None
        if again:
            self._programs.clear()
        else:
            self.seen = max(begin, seen)
            self._programs = [program for program in self._programs if program.map_at >= begin]
        self._latest = {program.number: program for program in self._programs}
        self._choose()
        self.look(begin)
        if self.next_at is not None and not (self._alone and self._has_pictures(self.next_at)):
            self.next_at = None
        return self.next_at or 0

    def look(self, until: int) -> None:
        """See `PartSearch.look`."""
        self._choose()
        super().look(until)

    def _has_pictures(self, end: int) -> bool:
        """Whether one begins behind the first map: it is not only what is left of another file."""
        program, step = self._programs[0], self._unit_step
        at = program.map_at + _STEPS[step]
        data = self._read(at, min(end, at + CHUNK) - at)
        units = np.frombuffer(data, np.uint8, len(data) // step * step).reshape(-1, step)
        pids = (units[:, 1] & 0x1F).astype(np.uint16) << 8 | units[:, 2]
        return bool((np.isin(pids, program.pids) & (units[:, 1] & 0x40 != 0)).any())

    @property
    def _alone(self) -> bool:
        """There is one program."""
        return len({program.number for program in self._programs if program.at < self.begin + AHEAD}) == 1

    @property
    def codecs(self) -> set[str]:
        """FFmpeg's names of those of the next part."""
        for program in self._programs:
            if self.next_at in (program.at, program.map_at):
                return {_CODECS[kind] for kind in program.types if kind in _CODECS}
        return set()

    def _step(self) -> None:
        data = self._read(self.seen, CHUNK)
        ours = next((each.number for each in self._programs if self.track in each.pids), None)
        alone = self._alone
        for program in programs_of(data, self._unit_step):
            if not program.video:
                continue
            before = self._latest.get(program.number)
            self._latest[program.number] = program
            if before is not None and before.video == program.video:
                continue
            if before is None or ours is None or (before.types != program.types and (alone or program.number == ours)):
                found = program._replace(at=self.seen + program.at, map_at=self.seen + program.map_at)
                self._programs.append(found)
        self._choose()
        self.at_end = len(data) < CHUNK
        self.seen = max(self.seen, self.seen + len(data) - 2 * self._unit_step)

    def _choose(self) -> None:
        programs = self._programs
        if not programs or self.next_at is not None:
            return
        ours = next((i for i, program in enumerate(programs) if self.track in program.pids), 0)
        program, alone = programs[ours], self._alone
        for other in programs[ours + 1 :]:
            if (other.number == program.number or alone) and other.types != program.types:
                # A file may begin with what is left of another: the next part is behind our map, or it would begin
                # anew.
                self.next_at = other.at if other.at > program.map_at else other.map_at
                return


def begins_with_units(head: bytes) -> bool:
    """Whether it may be the begin of a transport stream."""
    return any(_aligned(head, 0, step) >= 0 for step in _STEPS)


def step_of(head: bytes) -> int:
    """Bytes from one transport packet to the next."""

    def fit(step: int) -> int:
        units = np.frombuffer(head, np.uint8, len(head) // step * step).reshape(-1, step) == 0x47
        return int(units.sum(axis=0).max(initial=0))

    return max(_STEPS, key=lambda step: (fit(step) * step, -step))


def programs_of(data: bytes, step: int = UNIT) -> Iterator[Program]:
    """The program maps in a piece of a transport stream, in their order.

    Args:
        data: the piece.
        step: see `step_of`.
    """
    at, front = 0, _STEPS[step]
    while (at := _aligned(data, at, step)) >= 0:
        count = (len(data) - at - UNIT) // step + 1
        whole = np.frombuffer(data, np.uint8, min(count * step, len(data) - at), at)
        units: npt.NDArray[np.uint8] = np.lib.stride_tricks.as_strided(whole, (count, UNIT), (step, 1), writeable=False)
        broken = np.flatnonzero(units[:, 0] != 0x47)
        if broken.size:
            units = units[: broken[0]]
        tables = None
        # Sections begin in units that say so; a picture's would go on with 0, 0, 1.
        for number in np.flatnonzero((units[:, 1] & 0x40 != 0) & (units[:, 3] & 0x10 != 0)):
            unit = bytes(units[number])
            offset = max(0, at + int(number) * step - front)
            payload = _payload(unit)
            section = payload[1 + payload[0] :] if payload else b""
            if unit[1] & 0x1F == 0 and unit[2] == 0:
                tables = offset
            elif section[:1] == b"\x02" and payload[:3] != b"\0\0\1":
                section = _whole(section, unit, units[number + 1 : number + _FAR])
                if _is_sound(section):
                    begin = tables if tables is not None and offset - tables <= _FAR * step else offset
                    yield Program(begin, offset, int.from_bytes(section[3:5], "big"), _video(section))
        at += len(units) * step
        if not broken.size:
            return


def _aligned(data: bytes, at: int, step: int) -> int:
    """Where transport packets begin, from a byte on; -1 if nowhere."""
    while (size := min(_WINDOW, len(data) - at - 2 * step)) > 0:
        begins = np.frombuffer(data, np.uint8, size + 2 * step, at) == 0x47
        found = np.flatnonzero(begins[:size] & begins[step : size + step] & begins[2 * step :])
        if found.size and len(data) - at - int(found[0]) >= UNIT:
            return at + int(found[0])
        at += size
    return -1


def _payload(unit: bytes) -> bytes:
    return unit[5 + unit[4] if unit[3] & 0x20 else 4 :] if unit[3] & 0x10 else b""


def _whole(section: bytes, unit: bytes, following: npt.NDArray[np.uint8]) -> bytes:
    """A section that begins in a unit, with what of it is in the units that follow."""
    size = 3 + (int.from_bytes(section[1:3], "big") & 0xFFF)
    if len(section) >= size or size > _LONGEST:
        return section[:size]
    same = (following[:, 1] & 0x1F == unit[1] & 0x1F) & (following[:, 2] == unit[2])
    for number in np.flatnonzero(same):
        if len(section) >= size or following[number, 1] & 0x40:
            break
        section += _payload(bytes(following[number]))
    return section[:size]


def _is_sound(section: bytes) -> bool:
    """Whether it is valid by now (current_next_indicator), and its checksum fits (ISO 13818-1, annex A): FFmpeg takes
    no notice of others either."""
    whole = 12 < len(section) <= _LONGEST and section[5] & 1
    return bool(whole) and zlib.crc32(section.translate(_REVERSED)) == 0xFFFFFFFF


def _video(section: bytes) -> tuple[tuple[int, int], ...]:
    end = min(len(section), 3 + (int.from_bytes(section[1:3], "big") & 0xFFF) - 4)
    at = 12 + (int.from_bytes(section[10:12], "big") & 0xFFF)
    found = []
    while at + 5 <= end:
        if section[at] in _VIDEO:
            found.append((section[at], int.from_bytes(section[at + 1 : at + 3], "big") & 0x1FFF))
        at += 5 + (int.from_bytes(section[at + 3 : at + 5], "big") & 0xFFF)
    return tuple(found)
