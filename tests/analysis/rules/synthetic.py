"""What a detector and a tracker would make of paths with exact truth, and whether the rules count them right.

A world has lines, zones and objects that walk, graze, stop, turn and are born anywhere: see `paths`. Frames are taken
at the camera's rate, dropped at random, in bursts and by outages; boxes jitter; ids are switched near lines.

usage: python -m tests.analysis.rules.synthetic [--paths N] [--seed N]
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from streamd.analysis.rules import RuleEvent, TrackedFrame
from streamd.analysis.rules.engine import RuleEngine
from tests.analysis.rules.paths import (
    BAND,
    HEIGHT,
    KINDS,
    LINES,
    SETTLE,
    STEP,
    WIDTH,
    ZONES,
    Floats,
    TrueCrossing,
    Walk,
    draw,
    sides,
    true_crossings,
)


@dataclass
class Setting:
    """How a world is seen."""

    fps: float
    drop: float
    """Share of frames that are dropped at random."""
    bursts: bool = False
    outages: bool = False
    restarts: bool = False
    switches: float = 0.0
    """Share of walks whose id is switched near a line."""
    noise: float = 0.01
    """Of a box's position, in heights."""


@dataclass
class Seen:
    """What came of a world."""

    walks: list[Walk]
    truth: list[TrueCrossing]
    observable: list[bool]
    events: list[RuleEvent]
    owner: dict[int, int]
    """Walk of each track."""
    switched: set[int]
    """Walks whose id was switched."""
    sights: list[list[tuple[float, Floats]]]
    """Time and measured anchor of each walk's boxes."""
    counters: dict[str, dict[str, dict[str, object]]] = field(default_factory=dict)


def draw_world(rng: np.random.Generator, walks: int, seconds: float) -> list[Walk]:
    out: list[Walk] = []
    while len(out) < walks:
        kind = KINDS[rng.integers(len(KINDS))]
        walk = draw(rng, kind, round(float(rng.uniform(0.2, seconds - 8)), 2))
        margin = 3.0
        in_picture = (
            (walk.xy[:, 0] > 0.25 * walk.height + margin)
            & (walk.xy[:, 0] < WIDTH - 0.25 * walk.height - margin)
            & (walk.xy[:, 1] > walk.height + margin)
            & (walk.xy[:, 1] < HEIGHT - margin)
        )
        if in_picture.all() and walk.end < seconds and not true_crossings(0, walk)[1]:
            out.append(walk)
    return out


def frame_times(rng: np.random.Generator, setting: Setting, seconds: float) -> tuple[list[float], list[float]]:
    """Times of the processed frames, and those at which an outage begins."""
    times = np.arange(0.0, seconds, 1 / setting.fps)
    times = times[rng.random(len(times)) >= setting.drop]
    downs: list[float] = []
    if setting.bursts:
        for begin in rng.uniform(1, seconds, 3):
            times = times[(times < begin) | (times > begin + rng.uniform(0.3, 2.0))]
    if setting.outages:
        begin = float(rng.uniform(4, seconds - 6))
        times = times[(times < begin) | (times > begin + rng.uniform(2.5, 6.0))]
        downs.append(begin)
    return times.tolist(), downs


def watch(rng: np.random.Generator, walks: list[Walk], setting: Setting, seconds: float) -> Seen:
    """Runs the engine over the world."""
    times, downs = frame_times(rng, setting, seconds)
    fresh = itertools.count(1)
    names = (f"e{n}" for n in itertools.count())
    engine = RuleEngine(ZONES, LINES, ("person",), lambda: next(names), 10**18)
    truth: list[TrueCrossing] = []
    for number, walk in enumerate(walks):
        truth += true_crossings(number, walk)[0]
    switch_at = {c.walk: c.t + float(rng.uniform(-0.4, 0.4)) for c in truth if rng.random() < setting.switches}
    switched = set(switch_at)
    ids: dict[int, int] = {}
    lost: dict[int, float] = {}
    """Last sight of tracks by id; a track that is not seen for two observed seconds has ended."""
    born: dict[int, int] = {}
    owner: dict[int, int] = {}
    events: list[RuleEvent] = []
    sights: list[list[tuple[float, Floats]]] = [[] for _ in walks]
    observed, before, hole = 0.0, 0.0, 0
    down = False
    restart_at = [float(rng.uniform(4, seconds - 6))] if setting.restarts else []
    seq = 0
    looked: list[float] = []
    for t in times:
        if downs and t > downs[0]:
            downs.pop(0)
            events += engine.down()
            down = True
        if restart_at and t > restart_at[0]:
            # A successor takes over after some seconds; its tracker knows nothing.
            if t < restart_at[0] + 4:
                continue
            restart_at.pop()
            events += engine.close()
            engine = RuleEngine(ZONES, LINES, ("person",), lambda: next(names), 10**18 + round(t * 1e9), engine.state())
            ids, lost = {}, {}
        looked.append(t)
        gap = t - before
        observed += min(gap, 0.3)
        ended: list[tuple[int, str]] = []
        if down or gap > 2.4:
            ended = [(track, "outage" if down else "lost") for track in lost]
            ids, lost, down = {}, {}, False
        before = t
        tracks, boxes = [], []
        for number, walk in enumerate(walks):
            position = walk.at(t)
            if position is None:
                continue
            if number in switch_at and t >= switch_at[number] and number in ids:
                # The tracker loses it for up to two frames, then takes it for another one.
                del switch_at[number]
                del ids[number]
                hole = int(rng.integers(0, 3))
                born[number] = hole
            if born.get(number, 0) > 0:
                born[number] -= 1
                continue
            if number not in ids:
                ids[number] = next(fresh)
                owner[ids[number]] = number
            measured = position + rng.normal(0, setting.noise * walk.height, 2)
            sights[number].append((t, measured))
            lost[ids[number]] = observed
            tracks.append(ids[number])
            half = 0.2 * walk.height
            boxes.append((measured[0] - half, measured[1] - walk.height, measured[0] + half, measured[1]))
        for track, last in list(lost.items()):
            if observed - last > 2 and track not in tracks:
                ended.append((track, "lost"))
                del lost[track]
        order = rng.permutation(len(tracks))
        seq += 1
        events += engine.frame(
            TrackedFrame(
                t_ns=round(t * 1e9) + 10**15,
                wall_ns=round(t * 1e9) + 10**18,
                epoch=0,
                seq=seq,
                width=WIDTH,
                height=HEIGHT,
                track=np.array(tracks, np.int64)[order],
                confirmed=np.ones(len(tracks), np.bool_),
                xyxy=np.array(boxes, np.float32).reshape(-1, 4)[order],
                score=np.full(len(tracks), 0.8, np.float32),
                class_id=np.zeros(len(tracks), np.int32),
                ended=ended,
            )
        )
    counters = engine.counters()
    events += engine.close()
    observable = [
        is_observable(c, sights[c.walk], walks[c.walk], looked) and hold_seen(c, truth, sights[c.walk]) for c in truth
    ]
    return Seen(walks, truth, observable, events, owner, switched, sights, counters)


def is_observable(crossing: TrueCrossing, sights: list[tuple[float, Floats]], walk: Walk, times: list[float]) -> bool:
    """Two measured boxes on each side within SETTLE of the crossing, and no gap above a second on the way over.

    The way over is from clear of the line on one side to clear of it on the other, and SETTLE on each side at least;
    a box that is clear has to be among those on either side.
    """
    line = LINES[crossing.line]
    to = 1 if crossing.direction == line.directions[0] else -1
    off = sides(walk, line)[0] * to
    at = round((crossing.t - walk.start) / STEP)
    clear_before = np.nonzero(off[:at] < -BAND * walk.height)[0]
    clear_after = np.nonzero(off[at:] > BAND * walk.height)[0]
    begin = walk.start + (clear_before[-1] if len(clear_before) else 0) * STEP
    end = crossing.t + clear_after[0] * STEP
    # A jittering box may cut the line a little earlier or later than its object.
    begin, end = min(begin, crossing.t - SETTLE) - 0.1, max(end, crossing.t + SETTLE) + 0.1
    if times[-1] < end - 0.1:
        return False  # an outage until the end of the film
    if begin < times[0] or any(later - t > 1 and t < end and later > begin for t, later in itertools.pairwise(times)):
        return False
    a, b = (np.array(p) * (WIDTH, HEIGHT) for p in line.points)
    length = float(np.hypot(*(b - a)))
    before = after = 0
    clear = [False, False]
    for t, (x, y) in sights:
        away = to * ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / length
        before += crossing.t - SETTLE <= t < crossing.t and away < 0
        after += crossing.t < t <= crossing.t + SETTLE and away > 0
        clear[0] |= begin - 1 < t < crossing.t and away < -BAND * walk.height
        clear[1] |= crossing.t < t < end + 1 and away > BAND * walk.height
    return before >= 2 and after >= 2 and all(clear)


def hold_seen(crossing: TrueCrossing, truth: list[TrueCrossing], sights: list[tuple[float, Floats]]) -> bool:
    """Where an object crosses a line and comes back: whether it was seen to stay for SETTLE."""
    times = sorted(c.t for c in truth if (c.walk, c.line) == (crossing.walk, crossing.line))
    return all(
        any(there + SETTLE + 0.05 < t < back for t, _ in sights)
        for there, back in itertools.pairwise(times)
        if crossing.t in (there, back)
    )


@dataclass
class Verdict:
    """Counts over many worlds."""

    drawn: int = 0
    """True crossings."""
    observable: int = 0
    certain: int = 0
    """Observable ones that were counted, once and in their direction."""
    uncertain: int = 0
    """Of the others, those told as uncertain."""
    counted: int = 0
    """Of the others, those that were counted all the same, rightly."""
    unseen: int = 0
    """Of the others, those that nobody told of: no track was seen on both sides."""
    by_guess: int = 0
    """Observable ones told as uncertain, because ids were switched among several objects."""
    problems: list[str] = field(default_factory=list)
    walks: int = 0


def judge(seen: Seen, verdict: Verdict, context: str = "") -> None:
    """Compares what was told with what was true."""
    verdict.walks += len(seen.walks)
    told = [e for e in seen.events if e.kind == "line"]
    free = list(told)
    for crossing, observable in sorted(zip(seen.truth, seen.observable, strict=True), key=lambda pair: pair[0].t):
        verdict.drawn += 1
        verdict.observable += observable
        kind = seen.walks[crossing.walk].kind
        fits = [
            e
            for e in free
            if seen.owner[e.track] == crossing.walk
            and e.rule == LINES[crossing.line].name
            and e.direction == crossing.direction
            # Who stands on a line may be seen to cross it at any time in between.
            and abs(e.t_ns / 1e9 - 1e6 - crossing.t) < (1.0 if observable and kind != "stop" else 6.0)
        ]
        fits.sort(key=lambda e: abs(e.t_ns / 1e9 - 1e6 - crossing.t))
        where = f"{context} {kind} {crossing}"
        if observable:
            if not fits:
                verdict.problems.append(f"missed: {where}")
            elif fits[0].certain:
                verdict.certain += 1
            elif crossing.walk in seen.switched:
                verdict.by_guess += 1
            else:
                verdict.problems.append(f"uncertain: {where}")
        elif not fits:
            verdict.unseen += 1
        elif fits[0].certain:
            verdict.counted += 1
        else:
            verdict.uncertain += 1
        if fits:
            free.remove(fits[0])
    for event in free:
        if event.certain:
            walk = seen.walks[seen.owner[event.track]]
            verdict.problems.append(f"false: {context} {walk.kind} {seen.owner[event.track]} {event}")


def setting_of(rng: np.random.Generator, number: int) -> tuple[str, Setting]:
    """How world `number` is looked at."""
    fps = float(rng.choice((8, 10, 12, 15, 25, 30)))
    ways = {f"drop {drop:g}": Setting(fps, drop) for drop in (0.0, 0.2, 0.4, 0.6)} | {
        "burst": Setting(fps, 0.1, bursts=True),
        "outage": Setting(fps, 0.1, outages=True),
        "restart": Setting(fps, 0.1, restarts=True),
        "switch": Setting(fps, 0.0, switches=0.5),
    }
    return list(ways.items())[number % len(ways)]


def world(seed: int, number: int, walks: int = 12, seconds: float = 16.0) -> tuple[str, Seen]:
    """The world of that number, looked at in its way."""
    rng = np.random.default_rng((seed, number))
    name, setting = setting_of(rng, number)
    return name, watch(rng, draw_world(rng, walks, seconds), setting, seconds)


def run(paths: int, seed: int, per_world: int = 12) -> tuple[dict[str, Verdict], list[Seen]]:
    """Draws so many paths and judges what was told of them."""
    verdicts: dict[str, Verdict] = {}
    worlds: list[Seen] = []
    for number in range(paths // per_world):
        name, seen = world(seed, number, per_world)
        judge(seen, verdicts.setdefault(name, Verdict()), f"{name} world {number}:")
        worlds.append(seen)
    return verdicts, worlds


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--paths", type=int, default=4800)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    verdicts, worlds = run(args.paths, args.seed)
    columns = ("walks", "drawn", "observable", "certain", "by_guess", "uncertain", "counted", "unseen")
    print(f"{'':10}" + "".join(f"{c:>12}" for c in columns) + f"{'problems':>12}")
    for name, verdict in verdicts.items():
        print(f"{name:10}" + "".join(f"{getattr(verdict, c):12}" for c in columns) + f"{len(verdict.problems):12}")
    for verdict in verdicts.values():
        print("\n".join(verdict.problems[:6]))
    print(Counter((e.phase, e.change) for seen in worlds for e in seen.events))


if __name__ == "__main__":
    main()
