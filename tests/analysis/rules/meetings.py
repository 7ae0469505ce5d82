"""Two people meet at a line and pass each other, or turn back: what the tracker and the rules make of it.

Where boxes overlap, a detector leaves out the weaker one. Both courses look alike for a moment: the boxes tell neither
who is who afterwards.

usage: python -m tests.analysis.rules.meetings [--pairs 300] [--seed 5]
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streamd.analysis.rules import TrackedFrame
from streamd.analysis.rules.engine import RuleEngine
from streamd.analysis.rules.geometry import iou
from streamd.analysis.rules.settings import LineSettings
from streamd.analysis.tracking import Observation, StreamTracks
from streamd.analysis.tracking.bytetrack import ByteTrack, ByteTrackSettings

WIDTH, HEIGHT, FPS, SECONDS = 1280, 720, 15, 6
LINE = LineSettings(name="line", points=((0.5, 0.0), (0.5, 1.0)))
SUPPRESSED = 0.45
"""From this overlap on, the weaker of two boxes is left out."""


class Outcome(NamedTuple):
    """What was made of one pair."""

    exchanged: bool
    """Each has the other's id at the end."""
    certain: tuple[int, int]
    """Crossings in both directions."""
    uncertain: tuple[int, int]


def meet(rng: np.random.Generator, *, turn: bool) -> Outcome:
    """One pair of people, of random sizes and speeds, at up to 0.3 heights from the line."""
    tracker, state, numbers = ByteTrack(ByteTrackSettings()), StreamTracks(), itertools.count()
    rules = RuleEngine([], [LINE], ("person",), lambda: str(next(numbers)), 0)
    scale = rng.uniform(80, 200)
    height = scale * np.array([1.0, rng.uniform(0.85, 1.15)])
    speed = rng.uniform(0.4, 1.2, 2) * scale * (1, -1)
    y, where = HEIGHT / 2 + rng.uniform(-0.25, 0.25, 2) * scale, WIDTH / 2 + rng.uniform(-0.3, 0.3) * scale
    half = np.stack((height * 0.2, height * 0.5), axis=1)
    owners: list[dict[int, int]] = []
    for i in range(SECONDS * FPS):
        t = i / FPS - SECONDS / 2
        x = where + speed * (-abs(t) if turn else t)
        center = np.stack((x, y), axis=1) + rng.normal(0, 0.02, (2, 2)) * height[:, None]
        boxes = np.hstack((center - half, center + half)).astype(np.float32)
        score = np.clip(rng.normal(0.75, 0.1, 2), 0.3, 0.95).astype(np.float32)
        shown = np.array([0, 1])
        if iou(boxes[0].tolist(), boxes[1:])[0] > SUPPRESSED:
            shown = np.array([int(score.argmax())])
        owners.append(_frame(tracker, state, rules, i, boxes[shown], score[shown], shown))
    first, last = owners[5], owners[-1]
    counts = rules.counters()["lines"]["line"]
    certain, uncertain = ([sum(n.values()) for n in counts[key].values()] for key in ("crossings", "uncertain"))
    exchanged = set(first) == set(last) == {0, 1} and (first[0], first[1]) == (last[1], last[0])
    return Outcome(exchanged, (certain[0], certain[1]), (uncertain[0], uncertain[1]))


def _frame(
    tracker: ByteTrack, state: StreamTracks, rules: RuleEngine, number: int, boxes: npt.NDArray[np.float32],
    score: npt.NDArray[np.float32], who: npt.NDArray[np.intp],
) -> dict[int, int]:  # fmt: skip
    """Whose box has which id."""
    t_ns = 10**9 + round(number / FPS * 1e9)
    seen = Observation(state, t_ns, boxes, score, np.zeros(len(score), np.int32), WIDTH, HEIGHT)
    found = tracker.step([seen])[0]
    of = np.flatnonzero(found.id)
    rules.frame(
        TrackedFrame(
            t_ns, t_ns, 0, number, WIDTH, HEIGHT, found.id[of], found.confirmed[of], boxes[of], score[of],
            found.class_id[of], [(end.id, end.reason) for end in found.ended],
        )
    )  # fmt: skip
    return dict(zip(who[of].tolist(), found.id[of].tolist(), strict=True))


def main() -> None:
    """Prints how often each outcome happened."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", type=int, default=300)
    p.add_argument("--seed", type=int, default=5)
    args = p.parse_args()
    for turn in (False, True):
        rng = np.random.default_rng(args.seed)
        found = Counter(meet(rng, turn=turn) for _ in range(args.pairs))
        print("they turn back" if turn else "they pass each other")
        for outcome, n in found.most_common():
            print(f"{n:>6} {outcome}")


if __name__ == "__main__":
    main()
