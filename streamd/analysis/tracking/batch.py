"""The step that all kinds of trackers share: frames of many streams at once, as one set of arrays.

The tracks of a batch's streams are joined, processed, and split again. No operation mixes streams, so a frame's result
is the same in a batch and alone. A stream's state is replaced at the very end: if a step fails, nothing has changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from streamd.analysis.tracking.boxes import Boxes, boxes_of
from streamd.analysis.tracking.native import NativeStep
from streamd.analysis.tracking.observation import (
    EndedTrack,
    EndReason,
    Observation,
    ObservationBatch,
    Tracked,
    TrackedBatch,
)
from streamd.analysis.tracking.pairs import Indices
from streamd.analysis.tracking.tracks import (
    AGE,
    BOX,
    ID,
    LEADER,
    ONE,
    ROWS,
    SPEED,
    UNSEEN,
    WALL,
    ZERO,
    Matrix,
)
from streamd.analysis.tracking.votes import first_votes, vote

FRAME_S = 0.1
"""Longest time that one frame counts as observed: what happened between frames further apart was not seen."""


@dataclass(slots=True, frozen=True)
class Life:
    """How long tracks live, and which boxes start one."""

    birth: float
    """Lowest score of a track's first box."""
    certain: float
    """A first box of this score or above confirms its track at once."""
    lost_s: float
    """Observed seconds after which an unseen track ends."""
    wall_s: float
    """Seconds of elapsed time after which it ends, observed or not."""
    outage_s: float
    """A gap between two frames that ends all tracks."""
    most: int
    """Largest number of tracks per stream."""


class Dynamics(Protocol):
    """A tracker's motion model."""

    def advance(self, parts: Sequence[Matrix], passed: Sequence[float], observed: Sequence[float]) -> Matrix:
        """Joins the tracks (ROWS, T) of streams and advances each stream's in time, including their clocks.

        Args:
            parts: tracks of each stream; not modified.
            passed: seconds since each stream's last frame.
            observed: how many of these seconds count as observed.
        """
        ...

    def correct(self, tracks: Matrix, boxes: Matrix, score: Matrix) -> None:
        """Updates tracks (ROWS, T) in place with their boxes (4, T), which have scores (T,)."""
        ...

    def first(self, tracks: Matrix, boxes: Matrix, score: Matrix) -> None:
        """Sets the nonzero values of the first 14 rows of new tracks (ROWS, T)."""
        ...


class Tracker(ABC):
    """Assigns boxes the ids of the objects that they show. For one thread. The state is kept by the streams."""

    native: NativeStep | None = None
    """What takes the place of the steps in NumPy, where it was compiled."""

    def __init__(self, life: Life, motion: Dynamics) -> None:
        self._life = life
        self._motion = motion
        self._birth = np.array([life.birth])
        # A sum of intervals is exact to a microsecond at best: the tolerance of comparisons.
        self._limits = np.array([[life.lost_s + 1e-6], [life.wall_s + 1e-6]])

    @property
    @abstractmethod
    def low(self) -> float:
        """The lowest score that the tracker uses."""

    @abstractmethod
    def _associate(
        self, tracks: Matrix, counts: tuple[int, ...], stream: Indices | None, boxes: Boxes, passed: Sequence[float]
    ) -> tuple[Indices, Indices]:
        """Which tracks the boxes belong to: (M,) tracks in ascending order, (M,) boxes.

        `counts` says how many tracks each stream has, `stream` (T,) whose each is (None where there is one stream),
        `passed` how many seconds passed since each stream's last frame.
        May move `tracks` (ROWS, T).
        """

    @property
    def whole(self) -> NativeStep | None:
        """What may be called instead of `step`, with more to do at once; None where a kind has a step of its own."""
        return self.native if type(self).step is Tracker.step else None

    def step(self, observations: Sequence[Observation]) -> TrackedBatch:
        """Processes one frame for each observation.

        Frames of the same stream may be in one call, in the order of their capture. A stream on which the tracker fails
        loses its tracks (`Tracked.error`); the others are not affected."""
        if type(observations) is ObservationBatch:
            of = {id(frame[0]) for frame in observations.frames}
        else:
            of = {id(o.tracks) for o in observations}
        if len(of) == len(observations):
            return TrackedBatch.of(self._guarded(observations))
        out: list[Tracked | None] = [None] * len(observations)
        waves: list[list[int]] = []
        turn: dict[int, int] = {}
        for i, observation in enumerate(observations):
            at = turn.get(id(observation.tracks), 0)
            turn[id(observation.tracks)] = at + 1
            if at == len(waves):
                waves.append([])
            waves[at].append(i)
        for wave in waves:
            for i, tracked in zip(wave, self._guarded([observations[i] for i in wave]), strict=True):
                out[i] = tracked
        return TrackedBatch.of([tracked for tracked in out if tracked is not None])

    def _guarded(self, batch: Sequence[Observation]) -> Sequence[Tracked]:
        if not batch:
            return []
        try:
            return self._step(batch)
        except Exception as error:  # noqa: BLE001 — whatever failed, it costs a stream's tracks and never a frame
            if len(batch) > 1:
                return [self._guarded([observation])[0] for observation in batch]
            return [failed(batch[0], error)]

    def _step(self, batch: Sequence[Observation]) -> Sequence[Tracked]:
        if self.native is None:
            return self._in_numpy(batch)
        together = batch if type(batch) is ObservationBatch else ObservationBatch.of(batch)
        return self.native(together, lambda i, *_: self.alone(batch[i]))

    def alone(self, observation: Observation) -> Tracked:
        """One frame in NumPy, which raises nothing: the others of its batch have been processed, and are not to be
        repeated."""
        try:
            return self._in_numpy([observation])[0]
        except Exception as error:  # noqa: BLE001 — whatever failed, it costs a stream's tracks and never a frame
            return failed(observation, error)

    def _in_numpy(self, batch: Sequence[Observation]) -> list[Tracked]:
        batch = list(batch)
        ended: list[tuple[EndedTrack, ...]] = [()] * len(batch)
        parts, passed, observed = [], [], []
        for i, o in enumerate(batch):
            part, dt, reason = o.tracks.matrix, _interval(o), self._break(o)
            if reason is not None:
                ended[i] = _ends(part, reason, dt)
                part, dt = part[:, :0], 0.0
            parts.append(part)
            passed.append(dt)
            observed.append(min(dt / (1 + max(o.missed, 0)), FRAME_S))
        return self._joined(batch, parts, passed, observed, ended)

    def _joined(
        self, batch: Sequence[Observation], parts: Sequence[Matrix], passed: Sequence[float], observed: Sequence[float],
        ended: list[tuple[EndedTrack, ...]],
    ) -> list[Tracked]:  # fmt: skip
        """The step in NumPy.

        Args:
            batch: the frames; their state is replaced at the end.
            parts: of each stream its tracks, (ROWS, T).
            passed: seconds since its last frame.
            observed: how many of them count as observed.
            ended: its tracks that ended before the frame.
        """
        counts = tuple([part.shape[1] for part in parts])
        tracks, boxes = self._motion.advance(parts, passed, observed), boxes_of(batch)
        n_tracks, n_boxes = tracks.shape[1], len(boxes.score)
        # The stream of each track and box; not needed with one stream.
        stream = frame = None
        if len(batch) > 1:
            streams = np.arange(len(batch))
            stream, frame = streams.repeat(counts), streams.repeat(boxes.counts)
        of_box = np.empty(n_boxes, np.intp)
        of_box.fill(-1)
        if n_tracks and n_boxes:
            known, seen = self._associate(tracks, counts, stream, boxes, passed)
            if len(known):
                of_box[seen] = known
                self._take_in(batch, tracks, stream, known, boxes, seen)
        fresh = ((of_box < _FIRST) & (boxes.score >= self._birth)).nonzero()[0]
        if len(fresh):
            of_box[fresh] = np.arange(n_tracks, n_tracks + len(fresh))
            tracks = np.concatenate((tracks, self._born(batch, frame, boxes, fresh)), axis=1)
            if stream is not None and frame is not None:
                stream = np.concatenate((stream, frame[fresh]))
        results = _results(batch, tracks, of_box, boxes)
        self._commit(batch, tracks, stream, counts, passed, ended)
        for result, gone in zip(results, ended, strict=True):
            result.ended = gone
        return results

    def _break(self, o: Observation) -> EndReason | None:
        """Why the previous tracks end with this frame, if they do."""
        tracks = o.tracks
        if tracks.time_ns is None:
            return None
        if o.begin is not None:
            return o.begin
        if (o.width, o.height) != tracks.size:
            return "size"
        if o.roi != tracks.roi:
            return "crop"
        return "lost: outage" if o.time_ns - tracks.time_ns > self._life.outage_s * 1e9 else None

    def _take_in(
        self, batch: Sequence[Observation], tracks: Matrix, stream: Indices | None, known: Indices, boxes: Boxes,
        seen: Indices,
    ) -> None:  # fmt: skip
        """Updates tracks `known` with boxes `seen`: state, votes, clocks, and an id for tracks that this confirms."""
        # All tracks were seen, as in most frames: nothing to select and write back.
        whole = len(known) == tracks.shape[1]
        matched, score = tracks if whole else tracks.take(known, axis=1), boxes.score[seen]
        self._motion.correct(matched, boxes.place.take(seen, axis=1), score)
        matched[UNSEEN:ONE] = 0.0
        vote(matched, boxes.class_id[seen], score)
        new = (matched[ID] == ZERO).nonzero()[0]
        if len(new):
            of = None if stream is None else stream[known[new]]
            matched[ID, new] = _numbers(batch, of, matched[:, new])
        if not whole:
            tracks[:, known] = matched

    def _born(self, batch: Sequence[Observation], frame: Indices | None, boxes: Boxes, fresh: Indices) -> Matrix:
        """Creates tracks from boxes `fresh`."""
        born = np.zeros((ROWS, len(fresh)))
        born[ONE] = 1.0
        score, class_id = boxes.score[fresh], boxes.class_id[fresh]
        self._motion.first(born, boxes.place.take(fresh, axis=1), score)
        first_votes(born, class_id, score)
        certain = (score >= self._life.certain).nonzero()[0]
        # An unconfirmed track ends with the next frame that does not confirm it.
        born[UNSEEN] = self._life.lost_s
        if len(certain):
            born[UNSEEN, certain] = 0.0
            of = None if frame is None else frame[fresh[certain]]
            born[ID, certain] = _numbers(batch, of, born[:, certain])
        return born

    def _commit(
        self, batch: Sequence[Observation], tracks: Matrix, stream: Indices | None, before: tuple[int, ...],
        passed: Sequence[float], ended: list[tuple[EndedTrack, ...]],
    ) -> None:  # fmt: skip
        """Removes tracks that have ended, and returns each stream its tracks."""
        life = self._life
        late, too_late = tracks[UNSEEN:ONE] > self._limits
        dead = late | too_late
        counts = before if stream is None else np.bincount(stream, minlength=len(batch)).tolist()
        if tracks.shape[1] > life.most:
            dead |= self._too_many(tracks, stream, len(batch))
        grown = tracks.shape[1] > sum(before)
        if np.count_nonzero(dead):
            gone = (dead & (tracks[ID] > 0)).nonzero()[0]
            for i, column in zip([0] * len(gone) if stream is None else stream[gone].tolist(), gone, strict=True):
                ended[i] += _ends(tracks[:, column, None], "lost")
            order = (~dead).nonzero()[0]
        else:
            order = np.arange(tracks.shape[1]) if grown and stream is not None else None
        if order is not None:
            if stream is not None:
                whose = stream[order]
                counts = np.bincount(whose, minlength=len(batch)).tolist()
                order = order[whose.argsort(kind="stable")]
            tracks = tracks.take(order, axis=1)
        at = 0
        for o, n, dt in zip(batch, counts, passed, strict=True):
            o.tracks.matrix = tracks if stream is None else tracks[:, at : at + n]
            o.tracks.remember(o.time_ns, o.width, o.height, o.roi, dt)
            at += n

    def _too_many(self, tracks: Matrix, stream: Indices | None, streams: int) -> np.ndarray:
        """Tracks beyond a stream's limit: unconfirmed ones first, then those unseen for longest."""
        dead = np.zeros(tracks.shape[1], bool)
        for i in range(streams):
            own = np.arange(tracks.shape[1]) if stream is None else np.flatnonzero(stream == i)
            if len(own) > self._life.most:
                rank = np.lexsort((tracks[ID, own], -tracks[WALL, own], tracks[ID, own] > 0))
                dead[own[rank[: len(own) - self._life.most]]] = True
        return dead


_FIRST = np.zeros(1, np.intp)


def failed(o: Observation, error: Exception) -> Tracked:
    """Ends the tracks of a stream on which the tracker failed."""
    ended = _ends(o.tracks.matrix, "failed")
    o.tracks.forget()
    return Tracked.nothing(o.class_id, ended, error)


def _interval(o: Observation) -> float:
    """Seconds since the stream's previous frame. If the clock steps back, the previous interval is used."""
    tracks = o.tracks
    time_ns = tracks.time_ns
    if time_ns is None:
        return 0.0
    dt = (o.time_ns - time_ns) / 1e9
    return dt if dt >= 0 else tracks.step_s


def _numbers(batch: Sequence[Observation], of: Indices | None, tracks: Matrix) -> Matrix:
    """An id for each of the tracks, from its stream's counter, in an order that does not depend on the boxes'."""
    order = np.lexsort(tracks[BOX]).tolist()
    ids = np.empty(len(order))
    for i in order:
        ids[i] = next(batch[0 if of is None else int(of[i])].tracks.ids)
    return ids


def _ends(tracks: Matrix, reason: EndReason, passed: float = 0.0) -> tuple[EndedTrack, ...]:
    """The confirmed ones of `tracks` as ended, `passed` seconds after the state's time."""
    return tuple(
        EndedTrack(int(t[ID]), reason, int(t[LEADER]), float(t[AGE] - t[UNSEEN]), float(t[WALL]) + max(passed, 0.0))
        for t in tracks.T
        if t[ID] > 0
    )


def _results(batch: Sequence[Observation], tracks: Matrix, of_box: Indices, boxes: Boxes) -> list[Tracked]:
    """The results for each frame's boxes, without the tracks that ended."""
    if not len(of_box) or not tracks.shape[1]:
        return [Tracked.nothing(o.class_id) for o in batch]
    facts, speed = tracks[AGE : LEADER + 1].take(of_box, axis=1), tracks[SPEED].take(of_box, axis=1)
    without = (of_box < _FIRST).nonzero()[0]
    if len(without):
        facts[:2, without] = 0.0
        facts[2, without] = boxes.class_id[without]
        speed[:, without] = 0.0
    age, ids, class_id = facts[0], facts[1].astype(np.int64), facts[2].astype(np.int32)
    velocity = speed[:2].T
    if len(batch) == 1:
        return [Tracked(ids, age, velocity, class_id)]
    out, at = [], 0
    for n in boxes.counts:
        cut = slice(at, at + n)
        out.append(Tracked(ids[cut], age[cut], velocity[cut], class_id[cut]))
        at += n
    return out
