"""What looking at every frame finds on a clip, and how much of that it finds again.

A tracker in a crowd decides by a hair: run it again with a little noise in the picture, or without one frame in fifty,
and some tracks swap, so that other tracks cross other lines. What it does not find again by itself is no truth to
measure another way of looking by. So the clip is run several times, each time with a disturbance of its own from a
seed: `stable` is what the undisturbed run found and all the others, too. Nothing of this knows of the gate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from compare_detections import overlaps

SAME_S, SAME_IOU = 0.5, 0.5
"""Two runs' events of the same rule, label and direction are the same within so many seconds, boxes if they overlap so
much. In docs/glance.md: how far apart they are."""
SHORTEST_S = 0.5
"""Tracks that last for a shorter time do not count."""
KEPT = 0.8
"""A track is found again if one track of the other run covers so much of it, in the frames that both have looked at."""
Happened = tuple[str, str, int]
"""Rule and what happened, label, number of the frame."""
Track = dict[int, npt.NDArray[np.float32]]
"""Its box in each frame."""
Counts = Callable[[int], bool]
"""Whether what happens in a frame counts."""


@dataclass(slots=True)
class Run:
    """What one way of looking found."""

    events: list[Happened] = field(default_factory=list)
    tracks: dict[int, Track] = field(default_factory=dict)
    looked: list[bool] = field(default_factory=list)
    boxes: list[npt.NDArray[np.float32]] = field(default_factory=list)
    """(N, 4) published, or those of the last look."""
    why: list[str] = field(default_factory=list)
    """Of each frame, why it was looked at, or not."""


@dataclass(slots=True)
class Found:
    """How many of some events or tracks are there in another run."""

    of: int
    found: int
    soon: int
    """Of these, at most one frame later."""

    def __str__(self) -> str:
        low, high = interval(self.soon, self.of)
        share = 100 * self.soon / max(self.of, 1)
        return (
            f"{self.soon} of {self.of} ({share:.1f} %, {100 * low:.1f} to {100 * high:.1f}; {self.found} at any time)"
        )


@dataclass(slots=True)
class Truth:
    """What looking always finds.

    `rate`: frames a second. `always`: the undisturbed run. `again`: the disturbed ones. `events`: indices of the stable
    ones of its events, `tracks`: numbers of the stable ones of its tracks, among those that count."""

    rate: float
    always: Run
    again: list[Run]
    counts: Counts
    events: list[int] = field(default_factory=list)
    tracks: list[int] = field(default_factory=list)
    events_again: list[dict[int, int]] = field(default_factory=list)
    """Of each disturbed run: which events it has found, and how many frames later."""
    tracks_again: list[dict[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        mine, lasting = self.wanted, self.lasting
        self.events_again = [delays(self.always.events, run.events, self.rate) for run in self.again]
        self.tracks_again = [self._kept(lasting, run) for run in self.again]
        self.events = [i for i in mine if all(i in each for each in self.events_again)]
        self.tracks = [n for n in lasting if all(n in each for each in self.tracks_again)]

    @property
    def wanted(self) -> list[int]:
        """Indices of all events that count."""
        return [i for i, event in enumerate(self.always.events) if self.counts(event[2])]

    @property
    def lasting(self) -> dict[int, Track]:
        """All tracks that are there for long enough while it counts, each without the rest of it."""
        least = SHORTEST_S * self.rate
        there = {n: {s: box for s, box in t.items() if self.counts(s)} for n, t in self.always.tracks.items()}
        return {n: t for n, t in there.items() if t and max(t) - min(t) >= least}

    def _kept(self, tracks: dict[int, Track], run: Run) -> dict[int, int]:
        """See `kept`; a track that was there before it counted cannot come late."""
        found = kept(tracks, run)
        return {n: late if min(self.always.tracks[n]) == min(tracks[n]) else 0 for n, late in found.items()}

    def chance(self) -> tuple[Found, Found]:
        """Events and tracks that are stable in all runs but one, and how many are there in that one; over all of them.
        So many would be found of what is stable by a way of looking that misses nothing."""
        out = []
        for again, all_of in ((self.events_again, self.wanted), (self.tracks_again, list(self.lasting))):
            of, found, soon = 0, 0, 0
            for i, one in enumerate(again):
                rest = [*again[:i], *again[i + 1 :]]
                stable = [each for each in all_of if all(each in other for other in rest)]
                of += len(stable)
                found += sum(each in one for each in stable)
                soon += sum(one.get(each, 2) <= 1 for each in stable)
            out.append(Found(of, found, soon))
        return out[0], out[1]

    def measure(self, run: Run) -> tuple[Found, Found, list[Happened]]:
        """Stable events and stable tracks that are there in a run, and the events that are not, or later."""
        events = delays(self.always.events, run.events, self.rate)
        lasting = self.lasting
        tracks = self._kept({n: lasting[n] for n in self.tracks}, run)
        missing = [self.always.events[i] for i in self.events if events.get(i, 2) > 1]
        return _found(self.events, events), _found(self.tracks, tracks), missing


def _found(wanted: Sequence[int], delay: dict[int, int]) -> Found:
    return Found(len(wanted), sum(i in delay for i in wanted), sum(delay.get(i, 2) <= 1 for i in wanted))


def merged(parts: Sequence[Found]) -> Found:
    """All of them together."""
    return Found(sum(p.of for p in parts), sum(p.found for p in parts), sum(p.soon for p in parts))


def partners(wanted: Sequence[Happened], events: Sequence[Happened], rate: float) -> dict[int, int]:
    """Which of some events each of the wanted ones is, by their places."""
    # The nearest pairs first, so that one that is missing does not take the next one's.
    pairs = sorted(
        (abs(theirs[2] - mine[2]), i, j)
        for i, mine in enumerate(wanted)
        for j, theirs in enumerate(events)
        if theirs[:2] == mine[:2] and abs(theirs[2] - mine[2]) <= SAME_S * rate
    )
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for _, i, j in pairs:
        if i not in partner and j not in taken:
            partner[i] = j
            taken.add(j)
    return partner


def delays(wanted: Sequence[Happened], events: Sequence[Happened], rate: float) -> dict[int, int]:
    """Of those of the wanted events that are there, by their places: how many frames later."""
    return {i: events[j][2] - wanted[i][2] for i, j in partners(wanted, events, rate).items()}


def kept(tracks: dict[int, Track], run: Run) -> dict[int, int]:
    """Of those of the tracks that are found again in a run: how many frames later."""
    of_frame: dict[int, list[tuple[int, npt.NDArray[np.float32]]]] = {}
    for number, track in run.tracks.items():
        for seq, box in track.items():
            of_frame.setdefault(seq, []).append((number, box))
    out: dict[int, int] = {}
    for number, track in tracks.items():
        both = [seq for seq in sorted(track) if seq < len(run.looked) and run.looked[seq]]
        covered: Counter[int] = Counter()
        first: dict[int, int] = {}
        for seq in both:
            theirs = of_frame.get(seq, [])
            if not theirs:
                continue
            share = overlaps(track[seq][None].astype(float), np.array([box for _, box in theirs], float))[0]
            for (other, _), overlap in zip(theirs, share.tolist(), strict=True):
                if overlap >= SAME_IOU:
                    covered[other] += 1
                    first.setdefault(other, seq)
        for other, n in covered.most_common(1):
            if n >= KEPT * len(both):
                out[number] = first[other] - min(track)
    return out


def interval(found: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not of:
        return 0.0, 1.0
    z, share = 1.96, found / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def hota(always: Run, other: Run) -> float:
    """HOTA of a run's tracks with those of looking always as the truth, in the frames that both looked at, 0 to 100.
    Needs `trackers` (of the `dev` extra)."""
    from trackers.eval import compute_hota_metrics

    ids: list[list[npt.NDArray[np.int64]]] = [[], []]
    shares: list[npt.NDArray[np.float64]] = []
    by_frame = [_by_frame(always), _by_frame(other)]
    renumbered = [{n: i for i, n in enumerate(run.tracks)} for run in (always, other)]
    for seq, looked in enumerate(other.looked):
        if not (looked and always.looked[seq]):
            continue
        boxes = []
        for which in (0, 1):
            here = by_frame[which].get(seq, {})
            ids[which].append(np.array([renumbered[which][n] for n in here], np.int64))
            boxes.append(np.array([*here.values()], float).reshape(-1, 4))
        shares.append(overlaps(boxes[0], boxes[1]))
    for which in (0, 1):  # the evaluator wants them without gaps
        values = np.unique(np.concatenate(ids[which])) if ids[which] else np.empty(0)
        ids[which] = [np.searchsorted(values, part) for part in ids[which]]
    if not any(map(len, ids[0])) or not any(map(len, ids[1])):
        return 100.0 if not any(map(len, ids[0])) and not any(map(len, ids[1])) else 0.0
    return 100 * float(compute_hota_metrics(ids[0], ids[1], shares)["HOTA"])


def _by_frame(run: Run) -> dict[int, dict[int, npt.NDArray[np.float32]]]:
    out: dict[int, dict[int, npt.NDArray[np.float32]]] = {}
    for number, track in run.tracks.items():
        for seq, box in track.items():
            out.setdefault(seq, {})[number] = box
    return out
