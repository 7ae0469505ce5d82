"""Which class a track has: each box votes for its class with its score.

The four classes with most votes are kept for each track (space-saving counters, Metwally et al. 2005), so a track
costs the same for two classes and for eighty. Up to four classes the sums are exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamd.analysis.tracking.tracks import CLASS, LEAD, LEADER, VOTES, WEIGHT, Matrix


def vote(tracks: Matrix, class_id: Matrix, score: Matrix) -> None:
    """Adds a box's vote to each track.

    Args:
        tracks: (ROWS, T), changed in place.
        class_id: (T,) the box's class.
        score: (T,) its weight.
    """
    agrees = tracks[LEADER] == class_id
    tracks[LEAD] += score * agrees
    if np.count_nonzero(agrees) < len(agrees):
        _dissent(tracks, np.flatnonzero(~agrees), class_id, score)


def _dissent(tracks: Matrix, columns: npt.NDArray[np.intp], class_id: Matrix, score: Matrix) -> None:
    """Handles votes against the leader, which are rare: speed matters less here."""
    classes, weights = tracks[CLASS, columns], tracks[WEIGHT, columns]
    wanted, own = class_id[columns], np.arange(len(columns))
    known = classes == wanted
    # A class without a counter takes over the smallest one, which is never the leader's.
    place = np.where(known.any(axis=0), known.argmax(axis=0), 1 + weights[1:].argmin(axis=0))
    taken_over = classes[place, own] >= 0
    weights[place, own] = weights[place, own] * (known.any(axis=0) | taken_over) + score[columns]
    classes[place, own] = wanted
    leads = weights[place, own] > weights[0]
    swap, to = own[leads], place[leads]
    for rows in (classes, weights):
        rows[0, swap], rows[to, swap] = rows[to, swap].copy(), rows[0, swap].copy()
    tracks[CLASS, columns], tracks[WEIGHT, columns] = classes, weights


def first_votes(tracks: Matrix, class_id: Matrix, score: Matrix) -> None:
    """The votes of new tracks (ROWS, T): one box each."""
    tracks[CLASS], tracks[WEIGHT] = -1.0, 0.0
    tracks[LEADER], tracks[LEAD] = class_id, score


assert VOTES > 1
