"""Ways of looking at a clip: always, seldom in the pauses of a day, without them, and as the gate wants to.

Each takes the network's boxes through the daemon's own gate, tracker and rules."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from glance_day import ACTIVE, frames_of, parts_of
from glance_network import Boxes, Network
from glance_truth import Run, Truth
from prometheus_client import CollectorRegistry

from streamd.analysis.glance.gate import Gate
from streamd.analysis.glance.settings import LookSettings
from streamd.analysis.rules.settings import LineSettings, ZoneSettings
from streamd.analysis.tracking.bytetrack import ByteTrackSettings
from streamd.events.record import Event
from streamd.flow.glimpse import Glimpse
from streamd.flow.stream import Result, StreamOutput
from streamd.runtime.analytics import Analytics
from streamd.sources.av import AvStreamSettings
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.telemetry.metrics import Metrics
from streamd.types import Boxes as FrameBoxes
from streamd.types import Frame

LEFT_OUT = 50
"""One frame in so many is left out of a run that is disturbed so."""
NOISY = (1, 3)
"""In these runs, there is noise in what the network is given: each takes its time once more, the others do not."""
RUNS = 13
RARELY_S = (0.5, 1.0, 2.0, 4.0)
"""Of a day, one run more for each: it looks at every active frame, and so often in the pauses."""


def _rules() -> dict[str, Any]:
    lines = [LineSettings(name=f"x{i}", points=((i / 4, 0), (i / 4, 1))) for i in (1, 2, 3)]
    lines += [LineSettings(name=f"y{i}", points=((0, i / 3), (1, i / 3))) for i in (1, 2)]
    zones = [
        ZoneSettings(name=f"z{r}{c}", points=((c / 3, r / 2), ((c + 1) / 3, r / 2), ((c + 1) / 3, (r + 1) / 2),
                                              (c / 3, (r + 1) / 2)))
        for r in range(2) for c in range(3)
    ]  # fmt: skip
    return {"lines": tuple(lines), "zones": tuple(zones)}


class Way:
    """The daemon's gate, tracker and rules on one clip.

    Args:
        network: the model.
        look: when it looks; None for always.
        lag: frames after which its answer reaches the gate.
        stream: the id that its frames bear.
    """

    def __init__(self, network: Network, look: LookSettings | None, lag: int, stream: str = "clip") -> None:
        self.run = Run()
        settings = AvStreamSettings(id=stream, url="clip", pace="asap", **_rules())
        registry = CollectorRegistry()
        self._analytics = Analytics(
            ByteTrackSettings(), network.detect, AnalyticsMetrics(registry), self._event, boot_id="eval"
        )
        self._step = self._analytics.step(network.info)
        self._analytics.add(settings)
        self._output = StreamOutput(stream, Metrics(registry), network.info, lambda _: None)
        self._gate = Gate(look) if look is not None else None
        self._glimpse = Glimpse(stream, self._gate) if self._gate is not None else None
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

    @property
    def gate(self) -> Gate | None:
        """What decides; None if it looks always."""
        return self._gate

    def frame(self, frame: Frame, boxes: Boxes) -> None:
        """Takes the next frame."""
        self.glance(frame)
        self.take(frame, boxes)

    def glance(self, frame: Frame) -> None:
        """Decides whether to look at the next frame."""
        frame.view = None
        if self._glimpse is not None and self._gate is not None:
            while self._answers and self._answers[0][0] <= frame.seq - self._lag:
                self._gate.answer(*self._answers.popleft()[1])
            self._glimpse.frame(frame)
            assert frame.view is not None
        self.run.why.append(frame.view.why if frame.view is not None else "")

    def take(self, frame: Frame, boxes: Boxes) -> None:
        """Takes what the network finds in the next frame, if it looks."""
        xyxy, score, class_id = boxes
        result = Result(self._output, frame, FrameBoxes(xyxy.copy(), score.copy(), class_id.copy()))
        looked = result.looked
        if not looked:
            result.boxes = FrameBoxes(xyxy[:0], score[:0], class_id[:0])
        self._step.step([result])
        self.run.looked.append(looked)
        if not looked:
            self.run.boxes.append(self.run.boxes[-1] if self.run.boxes else result.boxes.xyxy)
            return
        self.run.boxes.append(result.boxes.xyxy)
        if result.boxes.tracks is not None:
            for number, box in zip(result.boxes.tracks.number.tolist(), result.boxes.xyxy, strict=True):
                if number:
                    self.run.tracks.setdefault(number, {})[frame.seq] = box
            if frame.view is not None:
                self._answers.append((frame.seq, (frame.view, result.boxes.xyxy, result.boxes.tracks)))


class Rarely:
    """Chooses the frames of a day that `RARELY_S` is about."""

    def __init__(self, parts: Sequence[str], every: float) -> None:
        self._parts, self._every, self._last = parts, every, -every

    def looks(self, seq: int) -> bool:
        """To be asked for each frame in order."""
        paused = seq < len(self._parts) and self._parts[seq] != ACTIVE
        if paused and seq - self._last < self._every:
            return False
        self._last = seq
        return True


def look_rarely(clip: Path, network: Network, parts: Sequence[str], rate: float) -> list[Run]:
    """What is found where the pauses of a day are seldom looked at. A crowd that is frozen in mid-step is no still
    scene: how often it is looked at changes which tracks go on in it, and what depends on that is no truth."""
    ways = [Way(network, None, 0) for _ in RARELY_S]
    chosen = [Rarely(parts, seconds * rate) for seconds in RARELY_S]
    for frame, found in zip(frames_of(clip), network.boxes(clip), strict=False):
        for way, one in zip(ways, chosen, strict=True):
            if one.looks(frame.seq):
                way.frame(frame, found)
            else:
                way.leave_out()
    return [way.run for way in ways]


def look_always(clip: Path, network: Network, lag: int = 0, runs: int = RUNS, *, rarely: bool = False) -> Truth:
    """Looks at every frame of a clip so often, see `glance_truth`; `rarely`: and as `look_rarely`, if it is a day."""
    parts = parts_of(clip)
    answers = [network.boxes(clip, seed if seed in NOISY else None) for seed in range(runs)]
    ways = [Way(network, None, lag) for _ in range(runs)]
    lost = [np.random.default_rng(seed).random(len(answers[0])) < 1 / LEFT_OUT for seed in range(runs)]
    times: list[int] = []
    for i, frame in enumerate(frames_of(clip)):
        times.append(frame.captured_ns)
        for seed, way in enumerate(ways):
            if seed and seed not in NOISY and lost[seed][i]:
                way.leave_out()
            else:
                way.frame(frame, answers[seed][i])
    rate = 1e9 / float(np.median(np.diff(times))) if len(times) > 1 else 25.0
    active = None if not parts else np.array([part == ACTIVE for part in parts])

    def counts(seq: int) -> bool:
        return active is None or bool(active[min(seq, len(active) - 1)])

    again = [way.run for way in ways[1:]]
    if rarely and parts:
        again += look_rarely(clip, network, parts, rate)
    return Truth(rate, ways[0].run, again, counts)


def look_cut(clip: Path, network: Network, parts: Sequence[str]) -> Run:
    """Looks at every frame of a day's active parts, one after the other as if there were nothing between them."""
    cut, shown, cut_ns, last_ns = Way(network, None, 0), 0, 0, 0
    for frame, found in zip(frames_of(clip), network.boxes(clip), strict=False):
        passed_ns, last_ns = frame.captured_ns - last_ns if last_ns else 0, frame.captured_ns
        if frame.seq >= len(parts) or parts[frame.seq] != ACTIVE:
            continue
        cut_ns += passed_ns
        frame.wall_ns += cut_ns + 10**9 - frame.captured_ns
        frame.seq, frame.pts_ns, frame.captured_ns = shown, cut_ns, 10**9 + cut_ns
        shown += 1
        cut.frame(frame, found)
    return cut.run


def look_gated(clip: Path, network: Network, look: LookSettings, lag: int) -> Run:
    """Looks where the gate wants to."""
    way = Way(network, look, lag)
    for frame, found in zip(frames_of(clip), network.boxes(clip), strict=False):
        way.frame(frame, found)
    return way.run
