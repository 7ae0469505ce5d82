#!/usr/bin/env python3
"""What is found when the network is too slow for all that it is asked to look at: gated streams beside streams that are
looked at always, through the daemon's own rings, batcher, gates, trackers and rules, in simulated time.

    python tools/glance_overload.py DAY... --streams 8 --share 1,0.7,0.5 [--cache FOLDER] [--json]

The days are those of `glance_eval.py --write`. Streams play them in turn, each beginning up to `--spread` seconds later
than the first. `asked` is what the gates want of the network if it is fast enough, frames a second; the network then
does `--share` of that, one frame after the other. Columns: frames looked at a second, those with motion that were given
up, and, of the events and tracks that are stable (see `glance_truth.py`), how many are there at most a frame later, and
at any time; each for gating and for looking always. A frame of the latter that finds no room in its ring is lost."""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from glance_day import frames_of
from glance_eval import given, parser_of
from glance_network import Boxes, Network
from glance_truth import Found, Truth, merged
from glance_ways import Way, look_always

from streamd.analysis.glance.settings import LookSettings
from streamd.flow import batcher as batching
from streamd.flow.batcher import Batcher
from streamd.flow.gated import GatedRing, is_record
from streamd.flow.ring import Bell, Closed, Ring
from streamd.types import Frame

RING = 8
"""Frames that wait in the ring of a stream; the daemon's default."""


class Clock:
    """Stands in for `time` in the batcher."""

    def __init__(self) -> None:
        self.now_ns = 10**9

    def monotonic_ns(self) -> int:
        """Nanoseconds."""
        return self.now_ns

    def monotonic(self) -> float:
        """Seconds."""
        return self.now_ns / 1e9


class Stream:
    """One camera that plays a day.

    Args:
        name: its id.
        day: the clip.
        boxes: of each frame.
        way: how it is looked at.
        begin_ns: when its first frame comes.
    """

    def __init__(self, name: str, day: Path, boxes: Sequence[Boxes], way: Way, begin_ns: int) -> None:
        self.name, self.boxes, self.way = name, boxes, way
        self._frames: Iterator[Frame] = frames_of(day)
        self._begin_ns, self._first_ns = begin_ns, 0
        self.looked: set[int] = set()
        self.passed: Counter[str] = Counter()

    def next(self) -> Frame | None:
        """Its next frame, with its time in the simulation."""
        frame = next(self._frames, None)
        if frame is None or frame.seq >= len(self.boxes):
            return None
        self._first_ns = self._first_ns or frame.captured_ns
        frame.stream = self.name
        frame.captured_ns = frame.decoded_ns = frame.captured_ns - self._first_ns + self._begin_ns
        return frame


@dataclass(slots=True)
class Outcome:
    """One share of one way of looking."""

    gated: bool
    share: float
    capacity: float
    """Frames a second."""
    asked: float
    looked: float
    given_up: dict[str, int]
    """Frames that were not looked at, by reason; `lost` if they were not published either."""
    events: Found
    tracks: Found
    by_day: dict[str, Found]
    """Events of the streams that play each day."""


def simulate(
    days: Sequence[Path], boxes: dict[Path, list[Boxes]], network: Network, look: LookSettings | None, streams: int,
    capacity: float | None, spread_s: float, seed: int,
) -> tuple[list[Stream], float]:  # fmt: skip
    """Plays all streams.

    Args:
        days: clips, which the streams play in turn.
        boxes: of each clip.
        network: what it is.
        look: how the streams are looked at; None: always.
        streams: how many.
        capacity: frames a second; None: it takes no time.
        spread_s: within how many seconds they begin.
        seed: of that.

    Returns:
        The streams, and how many seconds it took.
    """
    rng, clock, bell = np.random.default_rng(seed), Clock(), Bell()
    with mock.patch.object(batching, "time", clock):
        batcher = Batcher(1, 0.0, bell)
        batcher.seal()
        cameras: dict[str, Stream] = {}
        rings: dict[str, Ring[Frame]] = {}
        queue: list[tuple[int, int, Frame]] = []
        for i in range(streams):
            name, day = f"s{i}", days[i % len(days)]
            way = Way(network, look, 0, name)
            camera = cameras[name] = Stream(name, day, boxes[day], way, 10**9 + int(rng.uniform(0, spread_s) * 1e9))

            def lost(frame: Frame, reason: str, camera: Stream = camera) -> None:
                camera.passed["lost"] += 1

            if way.gate is not None:
                rings[name] = GatedRing(RING, "drop_oldest", way.gate, on_drop=lost, bell=bell)
            else:
                rings[name] = Ring(RING, "drop_oldest", on_drop=lost, bell=bell)
            batcher.add(name, rings[name])
            if (frame := camera.next()) is not None:
                heapq.heappush(queue, (frame.captured_ns, i, frame))
        free_ns, busy = 0, False
        under_way: list[Frame] = []

        def finish() -> None:
            nonlocal busy
            for frame in under_way:
                camera = cameras[frame.stream]
                if is_record(frame):
                    assert frame.view is not None
                    camera.passed[frame.view.why] += 1
                else:
                    camera.looked.add(frame.seq)
                camera.way.take(frame, camera.boxes[frame.seq])
            under_way.clear()
            busy = False

        while True:
            if queue and (not busy or queue[0][0] < free_ns):
                at_ns, i, frame = heapq.heappop(queue)
                clock.now_ns = at_ns
                camera = cameras[frame.stream]
                camera.way.glance(frame)
                rings[camera.name].put(frame)
                if (after := camera.next()) is not None:
                    heapq.heappush(queue, (after.captured_ns, i, after))
                else:
                    rings[camera.name].close()
            elif busy:
                clock.now_ns = free_ns
                finish()
            if not busy and (any(map(_waits, rings.values())) or not queue):
                try:
                    batch = batcher.take()
                except Closed:
                    break
                under_way += batcher.order or batch
                free_ns, busy = clock.now_ns + (int(1e9 / capacity) if capacity and batch else 0), True
                if free_ns == clock.now_ns:
                    finish()
        finish()
    for camera in cameras.values():
        camera.way.run.looked = [seq in camera.looked for seq in range(len(camera.boxes))]
    return [*cameras.values()], clock.now_ns / 1e9 - 1


def _waits(ring: Ring[Frame]) -> bool:
    """Whether there is something to look at in it."""
    return ring.pictures > 0 if isinstance(ring, GatedRing) else len(ring) > 0


def main() -> int:
    """Runs the command."""
    parser = parser_of(__doc__)
    parser.add_argument("days", nargs="+", type=Path, metavar="DAY")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--share", default="1,0.7,0.5", help="what the network does of what it is asked for")
    parser.add_argument("--spread", type=float, default=20.0, help="seconds in which the streams begin (default: 20)")
    args = parser.parse_args()
    network, look = given(args)
    boxes = {day: network.boxes(day) for day in args.days}
    truths = {day: look_always(day, network, runs=args.runs) for day in args.days}
    for outcome in outcomes(args.days, boxes, truths, network, look, args):
        if args.json:
            print(json.dumps(asdict(outcome)))
            continue
        print(
            f"{'gated ' if outcome.gated else 'always'} {outcome.capacity:6.1f} of {outcome.asked:.1f} frames/s asked "
            f"for: looked at {outcome.looked:.1f}; events {outcome.events}; tracks {outcome.tracks}\n"
            f"    {outcome.given_up}\n    " + "; ".join(f"{day}: {events}" for day, events in outcome.by_day.items()),
            flush=True,
        )  # fmt: skip
    return 0


def outcomes(
    days: Sequence[Path], boxes: dict[Path, list[Boxes]], truths: dict[Path, Truth], network: Network,
    look: LookSettings, args: argparse.Namespace,
) -> Iterator[Outcome]:  # fmt: skip
    """Of each share, gated and always."""
    played, seconds = simulate(days, boxes, network, look, args.streams, None, args.spread, args.seed)
    asked = sum(len(stream.looked) for stream in played) / seconds
    for share in map(float, args.share.split(",")):
        for way in (look, None):
            played, seconds = simulate(
                days, boxes, network, way, args.streams, share * asked, args.spread, args.seed
            )  # fmt: skip
            found = [truths[days[i % len(days)]].measure(stream.way.run) for i, stream in enumerate(played)]
            passed: Counter[str] = Counter()
            for stream in played:
                passed += stream.passed
            yield Outcome(
                way is not None, share, share * asked, asked, sum(len(s.looked) for s in played) / seconds,
                dict(passed.most_common()), merged([each[0] for each in found]), merged([each[1] for each in found]),
                {d.stem: merged([found[i][0] for i in range(n, len(found), len(days))]) for n, d in enumerate(days)},
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
