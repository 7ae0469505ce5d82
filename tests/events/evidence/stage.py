"""A stream that is really read, and a clip writer beside it: what a daemon does, without a model."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from streamd.events.evidence.clips import ClipWriter, Moment, StreamEvidence, Wanted
from streamd.events.evidence.files import Room
from streamd.events.record import Event, Kind, Media
from streamd.flow.packets import PacketRing
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.types import Boxes, Detections, Frame, ModelInfo, StageTimes
from tests import marked
from tests.conftest import program

MODEL = ModelInfo("m", "ab" * 32, ("person", "car"))


class Stage:
    """One stream `a` with its evidence, and the links that a journal would keep."""

    def __init__(
        self,
        folder: Path,
        *,
        ring_s: float = 30.0,
        ring_bytes: int = 64 << 20,
        min_free: int = 0,
        audio: bool = False,
        **wanted: float,
    ) -> None:
        self.folder = folder
        self.wanted = Wanted(**{"pre_s": 1.0, "post_s": 1.0, "max_s": 300.0, **wanted}, audio=audio)
        self.source = StreamEvidence("a")
        self.source.change(ring_s, ring_bytes, {"gate": self.wanted})
        self.links: list[tuple[str, str, Media]] = []
        self.writer = ClipWriter(
            folder, Room(folder, min_free), lambda *link: self.links.append(link), lambda: {"model": None}
        )
        self.epoch = 0
        self.frames: list[Frame] = []
        """Without their pictures."""

    def event(self, kind: Kind, frame: Frame, id_: str = "e1", back_s: float = 0.0) -> bool:
        event = Event(
            id=id_, stream="a", kind=kind, rule="gate", label="person", epoch=frame.epoch, seq=frame.seq,
            at_ns=frame.wall_ns - int(back_s * 1e9),
        )  # fmt: skip
        self.writer.event(self.source, self.wanted, event, Moment(frame.captured_ns, back_s))
        return True

    def play(
        self, url: Path | str, tell: Callable[[Frame, int], object] = lambda *_: None, **settings: Any
    ) -> list[Frame]:
        """Reads a source to its end; its detections are the bright square. `tell` is called for every frame."""
        clip = {"audio": self.wanted.audio}
        rules = {"zones": [{"name": "gate", "points": [(0, 0), (1, 0), (1, 1)], "clip": clip}]}
        values = {"pace": "asap", "reconnect": {}, **rules, **settings}
        source = open_source(
            AvStreamSettings.model_validate({"id": "a", "url": str(url), **values}), packets=self.source.ring
        )
        source.open()
        seen = []
        try:
            for frame in source.frames():
                if frame.quarantined:
                    continue  # as its runner would
                frame.epoch, frame.seq = self.epoch, len(self.frames)
                index = marked.number(frame.picture.video_frame().to_ndarray(format="gray"))
                frame.picture = None  # type: ignore[assignment]
                self.frames.append(frame)
                seen.append(frame)
                self.source.boxes.put(detections(frame, index))
                tell(frame, index)
        finally:
            source.close()
            self.epoch += 1
        return seen

    def media(self, event: str = "e1") -> dict[str, Media]:
        """What is known of an event's files now."""
        return {role: media for id_, role, media in list(self.links) if id_ == event}

    def settled(self, event: str = "e1", timeout: float = 30.0) -> dict[str, Media]:
        """Waits until the event's clip is written or has failed."""
        deadline = time.monotonic() + timeout
        while self.media(event).get("clip", Media("", "pending")).state == "pending" or self.writer.open:
            assert time.monotonic() < deadline, self.links
            time.sleep(0.02)
        return self.media(event)

    def clip(self, event: str = "e1") -> tuple[Path, dict[str, Any]]:
        """The first file of an event's clip and its JSON."""
        media = self.settled(event)
        assert media["clip"].state == "written", media
        return Path(media["clip"].path), json.loads(Path(media["clip_json"].path).read_text())

    def left_over(self) -> list[Path]:
        """Files that are not complete."""
        return list(self.folder.rglob("*.partial"))


def detections(frame: Frame, index: int) -> Detections:
    """The bright square of picture `index`."""
    return Detections(
        frame.stream, frame.epoch, frame.seq, frame.pts_ns, frame.wall_ns, frame.width, frame.height,
        StageTimes(*[frame.captured_ns] * 6), MODEL,
        Boxes(np.array([marked.box(index)], np.float32), np.array([0.9], np.float32), np.zeros(1, np.int32)),
    )  # fmt: skip


def ffprobe_errors(path: Path) -> str:
    """What ffprobe has to complain about after reading and decoding everything; empty where all is well."""
    tool = program("ffprobe", "ffmpeg")
    run = subprocess.run(
        [tool, "-v", "warning", "-count_frames", "-show_entries", "stream=nb_read_frames", str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # FFmpeg's own encoder leaves that out of MJPEG where it has one thread.
    return "".join(line for line in run.stderr.splitlines(keepends=True) if "EOI missing, emulating" not in line)


def ring(seconds: float = 30.0, max_bytes: int = 64 << 20) -> PacketRing:
    """An empty one."""
    return PacketRing(seconds, max_bytes)
