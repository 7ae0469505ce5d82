"""Whether the network looks at a frame, and what it finds there."""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np
import numpy.typing as npt

from streamd.analysis.glance import COLUMNS, ROWS, Glance
from streamd.analysis.glance.answer import FASTEST, SPEED, Answer, Strayed
from streamd.analysis.glance.cells import Cells
from streamd.analysis.glance.motion import Motion, Seen
from streamd.analysis.glance.motion_native import warm
from streamd.analysis.glance.moved import Moved
from streamd.analysis.glance.places import Shape, cells_of, ignored_cells
from streamd.analysis.glance.settings import LookSettings
from streamd.types import Box, Frame, Look, Tracks, Why

MOVING: frozenset[Why] = frozenset({"motion", "light", "tracks"})
"""Reasons for which a frame goes before others when there are more than the network can take."""
ANSWERS = 8
"""Answers of the network that may wait; of more, the oldest are of no use any more."""
FRESH_NS = 500_000_000
"""What the network found so long ago says nothing of what moves now."""
RETRY_NS = 1_000_000_000
"""Least time between two looks for an object that the last look did not find: boxes may flicker all the time."""
CALM = 2
"""So many looks that find all standing, one after the other, end `hold_s`. Each further one doubles the time to the
next."""
JITTER_NS = 2_000_000
"""By which a frame may come too early for a rate."""
JUMP_NS = 60_000_000_000
"""A longer step of a file's media clock is a jump."""
HEAT_S = 60.0
"""Time constant of the map of where it moves."""
_EVERYWHERE = np.ones((ROWS, COLUMNS), np.bool_)
_EVERYWHERE.setflags(write=False)


class Gate:
    """Decides for each frame of one stream. `decide` is for the thread of its source, `answer` for any other one.

    Args:
        settings: when to look.
        crop: the part of the upright picture that the network sees, in pixels; None for all of it.
        live: the sender sets the pace. Of a file, only the media clock counts, however fast it is read.
    """

    def __init__(self, settings: LookSettings, crop: Box | None = None, *, live: bool = True) -> None:
        self._settings, self._crop, self._live = settings, crop, live
        self._now_ns = self._frame_ns = 0
        self._before: tuple[int, int | None] = (0, None)
        """Capture and time stamp of the last frame."""
        self._motion: Motion | None = None
        self._shape: Shape | None = None
        self._answers: deque[Answer] = deque(maxlen=ANSWERS)
        self._known: Answer | None = None
        """The last one."""
        self._missing: set[int] = set()
        """Tracks that were not found again, and have been looked for."""
        self._retry, self._retried_ns = False, -(10**15)
        """The next frame is to be looked at for an object that was not found; and when one was so the last time."""
        self._skipped = True
        """The last frame was not looked at."""
        self._seen: Seen | None = None
        """The picture of the last frame that was looked at; None if it could not be read."""
        self._appeared = True
        """That look shows something that the one before did not show there or close by, and that is not in the path of
        a track: a track is confirmed by its second box, so another look is due."""
        self._strayed: Cells | None = None
        """Cells that strayed in pictures since that look in which something may have moved; None if there were none."""
        self._certain = False
        """The last answer tells where everything is for a while: all its boxes have tracks, the same as those of the
        one before, and none can be taken for another."""
        self._calm = 0
        """Answers since something moved that found no track that moves, and none that is new."""
        self._looked_ns = self._moved_ns = self._found_ns = -(10**15)
        """When it last looked, when something last moved, and when something last moved where the network found it."""
        self._owed = True
        """The next frame is to be looked at, whatever it shows."""
        self._epoch = -1
        self.looks: Counter[str] = Counter()
        """Frames that were, by reason."""
        self.heat = np.zeros((ROWS, COLUMNS), np.float32)
        """How often each cell strays lately, 0 to 1. Changed in place by the source's thread."""
        self._heat_ns = 0
        self._upright: npt.NDArray[np.generic] | None = None
        """A view of it as the picture is to be seen."""
        self.last: Moved | None = None
        self.glance: Glance | None = None

    @property
    def sensitivity(self) -> float | None:
        """See `LookSettings.sensitivity`; None before the first frame."""
        return None if self._motion is None else self._motion.sensitivity

    @property
    def learning(self) -> bool:
        """Whether the noise of the picture is not known yet."""
        return self._motion is None or self._motion.learning

    def decide(self, frame: Frame, glance: Glance | None) -> Moved | None:
        """Sets `frame.view`.

        Args:
            frame: the next one of the stream, with its numbers.
            glance: its small picture; None where it cannot be read, and is looked at.
        """
        moved: Moved | None = None
        now = self._time(frame)
        if glance is None:
            wanted, why = True, "unreadable"  # type: tuple[bool, Why]
        else:
            motion = self._prepared(glance, frame)
            self._learn(motion)
            moved = motion.step(glance, now)
            wanted, why = self._judge(moved, now, motion, glance)
            self._warm(moved, now)
        self.last, self.glance = moved, glance
        frame.view = Look(wanted, why, moved, now, self._upright)
        if moved is None or moved.light:
            self._strayed = _EVERYWHERE
        elif moved.faint:
            self._strayed = moved.cells if self._strayed is None else self._strayed | moved.cells
        if wanted:
            self.looks[why] += 1
            before_ns, self._looked_ns, self._owed, self._retry = self._looked_ns, now, False, False
            frame.view.strayed, self._strayed = Strayed(before_ns, self._strayed), None
            self._see(glance, moved, now)
        self._skipped = not wanted
        return moved

    def _see(self, glance: Glance | None, moved: Moved | None, now: int) -> None:
        """Remembers what a look shows."""
        before, self._seen = self._seen, None
        if glance is None or moved is None or self._motion is None:
            return
        self._seen = Seen(glance.luma, moved.cells)
        if before is None or moved.light:
            self._appeared = True
        else:
            self._appeared = moved.faint and self._motion.beyond(moved, before, self._paths(now))

    def _time(self, frame: Frame) -> int:
        """Nanoseconds on the clock of this gate."""
        captured_ns, pts_ns = self._before
        passed = frame.captured_ns - captured_ns
        if not self._live and frame.pts_ns is not None and pts_ns is not None:
            media = frame.pts_ns - pts_ns
            if 0 < media < JUMP_NS:
                passed = media
        self._before = frame.captured_ns, frame.pts_ns
        self._frame_ns = max(passed, 1)
        self._now_ns += self._frame_ns
        return self._now_ns

    def _prepared(self, glance: Glance, frame: Frame) -> Motion:
        shape = (frame.width, frame.height, glance.rotation, glance.mirrored)
        if self._motion is None or shape != self._shape:
            self._shape = shape
            self.heat[:] = 0
            self._upright = glance.upright(self.heat)
            sensitivity = self._settings.sensitivity
            ignored = ignored_cells(self._settings.masks, self._crop, shape)
            self._motion = Motion(ignored, None if sensitivity == "auto" else sensitivity)
        elif frame.epoch != self._epoch or frame.begins:
            self._motion.reset()
        self._epoch = frame.epoch
        return self._motion

    def _learn(self, motion: Motion) -> None:
        while self._answers:
            before, known = self._known, self._answers.popleft()
            self._known, shape = known, self._shape
            assert shape is not None
            if before is not None:
                known.since(before, shape)
                missing = before.numbers.keys() - known.numbers.keys()
                fresh = known.numbers.keys() - before.numbers.keys()
                if not missing <= self._missing and self._now_ns - self._retried_ns > RETRY_NS:
                    self._retry, self._retried_ns = True, self._now_ns
                self._missing = (self._missing | missing) - known.numbers.keys()
                self._certain = not missing and not fresh and len(known.numbers) == len(known.boxes) and known.clear
                after_ns = known.look.at_ns - self._moved_ns
                if after_ns > 0 or (after_ns == 0 and known.look.why == "light"):
                    # What is only found now where nothing has moved is no news.
                    came = any(known.moved(known.numbers[number], before, shape) for number in fresh)
                    self._calm = 0 if came or known.moving or known.look.why == "learning" else self._calm + 1
            moved = known.look.moved
            if isinstance(moved, Moved):
                boxes = cells_of(known.boxes, shape)
                moving = known.boxes[known.speed > SPEED] if known.speed is not None else None
                moves = boxes if moving is None else cells_of(moving, shape)
                if moved.moving and moves.flat[moved.place]:
                    self._found_ns = max(self._found_ns, known.look.at_ns)
                motion.answer(moved, boxes, None if moving is None else moves)
                if self.glance is not None:
                    motion.absorb(self.glance, moved)

    def _judge(self, moved: Moved, now: int, motion: Motion, glance: Glance) -> tuple[bool, Why]:
        """Whether to look, and why."""
        settings = self._settings
        passed = now - self._looked_ns
        if motion.learning:
            return True, "learning"
        rare = passed >= 1e9 / settings.min_fps - JITTER_NS
        moving, faint = self._news(moved, passed, motion, glance)
        if moving:
            begins = now - self._moved_ns > settings.hold_s * 1e9
            self._moved_ns, self._calm = now, 0
            if moved.light:
                self._found_ns = now
            if not (begins or moved.light or self._skipped or self._owed) and self._followed(moved, now, motion):
                return False, "followed"
            if begins or settings.max_fps is None or passed >= 1e9 / settings.max_fps - JITTER_NS:
                return True, "light" if moved.light else "motion"
            return False, "rate"
        if self._known is not None and self._known.moving and not moved.shaken and (faint or rare):
            if not (self._skipped or self._owed or rare) and self._followed(moved, now, motion):
                return False, "followed"
            if settings.max_fps is None or passed >= 1e9 / settings.max_fps - JITTER_NS:
                return True, "tracks"
        if rare and faint and not moved.shaken:
            return True, "faint"
        if rare and self._calm < CALM and now - self._found_ns <= settings.hold_s * 1e9:
            return True, "hold"
        if self._retry:
            return True, "tracks"
        due = self._owed or passed >= self._longest_s * 1e9 - JITTER_NS
        return (True, "interval") if due else (False, "still")

    def _news(self, moved: Moved, passed: int, motion: Motion, glance: Glance) -> tuple[bool, bool]:
        """Whether something moves, or may, that the last look, `passed` nanoseconds ago, has not shown as it is now."""
        if not moved.faint or moved.light:
            return moved.moving, moved.faint
        if not moved.moving and motion.cluttered:
            return False, False  # a drop
        if moved.shaken or self._owed or self._seen is None or self._appeared or passed > FRESH_NS:
            return moved.moving, moved.faint
        # What has just stopped strays for a while, and what goes slowly may have gone too little to be seen elsewhere.
        change = motion.changed(glance.luma, moved, self._seen)
        return moved.moving and change >= moved.threshold, change >= moved.threshold / 2

    @property
    def _longest_s(self) -> float:
        """The longest time between two looks at present."""
        least, most = self._settings.at_least_every_s, self._settings.relax_to_s
        return max(least, min(least * 2.0 ** max(min(self._calm, 30) - CALM, 0), most))

    def _followed(self, moved: Moved, now: int, motion: Motion) -> bool:
        """Whether all that moves goes on from what the network has just seen, so that it may pass over this one frame:
        few tracks, all known for longer than one answer, apart and slow, and nothing moves elsewhere."""
        if not self._settings.skip_followed or self._seen is None or self._appeared or moved.shaken:
            return False
        paths = self._paths(now)
        return paths is not None and (not moved.share or not motion.beyond(moved, None, paths))

    def _paths(self, now: int) -> Cells | None:
        """Cells in which tracked objects are now; None if that is not certain."""
        known, shape = self._known, self._shape
        if known is None or shape is None or not self._certain:
            return None
        passed = now - known.look.at_ns
        if passed > FRESH_NS or known.fastest * 2 * self._frame_ns / 1e9 > FASTEST:
            return None
        return cells_of(known.swept(passed / 1e9), shape)

    def _warm(self, moved: Moved, now: int) -> None:
        """Ten times a second are enough for people."""
        passed = (now - self._heat_ns) / 1e9
        if passed < 0.1:
            return
        self._heat_ns = now
        warm(self.heat, moved.cells, 1 - math.exp(-min(passed, HEAT_S) / HEAT_S))

    def yielded(self) -> None:
        """A frame that was to be looked at was not, because others went first. Any thread."""
        self._owed = True

    def answer(self, look: Look, boxes: npt.NDArray[np.float32], tracks: Tracks | None) -> None:
        """What the network found in a frame. Any thread; returns at once.

        Args:
            look: the frame's `view`.
            boxes: (N, 4) corners in upright pixels.
            tracks: those of the boxes; None without tracking.
        """
        if tracks is None:
            self._answers.append(Answer(look, boxes, None, None, {}))
            return
        speed = (np.abs(tracks.velocity) / np.maximum(boxes[:, 2:] - boxes[:, :2], 1)).max(axis=1)
        numbers = {number: i for i, number in enumerate(tracks.number.tolist()) if number}
        self._answers.append(Answer(look, boxes, tracks.velocity, speed, numbers))
