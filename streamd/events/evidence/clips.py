"""Cuts the clips of events out of the packet rings, in a thread of its own.

The thread follows each clip while its event goes on, so that a clip may be longer than the ring. Nothing waits for it:
a disk that is too slow makes clips with gaps, and one that is full or broken makes clips that have failed.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from streamd.events.evidence.clip import Clip, ClipEvent
from streamd.events.evidence.files import EvidenceError, Room, Writability, reason_of, stem_of
from streamd.events.record import Event, Media
from streamd.flow.packets import Packet, PacketRing
from streamd.flow.threads import NamedThread
from streamd.types import Detections

log = structlog.get_logger(__name__)

Link = Callable[[str, str, Media], object]
"""Notes a file of an event: see `Journal.link`."""

TICK_S = 0.2
MAX_OPEN = 256
"""Clips under way at the same time."""
PATIENCE_S = 10.0
"""A clip whose stream brings no packets ends so long after its end was due."""
BOXES_S = 3.0
"""Longest time for the detections of the last frames to come out of the engine."""
WARN_S = 60.0


class Moment(NamedTuple):
    """When an event happened, as the rules tell it."""

    captured_ns: int | None
    """`Frame.captured_ns` of the frame that decided it; None if no frame did."""
    back_s: float = 0.0
    """How long before that frame it happened, in seconds of the stream's time."""


class Wanted(NamedTuple):
    """What a rule's clips are like; see `ClipSettings`."""

    pre_s: float
    post_s: float
    max_s: float
    audio: bool = False


class BoxLog:
    """The newest detections of a stream, as far back as its packet ring. One thread puts; any thread reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Detections] = deque()
        self.seconds = 0.0
        self.count = 0
        """Put in so far."""
        self.newest_ns = 0
        """Latest `captured_ns`."""

    def put(self, detections: Detections) -> None:
        """Takes those of the next frame."""
        captured_ns = detections.times.captured
        with self._lock:
            kept = self._kept
            kept.append(detections)
            self.count += 1
            self.newest_ns = max(captured_ns, self.newest_ns)
            oldest_ns = captured_ns - int(self.seconds * 1e9)
            while kept[0].times.captured < oldest_ns:
                kept.popleft()

    def since(self, count: int) -> tuple[list[Detections], int]:
        """Those put in after the first `count`, in the order of their pictures, and `count` of the last."""
        with self._lock:
            new = min(self.count - count, len(self._kept))
            return list(itertools.islice(self._kept, len(self._kept) - new, None)), self.count


class StreamEvidence:
    """The packets and detections of one stream."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.ring = PacketRing()
        self.boxes = BoxLog()
        self.wanted: Mapping[str, Wanted] = {}
        """By rule; replaced, never changed."""

    def change(self, seconds: float, max_bytes: int, wanted: Mapping[str, Wanted]) -> None:
        """Takes on other rules."""
        self.wanted = wanted
        # Detections are a little younger than the packets that they belong to.
        self.boxes.seconds = seconds + PATIENCE_S
        self.ring.change(seconds, max_bytes)


class _Told(NamedTuple):
    source: StreamEvidence
    wanted: Wanted
    event: Event
    moment: Moment


class ClipWriter:
    """Writes clips until closed. `event` may be called by any thread and never waits.

    Args:
        folder: of the media.
        room: whether there is room.
        link: notes each clip and what becomes of it.
        facts: for the JSON beside each clip.
    """

    def __init__(self, folder: Path, room: Room, link: Link, facts: Callable[[], Mapping[str, Any]]) -> None:
        self._folder, self._room, self._link, self._facts = folder, room, link, facts
        self._told: queue.SimpleQueue[_Told] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stop = False
        self._give_up_at = float("inf")
        self._active: list[tuple[StreamEvidence, Clip]] = []
        self._pending: list[_Told] = []
        """Begins for which the ring has no packet yet."""
        self._warned: dict[str, float] = {}
        self._busy_since: float | None = None
        self._writability = Writability()
        self.written: Counter[str] = Counter()
        """By stream."""
        self.failed: Counter[tuple[str, str]] = Counter()
        """By stream and reason."""
        self._thread = NamedThread(self._run, "clips")
        self._started = False

    @property
    def problem(self) -> str:
        """Why clips cannot be written, see `Writability`."""
        return self._writability.problem

    @property
    def open(self) -> int:
        """Clips under way."""
        return len(self._active)

    @property
    def stuck_s(self) -> float:
        """How long the disk has held up the thread, in seconds."""
        since = self._busy_since
        return time.monotonic() - since if since is not None else 0.0

    def event(self, source: StreamEvidence, wanted: Wanted, event: Event, moment: Moment) -> None:
        """An event has begun, ended, or happened."""
        if not self._started:
            self._started = True
            self._thread.start()
        self._told.put(_Told(source, wanted, event, moment))
        self._wake.set()

    def close(self, timeout: float) -> bool:
        """Ends every clip with what there is; False if that takes longer than `timeout` seconds."""
        self._give_up_at = time.monotonic() + timeout
        self._stop = True
        self._wake.set()
        if self._started:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # ------------------------------------------------------------------------------------------------------ thread

    def _run(self) -> None:
        while True:
            busy = self._active or self._pending
            self._wake.wait(TICK_S if busy else self._writability.wait_s)
            self._wake.clear()
            stopping = self._stop
            self._busy_since = time.monotonic()
            self._take()
            for source, clip in list(self._active):
                self._follow(source, clip, stopping=stopping)
            if not stopping:
                self._writability.look(self._room)
            self._busy_since = None
            if stopping:
                return

    def _take(self) -> None:
        pending, self._pending = self._pending, []
        for told in pending:
            self._begin(told)
        while True:
            try:
                told = self._told.get_nowait()
            except queue.Empty:
                return
            if told.event.kind == "end":
                self._end(told)
            elif told.event.kind in ("begin", "instant"):
                self._begin(told)

    def _begin(self, told: _Told) -> None:
        source, wanted, event, moment = told
        ring = source.ring
        begun = ring.at(moment.captured_ns) if moment.captured_ns is not None else None
        began_ns = (begun if begun is not None else ring.newest_ns) - int(moment.back_s * 1e9)
        back_s = moment.back_s + wanted.pre_s
        asked_ns = began_ns - int(wanted.pre_s * 1e9)
        first = ring.start_before(asked_ns, moment.captured_ns, int(back_s * 1e9))
        if first is None:
            self._wait_for_packets(told)
            return
        instant = event.kind == "instant"
        entry = ClipEvent(
            event.id, event.rule or "", event.label or "", event.track, int(wanted.post_s * 1e9),
            event.at_ns, began_ns, asked_ns, began_ns if instant else None, event.at_ns if instant else None,
        )  # fmt: skip
        for other, clip in self._active:
            if other is source and clip.sound == wanted.audio and self._shares(clip, first, began_ns):
                clip.events[event.id] = entry
                self._note(clip, "pending")
                return
        clip = Clip(
            source.stream, self._folder / stem_of(source.stream, event.at_ns, event.id), time.monotonic(),
            int(wanted.max_s * 1e9), wanted.audio, {event.id: entry}, next=first.serial,
        )  # fmt: skip
        clip.first = first
        if len(self._active) >= MAX_OPEN:
            self._fail(source, clip, EvidenceError("too_many", f"{MAX_OPEN} clips are under way"))
            return
        self._active.append((source, clip))
        self._note(clip, "pending")

    @staticmethod
    def _shares(clip: Clip, first: Packet, began_ns: int) -> bool:
        """Whether a clip under way can show another event, too."""
        if clip.cut or clip.first is None:
            return False
        return clip.first.serial <= first.serial and began_ns < clip.first.at_ns + clip.max_ns

    def _wait_for_packets(self, told: _Told) -> None:
        """A clip that is asked for in the middle of a group of pictures has nothing to begin with."""
        source, event = told.source, told.event
        if not self._stop and not source.ring.problem and time.time_ns() - event.at_ns < PATIENCE_S * 1e9:
            self._pending.append(told)
            return
        stem = self._folder / stem_of(source.stream, event.at_ns, event.id)
        clip = Clip(source.stream, stem, time.monotonic(), 0)
        clip.events[event.id] = ClipEvent(event.id, "", "", None, 0, event.at_ns, 0, 0)
        text = source.ring.problem or "no packets since"
        self._fail(source, clip, EvidenceError("not_recordable" if source.ring.problem else "no_packets", text))

    def _end(self, told: _Told) -> None:
        source, _, event, moment = told
        ring = source.ring
        found = ring.at(moment.captured_ns) if moment.captured_ns is not None else None
        at_ns = (found if found is not None else ring.newest_ns) - int(moment.back_s * 1e9)
        for other, clip in self._active:
            entry = clip.events.get(event.id)
            if other is source and entry is not None:
                entry.ended_ns, entry.ended_wall_ns = max(at_ns, entry.began_ns), event.at_ns
                return
        # One that is still waiting for its first packet becomes an instant.
        for i, waiting in enumerate(self._pending):
            if waiting.event.id == event.id:
                self._pending[i] = waiting._replace(event=_instant(waiting.event))

    def _follow(self, source: StreamEvidence, clip: Clip, *, stopping: bool) -> None:
        """Writes what has come, and ends the clip where it is due."""
        try:
            self._room.check()
            until_ns = self._until(clip)
            newest_ns = source.ring.newest_ns
            due = clip.write(source.ring.since(clip.next), until_ns)
            late = not due and clip.until_ns is not None and self._is_late(clip, newest_ns, until_ns)
            ending = stopping or ((due or late) and self._all_seen(source, clip))
            if stopping and not due:
                clip.cut = clip.cut or "stopped"
            seen, count = source.boxes.since(clip.seen)
            clip.see(seen, count, last=ending)
            if ending:
                self._finish(source, clip)
        except Exception as error:  # noqa: BLE001 - whatever happens to one clip must not end the others
            self._fail(source, clip, error)

    @staticmethod
    def _until(clip: Clip) -> int:
        """`Packet.at_ns` of its last packet, as far as is known now."""
        assert clip.first is not None
        longest_ns = clip.first.at_ns + clip.max_ns
        return min(longest_ns, clip.until_ns if clip.until_ns is not None else longest_ns)

    def _is_late(self, clip: Clip, newest_ns: int, until_ns: int) -> bool:
        """The stream has stopped: its clip has as much as there will be."""
        assert clip.first is not None
        missing_s = max(0.0, until_ns - newest_ns) / 1e9
        if clip.quiet_since is None or newest_ns != clip.quiet_ns:
            clip.quiet_since, clip.quiet_ns = time.monotonic(), newest_ns
        if time.monotonic() - clip.quiet_since < missing_s + PATIENCE_S:
            return False
        clip.cut = "no_packets"
        return True

    def _all_seen(self, source: StreamEvidence, clip: Clip) -> bool:
        """Whether the detections of the last frame have come, or will not come any more."""
        now = time.monotonic()
        last = clip.parts[-1].last if clip.parts else None
        # Pictures may come out in another order than their packets: a later one has come only after all of these.
        if last is None or source.boxes.newest_ns > last.captured_ns:
            return True
        clip.due_at = clip.due_at or now
        return now >= clip.due_at + BOXES_S

    def _finish(self, source: StreamEvidence, clip: Clip) -> None:
        assert clip.first is not None
        if not clip.parts:
            raise EvidenceError("no_packets", "the packets were gone before they could be written")
        until_ns = clip.until_ns
        if not clip.cut and (until_ns is None or until_ns > clip.first.at_ns + clip.max_ns):
            clip.cut = "max_s"
        paths = clip.finish(self._facts())
        self._active = [(s, c) for s, c in self._active if c is not clip]
        for event_id in clip.events:
            for number, path in enumerate(paths, 1):
                self._link(event_id, "clip" if number == 1 else f"clip_{number}", Media(str(path)))
            self._link(event_id, "clip_json", Media(str(clip.json_path)))
        self.written[source.stream] += 1
        self._writability.written()
        log.info(
            "clip written", stream=clip.stream, path=str(paths[0]), parts=len(paths), events=len(clip.events),
            seconds=round(sum(part.seconds for part in clip.parts), 2), cut=clip.cut or None,
        )  # fmt: skip

    def _note(self, clip: Clip, state: Any, reason: str = "") -> None:
        for event_id in clip.events:
            self._link(event_id, "clip", Media(str(clip.path), state, reason))

    def _fail(self, source: StreamEvidence, clip: Clip, error: Exception) -> None:
        self._active = [(s, c) for s, c in self._active if c is not clip]
        with contextlib.suppress(Exception):
            clip.discard()
        reason = next((reason_of(p.file.error) for p in clip.parts if p.file.error is not None), reason_of(error))
        self._note(clip, "failed", reason)
        self.failed[source.stream, reason] += 1
        self._writability.failed(error, reason)
        now = time.monotonic()
        if now >= self._warned.get(reason, -WARN_S) + WARN_S:
            self._warned[reason] = now
            unexpected = reason == "internal"
            log.error(
                "a clip could not be written", stream=clip.stream, reason=reason, error=str(error),
                exc_info=error if unexpected else None,
            )  # fmt: skip


def _instant(event: Event) -> Event:
    import msgspec

    return msgspec.structs.replace(event, kind="instant")
