#!/usr/bin/env python3
"""What `look.when: motion` saves on a clip and what it misses, frame by frame, against looking at every frame.

    python tools/glance_eval.py CLIP... [--model MODEL] [--look '{at_least_every_s: 2}'] [--cache FOLDER] [--json]
    python tools/glance_eval.py CLIP... --day SECONDS [--still 0.8] [--seed 1] [--write FOLDER]

The network runs once over every frame; both ways then see its boxes, through the daemon's own gate, tracker and rules
(three upright and two level lines, six zones). The answers reach the gate `--lag` frames later, as they do in a daemon.

With --day, each clip is cut into a working day of that many seconds and encoded again: pieces of the clip, between them
a still scene (its first frame) with sensor noise, rain, slow and sudden changes of light, and shaking, all from a seed.

Columns: `looked`: share of frames that the network had to process. `events`: crossings and entries of the run that
looks always, how many are there with the gate too (same rule, within half a second; `soon`: at most one frame later),
and how many only there. `tracks`: the same for tracks that were confirmed for half a second (a box of the other run
overlaps by half). Of a day, both count where the clip plays: in a still picture, only boxes that tremble cross a line.
With --repeat, a second line compares looking always with the same without one frame in fifty: what is missing there is
chance. `without pauses`: of a day, the events that looking always finds if its pauses are cut out, and how many of them
looking always and the gate find in the day: in a pause, tracks that tremble end, begin and swap either way. `late`:
worst and 99th percentile of how many frames later a track is found. `boxes`: share of all boxes that the last look
shows in place (overlap by half)."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from compare_detections import overlaps
from glance_day import ACTIVE, frames_of, make_day, parts_of
from prometheus_client import CollectorRegistry

from streamd.analysis.glance.gate import Gate
from streamd.analysis.glance.settings import LookSettings
from streamd.analysis.rules.settings import LineSettings, ZoneSettings
from streamd.analysis.tracking.bytetrack import ByteTrackSettings
from streamd.config import DetectorSettings
from streamd.engine import BatchSettings, open_backend
from streamd.engine.openvino import OpenVinoSettings
from streamd.events.record import Event
from streamd.flow.glimpse import Glimpse
from streamd.flow.stream import Result, StreamOutput
from streamd.heads import DetectSettings
from streamd.heads.detector import open_detector
from streamd.runtime.analytics import Analytics
from streamd.sources.av import AvStreamSettings
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.metrics import Metrics
from streamd.types import Frame, ModelInfo

SAME_S, SAME_IOU = 0.5, 0.5
SHORTEST_S = 0.5
LEFT_OUT = 50
"""With --repeat, one frame in so many is left out: what that changes is chance."""
Happened = tuple[str, str, int]
"""Rule and what happened, label, number of the frame."""
Boxes = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]


class Network:
    """Boxes of every frame of a clip, computed once.

    Args:
        model: path or `builtin:NAME`.
        cache: folder that keeps them; None to compute them each time.
    """

    def __init__(self, model: str, cache: Path | None) -> None:
        self._model, self._cache = model, cache
        settings = DetectorSettings(path=model)
        self.backend = open_backend(OpenVinoSettings(), settings, batch=BatchSettings(max=1), live=False)
        self.detect = DetectSettings()
        low = self.detect.model_copy(update={"conf": 0.1})
        self._detector = open_detector(self.backend.spec, settings.head, low)
        self.backend.start(self._detector.plan)
        self.info: ModelInfo = self._detector.model

    def boxes(self, clip: Path) -> list[Boxes]:
        """Of each frame: corners (N, 4), scores (N,), classes (N,)."""
        digest = hashlib.sha256(clip.read_bytes() + self._model.encode()).hexdigest()[:16]
        kept = self._cache / f"{digest}.npz" if self._cache is not None else None
        if kept is not None and kept.is_file():
            with np.load(kept) as data:
                rows, counts = data["rows"], data["counts"]
            parts = np.split(rows, np.cumsum(counts)[:-1])
            return [(p[:, :4].copy(), p[:, 4].copy(), p[:, 5].astype(np.int32)) for p in parts]
        out: list[Boxes] = []
        slot = self.backend.slots[0]
        for frame in frames_of(clip):
            (letterbox,) = self.backend.preprocess(slot, [frame])
            self.backend.infer(slot)
            xyxy, score, class_id = self._detector.postprocess(self.backend.collect(slot), 0, letterbox)
            out.append((xyxy.copy(), score.copy(), class_id.copy()))
        if kept is not None and out:
            kept.parent.mkdir(parents=True, exist_ok=True)
            rows = np.concatenate([np.column_stack(each) for each in out]).astype(np.float32)
            np.savez_compressed(kept, rows=rows, counts=[len(each[1]) for each in out])
        return out


def _rules() -> dict[str, Any]:
    lines = [LineSettings(name=f"x{i}", points=((i / 4, 0), (i / 4, 1))) for i in (1, 2, 3)]
    lines += [LineSettings(name=f"y{i}", points=((0, i / 3), (1, i / 3))) for i in (1, 2)]
    zones = [
        ZoneSettings(name=f"z{r}{c}", points=((c / 3, r / 2), ((c + 1) / 3, r / 2), ((c + 1) / 3, (r + 1) / 2),
                                              (c / 3, (r + 1) / 2)))
        for r in range(2) for c in range(3)
    ]  # fmt: skip
    return {"lines": tuple(lines), "zones": tuple(zones)}


@dataclass(slots=True)
class Run:
    """What one way of looking found."""

    events: list[Happened] = field(default_factory=list)
    tracks: dict[int, dict[int, npt.NDArray[np.float32]]] = field(default_factory=dict)
    """Of each track its box in each frame."""
    looked: list[bool] = field(default_factory=list)
    boxes: list[npt.NDArray[np.float32]] = field(default_factory=list)
    """(N, 4) published, or those of the last look."""
    why: list[str] = field(default_factory=list)
    """Of each frame, why it was looked at, or not."""


class Way:
    """The daemon's gate, tracker and rules on one clip.

    Args:
        network: the model.
        look: when it looks; None for always.
        lag: frames after which its answer reaches the gate.
    """

    def __init__(self, network: Network, look: LookSettings | None, lag: int) -> None:
        self.run = Run()
        settings = AvStreamSettings(id="clip", url="clip", pace="asap", **_rules())
        registry = CollectorRegistry()
        self._analytics = Analytics(
            ByteTrackSettings(), network.detect, AnalyticsMetrics(registry), self._event, boot_id="eval"
        )
        self._step = self._analytics.step(network.info)
        self._analytics.add(settings)
        self._output = StreamOutput("clip", Metrics(registry), network.info, lambda _: None)
        self._gate = Gate(look) if look is not None else None
        self._glimpse = Glimpse("clip", self._gate) if self._gate is not None else None
        self._answers: deque[Any] = deque()
        self._lag = lag

    def _event(self, event: Event, moment: object) -> None:
        if event.kind in ("begin", "instant"):
            what = event.details.get("direction", "")
            self.run.events.append((f"{event.rule}{what}", event.label or "", event.seq))

    def leave_out(self) -> None:
        """The next frame is lost."""
        self.run.looked.append(False)
        self.run.why.append("")
        self.run.boxes.append(self.run.boxes[-1] if self.run.boxes else np.empty((0, 4), np.float32))

    def frame(self, frame: Frame, boxes: Boxes) -> None:
        """Takes the next frame."""
        frame.view = None
        if self._glimpse is not None and self._gate is not None:
            while self._answers and self._answers[0][0] <= frame.seq - self._lag:
                self._gate.answer(*self._answers.popleft()[1])
            self._glimpse.frame(frame)
            assert frame.view is not None
        self.run.why.append(frame.view.why if frame.view is not None else "")
        xyxy, score, class_id = boxes
        result = Result(self._output, frame, xyxy.copy(), score.copy(), class_id.copy())
        looked = result.looked
        if not looked:
            result.xyxy, result.score, result.class_id = xyxy[:0], score[:0], class_id[:0]
        self._step.step([result])
        self.run.looked.append(looked)
        if not looked:
            self.run.boxes.append(self.run.boxes[-1] if self.run.boxes else result.xyxy)
            return
        self.run.boxes.append(result.xyxy)
        if result.tracks is not None:
            for number, box in zip(result.tracks.number.tolist(), result.xyxy, strict=True):
                if number:
                    self.run.tracks.setdefault(number, {})[frame.seq] = box
            if frame.view is not None:
                self._answers.append((frame.seq, (frame.view, result.xyxy, result.tracks)))


@dataclass(slots=True)
class Outcome:
    """One clip."""

    clip: str
    frames: int
    seconds: float
    looked: float
    why: dict[str, int]
    events: int
    events_found: int
    events_soon: int
    """Of these, at most one frame later."""
    events_more: int
    tracks: int
    tracks_found: int
    tracks_soon: int
    late_p99: float
    late_worst: int
    boxes: float
    parts: dict[str, dict[str, float]]
    """Of a day, for each kind of part: its frames, share of them looked at, and reasons."""
    without_pauses: tuple[int, int, int] | None = None
    """Of a day: events if its pauses are cut out; those of them that looking always and the gate find, at most a frame
    later."""


def compare(clip: str, rate: float, always: Run, gated: Run, parts: Sequence[str] | None = None) -> Outcome:
    """The outcome of one clip whose frames come at `rate` a second and show `parts`, if it is a day."""

    def counts(seq: int) -> bool:
        return not parts or parts[min(seq, len(parts) - 1)] == ACTIVE

    wanted = [event for event in always.events if counts(event[2])]
    partner = _partners(wanted, gated.events, rate)
    taken = set(partner.values())
    delays = [gated.events[j][2] - wanted[i][2] for i, j in partner.items()]
    left = [event for j, event in enumerate(gated.events) if j not in taken]
    lasting = {n: t for n, t in always.tracks.items() if max(t) - min(t) >= SHORTEST_S * rate and counts(min(t))}
    by_frame: dict[int, list[npt.NDArray[np.float32]]] = {}
    for track in gated.tracks.values():
        for seq, box in track.items():
            by_frame.setdefault(seq, []).append(box)
    late = []
    for track in lasting.values():
        first = min(track)
        seen = next((s for s in sorted(track) if s in by_frame and _covered(track[s], by_frame[s])), None)
        if seen is not None:
            late.append(seen - first)
    every = sum(len(boxes) for boxes in always.boxes)
    shown = 0
    for mine, theirs in zip(always.boxes, gated.boxes, strict=True):
        shown += sum(1 for box in mine if _covered(box, theirs))
    return Outcome(
        clip, len(gated.looked), len(gated.looked) / rate, sum(gated.looked) / max(len(gated.looked), 1),
        dict(Counter(gated.why).most_common()), len(wanted), len(delays), sum(delay <= 1 for delay in delays),
        sum(counts(event[2]) for event in left), len(lasting), len(late), sum(each <= 1 for each in late),
        float(np.percentile(late, 99)) if late else 0.0, max(late, default=0), shown / max(every, 1),
        _by_part(gated, parts or ()),
    )  # fmt: skip


def _partners(wanted: Sequence[Happened], events: Sequence[Happened], rate: float) -> dict[int, int]:
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


def without_pauses(cut: Run, always: Run, gated: Run, rate: float, parts: Sequence[str]) -> tuple[int, int, int]:
    """See `Outcome.without_pauses`; `cut` has seen the active frames only."""
    active = np.array([part == ACTIVE for part in parts])
    number = np.cumsum(active) - 1
    found = []
    for run in (always, gated):
        events = [(a, b, int(number[seq])) for a, b, seq in run.events if seq < len(parts) and active[seq]]
        partner = _partners(cut.events, events, rate)
        found.append(sum(events[j][2] - cut.events[i][2] <= 1 for i, j in partner.items()))
    return len(cut.events), found[0], found[1]


def _by_part(run: Run, parts: Sequence[str]) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    for part in dict.fromkeys(parts):
        where = [i for i, each in enumerate(parts[: len(run.looked)]) if each == part]
        reasons = Counter(run.why[i] for i in where if run.looked[i])
        looked = sum(reasons.values()) / max(len(where), 1)
        out[part] = {"frames": len(where), "looked": round(looked, 4), **dict(reasons.most_common())}
    return out


def _covered(box: npt.NDArray[np.float32], others: Sequence[npt.NDArray[np.float32]] | npt.NDArray[np.float32]) -> bool:
    if not len(others):
        return False
    return bool(overlaps(box[None].astype(float), np.array(others, float)).max() >= SAME_IOU)


# ------------------------------------------------------------------------------------------------------------- running


def evaluate(clip: Path, network: Network, look: LookSettings, lag: int, *, repeat: bool = False) -> Outcome:
    """Both ways on one clip; with `repeat`, instead of gating, all frames but one in `LEFT_OUT` are looked at."""
    boxes = network.boxes(clip)
    always, other = Way(network, None, lag), Way(network, None if repeat else look, lag)
    cut, parts, cut_ns, shown = Way(network, None, lag), parts_of(clip), 0, 0
    times: list[int] = []
    for frame, found in zip(frames_of(clip), boxes, strict=False):
        times.append(frame.captured_ns)
        picture = frame.picture
        always.frame(frame, found)
        frame.picture = picture
        if repeat and frame.seq % LEFT_OUT == LEFT_OUT // 2:
            other.leave_out()
        else:
            other.frame(frame, found)
        if parts and frame.seq < len(parts) and parts[frame.seq] == ACTIVE:
            cut_ns += times[-1] - times[-2] if len(times) > 1 else 0
            frame.wall_ns += cut_ns + 10**9 - frame.captured_ns
            frame.seq, frame.pts_ns, frame.captured_ns, frame.picture = shown, cut_ns, 10**9 + cut_ns, picture
            shown += 1
            cut.frame(frame, found)
    rate = 1e9 / float(np.median(np.diff(times))) if len(times) > 1 else 25.0
    name = f"{clip.name}, one frame in {LEFT_OUT} left out" if repeat else clip.name
    outcome = compare(name, rate, always.run, other.run, parts)
    if parts:
        outcome.without_pauses = without_pauses(cut.run, always.run, other.run, rate, parts)
    return outcome


def main() -> int:
    """Runs the command."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--model", default="builtin:road6", help="path, or builtin:NAME (default: builtin:road6)")
    parser.add_argument("--look", default="{}", help="settings of the section `look`, as YAML")
    parser.add_argument("--lag", type=int, default=2, help="frames until an answer reaches the gate (default: 2)")
    parser.add_argument("--repeat", action="store_true", help="also tell what leaving out a few frames changes")
    parser.add_argument("--cache", type=Path, help="folder that keeps the network's boxes")
    parser.add_argument("--day", type=float, metavar="SECONDS", help="make a working day of each clip")
    parser.add_argument("--still", type=float, default=0.8, help="share of it in which nothing happens (default: 0.8)")
    parser.add_argument("--height", type=int, metavar="ROWS", help="scale larger pictures of a day to this height")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="keep the days there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    look = LookSettings(**{"when": "motion", **yaml.safe_load(args.look)})
    network = Network(args.model, args.cache)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for clip in args.clips:
            if args.day is not None:
                into = args.write or Path(folder)
                into.mkdir(parents=True, exist_ok=True)
                clip = make_day(clip, args.day, args.still, args.seed, into, args.height)
            for repeat in (False, True) if args.repeat else (False,):
                outcomes.append(evaluate(clip, network, look, args.lag, repeat=repeat))
                if not args.json:
                    _print(outcomes[-1])
    if args.json:
        print(json.dumps([asdict(each) for each in outcomes], indent=2))
    return 0


def _print(o: Outcome) -> None:
    print(
        f"{o.clip}: {o.frames} frames, {o.seconds:.0f} s; looked {100 * o.looked:.1f} %; events {o.events_found} of "
        f"{o.events} ({o.events_soon} soon), {o.events_more} more; tracks {o.tracks_found} of {o.tracks} "
        f"({o.tracks_soon} soon), late p99 {o.late_p99:.0f}, worst "
        f"{o.late_worst} frames; boxes in place {100 * o.boxes:.2f} %\n    {o.why}"
    )
    if o.without_pauses is not None:
        print("    without pauses {} events; found looking always {}, here {}".format(*o.without_pauses))
    for part, said in o.parts.items():
        why = ", ".join(f"{key} {value}" for key, value in said.items() if key not in ("frames", "looked"))
        print(f"    {part}: {100 * said['looked']:.1f} % of {said['frames']} frames looked at: {why}")


if __name__ == "__main__":
    sys.exit(main())
