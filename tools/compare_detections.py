#!/usr/bin/env python3
"""Compares the detections of two runs: messages in JSON lines, frame by frame, boxes matched by class and overlap.

    python tools/compare_detections.py A.jsonl B.jsonl [--iou 0.9] [--margin 0.02]

Prints the fraction of boxes that have a match. `--margin` ignores unmatched boxes whose score is within this margin of
the lowest score in either file: they are at the threshold, and rounding decides."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Frames = dict[tuple[str, int], dict[str, Any]]


def read(path: str) -> Frames:
    """Messages by stream and seq."""
    messages = (json.loads(line) for line in Path(path).read_text().splitlines())
    return {(m["stream"], m["seq"]): m for m in messages if "detections" in m}


def overlaps(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(N, M) intersection over union of (N, 4) and (M, 4) corners."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a, area_b = np.prod(a[:, 2:] - a[:, :2], axis=1), np.prod(b[:, 2:] - b[:, :2], axis=1)
    return np.asarray(both / np.maximum(area_a[:, None] + area_b[None] - both, 1e-9))


def unmatched(a: list[dict[str, Any]], b: list[dict[str, Any]], iou: float) -> list[dict[str, Any]]:
    """Boxes of either list without a match, pairing the best overlaps first."""
    if not a or not b:
        return [*a, *b]
    share = overlaps(np.array([d["box"] for d in a]), np.array([d["box"] for d in b]))
    same = np.array([[x["class_id"] == y["class_id"] for y in b] for x in a])
    share = np.where(same, share, 0)
    left_a, left_b = set(range(len(a))), set(range(len(b)))
    for flat in np.argsort(-share, axis=None):
        i, j = divmod(int(flat), len(b))
        if share[i, j] < iou:
            break
        if i in left_a and j in left_b:
            left_a.discard(i)
            left_b.discard(j)
    return [a[i] for i in left_a] + [b[j] for j in left_b]


def main() -> int:
    """Compares and prints."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("a")
    p.add_argument("b")
    p.add_argument("--iou", type=float, default=0.9)
    p.add_argument("--margin", type=float, default=0.02)
    p.add_argument("--at-least", type=float, default=0.99, help="required fraction (default 0.99)")
    args = p.parse_args()
    a, b = read(args.a), read(args.b)
    common = sorted(set(a) & set(b))
    total = alone = edge = 0
    scores = [d["score"] for m in (*a.values(), *b.values()) for d in m["detections"]]
    lowest = min(scores, default=0.0)
    for key in common:
        first, second = a[key]["detections"], b[key]["detections"]
        rest = unmatched(first, second, args.iou)
        total += len(first) + len(second)
        alone += len(rest)
        edge += sum(d["score"] < lowest + args.margin for d in rest)
    missing = len(set(a) ^ set(b))
    plain = 1 - alone / max(total, 1)
    clear = 1 - (alone - edge) / max(total - edge, 1)
    print(
        f"{len(common)} frames in both, {missing} in one only; {total} boxes, {alone} without a partner at IoU "
        f"{args.iou}: {plain:.4f} matched, {clear:.4f} without {edge} boxes on the threshold"
    )
    return 0 if clear >= args.at_least and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
