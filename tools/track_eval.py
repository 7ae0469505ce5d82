#!/usr/bin/env python3
"""Measures the accuracy and speed of trackers: HOTA, AssA, IDF1, MOTA, ID switches and microseconds per frame.

    python tools/track_eval.py FOLDER [--modes full,every3,every6,drop20,drop50,burst] [--kind bytetrack] [--json]
    python tools/track_eval.py --speed [--kind bytetrack] [--json]

FOLDER holds one folder per sequence, each with `seqinfo.ini`, `gt.txt` and `det.txt` in the MOTChallenge format. Of
`gt.txt`, rows with flag 1 and class 1 count. All sequences are evaluated together; boxes are matched by IoU; only
frames passed to the tracker count. The evaluator is that of roboflow's `trackers` (of the `dev` extra).

Modes: `full`; `everyN`, each Nth frame; `dropP`, P % of the frames left out at random; `burst`, the last of every five
seconds left out.

`--speed` needs no folder: it times 10 and 50 synthetic objects in microseconds per frame: one stream alone, 16 streams
in a batch, and for comparison ByteTrack, OC-SORT and BoT-SORT (without camera motion) of `trackers`."""

from __future__ import annotations

import argparse
import configparser
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from compare_detections import overlaps

from streamd.analysis.tracking import TRACKERS, Observation, StreamTracks, open_tracker
from streamd.analysis.tracking.batch import Tracker

MODES = ("full", "every3", "every6", "drop20", "drop50", "burst")
Crowd = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]
SEED = 1
"""Of the frames that are dropped at random."""
Ints = npt.NDArray[np.int64]


class MaterialError(Exception):
    """The folder is invalid; the message says why."""


@dataclass(slots=True, frozen=True)
class Sequence_:
    """One sequence: of each frame the true boxes, the detector's, and how much they overlap."""

    name: str
    rate: float
    width: int
    height: int
    truth: list[Ints]
    """Of each frame the ids of its people."""
    boxes: list[npt.NDArray[np.float32]]
    scores: list[npt.NDArray[np.float32]]
    overlap: list[npt.NDArray[Any]]
    """Of each frame (people, boxes) IoU."""


def read_sequence(folder: Path) -> Sequence_:
    """Raises MaterialError: a file is missing or not of the MOTChallenge format."""
    try:
        ini = configparser.ConfigParser()
        ini.read_string((folder / "seqinfo.ini").read_text())
        info = ini["Sequence"]
        length, rate = int(info["seqLength"]), float(info["frameRate"])
        width, height = int(info["imWidth"]), int(info["imHeight"])
        truth = np.loadtxt(folder / "gt.txt", delimiter=",", ndmin=2)
        found = np.loadtxt(folder / "det.txt", delimiter=",", ndmin=2)
    except (OSError, KeyError, ValueError, configparser.Error) as error:
        raise MaterialError(
            f"{folder}: expected seqinfo.ini, gt.txt and det.txt in the MOTChallenge format: {error}"
        ) from error
    truth = truth[(truth[:, 6] == 1) & (truth[:, 7] == 1)]
    sequence = Sequence_(folder.name, rate, width, height, [], [], [], [])
    for number in range(1, length + 1):
        people, boxes = truth[truth[:, 0] == number], found[found[:, 0] == number]
        corners = _corners(boxes[:, 2:6])
        sequence.truth.append(people[:, 1].astype(np.int64))
        sequence.boxes.append(corners.astype(np.float32))
        sequence.scores.append(boxes[:, 6].astype(np.float32))
        sequence.overlap.append(overlaps(_corners(people[:, 2:6]), corners))
    return sequence


def read_folder(folder: Path) -> list[Sequence_]:
    """All sequences of a folder, by name. Raises MaterialError: there is none, or one is broken."""
    found = sorted(path.parent for path in folder.glob("*/seqinfo.ini"))
    if not found:
        raise MaterialError(f"{folder}: no sequence here; expected folders with seqinfo.ini, gt.txt and det.txt")
    return [read_sequence(path) for path in found]


def _corners(boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.hstack((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]))


def kept(mode: str, frames: int, rate: float) -> Ints:
    """Indices of the frames that a mode leaves. Raises ValueError: there is no such mode."""
    index = np.arange(frames)
    if mode == "full":
        return index
    if mode == "burst":
        # Frames are counted from 1, as in the files.
        return index[(index + 1) / rate % 5 < 4]
    if (match := re.fullmatch(r"every([1-9]\d*)", mode)) is not None:
        return index[:: int(match[1])]
    if (match := re.fullmatch(r"drop(\d\d?)", mode)) is not None:
        return index[np.random.default_rng(SEED).random(frames) >= int(match[1]) / 100]
    raise ValueError(f"unknown mode {mode}; known: full, everyN, dropP, burst")


def track(tracker: Tracker, sequence: Sequence_, mode: str) -> tuple[list[tuple[int, Ints]], float]:
    """The ids of the boxes of each kept frame, and the seconds that the tracker took."""
    state, frames = StreamTracks(), kept(mode, len(sequence.boxes), sequence.rate)
    # Frames left out on purpose (max_fps) have no number, so nothing is missed; the others were dropped.
    gaps = np.zeros(len(frames), np.int64) if mode.startswith("every") else np.diff(frames, prepend=frames[0] - 1) - 1
    observations = [
        Observation(
            tracks=state,
            time_ns=round(frame / sequence.rate * 1e9),
            xyxy=sequence.boxes[frame],
            score=sequence.scores[frame],
            class_id=np.zeros(len(sequence.scores[frame]), np.int32),
            width=sequence.width,
            height=sequence.height,
            missed=missed,
        )
        for frame, missed in zip(frames.tolist(), gaps.tolist(), strict=True)
    ]
    begun = time.perf_counter()
    results = [tracker.step([observation])[0] for observation in observations]
    taken = time.perf_counter() - begun
    if (error := next((r.error for r in results if r.error is not None), None)) is not None:
        raise error
    return [(frame, result.id) for frame, result in zip(frames.tolist(), results, strict=True)], taken


def evaluate(tracker: Tracker, sequences: Sequence[Sequence_], mode: str) -> dict[str, float]:
    """HOTA, AssA, IDF1 and MOTA in percent, IDSW, and `us`: microseconds a frame."""
    from trackers.eval import compute_clear_metrics, compute_hota_metrics, compute_identity_metrics

    people, tracks, overlap = [], [], []
    seconds, frames = 0.0, 0
    for number, sequence in enumerate(sequences):
        results, taken = track(tracker, sequence, mode)
        seconds, frames = seconds + taken, frames + len(results)
        for frame, ids in results:
            known = ids > 0
            people.append(sequence.truth[frame] + (number << 32))
            tracks.append(ids[known] + (number << 32))
            overlap.append(sequence.overlap[frame][:, known])
    people, tracks = _numbered(people), _numbered(tracks)
    hota = compute_hota_metrics(people, tracks, overlap)
    identity = compute_identity_metrics(people, tracks, overlap)
    clear = compute_clear_metrics(people, tracks, overlap)
    return {
        "HOTA": round(100 * float(hota["HOTA"]), 2),
        "AssA": round(100 * float(hota["AssA"]), 2),
        "IDF1": round(100 * float(identity["IDF1"]), 2),
        "MOTA": round(100 * float(clear["MOTA"]), 2),
        "IDSW": int(clear["IDSW"]),
        "us": round(seconds / max(frames, 1) * 1e6, 1),
    }


def _numbered(ids: list[Ints]) -> list[Ints]:
    """The same ids counted from 0 without gaps, as the evaluator wants them."""
    values = np.unique(np.concatenate(ids))
    return [np.searchsorted(values, part) for part in ids]


def crowd(objects: int, frames: int, seed: int) -> list[Crowd]:
    """Frames of synthetic people walking in a picture of 1920×1080: boxes, scores and classes of each frame."""
    rng = np.random.default_rng(seed)
    height = rng.uniform(80, 240, objects)
    size = np.stack((height * 0.4, height), axis=1)
    place, speed = rng.uniform((0, 0), (1920, 1080), (objects, 2)), rng.normal(0, 40, (objects, 2))
    out: list[Crowd] = []
    for _ in range(frames):
        place = place + speed / 25
        outside = (place < 0) | (place > (1920, 1080))
        speed = np.where(outside, -speed, speed)
        seen = rng.random(objects) < 0.95
        centers = (place + rng.normal(0, 0.02, place.shape) * size)[seen]
        boxes = np.hstack((centers - size[seen] / 2, centers + size[seen] / 2)).astype(np.float32)
        scores = rng.uniform(0.2, 0.95, len(boxes)).astype(np.float32)
        out.append((boxes, scores, np.zeros(len(boxes), np.int32)))
    return out


def speed(tracker: Tracker, objects: int, streams: int, frames: int = 300) -> float:
    """Microseconds a frame in steps of one frame of each of `streams` streams: the best of three runs' medians."""
    material = [crowd(objects, frames, seed) for seed in range(streams)]
    medians = []
    for _ in range(3):
        states = [StreamTracks() for _ in range(streams)]
        taken = []
        for i in range(frames):
            batch = [
                Observation(state, i * 40_000_000, *parts[i], 1920, 1080)
                for state, parts in zip(states, material, strict=True)
            ]
            begun = time.perf_counter()
            tracker.step(batch)
            taken.append(time.perf_counter() - begun)
        medians.append(float(np.median(taken)) / streams * 1e6)
    return min(medians)


OPEN = {
    "bytetrack": ("ByteTrackTracker", {}),
    "ocsort": ("OCSORTTracker", {}),
    "botsort": ("BoTSORTTracker", {"enable_cmc": False}),
}
"""The open trackers to compare with: columns, and classes of roboflow's `trackers` with their options."""


def open_speed(kind: str, objects: int, frames: int = 300) -> float:
    """The same for one of the open trackers, one stream alone."""
    import supervision
    import trackers

    name, options = OPEN[kind]
    material = crowd(objects, frames, 0)
    medians = []
    for _ in range(3):
        tracker, taken = getattr(trackers, name)(frame_rate=25, **options), []
        for boxes, scores, classes in material:
            found = supervision.Detections(boxes, confidence=scores, class_id=classes)
            begun = time.perf_counter()
            tracker.update(found)
            taken.append(time.perf_counter() - begun)
        medians.append(float(np.median(taken)) * 1e6)
    return min(medians)


def _speeds(make: Callable[[], Tracker], objects: int) -> dict[str, float]:
    return {
        "single": round(speed(make(), objects, 1), 1),
        "batch16": round(speed(make(), objects, 16), 1),
        **{kind: round(open_speed(kind, objects), 1) for kind in OPEN},
    }


def _table(results: dict[str, dict[str, float]], name: str) -> str:
    columns = list(next(iter(results.values())))
    rows = [f"{name:12}" + "".join(f"{column:>10}" for column in columns)]
    rows += [f"{key:12}" + "".join(f"{value:>10}" for value in row.values()) for key, row in results.items()]
    return "\n".join(rows)


def main() -> int:
    """Measures and prints."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, nargs="?", help="the sequences")
    p.add_argument("--modes", default=",".join(MODES), help="which frames are kept, separated by commas")
    p.add_argument("--kind", choices=TRACKERS.builtin(), default="bytetrack")
    p.add_argument("--speed", action="store_true", help="time synthetic objects instead")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()

    def make() -> Tracker:
        return open_tracker(TRACKERS.validate({"kind": args.kind}))

    try:
        if args.speed:
            results = {str(objects): _speeds(make, objects) for objects in (10, 50)}
        elif args.folder is None:
            p.error("FOLDER is missing (or --speed)")
        else:
            modes = [mode for mode in args.modes.split(",") if mode]
            for mode in modes:
                kept(mode, 1, 1.0)
            sequences = read_folder(args.folder)
            results = {mode: evaluate(make(), sequences, mode) for mode in modes}
    except (MaterialError, ValueError) as error:
        print(f"track_eval: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"track_eval: {error}; the evaluator comes with pip install 'streamd[dev]'", file=sys.stderr)
        return 2
    print(json.dumps(results) if args.json else _table(results, "objects" if args.speed else "mode"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
