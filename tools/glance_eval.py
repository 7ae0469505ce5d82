#!/usr/bin/env python3
"""What `look.when: motion` saves on a clip and what it misses, frame by frame, against looking at every frame.

    python tools/glance_eval.py CLIP... [--model MODEL] [--look '{at_least_every_s: 2}'] [--cache FOLDER] [--json]
    python tools/glance_eval.py CLIP... --day SECONDS [--still 0.8] [--seed 1] [--write FOLDER]

The network runs once over every frame; both ways then see its boxes, through the daemon's own gate, tracker and rules
(three upright and two level lines, six zones). The answers reach the gate `--lag` frames later, as they do in a daemon.

With --day, each clip is cut into a working day of that many seconds and encoded again: pieces of the clip, between them
a still scene (its first frame) with sensor noise, rain, slow and sudden changes of light, and shaking, all from a seed.

Columns: `looked`: share of frames that the network had to process. `stable`: events and tracks that looking always
finds in every one of `--runs` runs, of which all but the first are disturbed a little from a seed (noise in the
network's input, or one frame in fifty left out), and how many of them are there with the gate, at most a frame later;
With `--rarely`, the runs of a day are four more, which seldom look in its pauses: what depends on how often a frozen
crowd is looked at is no truth. `chance`: the same for a disturbed run, whose own part in what is stable is left out.
See `glance_truth.py`. `all`: the same for all events of the undisturbed run, and for boxes of its tracks (one that
overlaps by half is there). Of a day, both count where the clip plays: in a still picture, only boxes that tremble
cross a line. `without pauses`: of a day, the events that looking always finds if its pauses are cut out, and how many
of them looking always and the gate find in the day: in a pause, tracks that tremble end, begin and swap either way.
`without learning`: of a day, shares looked at after the first ten seconds: of its pauses, of the rest, and of a long
day with as many pauses. `boxes`: share of all boxes that the last look shows in place. `hota`: how far the tracks
agree with looking always, and those of a disturbed run (`--hota`)."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import yaml
from compare_detections import overlaps
from glance_day import ACTIVE, Pauses, by_part, make_day, parts_of, settled
from glance_network import Network
from glance_truth import SAME_IOU, Found, Happened, Run, Truth, hota, partners
from glance_ways import RUNS, look_always, look_cut, look_gated

from streamd.analysis.glance.settings import LookSettings


@dataclass(slots=True)
class Outcome:
    """One clip."""

    clip: str
    frames: int
    seconds: float
    looked: float
    why: dict[str, int]
    runs: int
    """Of looking always."""
    events: int
    events_found: int
    events_soon: int
    """Of these, at most one frame later."""
    events_more: int
    tracks: int
    tracks_found: int
    """Of which a box is there."""
    tracks_soon: int
    stable_events: Found
    chance_events: Found
    stable_tracks: Found
    chance_tracks: Found
    missing: list[Happened]
    """Stable events that are not there, or later."""
    boxes: float
    parts: dict[str, dict[str, float]]
    """Of a day, for each kind of part: its frames, share of them looked at, and reasons."""
    settled: tuple[float, float, float] | None
    """Of a day, shares looked at after the first seconds, in which the gate learns: of the pauses, of the rest, and of
    a long day with as many pauses."""
    without_pauses: tuple[int, int, int] | None = None
    """Of a day: events if its pauses are cut out; those of them that looking always and the gate find, at most a frame
    later."""
    hota: tuple[float, float] | None = None
    """See `glance_truth.hota`: with the gate, and on average of the disturbed runs."""


def compare(clip: str, truth: Truth, gated: Run, parts: Sequence[str] | None = None) -> Outcome:
    """The outcome of one clip that shows `parts`, if it is a day."""
    always, counts, rate = truth.always, truth.counts, truth.rate
    wanted = [always.events[i] for i in truth.wanted]
    partner = partners(wanted, gated.events, rate)
    taken = set(partner.values())
    late = [gated.events[j][2] - wanted[i][2] for i, j in partner.items()]
    left = [event for j, event in enumerate(gated.events) if j not in taken]
    lasting = truth.lasting
    by_frame: dict[int, list[npt.NDArray[np.float32]]] = {}
    for track in gated.tracks.values():
        for seq, box in track.items():
            by_frame.setdefault(seq, []).append(box)
    first = []
    for track in lasting.values():
        seen = next((s for s in sorted(track) if s in by_frame and _covered(track[s], by_frame[s])), None)
        if seen is not None:
            first.append(seen - min(track))
    every = sum(len(boxes) for boxes in always.boxes)
    shown = 0
    for mine, theirs in zip(always.boxes, gated.boxes, strict=True):
        shown += sum(1 for box in mine if _covered(box, theirs))
    events, tracks, missing = truth.measure(gated)
    chance = truth.chance()
    return Outcome(
        clip=clip, frames=len(gated.looked), seconds=len(gated.looked) / rate,
        looked=sum(gated.looked) / max(len(gated.looked), 1), why=dict(Counter(gated.why).most_common()),
        runs=1 + len(truth.again), events=len(wanted), events_found=len(late), events_soon=sum(n <= 1 for n in late),
        events_more=sum(counts(event[2]) for event in left), tracks=len(lasting), tracks_found=len(first),
        tracks_soon=sum(n <= 1 for n in first), stable_events=events, chance_events=chance[0], stable_tracks=tracks,
        chance_tracks=chance[1], missing=missing, boxes=shown / max(every, 1),
        parts=by_part(gated.looked, gated.why, parts or ()),
        settled=settled(gated.looked, parts, rate) if parts else None,
    )  # fmt: skip


def without_pauses(cut: Run, always: Run, gated: Run, rate: float, parts: Sequence[str]) -> tuple[int, int, int]:
    """See `Outcome.without_pauses`; `cut` has seen the active frames only."""
    active = np.array([part == ACTIVE for part in parts])
    number = np.cumsum(active) - 1
    found = []
    for run in (always, gated):
        events = [(a, b, int(number[seq])) for a, b, seq in run.events if seq < len(parts) and active[seq]]
        partner = partners(cut.events, events, rate)
        found.append(sum(events[j][2] - cut.events[i][2] <= 1 for i, j in partner.items()))
    return len(cut.events), found[0], found[1]


def _covered(box: npt.NDArray[np.float32], others: Sequence[npt.NDArray[np.float32]] | npt.NDArray[np.float32]) -> bool:
    if not len(others):
        return False
    return bool(overlaps(box[None].astype(float), np.array(others, float)).max() >= SAME_IOU)


def evaluate(
    clip: Path, network: Network, look: LookSettings, lag: int, *, runs: int = RUNS, with_hota: bool = False,
    rarely: bool = False,
) -> Outcome:  # fmt: skip
    """Both ways on one clip; looking always so often, see `look_always`."""
    truth, gated = look_always(clip, network, runs=runs, rarely=rarely), look_gated(clip, network, look, lag)
    parts = parts_of(clip)
    outcome = compare(clip.name, truth, gated, parts)
    if parts:
        outcome.without_pauses = without_pauses(look_cut(clip, network, parts), truth.always, gated, truth.rate, parts)
    if with_hota:
        again = [hota(truth.always, run) for run in truth.again]
        outcome.hota = hota(truth.always, gated), sum(again) / max(len(again), 1)
    return outcome


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """With what all tools have that compare a gate with looking always. `text`: the tool's docstring."""
    summary, _, rest = (text or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin:road6", help="path, or builtin:NAME (default: builtin:road6)")
    parser.add_argument("--look", default="{}", help="settings of the section `look`, as YAML")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of looking always, 3 or more (default: {RUNS})")
    parser.add_argument("--cache", type=Path, help="folder that keeps the network's boxes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def given(args: argparse.Namespace) -> tuple[Network, LookSettings]:
    """The network and the gate's settings that are asked for by `parser_of`."""
    return Network(args.model, args.cache), LookSettings(**{"when": "motion", **yaml.safe_load(args.look)})


def main() -> int:
    """Runs the command."""
    parser = parser_of(__doc__)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--lag", type=int, default=2, help="frames until an answer reaches the gate (default: 2)")
    parser.add_argument("--hota", action="store_true", help="also tell how far the tracks agree")
    parser.add_argument("--day", type=float, metavar="SECONDS", help="make a working day of each clip")
    parser.add_argument("--still", type=float, default=0.8, help="share of it in which nothing happens (default: 0.8)")
    parser.add_argument("--height", type=int, metavar="ROWS", help="scale larger pictures of a day to this height")
    parser.add_argument("--pauses", choices=get_args(Pauses), default="frozen", help="what a day's pauses show")
    parser.add_argument("--rarely", action="store_true", help="stable is what seldom looking in pauses finds, too")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="keep the days there")
    args = parser.parse_args()
    network, look = given(args)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for clip in args.clips:
            if args.day is not None:
                into = args.write or Path(folder)
                into.mkdir(parents=True, exist_ok=True)
                clip = make_day(clip, args.day, args.still, args.seed, into, args.height, args.pauses)
            outcomes.append(
                evaluate(clip, network, look, args.lag, runs=args.runs, with_hota=args.hota, rarely=args.rarely)
            )
            if not args.json:
                _print(outcomes[-1])
    if args.json:
        print(json.dumps([asdict(each) for each in outcomes], indent=2))
    return 0


def _print(o: Outcome) -> None:
    print(
        f"{o.clip}: {o.frames} frames, {o.seconds:.0f} s; looked {100 * o.looked:.1f} %; boxes in place "
        f"{100 * o.boxes:.2f} %\n    {o.why}\n    stable in {o.runs} runs: events {o.stable_events}; chance "
        f"{o.chance_events}\n        tracks {o.stable_tracks}; chance {o.chance_tracks}\n    all: events "
        f"{o.events_soon} of {o.events} ({o.events_found} at any time), {o.events_more} more; tracks {o.tracks_soon} "
        f"of {o.tracks} ({o.tracks_found} at any time)"
    )
    if o.missing:
        print("    missing:", ", ".join(f"{rule} {label} in {seq}" for rule, label, seq in o.missing))
    if o.hota is not None:
        print("    HOTA {:.2f}; chance {:.2f}".format(*o.hota))
    if o.without_pauses is not None:
        print("    without pauses {} events; found looking always {}, here {}".format(*o.without_pauses))
    if o.settled is not None:
        print(
            "    without learning: {:.1f} % of the pauses, {:.1f} % of the rest; {:.1f} % of a long day".format(
                *(100 * share for share in o.settled)
            )
        )
    for part, said in o.parts.items():
        why = ", ".join(f"{key} {value}" for key, value in said.items() if key not in ("frames", "looked"))
        print(f"    {part}: {100 * said['looked']:.1f} % of {said['frames']} frames looked at: {why}")


if __name__ == "__main__":
    sys.exit(main())
