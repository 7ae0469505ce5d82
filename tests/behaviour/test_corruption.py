"""A camera that loses a packet and whose clock is wrong, from RTP to the subscriber."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.behaviour.daemon import Subscriber, daemon, until
from tests.conftest import shared
from tests.lossy_camera import camera

NULL = 'model: {path: none}\nengine: {kind: "null"}\n'


@pytest.mark.parametrize("choice", ["quarantine", "publish"])
def test_what_follows_a_loss_is_withheld_counted_and_told(tmp_path: Path, choice: str) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    # One packet of picture 150 is lost; the next key frame is picture 256, two seconds later at this speed.
    with camera(
        shared("videos/4ku_traffic.mp4"), count=330, speed=2, wall=lambda i, true: true - 8,
        lose=lambda i, k, n: (i, k) == (150, 0),
    ) as cam:  # fmt: skip
        config = f"""{NULL}
sinks: [{{kind: zmq, bind: "{endpoint}", ring: 4096}}]
streams:
  - {{id: cam, url: "{cam.url}", on_corruption: {choice}, ring: 64, read_timeout_s: 2}}
"""
        with daemon(tmp_path, config) as running:
            subscriber = Subscriber(endpoint)
            until(lambda: subscriber.state("cam")[0] == "BACKOFF", 40)
            metrics = running.metrics()
            assert running.stop() == 0
            subscriber.close()
    frames = subscriber.frames["cam"]
    summary = running.summary("cam")
    dropped = summary.get("dropped") or {}
    assert summary["received"] == summary["published"] + sum(dropped.values())
    assert metrics["streamd_rtp_packets_lost_total", (("stream", "cam"),)] == 1
    told = [(s.state, s.reason) for s in subscriber.statuses["cam"]]
    gap = max(b.seq - a.seq - 1 for a, b in itertools.pairwise(frames))
    if choice == "quarantine":
        assert 90 <= dropped["quarantine"] == gap <= 115
        assert sum(m.dropped for m in frames[1:]) == gap
        assert ("LIVE", "corrupt") in told
    else:
        assert (dropped, gap) == ({}, 0)
        assert ("LIVE", "corrupt") not in told
    # The camera's clock, eight seconds behind and fast, counts for captured_at and for no latency.
    by_camera = [m for m in frames if m.clock == "camera"]
    assert len(by_camera) > 100
    assert all(-10.5 < m.captured_at - m.published_at < 0 for m in by_camera)
    assert all(0 <= m.latency_ms.total < 5000 and min(m.latency_ms.decode, m.latency_ms.queue) >= 0 for m in frames)
    offset = metrics["streamd_stream_clock_offset_seconds", (("stream", "cam"),)]
    assert -8.5 < offset < 0
