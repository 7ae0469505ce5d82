"""A page with past events, without a daemon: a real journal, and a media folder with real clips and snapshots."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from prometheus_client import CollectorRegistry

from streamd.config import MetricsSettings
from streamd.events.journal import Journal
from streamd.events.record import Media
from streamd.flow.status import StatusBoard
from streamd.web.port import open_port
from tests.clips import write_clip
from tests.events.evidence.stage import Stage
from tests.events.journals import event, journal
from tests.frames import status
from tests.marked import write_heard

CAMERAS = {"gate": ("driveway", "pavement"), "yard": ("loading bay",), "dock": ("ramp", "fence"), "hall": ("entrance",)}
LABELS = ("person", "car", "bicycle", "truck")


@dataclass
class Seeded:
    """The page's port, and the journal behind it."""

    port: int
    journal: Journal


def snapshots(folder: Path, number: int = 8) -> list[Path]:
    """Pictures of different colours with a box."""
    made = []
    for n in range(number):
        image = np.full((180, 320, 3), (40 + 25 * n, 90, 200 - 20 * n), np.uint8)
        cv2.rectangle(image, (100 + 10 * n, 50), (170 + 10 * n, 150), (255, 255, 255), 2)
        made.append(folder / f"{n}.jpg")
        cv2.imwrite(str(made[-1]), image)
    return made


def clips(folder: Path) -> dict[str, Path]:
    """Clips of two seconds, by codec, and where the name has more words, by container or sound."""
    kinds = {"h264": ("libx264", {}), "av1": ("libsvtav1", {"preset": "12"}), "mpeg4": ("mpeg4", {})}
    made = {
        name: write_clip(folder / f"{name}.mp4", codec=codec, frames=50, options=options, gop=25)
        for name, (codec, options) in kinds.items()
    }
    made["msmpeg4 mkv"] = write_clip(folder / "msmpeg4.mkv", codec="msmpeg4v3", frames=10)
    made["h264 mkv"] = write_clip(folder / "h264.mkv", codec="libx264", frames=50, gop=25)
    made["h264 alaw"] = recorded(folder, "libx264", "pcm_alaw")
    made["mpeg4 alaw"] = recorded(folder, "mpeg4", "pcm_alaw")
    made["mpeg4 aac"] = recorded(folder, "mpeg4", "aac")
    return made


def recorded(folder: Path, codec: str, sound: str) -> Path:
    """A clip with sound, as the daemon records it from a stream with these codecs."""
    video = write_heard(folder / f"{codec}-{sound}.mov", frames=75, beep=40, codec=codec, sound=sound, gop=25)
    stage = Stage(folder / f"{codec}-{sound}", audio=True)
    stage.play(video, lambda frame, index: stage.event("instant", frame) if index == 30 else None)
    return stage.clip()[0]


def fill(one: Journal, number: int, shots: Sequence[Path], films: Sequence[Path], *, span_s: float = 90_000) -> None:
    """Events of four cameras over `span_s` seconds, the last of them at `T0`."""
    rng = random.Random(1)
    for n, at in enumerate(sorted(-span_s * rng.random() for _ in range(number))):
        camera = rng.choice(list(CAMERAS))
        rule, label, id_ = rng.choice(CAMERAS[camera]), rng.choices(LABELS, (5, 4, 2, 1))[0], f"s/0/{n}"
        values: dict[str, Any] = {"stream": camera, "rule": rule, "label": label}
        if rule in ("fence", "entrance"):
            one.submit(
                event(id_, at_s=at, type="line_crossed", details={"direction": rng.choice(["in", "out"])}, **values)
            )
        else:
            one.submit(event(id_, "begin", at_s=at, type="zone_entered", **values))
            dwell = rng.expovariate(1 / 30)
            if n < number - 3:
                one.submit(event(id_, "end", at_s=at + dwell, type="zone_exited", details={"dwell_s": dwell}, **values))
        if n % 20 != 7:
            one.link(id_, "snapshot", Media(str(shots[n % len(shots)])))
        if n % 3:
            one.link(id_, "clip", Media(str(films[n % len(films)])))
        elif n % 9 == 0:
            one.link(id_, "clip", Media("x.mp4", "failed", "disk_full"))
        if n % 200 == 0:
            one.flush()
    assert one.flush()


@contextlib.contextmanager
def page(folder: Path) -> Iterator[Seeded]:
    """The page on a port, over an empty journal in `folder`."""
    board = StatusBoard()
    for name in CAMERAS:
        board.post(status(name))
    with journal(folder / "state") as one:
        http, tap = open_port(
            MetricsSettings(listen="127.0.0.1:0", page=True), CollectorRegistry(), lambda: (True, {}),
            lambda: (True, {}), statuses=board.all, boot_id="seeded", journal=lambda: one,
        )  # fmt: skip
        assert http is not None
        assert tap is not None
        try:
            yield Seeded(http.port, one)
        finally:
            tap.close()
            http.close()
