"""Keeps the media folder within its limits, and settles the clips of processes that have died."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import structlog

from streamd.errors import SinkError
from streamd.events.evidence.files import INCOMPLETE, PARTIAL, VIDEO, reason_of
from streamd.events.journal import Journal
from streamd.events.record import Media
from streamd.events.wallclock import Clock, plausible
from streamd.flow.threads import NamedThread
from streamd.settings.places import unwritable_folder

log = structlog.get_logger(__name__)

SCAN_S = 60.0
LOOK_S = 2.0
"""Interval of looking at the free space and the clock."""
STALE_S = 86_400.0
"""An unfinished file that nothing has written to for so long belongs to nobody."""
MARGIN = 0.05
"""Share of the floor that is freed beyond it, so that recording resumes."""
LEAST_MARGIN = 16 << 20
LINGER_S = 0.5
"""What a worker had sent before it died has been received so long after its death."""
FIRST_S = 1.0


class MediaLimits(NamedTuple):
    """How much is kept in the media folder."""

    max_bytes: int
    max_age_s: float
    min_free_bytes: int


class MediaCounts(NamedTuple):
    """What is in the folder, as of the last scan, and what was removed since the start."""

    bytes: int = 0
    files: int = 0
    removed: int = 0
    problem: str = ""
    """Why the folder could not be kept within its limits; empty if it could."""


class _Group(NamedTuple):
    """Files that were made together: the parts of a clip, its JSON, its snapshots."""

    newest: float
    """Modification time, Unix seconds."""
    size: int
    paths: list[Path]


class MediaKeeper:
    """One thread. It belongs to the process that has the journal.

    Args:
        folder: of the media; may not exist yet.
        limits: how much is kept.
        journal: told which files are gone.
    """

    def __init__(self, folder: Path, limits: MediaLimits, journal: Journal) -> None:
        self._folder, self._limits, self._journal = folder, limits, journal
        self._stop = threading.Event()
        self._lost: list[tuple[float, Collection[str] | None, str]] = [(0.0, None, "process_died")]
        """Whose pending clips are to be settled: when (monotonic seconds), which streams, and the reason."""
        self._clock = Clock(time.monotonic(), time.time())
        self._looked = False
        """At what earlier runs have left."""
        self.counts = MediaCounts()
        self._thread = NamedThread(self._run, "media")

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def lost(self, streams: Collection[str], reason: str) -> None:
        """The process that wrote the clips of these streams has died. Any thread."""
        self._lost.append((time.monotonic() + LINGER_S, frozenset(streams), reason))

    def close(self, timeout: float) -> bool:
        """Ends the thread; False if the disk holds it up for longer than `timeout` seconds."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        next_scan = time.monotonic() + FIRST_S
        while True:
            now = time.monotonic()
            trusted = self._clock.look(now, time.time(), self._limits.max_age_s)
            self._settle(now)
            try:
                if not self._looked:
                    self._looked = True
                    self._clock.newest = max((group.newest for group in self._groups(ages=False)), default=0.0)
                if self._unwritable():
                    next_scan = now  # once it can be written again
                elif (missing := self._missing()) or now >= next_scan:
                    next_scan = now + SCAN_S
                    self.keep(missing, ages=trusted)
            except OSError as error:
                self._fail(f"{reason_of(error)}: {error}")
            if self._stop.wait(min(LOOK_S, 0.2) if self._lost else LOOK_S):
                return

    def _unwritable(self) -> bool:
        """Whether nothing can be written: told at the start, not only when an event is lost."""
        problem = unwritable_folder(self._folder)
        if problem is not None:
            self._fail(problem, "clips and snapshots cannot be written")
        return problem is not None

    def _fail(self, problem: str, event: str = "the media folder cannot be kept within its limits") -> None:
        if not self.counts.problem:
            log.error(event, problem=problem)
        self.counts = self.counts._replace(problem=problem)

    # -------------------------------------------------------------------------------------------------- retention

    def _missing(self) -> int:
        """Bytes to free for the floor; 0 if enough is free or there is no folder."""
        try:
            found = os.statvfs(self._folder)
        except FileNotFoundError:
            return 0
        floor = self._limits.min_free_bytes
        free = found.f_bavail * found.f_frsize
        return floor - free + max(int(floor * MARGIN), LEAST_MARGIN) if free < floor else 0

    def keep(self, missing: int = 0, *, ages: bool = True) -> None:
        """Removes what is too much, the oldest first; never a file that is being written.

        Args:
            missing: bytes to free besides.
            ages: False while the clock cannot be trusted: then only sizes count.

        Raises:
            OSError: the folder cannot be read, or a file not removed.
        """
        groups = sorted(self._groups(ages=ages))
        total = sum(group.size for group in groups)
        files = sum(len(group.paths) for group in groups)
        too_much = max(total - self._limits.max_bytes, missing)
        oldest = time.time() - self._limits.max_age_s
        gone: list[Path] = []
        removed = 0
        try:
            for group in groups:
                if too_much <= 0 and not (ages and group.newest < oldest):
                    break
                for path in group.paths:
                    path.unlink(missing_ok=True)
                    gone.append(path)
                too_much -= group.size
                total -= group.size
                removed += 1
        finally:
            if gone:
                self._journal.forget_media([str(path) for path in gone])
                for folder in {path.parent for path in gone}:
                    with contextlib.suppress(OSError):
                        folder.rmdir()  # only if it is empty
                log.info("old media removed", files=len(gone), kept_mb=total >> 20)
        problem = ""
        if missing and too_much > 0:
            problem = f"disk_full: {self._folder}: less than media.min_free_gb is free, and no media are left to remove"
        was = self.counts
        self.counts = MediaCounts(total, files - len(gone), was.removed + removed, "")
        if problem:
            self.counts = self.counts._replace(problem=was.problem)
            self._fail(problem)

    def _groups(self, *, ages: bool) -> list[_Group]:
        """What is in the folder. A file whose time a wrong clock has set (in the future, or decades ago) counts as new;
        as soon as the clock can be trusted, it is given the time at which it was found."""
        found: dict[Path, _Group] = {}
        now = time.time()
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(path)
                    modified = status.st_mtime
                    if not stat.S_ISREG(status.st_mode):
                        continue
                    if name.endswith(PARTIAL) and (not ages or modified > now - STALE_S):
                        continue
                    if not plausible(modified, now):
                        modified = now
                        if ages:
                            os.utime(path)
                    key = Path(folder, _stem(name))
                    group = found.get(key, _Group(0.0, 0, []))
                    group.paths.append(path)
                    size = status.st_blocks * 512
                    found[key] = _Group(max(group.newest, modified), group.size + size, group.paths)
        return list(found.values())

    # -------------------------------------------------------------------------------------------- after a death

    def _settle(self, now: float) -> None:
        due = [each for each in self._lost if now >= each[0]]
        for each in due:
            try:
                pending = self._journal.pending_media()
            except SinkError:
                return  # the journal cannot be read now
            _, streams, reason = each
            for event_id, role, stream, path in pending:
                if streams is None or stream in streams:
                    for number, media in enumerate(_rest_of(Path(path), reason), 1):
                        self._journal.link(event_id, role if number == 1 else f"{role}_{number}", media)
            self._lost.remove(each)


def _rest_of(path: Path, reason: str) -> list[Media]:
    """What is left of a clip or snapshot whose process died: each of its files, complete or up to its last fragment."""
    stem = path.name.removesuffix(path.suffix)
    kept: list[Path] = []
    with contextlib.suppress(OSError):
        for left in path.parent.glob(f"{stem}.*{PARTIAL}"):
            whole = left.with_suffix("")
            video = whole.suffix in VIDEO
            if not video or not left.stat().st_size:
                if video == (path.suffix in VIDEO) or whole.suffix == ".json":
                    left.unlink()
            elif path.suffix in VIDEO:
                left.rename(whole.with_name(f"{whole.stem}{INCOMPLETE}{whole.suffix}"))
        if path.suffix in VIDEO:
            # Another event with the same clip may have been settled before.
            found = [each for each in path.parent.glob(f"{stem}.*") if each.suffix in VIDEO]
            kept = sorted(found, key=lambda each: (len(each.name), each.name))
    return [Media(str(each), "failed", reason) for each in kept or [path]]


def _stem(name: str) -> str:
    """What the files of one event have in common: see `files.stem_of`."""
    head, _, rest = name.partition(".")
    return f"{head}.{rest.partition('.')[0]}"
