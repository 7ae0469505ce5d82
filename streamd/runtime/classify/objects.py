"""What a classifier knows of each track: its best crop, when the next one is due, and the votes of all crops so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from streamd.types import Attribute

BETTER = 1.5
"""A crop is clearly better than the best so far if its quality is this factor higher."""
PAUSE_S = 0.2
"""Between two crops of a track, whatever their quality; also after one that found no room."""
KEPT = 0.8
"""What earlier votes count after each further crop: in the long run, the last five decide."""
FORGET_S = 60.0
"""A track is forgotten so long after it was last seen: events about it may end later than it does."""
MAX_TRACKS = 4096
"""Tracks of a stream that a classifier knows at the same time."""


class Known:
    """One track. The thread that publishes frames writes `seen_at`, `quality` and the times; the classifier's thread
    writes the rest.

    Args:
        now: monotonic seconds.
    """

    __slots__ = ("again_at", "crops", "due_at", "observed_seq", "pending", "quality", "seen_at", "told_small", "votes",
                 "weight")  # fmt: skip

    def __init__(self, now: float) -> None:
        self.seen_at = now
        self.quality = 0.0
        """Of the best crop."""
        self.due_at = now
        """When it is to be classified again, however it is seen."""
        self.again_at = now
        """When it may be, if it is seen clearly better."""
        self.pending = False
        """True while a crop waits."""
        self.told_small = False
        self.votes: npt.NDArray[np.float64] | None = None
        """(K,)"""
        self.weight = 0.0
        self.crops = 0
        self.observed_seq = -1

    def wants(self, quality: float, now: float) -> bool:
        """Whether a crop of this quality is worth classifying."""
        if self.pending or now < self.again_at:
            return False
        return now >= self.due_at or quality > self.quality * BETTER

    def taken(self, quality: float, now: float, refresh_s: float) -> None:
        """A crop was taken."""
        self.pending = True
        self.quality = max(self.quality, quality)
        self.due_at, self.again_at = now + refresh_s, now + PAUSE_S

    def lost(self, now: float) -> None:
        """The crop came to nothing: the next one may be tried."""
        self.due_at = self.again_at = now + PAUSE_S
        self.quality = 0.0 if self.crops == 0 else self.quality
        self.pending = False

    def vote(self, probabilities: npt.NDArray[np.float64], seq: int) -> None:
        """Adds the result of one crop."""
        votes = self.votes
        # A new array: another thread may be reading the old one.
        self.votes = probabilities.copy() if votes is None else votes * KEPT + probabilities
        self.weight = self.weight * KEPT + 1.0
        self.crops += 1
        self.observed_seq = max(self.observed_seq, seq)
        self.pending = False

    def attribute(self, name: str, labels: Sequence[str], threshold: float, top_k: int) -> Attribute | None:
        """What is published of it; None while no label reaches the threshold."""
        if self.votes is None:
            return None
        return attribute_of(name, labels, self.votes / self.weight, threshold, top_k, self.observed_seq, self.crops)


def attribute_of(
    name: str, labels: Sequence[str], scores: npt.NDArray[np.float64], threshold: float, top_k: int, seq: int,
    crops: int = 1,
) -> Attribute | None:  # fmt: skip
    """The best of the scores (K,), and the next ones; None if the best is below the threshold."""
    order = np.argsort(-scores, kind="stable")[:top_k].tolist()
    best = float(scores[order[0]])
    if best < threshold:
        return None
    others = tuple((labels[i], round(float(scores[i]), 4)) for i in order[1:])
    return Attribute(name, labels[order[0]], round(best, 4), seq, crops, others)
