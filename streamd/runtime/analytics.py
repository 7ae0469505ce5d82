"""Trackers and rules of all streams: from boxes to tracks, counts and events.

`Analytics` holds the state of each stream, whichever model instance serves it. Each instance has an `AnalysisStep` of
its own, which processes a whole batch between inference and publication."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from streamd.analysis.rules import RuleEvent
from streamd.analysis.rules.checks import check_rules
from streamd.analysis.tracking import TrackingSettings
from streamd.analysis.tracking.tracks import TrackIds
from streamd.config.problems import dotted
from streamd.errors import ConfigError
from streamd.events.evidence.clips import Moment
from streamd.events.record import Event, RuleStates
from streamd.flow.settings import StreamSettings
from streamd.heads import DetectSettings
from streamd.runtime.analysis_step import AnalysisStep
from streamd.runtime.stream_analysis import StreamAnalysis
from streamd.settings import FieldPath
from streamd.telemetry.analytics import AnalyticsMetrics
from streamd.types import Attribute, ModelInfo


class Said(Protocol):
    """What classifiers have said of tracks. Any thread."""

    def of(self, stream: str, tracks: Sequence[int]) -> Sequence[tuple[Attribute, ...]] | None:
        """Of each of the tracks; None if nothing is known of any."""

    def details(self, stream: str, track: int) -> Mapping[str, Any]:
        """Of one track as plain values, by classifier."""


log = structlog.get_logger(__name__)

IDS_PER_LIFE = 1 << 32
"""Tracks of one process; ids stay below 2^53, which JavaScript represents exactly, for two million processes."""
KEEP_S = 10.0
"""How often it is handed over for how long lines were not observed; counts without an event are at once."""
DOWN_S = 1.0
"""A stream without a picture for this long is down: occupancy is stale."""
DOWN_FRAMES = 2.5
"""But not a slow one (`max_fps: 1`) before so many frames are missing."""


class Analytics:
    """The analysis of every stream of this process.

    Args:
        tracking: the tracker's settings.
        detect: which boxes count as detections.
        metrics: counters and gauges.
        submit: receives each event and when it happened; must not block. Any thread.
        boot_id: identity of this daemon.
        life: number of this process among the daemon's workers.
    """

    def __init__(
        self,
        tracking: TrackingSettings,
        detect: DetectSettings,
        metrics: AnalyticsMetrics,
        submit: Callable[[Event, Moment], object],
        *,
        boot_id: str,
        life: int = 0,
    ) -> None:
        self.tracking, self._detect, self._metrics, self._submit = tracking, detect, metrics, submit
        self._ids = TrackIds(life * IDS_PER_LIFE + 1)
        numbers = itertools.count(1)
        self._new_id = lambda: f"{boot_id}-{life}-{next(numbers)}"
        self.streams: Mapping[str, StreamAnalysis] = {}
        """Replaced, never changed: the steps read it without a lock."""
        self._labels: Sequence[str] = ()
        self.said: Said | None = None
        """What classifiers say of tracks; None without classifiers."""
        self._states: dict[str, Mapping[str, Any]] = {}
        """Of streams that come from another box, or are to go to one."""
        self.keep: Callable[[RuleStates], object] | None = None
        """Receives what rules have counted without an event; must not block. None where nobody continues from it."""
        self.past: Callable[[str], Mapping[str, Any] | None] = lambda _: None
        """What the rules of a stream had counted in an earlier process; a worker's parent tells it with `resume`."""
        self._keep_at = 0.0
        self.keep_states = False
        """In a fleet: the rules' state of a removed stream is kept for `state_of`, and not with this box's events."""

    def resume(self, stream: str, state: Mapping[str, Any] | None) -> None:
        """Sets the state from which the rules of a stream continue when it is added; None: they start from zero."""
        if state is None:
            self._states.pop(stream, None)
        else:
            self._states[stream] = state

    def state_of(self, stream: str) -> Mapping[str, Any] | None:
        """The state of the rules of a removed stream, once; None if it had none."""
        return self._states.pop(stream, None)

    @property
    def detect(self) -> DetectSettings:
        """The thresholds for decoding: the tracker also sees boxes with low scores, of all classes."""
        low = min(self.tracking.low, self._detect.conf, *self._detect.class_conf.values())
        return self._detect.model_copy(update={"conf": low, "classes": None, "class_conf": {}})

    def step(self, model: ModelInfo) -> AnalysisStep:
        """Creates the step of one model instance."""
        self._labels = model.labels
        return AnalysisStep(self, model, self._detect)

    def check(self, streams: Sequence[StreamSettings], where: Callable[[FieldPath], str] = dotted) -> None:
        """Checks the classes of zones and lines. Only once there is a step.

        Args:
            streams: of a configuration.
            where: names a field in the error.

        Raises:
            ConfigError: names each class that the model does not have, one per line: such a rule would never count.
        """
        problems = [
            f"{where(('streams', i, *path))}: {message}"
            for i, stream in enumerate(streams)
            for path, message in check_rules(stream.zones, stream.lines, self._labels)
        ]
        if problems:
            raise ConfigError("\n".join(problems))

    def add(self, settings: StreamSettings) -> None:
        """A stream starts, or restarts with other settings."""
        known = self.streams.get(settings.id)
        if known is None:
            state = self._states.pop(settings.id, None)
            if state is None and not self.keep_states:
                state = self.past(settings.id)
            known = StreamAnalysis(settings, self._labels, self._ids, self._new_id, state)
            self.streams = {**self.streams, settings.id: known}
            self._metrics.show(known)
        else:
            self.adapt(settings)
            with known.lock:
                known.clock.restart(settings.live)

    def adapt(self, settings: StreamSettings) -> None:
        """The zones and lines of a stream change between two frames."""
        known = self.streams[settings.id]
        with known.lock:
            events = known.adapt(settings)
        self.tell(known, events)

    def unreliable(self, stream: str, why: tuple[str, ...]) -> None:
        """The camera of a stream cannot see, for these reasons, or can see again. Any thread."""
        known = self.streams.get(stream)
        if known is not None:
            with known.lock:
                known.unreliable = why
                if known.rules is not None:
                    known.rules.unreliable(why)

    def remove(self, stream: str) -> None:
        """A stream was removed; its last frame has passed."""
        known = self.streams.get(stream)
        if known is None:
            return
        self.streams = {name: each for name, each in self.streams.items() if name != stream}
        self._metrics.hide(stream)
        self._close(known)
        if self.keep_states and known.rules is not None:
            # After the end of its presences: all of them are counted, and the successor may resume them.
            with known.lock:
                self._states[stream] = known.rules.state()

    def close(self) -> None:
        """Ends the open events of every stream. To be called after the last frame."""
        for known in self.streams.values():
            self._close(known)

    def _close(self, known: StreamAnalysis) -> None:
        if known.rules is None:
            return
        with known.lock:
            events = known.rules.close()
            known.rules.unsaved()
            left = known.rules.state()
        self.tell(known, events)
        if self.keep is not None and not self.keep_states:
            rules = [*left["lines"], *left["zones"]]
            self.keep(RuleStates(known.stream, known.last_wall_ns or left["wall_ns"], rules, left["memory"]))

    def seen(self) -> dict[str, int]:
        """Unix time of the last frame, in nanoseconds, of each stream with rules. Any thread."""
        return {
            known.stream: known.last_wall_ns
            for known in self.streams.values()
            if known.rules is not None and known.last_wall_ns
        }

    def tick(self, now_s: float) -> None:
        """Detects streams without pictures. To be called a few times a second.

        Args:
            now_s: monotonic seconds.
        """
        for known in self.streams.values():
            if known.rules is None:
                continue
            if now_s - known.last_frame_s > max(DOWN_S, DOWN_FRAMES * known.rules.pace_s):
                with known.lock:
                    known.last_frame_s = math.inf
                    events = known.rules.down()
                self.tell(known, events)
        if self.keep is not None and now_s >= self._keep_at:
            self._keep_at = now_s + KEEP_S
            for known in self.streams.values():
                self.keep_counts(known)

    def keep_counts(self, known: StreamAnalysis) -> None:
        """Hands over what has been counted without an event."""
        if known.rules is None or self.keep is None:
            return
        with known.lock:
            changed = known.rules.unsaved()
        if changed:
            self.keep(RuleStates(known.stream, None, changed))

    def tell(
        self, known: StreamAnalysis, events: Iterable[RuleEvent], captured_ns: int | None = None, now_ns: int = 0
    ) -> None:
        """Passes events to the journal and counts them.

        Args:
            known: the stream.
            events: what its rules have to say.
            captured_ns: of the frame that decided them; None if none did.
            now_ns: that frame's time on the rules' clock.
        """
        for e in events:
            self._metrics.event(known.stream, e)
            back_s = max(0, now_ns - e.t_ns) / 1e9 if captured_ns is not None else 0.0
            event = event_of(known.stream, e)
            if self.said is not None and (said := self.said.details(known.stream, e.track)):
                event.details["attributes"] = said
            self._submit(event, Moment(captured_ns, back_s))


def event_of(stream: str, e: RuleEvent) -> Event:
    """Converts a rule's event to the journal's."""
    details: dict[str, Any] = {"box": [round(v, 2) for v in e.box], "score": round(e.score, 4)}
    if e.kind == "line":
        details |= {"direction": e.direction, "certain": bool(e.certain)}
        if e.point is not None:
            details["point"] = [round(v, 4) for v in e.point]
    else:
        details |= {
            "dwell_s": round(e.dwell_s, 3), "observed_s": round(e.observed_s, 3), "unseen_s": round(e.unseen_s, 3),
        }  # fmt: skip
        if e.previous is not None:
            details["previous"] = e.previous
    return Event(
        id=e.id, stream=stream, kind=e.phase, type=f"{e.kind}_{e.change}", rule=e.rule, label=e.label, track=e.track,
        epoch=e.epoch, seq=e.seq, at_ns=e.wall_ns, details=details, counts=dict(e.counts),
        state=dict(e.state),
    )  # fmt: skip
