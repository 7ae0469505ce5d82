"""All lines of a stream that use the same anchor, for all its tracks at once."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np

from streamd.analysis.rules.crossing import NEVER, Crossing, Passage, Position, Sights, cut
from streamd.analysis.rules.geometry import Array, Indices, Mask, as_rows
from streamd.analysis.rules.settings import LineSettings

X, Y, T, T2 = range(4)
PATH = 4
"""First columns of the state: the last anchor, its time and that of the previous one, in seconds; NEVER if there is
none. Then, for each line: signed pixels from it at the last anchor; the home side; above 0 if the track has been clear
of the line on that side."""


class Lines:
    """State and evidence of every track at every line. A slot is a track's row in `Tracks`.

    Args:
        settings: the lines.
        width: of the upright picture, in pixels.
        height: likewise.
        size: number of slots.
    """

    def __init__(self, settings: Sequence[LineSettings], width: int, height: int, size: int) -> None:
        self.settings = tuple(settings)
        count = len(self.settings)
        self.off, self.home, self.clear = (slice(PATH + k * count, PATH + (k + 1) * count) for k in range(3))
        """Columns of the state."""
        self.state: Array = np.zeros((size, PATH + 3 * count))
        self.state[:, T : T2 + 1] = NEVER
        self._items = as_rows(self.state)
        self.passages: dict[tuple[int, int], Passage] = {}
        self.bridges: dict[tuple[int, int], Passage] = {}
        """Passages between the last box of a lost track and the first of the one that continues it."""
        self.woke = NEVER
        """Time since which frames have arrived without a gap of more than a second, in seconds."""
        self.guessed: dict[int, float] = {}
        """Time since which a track continues one that may be a different object's."""
        self._own_since: dict[tuple[int, int], float] = {}
        """For tracks and lines with a bridge: earlier boxes are those of the lost track."""
        self._doubted: dict[tuple[int, int], Passage] = {}
        """For tracks and lines: the passage of the lost track that it may continue, which was observed but did not last
        for settle_s. If this one comes back, or is back, before then, there were two objects or nobody has crossed."""
        self._band = np.array([line.hysteresis for line in self.settings])
        self.scale(width, height)

    def scale(self, width: int, height: int) -> None:
        """Sets the size of the picture in pixels."""
        ends = np.array([line.points for line in self.settings], np.float64).reshape(-1, 2, 2) * (width, height)
        self._start, along = ends[:, 0], ends[:, 1] - ends[:, 0]
        length = np.sqrt((along**2).sum(axis=1))
        self._along = along / (length * length)[:, None]
        self._normals = np.stack((-along[:, 1], along[:, 0])) / length
        self._offsets = -(self._start * self._normals.T).sum(axis=1)

    def grow(self, size: int) -> None:
        """Makes room for more tracks."""
        more = np.zeros((size - len(self.state), self.state.shape[1]))
        more[:, T : T2 + 1] = NEVER
        self.state = np.concatenate((self.state, more))
        self._items = as_rows(self.state)

    def observe(
        self, t: float, slots: Sequence[int], index: Indices, anchor: Array, height: Array, sights: Sights
    ) -> list[Crossing]:
        """Processes the anchors of the tracks that were seen with a reliable one.

        Args:
            t: seconds.
            slots: (N,) slots of the tracks.
            index: the same as an array.
            anchor: (N, 2) pixels.
            height: (N,) heights of the boxes in pixels.
            sights: provides the `Sight` of box i, whether its track is confirmed, and which lines are active.

        Returns:
            Crossings that this frame has decided.
        """
        found: list[Crossing] = []
        state = self.state.take(index, axis=0)
        if self.settings:
            off = anchor @ self._normals
            off += self._offsets
            home = state[:, self.home]
            if np.count_nonzero(home) < home.size:
                home[:] = np.where(home == 0, np.sign(off), home)
            lean = off * home
            clear = state[:, self.clear]
            if np.count_nonzero(clear) < clear.size:
                clear += lean > height[:, None] * self._band
            beyond = lean < 0
            if self.bridges:
                found += self._bridges(t, slots, off, height, sights)
            if self.passages or np.count_nonzero(beyond):
                found += self._passages(t, slots, anchor, off, state, beyond, height, sights)
            state[:, self.off] = off
        state[:, T2] = state[:, T]
        state[:, T] = t
        state[:, : Y + 1] = anchor
        self._items[index] = as_rows(state)
        return found

    def _passages(
        self,
        t: float,
        slots: Sequence[int],
        anchor: Array,
        off: Array,
        state: Array,
        beyond: Mask,
        height: Array,
        sights: Sights,
    ) -> list[Crossing]:
        """Processes the frame for pending passages and those that start now.

        Args:
            off: (N, L) pixels from each line.
            state: rows of the state; path and pixels are still those of the previous frame, home sides may be changed.
            beyond: (N, L) True if a track is not on its home side.
            height: (N,) heights of the boxes in pixels.
        """
        found: list[Crossing] = []
        boxes, lines = beyond.nonzero()
        for i, line in zip(boxes.tolist(), lines.tolist(), strict=True):
            if (slots[i], line) not in self.passages:
                self.passages[slots[i], line] = self._begin(slots[i], line, state[i])
        seen = {slot: i for i, slot in enumerate(slots)}
        for key, passage in list(self.passages.items()):
            if (i := seen.get(key[0], -1)) < 0:
                continue
            line = key[1]
            then = state[i]
            x, y = anchor[i].tolist()
            last = Position(float(then[T]), float(then[X]), float(then[Y]), float(then[PATH + line]))
            now = Position(t, x, y, float(off[i, line]))
            self._advance(key, passage, last, now, float(height[i] * self._band[line]), state[i], sights, i, found)
        return found

    def _bridges(self, t: float, slots: Sequence[int], off: Array, height: Array, sights: Sights) -> list[Crossing]:
        """Processes the frame for passages from one track to another."""
        found: list[Crossing] = []
        seen = {slot: i for i, slot in enumerate(slots)}
        for key, bridge in list(self.bridges.items()):
            if (i := seen.get(key[0], -1)) < 0:
                continue
            beyond = float(off[i, key[1]]) * bridge.side
            if beyond < 0:
                # It is more likely that it came from the other side than that it turned just when it was lost.
                del self.bridges[key]
                continue
            if bridge.first is None:
                bridge.first = sights.sight(i)
            bridge.stay(t, bool(beyond > height[i] * self._band[key[1]]))
            if bridge.settled and sights.confirmed(i):
                self._cross(key, bridge, found, certain=bridge.evident)
                del self.bridges[key]
        return found

    def _begin(self, slot: int, line: int, row: Array) -> Passage:
        home = int(row[self.home][line])
        second = float(row[T2])
        if second < self._own_since.get((slot, line), NEVER):
            second = NEVER
        return Passage(
            home=home,
            home_clear=bool(row[self.clear][line]),
            home_last=float(row[T]),
            home_second=second,
            settle_s=self.settings[line].settle_s,
            guess=second < self.guessed.get(slot, NEVER),
            side=home,
        )

    def _advance(
        self,
        key: tuple[int, int],
        passage: Passage,
        before: Position,
        now: Position,
        band: float,
        row: Array,
        sights: Sights,
        i: int,
        found: list[Crossing],
    ) -> None:
        """Processes one box. `band` is the distance in pixels from which on it is clear of the line."""
        line, clear = key[1], abs(now.off) > band
        side = passage.side if now.off == 0 else 1 if now.off > 0 else -1
        if side != passage.side:
            cut_t, x, y = cut(before, now)
            within = self._within(line, x, y)
            if side == passage.home and passage.goes_back(cut_t):
                # Most likely it stayed for long enough to have crossed and came back, but this was not observed.
                self._decide(key, passage, row, found, confirmed=sights.confirmed(i), held=False)
                passage = self.passages[key] = Passage(
                    home=-side,
                    home_clear=passage.clear,
                    home_last=passage.last,
                    home_second=passage.second,
                    settle_s=passage.settle_s,
                    guess=True,
                    side=-side,
                )
            if side == passage.home:
                passage.come_back(cut_t, within)
            else:
                passage.active = sights.active[line]
                stood = abs(before.off) <= band
                passage.leave(cut_t, (x, y), within, before.t, now.t, sights.sight(i), stood=stood)
                passage.blind |= cut_t - passage.settle_s < self.woke
                doubted = self._doubted.pop(key, None)
                if doubted is not None and side == doubted.home and cut_t - doubted.held_from < doubted.settle_s:
                    passage.guess = doubted.guess = True
        if side == passage.home:
            passage.at_home(now.t, clear)
            if passage.over:
                del self.passages[key]
            return
        passage.stay(now.t, clear)
        if passage.settled and sights.confirmed(i):
            self._decide(key, passage, row, found, confirmed=True)

    def _within(self, line: int, x: float, y: float) -> bool:
        """Whether a point on the infinite line is between its ends."""
        (x0, y0), (along_x, along_y) = self._start[line], self._along[line]
        return bool(0 <= (x - x0) * along_x + (y - y0) * along_y <= 1)

    def _decide(
        self,
        key: tuple[int, int],
        passage: Passage,
        row: Array,
        found: list[Crossing],
        *,
        confirmed: bool,
        held: bool = True,
    ) -> None:
        """The track has crossed, or passed beyond the line's ends; either way, the other side is now its home side."""
        line = key[1]
        row[self.home][line] = -passage.home
        row[self.clear][line] = passage.clear
        self.passages.pop(key, None)
        if confirmed:
            self._cross(key, passage, found, certain=passage.evident and held)

    def _cross(self, key: tuple[int, int], passage: Passage, found: list[Crossing], *, certain: bool) -> None:
        if passage.through and passage.first is not None:
            t, at, first = passage.cut_t, passage.cut_at, passage.first
            found.append(Crossing(key[1], key[0], passage.home < 0, certain, passage.active, t, at, first))

    def finish(self, slot: int, *, confirmed: bool, watched_until: float) -> list[Crossing]:
        """A track has ended. Its pending passages are decided by what was seen.

        Args:
            slot: slot of the track.
            confirmed: whether it was confirmed.
            watched_until: time, in seconds, until which it would have been seen if it had been there.
        """
        found: list[Crossing] = []
        for key, passage in [(k, p) for k, p in self.passages.items() if k[0] == slot]:
            if passage.side == -passage.home and not passage.handed_on:
                held = watched_until - passage.held_from >= passage.settle_s
                self.bridges.pop(key, None)
                self._decide(key, passage, self.state[slot], found, confirmed=confirmed, held=held)
        for key, bridge in [(k, b) for k, b in self.bridges.items() if k[0] == slot]:
            if confirmed:
                held = watched_until - bridge.held_from >= bridge.settle_s
                self._cross(key, bridge, found, certain=bridge.evident and held)
        return found

    def forget(self, slot: int) -> None:
        """A slot is free, or its state is invalid: its track starts from zero."""
        self.state[slot] = 0
        self.state[slot, T : T2 + 1] = NEVER
        self.guessed.pop(slot, None)
        for kept in (self.passages, self.bridges, self._own_since, self._doubted):
            for key in [k for k in kept if k[0] == slot]:
                del kept[key]

    def inherit(
        self, slot: int, heir: int, anchor: tuple[float, float], height: float, t: float, *, sure: bool
    ) -> None:
        """A new track continues a lost one.

        Args:
            slot: slot of the lost track; its state is kept, since it may be seen again.
            heir: slot of the new track.
            anchor: anchor of its first box, in pixels.
            height: height of that box, in pixels.
            t: seconds.
            sure: False if it is a guess, which makes crossings that depend on it uncertain.
        """
        row = self.state[heir]
        row[:] = self.state[slot]
        if not sure or slot in self.guessed:
            self.guessed[heir] = t
        off = np.array(anchor) @ self._normals + self._offsets
        for line in range(len(self.settings)):
            passage = self.passages.get((slot, line))
            away = float(off[line] * row[self.home][line])
            if passage is not None and not passage.evident:
                passage.handed_on = True
                heirs = self.passages[heir, line] = copy(passage)
                heirs.handed_on = False
                heirs.guess |= not sure
            elif passage is not None:
                # It is known what the lost track did; the new one may be another object that comes the other way.
                passage.guess = bool(off[line] * passage.home > 0) and t - passage.held_from < passage.settle_s
                self._meet(heir, line, t, float(off[line]))
                self._doubted[heir, line] = passage
            elif away < -height * self._band[line]:
                bridge = self._begin(slot, line, row)
                before = Position(float(row[T]), float(row[X]), float(row[Y]), float(row[PATH + line]))
                cut_t, x, y = cut(before, Position(t, *anchor, float(off[line])))
                bridge.leave(cut_t, (x, y), self._within(line, x, y), before.t, t, None)
                bridge.guess |= not sure
                self.bridges[heir, line] = bridge
                self._meet(heir, line, t, float(off[line]))

    def _meet(self, slot: int, line: int, t: float, off: float) -> None:
        """Makes the side on which a track is its home side."""
        row = self.state[slot]
        self._own_since[slot, line] = t
        row[self.home][line] = np.sign(off)
        row[self.clear][line] = 0

    def disown(self, slot: int, heir: int, first: float) -> None:
        """The track that another one was assumed to continue was seen again.

        Args:
            slot: slot of the track.
            heir: slot of the other one, for which only its own boxes count from now on.
            first: when it was first seen, in seconds.
        """
        self.guessed.pop(heir, None)
        for (owner, _), passage in self.passages.items():
            if owner == slot:
                passage.handed_on = False
        for key in [k for k in self.bridges if k[0] == heir]:
            del self.bridges[key]
        for key in [k for k in self._doubted if k[0] == heir]:
            self._doubted.pop(key).guess = False
        kept = {}
        for key in [k for k in self.passages if k[0] == heir]:
            passage = self.passages.pop(key)
            if passage.home_second >= first:
                kept[key] = passage
        row = self.state[heir]
        own = np.sign(row[self.off])
        for (_, line), passage in kept.items():
            own[line] = passage.home
        row[self.clear] *= own == row[self.home]
        row[self.home] = own
        self.passages.update(kept)
        if row[T2] < first:
            row[T2] = NEVER

    def settle(self, slot: int, line: int) -> None:
        """The heir of a track has crossed a line: if the track is seen again, the crossing is not counted twice."""
        passage = self.passages.get((slot, line))
        if passage is not None and not passage.handed_on:
            return
        self.state[slot, self.home][line] = self.state[slot, self.clear][line] = 0
        self.passages.pop((slot, line), None)

    def take_over(self, old: Lines, column: int, of: int) -> None:
        """Adopts the state of line `of` from before a reload for `column`."""
        for new, was in ((self.off, old.off), (self.home, old.home), (self.clear, old.clear)):
            self.state[:, new][:, column] = old.state[:, was][:, of]
        for (slot, line), passage in old.passages.items():
            if line == of:
                self.passages[slot, column] = passage
        for (slot, line), passage in old.bridges.items():
            if line == of:
                self.bridges[slot, column] = passage
