"""The main job on real input: files and a real RTSP camera in, every frame's message and exact counts out."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.daemon import Subscriber, daemon, until
from tests.conftest import shared
from tests.messages import checked
from tests.rtsp import rtsp_server

MODEL = "models/yolov5n_heads.onnx"


def accounted_for(frames: list[Any], summary: dict[str, Any]) -> None:
    """What arrived, what the gaps in seq say, and what the daemon counted are one and the same."""
    seqs = [m.seq for m in frames]
    dropped = summary.get("dropped") or {}
    assert seqs == sorted(set(seqs))
    assert len(seqs) == summary["published"]
    assert sum(m.dropped for m in frames) + (summary["received"] - 1 - seqs[-1]) == sum(dropped.values())
    assert summary["received"] == summary["published"] + sum(dropped.values())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_three_clips_and_a_camera_at_once(tmp_path: Path) -> None:
    clip = shared("videos/rknn_people-walking.mp4")
    endpoint = f"ipc://{tmp_path}/z"
    with rtsp_server(f"cam={clip}:h264") as server:
        config = f"""
model: {{path: {shared(MODEL)}}}
sinks: [{{kind: zmq, bind: "{endpoint}", ring: 4096}}]
streams:
  - {{id: vtest, url: {shared("videos/vtest.avi")}}}
  - {{id: people, url: {clip}, loop: true}}
  - {{id: traffic, url: {shared("videos/4ku_traffic.mp4")}}}
  - {{id: cam, url: "{server.url("cam")}"}}
"""
        with daemon(tmp_path, config) as running:
            subscriber = Subscriber(endpoint)
            # A slow machine takes more than the ten seconds that `people` lasts for so many frames of each.
            until(lambda: all(len(subscriber.frames[s]) > 12 for s in ("vtest", "people", "traffic", "cam")), 60)
            assert running.get("/readyz")[0] == 200
            assert running.get("/healthz")[0] == 200
            metrics = running.metrics()
            assert running.stop() == 0
            subscriber.close()
    for stream, size in (
        ("vtest", (768, 576)),
        ("people", (1280, 720)),
        ("traffic", (1280, 720)),
        ("cam", (1280, 720)),
    ):
        frames = subscriber.frames[stream]
        # The subscriber came a moment after the first frames: from its first message on it must have everything.
        first = frames[0]
        summary = dict(running.summary(stream))
        before = first.seq - first.dropped
        assert before < 60
        assert [m.seq for m in frames] == sorted({m.seq for m in frames})
        gaps = sum(b.seq - a.seq - 1 for a, b in itertools.pairwise(frames))
        told = sum(m.dropped for m in frames[1:])
        assert gaps == told
        dropped = sum((summary.get("dropped") or {}).values())
        assert summary["received"] == summary["published"] + dropped
        assert {(m.width, m.height) for m in frames} == {size}
        assert sum(len(m.detections) for m in frames) > 0
        assert subscriber.state(stream)[0] == "ENDED"
        assert ("streamd_stream_state", (("state", "LIVE"), ("stream", stream))) in metrics
    labels = {d.label for m in subscriber.frames["vtest"] for d in m.detections}
    assert "person" in labels


def test_every_message_of_a_lossless_file(tmp_path: Path) -> None:
    """From before the first frame to the end: sequence, counts and messages agree to the last one."""
    out = tmp_path / "o.jsonl"
    config = f"""
model: {{path: {shared("models/yolov5lite_e_relu_320.onnx")}, head: {{kind: yolov5_sigmoid}}}}
sinks: [{{kind: jsonl, path: {out}, ring: 4096}}]
streams: [{{id: vtest, url: {shared("videos/vtest.avi")}, pace: asap}}]
"""
    with daemon(tmp_path, config) as running:
        assert running.process.wait(60) == 0
    frames = [checked([b"streamd/1/vtest/detections", line]) for line in out.read_bytes().splitlines()]
    accounted_for(frames, running.summary("vtest"))
    assert len(frames) == 795
    live = next(line for line in running.log() if line["event"] == "stream live")
    assert (live["codec"], live["decoder"], live["width"], live["height"]) == ("msmpeg4", "software", 768, 576)
    assert running.summary("vtest").get("dropped") is None


def test_an_engine_that_cannot_keep_up_drops_and_counts_and_stays_fair(tmp_path: Path) -> None:
    """16 streams, 400 frames a second offered, 100 served: all alike, nothing lost that is not counted."""
    out = tmp_path / "o.jsonl"
    streams = "\n".join(f"  - {{id: s{i}, kind: synthetic, width: 64, height: 64, fps: 25}}" for i in range(16))
    config = f"""
model: {{path: none}}
engine: {{kind: "null", latency_ms: 10}}
batch: {{max: 1}}
sinks: [{{kind: jsonl, path: {out}, ring: 65536}}]
streams:
{streams}
"""
    with daemon(tmp_path, config) as running:
        until(lambda: sum(running.value("streamd_frames_published_total", stream=f"s{i}") for i in range(16)) > 500, 30)
        assert running.stop() == 0
    by_stream: dict[str, list[Any]] = {}
    for line in out.read_bytes().splitlines():
        message = checked([b"streamd/1/x/detections", line])
        by_stream.setdefault(message.stream, []).append(message)
    assert len(by_stream) == 16
    for stream, frames in by_stream.items():
        accounted_for(frames, running.summary(stream))
    counts = [len(f) for f in by_stream.values()]
    share = sum(counts) / 16
    assert max(abs(c - share) for c in counts) <= 0.1 * share + 1
    late = [m.latency_ms.total for frames in by_stream.values() for m in frames[5:-8]]
    assert max(late) < 4 / 25 * 1000 + 250  # a ring of four frames bounds the wait; the last ones are the drain's


def test_streams_are_shared_out_among_devices(tmp_path: Path) -> None:
    """Two imitated devices of 50 frames a second each: together they serve what one could not."""
    streams = "\n".join(f"  - {{id: s{i}, kind: synthetic, width: 64, height: 64, fps: 20}}" for i in range(4))
    config = f"""
model: {{path: none}}
engine: {{kind: "null", latency_ms: 20, device: [0, 1]}}
batch: {{max: 1}}
streams:
{streams}
  - {{id: pinned, kind: synthetic, width: 64, height: 64, fps: 5, device: 1}}
"""
    with daemon(tmp_path, config) as running:
        until(lambda: running.value("streamd_frames_published_total", stream="s0") > 60, 30)
        metrics = running.metrics()
        assert running.stop() == 0
    queues = {dict(labels)["queue"] for name, labels in metrics if name == "streamd_queue_depth"}
    assert {"infer-0", "infer-1", "postprocess-0", "postprocess-1"} <= queues
    for stream in ("s0", "s1", "s2", "s3", "pinned"):
        summary = running.summary(stream)
        assert summary["published"] >= 0.9 * summary["received"]
