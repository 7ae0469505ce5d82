"""Clips and snapshots of events: which rules want them, and the way of frames, packets and events to their writers."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamd import __version__
from streamd.config import MediaSettings
from streamd.events.evidence.clips import ClipWriter, Moment, StreamEvidence, Wanted
from streamd.events.evidence.files import Room
from streamd.events.evidence.snapshots import UNDER_WAY, SnapshotMaker
from streamd.events.record import Event, Media, RuleStates
from streamd.flow.packets import PacketRing
from streamd.flow.settings import StreamSettings
from streamd.imaging.upright import Download, UprightScaler
from streamd.security.redact import redact
from streamd.telemetry.evidence import EvidenceCounts
from streamd.types import Detections, ModelInfo

_STUCK_S = 10.0
"""A disk that has held up the writer for so long is a problem."""
_UNBOUNDED = Wanted(0.0, 0.0, 0.0)
SNAPSHOTS_HELD = UNDER_WAY + 1
"""Pictures of a stream that snapshots may hold."""


class EventGate(Protocol):
    """Where events and their files are noted: the journal, or the way to it. Any thread."""

    def submit(self, event: Event) -> object:
        """Hands over an event."""

    def link(self, event_id: str, role: str, media: Media) -> object:
        """Notes a file of an event that was submitted before."""

    def keep(self, told: RuleStates) -> object:
        """Keeps what rules have counted without an event. False where it must be told again."""


def config_sha256(settings: Any) -> str:
    """Identifies a configuration without telling its secrets.

    Args:
        settings: as plain JSON values.
    """
    return hashlib.sha256(redact(json.dumps(settings, sort_keys=True)).encode()).hexdigest()


class Evidence:
    """What is recorded of the streams of one process. `frame` and `event` may be called by any thread.

    Args:
        folder: of the media.
        settings: of the media folder and the rings.
        gate: told every file.
        model: who made the detections.
        config: the configuration as plain values.
    """

    def __init__(
        self, folder: Path, settings: MediaSettings, gate: EventGate, model: Callable[[], ModelInfo | None],
        config: Callable[[], Any],
    ) -> None:  # fmt: skip
        self._ring_bytes = int(settings.ring_mb * 1e6)
        self._model, self._config = model, config
        self._streams: dict[str, StreamEvidence] = {}
        self._recorded: Mapping[str, StreamEvidence] = {}
        """Those whose rules want clips. Replaced, never changed."""
        min_free = int(settings.min_free_gb * 1e9)
        self._clips = ClipWriter(folder, Room(folder, min_free), gate.link, self._facts)
        self._pictured: Mapping[str, frozenset[str]] = {}
        """Rules that want snapshots, by stream. Replaced, never changed."""
        self.downloads: dict[int, Download] = {}
        """By CUDA ordinal: what brings a picture from the device."""
        self.snapshots = SnapshotMaker(folder, Room(folder, min_free), gate.link, UprightScaler(self.downloads))

    def _facts(self) -> dict[str, Any]:
        model = self._model()
        return {
            "model": {"name": model.name, "sha256": model.sha256} if model is not None else None,
            "config_sha256": config_sha256(self._config()),
            "version": __version__,
        }

    def change(self, settings: StreamSettings) -> None:
        """A stream begins, or its rules change."""
        pictured = frozenset(rule.name for rule in (*settings.zones, *settings.lines) if rule.snapshot)
        self._pictured = {**self._pictured, settings.id: pictured}
        if not settings.has_packets:
            return
        source = self._streams.get(settings.id) or StreamEvidence(settings.id)
        wanted = {
            rule.name: Wanted(rule.clip.pre_s, rule.clip.post_s, rule.clip.max_s, rule.clip.audio)
            for rule in (*settings.zones, *settings.lines)
            if rule.clip is not None
        }
        source.change(settings.clip_ring_s, self._ring_bytes, wanted)
        self._streams = {**self._streams, settings.id: source}
        self._recorded = {name: each for name, each in self._streams.items() if each.wanted}

    def remove(self, stream: str) -> None:
        """A stream is gone: clips under way end with what there is."""
        self._streams = {name: each for name, each in self._streams.items() if name != stream}
        self._recorded = {name: each for name, each in self._recorded.items() if name != stream}

    def ring(self, stream: str) -> PacketRing | None:
        """Where the stream's packets go; None for a stream without packets."""
        source = self._streams.get(stream)
        return source.ring if source is not None else None

    def frame(self, detections: Detections) -> None:
        """A frame has been analysed."""
        source = self._recorded.get(detections.stream)
        if source is not None:
            source.boxes.put(detections)

    def event(self, event: Event, moment: Moment) -> None:
        """An event was submitted."""
        if event.kind == "end" or event.rule in self._pictured.get(event.stream, ()):
            self.snapshots.event(event)
        source = self._streams.get(event.stream)
        if source is None:
            return
        wanted = source.wanted.get(event.rule or "")
        if wanted is not None:
            self._clips.event(source, wanted, event, moment)
        elif event.kind == "end" and self._clips.open:
            # The rule has changed meanwhile.
            self._clips.event(source, _UNBOUNDED, event, moment)

    def camera_event(self, event: Event, before: npt.NDArray[np.uint8] | None) -> None:
        """An event of a camera's health was submitted: it has a snapshot, and with it a picture from before."""
        self.snapshots.event(event, before)

    @property
    def problem(self) -> str | None:
        """Why clips cannot be written now; None while they can."""
        stuck_s = self._clips.stuck_s
        if stuck_s > _STUCK_S:
            return f"the disk has not answered for {stuck_s:.0f} s"
        return self._clips.problem or self.snapshots.problem or None

    def counts(self) -> EvidenceCounts:
        """For the metrics."""
        recorded = self._recorded
        return EvidenceCounts(
            {name: each.ring.bytes for name, each in recorded.items()},
            {name: each.ring.overflows for name, each in recorded.items()},
            self._clips.open, dict(self._clips.written), dict(self._clips.failed), self.problem is not None,
            dict(self.snapshots.written), dict(self.snapshots.failed),
        )  # fmt: skip

    def close(self, timeout: float) -> bool:
        """Ends clips and snapshots under way with what there is; False if that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        done = self.snapshots.close(timeout / 2)
        return self._clips.close(max(0.1, deadline - time.monotonic())) and done
