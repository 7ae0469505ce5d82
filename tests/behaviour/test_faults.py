"""What goes wrong in the field: cameras off and on again, subscribers killed, an engine that hangs."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.behaviour.daemon import Subscriber, daemon, until
from tests.clips import write_clip
from tests.conftest import shared
from tests.rtsp import rtsp_server

NULL = 'model: {path: none}\nengine: {kind: "null"}\n'


def test_one_bad_stream_never_hurts_another(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    (tmp_path / "noise.mp4").write_bytes(os.urandom(5000))
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as probe:
        closed = probe.getsockname()[1]
        probe.close()
        config = f"""{NULL}
sinks: [{{kind: zmq, bind: "{endpoint}"}}]
streams:
  - {{id: good, kind: synthetic, fps: 50}}
  - {{id: missing, url: none.mp4}}
  - {{id: noise, url: noise.mp4}}
  - {{id: dark, url: "rtsp://u:geheim@127.0.0.1:{closed}/x"}}
  - {{id: silent, url: "rtsp://127.0.0.1:{silent.getsockname()[1]}/x", open_timeout_s: 1}}
"""
        with daemon(tmp_path, config) as running:
            subscriber = Subscriber(endpoint)
            until(lambda: subscriber.state("dark") == ("BACKOFF", "refused"), 10)
            until(lambda: subscriber.state("silent") == ("BACKOFF", "timeout_open"), 10)
            until(lambda: subscriber.state("missing") == ("FAILED", "not_found"), 10)
            until(lambda: subscriber.state("noise") == ("FAILED", "unsupported"), 10)
            start = len(subscriber.frames["good"])
            time.sleep(2)
            assert 90 <= len(subscriber.frames["good"]) - start <= 110
            assert running.get("/healthz")[0] == 200
            assert running.get("/readyz")[0] == 200
            metrics = running.get("/metrics")[1]
            assert running.stop() == 0
            subscriber.close()
    assert b"geheim" not in metrics
    assert "geheim" not in (tmp_path / "log").read_text()
    assert not any("geheim" in str(s) for all_ in subscriber.statuses.values() for s in all_)


def test_a_camera_goes_and_comes_back(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    clip = shared("videos/rknn_people-walking.mp4")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = f"""{NULL}
sinks: [{{kind: zmq, bind: "{endpoint}"}}]
streams:
  - {{id: cam, url: "rtsp://127.0.0.1:{port}/cam", read_timeout_s: 1, reconnect: {{initial_s: 0.2, max_s: 1}}}}
"""
    with daemon(tmp_path, config) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: subscriber.state("cam") == ("BACKOFF", "refused"), 10)
        assert running.get("/readyz")[0] == 503
        with rtsp_server(f"cam={clip}:h264", port=port):
            until(lambda: subscriber.state("cam")[0] == "LIVE", 15)
            until(lambda: len(subscriber.frames["cam"]) > 20, 15)
            assert running.get("/readyz")[0] == 200
        until(lambda: subscriber.state("cam")[0] == "BACKOFF", 10)
        with rtsp_server(f"cam={clip}:h264", port=port):
            until(lambda: any(m.epoch == 1 for m in subscriber.frames["cam"][-1:]), 15)
        assert running.value("streamd_stream_reconnects_total", stream="cam") == 1
        assert running.stop() == 0
        subscriber.close()
    seqs = [m.seq for m in subscriber.frames["cam"]]
    assert seqs == sorted(set(seqs))
    gaps = sum(b - a - 1 for a, b in itertools.pairwise(seqs))
    assert gaps == sum(m.dropped for m in subscriber.frames["cam"][1:])


SUBSCRIBE = """
import sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.subscribe(b"streamd/1/a/detections")
socket.connect(sys.argv[1])
while True:
    print(__import__("json").loads(socket.recv_multipart()[1])["seq"], flush=True)
"""


def test_killing_the_subscriber_loses_nothing_but_what_it_was_away_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    # The ring lasts for a third of a second in which a busy machine does something else.
    stream = "{id: a, kind: synthetic, fps: 200, ring: 64}"
    config = f"{NULL}sinks: [{{kind: zmq, bind: '{endpoint}'}}]\nstreams: [{stream}]\n"

    def subscribe() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", SUBSCRIBE, endpoint], stdout=subprocess.PIPE, text=True)

    def read(process: subprocess.Popen[str], count: int) -> list[int]:
        assert process.stdout is not None
        return [int(process.stdout.readline()) for _ in range(count)]

    with daemon(tmp_path, config) as running:
        first = subscribe()
        seen = read(first, 100)
        assert seen == list(range(seen[0], seen[0] + 100))
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        before = running.value("streamd_frames_published_total", stream="a")
        second = subscribe()
        again = read(second, 100)
        assert again == list(range(again[0], again[0] + 100))
        assert again[0] > before - 5
        second.kill()
        second.communicate()
        assert running.value("streamd_sink_dropped_total", sink="zmq0", reason="ring_full") == 0
        assert running.stop() == 0
    assert (running.summary("a").get("dropped") or {}).keys() <= {"shutdown"}


def test_a_stopped_subscriber_slows_no_stream(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    config = f"""{NULL}
sinks: [{{kind: zmq, bind: '{endpoint}', hwm: 10}}]
streams: [{{id: a, kind: synthetic, fps: 2000, width: 64, height: 64}}]
"""
    with daemon(tmp_path, config) as running:
        received = tmp_path / "received"
        with received.open("w") as out:
            process = subprocess.Popen([sys.executable, "-c", SUBSCRIBE, endpoint], stdout=out)
        try:
            until(lambda: received.stat().st_size, 60, "the subscriber receives")
            process.send_signal(signal.SIGSTOP)
            start, at = running.value("streamd_frames_published_total", stream="a"), time.monotonic()
            until(lambda: running.value("streamd_sink_dropped_total", sink="zmq0", reason="subscriber_slow") >= 1, 60)
            time.sleep(3)  # scrapes share one answer for a while
            rate = (running.value("streamd_frames_published_total", stream="a") - start) / (time.monotonic() - at)
        finally:
            process.kill()
            process.wait()
        assert rate > 400
        assert running.stop() == 0


def test_a_dead_stage_starves_the_watchdog_and_a_dead_camera_does_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(15)
        config = tmp_path / "c.yaml"

        def run(engine: str, stream: str) -> tuple[list[str], list[float]]:
            config.write_text(
                f"model: {{path: none}}\nengine: {engine}\nmetrics: {{listen: null}}\nstall_s: 0.5\ndrain_s: 1\n"
                f"streams: [{stream}]\n"
            )
            environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
            process = subprocess.Popen(
                [sys.executable, "-m", "streamd", "run", str(config), "--for", "4"],
                env=environment, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            lines: list[str] = []
            beats: list[float] = []
            while not lines or lines[-1] != "STOPPING=1":
                text = manager.recv(4096).decode()
                lines += text.splitlines()
                if text == "WATCHDOG=1":
                    beats.append(time.monotonic())
            process.wait(15)
            return lines, beats

        lines, beats = run("{kind: 'null'}", "{id: a, url: 'rtsp://127.0.0.1:9/x'}")
        assert lines[0] == "READY=1"
        assert any(line.startswith("STATUS=1 backoff") for line in lines)
        assert len(beats) >= 12
        assert max(b - a for a, b in itertools.pairwise(beats)) < 0.6
        _, starved = run("{kind: 'null', hang_after: 10}", "{id: a, kind: synthetic, fps: 50}")
        assert len(starved) <= 5


def test_a_resolution_change_reaches_the_subscriber(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "1.ts", frames=10)
    large = write_clip(tmp_path / "2.ts", frames=10, size=(320, 240))
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    out = tmp_path / "o.jsonl"
    config = f"""
model: {{path: {shared("models/yolov5lite_e_relu_320.onnx")}, head: {{kind: yolov5_sigmoid}}}}
sinks: [{{kind: jsonl, path: {out}}}]
streams: [{{id: a, url: both.ts, pace: asap, on_corruption: publish}}]
"""
    # Where the two files meet a transport packet counts as lost: that is not what is looked at here.
    with daemon(tmp_path, config) as running:
        assert running.process.wait(30) == 0
    assert running.summary("a")["published"] >= 19
    assert '"width":192' in out.read_text()
    assert '"width":320' in out.read_text()
