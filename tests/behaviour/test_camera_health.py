"""A camera that goes dark: status, metric, event with pictures, and a zone that no longer claims to be empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from streamd.events.query import Filter, find
from streamd.events.schema import open_reader
from streamd.sinks.message import StatusMessage
from tests.behaviour.daemon import Subscriber, daemon, until
from tests.clips import write_clip

FPS = 10
CONFIG = """model: {path: none}
engine: {kind: "null"}
events: {state_dir: state}
%s
sinks: [{kind: zmq, bind: ENDPOINT}]
streams:
  - url: v.mp4
    loop: true
    id: gate
    camera_health: {enabled: true, rate: 5, begin_s: 1, end_s: 1}
    zones: [{name: all, points: [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]}]
    %s
"""


def street(width: int, height: int, number: int, pix_fmt: str) -> av.VideoFrame:
    """Four seconds of a picture with texture in which something moves, then four of darkness."""
    image = np.full((height, width, 3), 16, np.uint8)
    if number < 4 * FPS:
        blocks = np.random.default_rng(7).integers(40, 220, (height // 8, width // 8, 1), np.uint8)
        image[:] = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
        image[20:40, 4 * number % width : 4 * number % width + 16] = 255
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)


def events(folder: Path) -> list[Any]:
    connection = open_reader(folder / "state" / "events.db")
    try:
        found = find(connection, Filter(streams=["gate"]))
    finally:
        connection.close()
    return sorted((r for r in found if r.type == "camera_dark"), key=lambda r: r.position)


def health(status: StatusMessage) -> tuple[str, ...]:
    assert isinstance(status.camera_health, tuple)
    return status.camera_health


@pytest.mark.parametrize(
    ("more", "stream"),
    [("", ""), ("workers: 2", "isolation: process")],
    ids=["one", "workers and decoder processes"],
)
def test_a_camera_goes_dark_and_sees_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, stream: str
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    write_clip(tmp_path / "v.mp4", frames=8 * FPS, size=(320, 184), fps=FPS, draw=street)
    endpoint = f"ipc://{tmp_path}/out"
    subscriber = Subscriber(endpoint)
    try:
        with daemon(tmp_path, (CONFIG % (more, stream)).replace("ENDPOINT", endpoint)) as running:
            until(lambda: running.value("streamd_camera_health", stream="gate", state="dark") == 1, 25, "darkness")
            assert running.value("streamd_camera_health", stream="gate", state="frozen") == 0
            until(lambda: subscriber.statuses["gate"] and health(subscriber.statuses["gate"][-1]) == ("dark",), 30)
            until(lambda: "unreliable" in (subscriber.frames["gate"][-1].counts or {}), 30, "an unreliable zone")
            until(lambda: any(r.kind == "end" for r in events(tmp_path)), 25, "light")
            until(lambda: health(subscriber.statuses["gate"][-1]) == (), 30)
            until(lambda: {"snapshot", "snapshot_before"} <= set(events(tmp_path)[0].media), 30, "pictures")
            assert running.stop() == 0
    finally:
        subscriber.close()
    counts: Any = [frame.counts for frame in subscriber.frames["gate"]]
    dark = [each for each in counts if "unreliable" in each]
    assert {tuple(each["unreliable"]) for each in dark} == {("dark",)}
    assert {each["zones"]["all"]["occupancy"] for each in dark} == {None}, "not known is not 0"
    begin, end = events(tmp_path)[:2]
    assert (begin.kind, end.kind, end.id, end.details["reason"]) == ("begin", "end", begin.id, "seen_again")
    assert 1 <= end.details["lasted_s"] <= 8
    levels = {}
    for role in ("snapshot", "snapshot_before"):
        assert begin.media[role].state == "written"
        picture = cv2.imread(begin.media[role].path)
        assert picture is not None
        levels[role] = float(picture.mean())
    assert levels["snapshot"] < 30 < 90 < levels["snapshot_before"]
