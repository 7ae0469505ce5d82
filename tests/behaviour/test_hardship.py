"""What befalls a machine: kill -9, a full disk, a clock stepped by an hour, an interface that goes down.

None of it is pretended. The disk is a small tmpfs and the interface is the loopback of a network namespace of its own
(both need root or user namespaces); the clock is stepped by libfaketime.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fakecam import FakeCamera

from streamd.sinks.message import DetectionsMessage
from tests.behaviour.daemon import Subscriber, daemon, until
from tests.behaviour.wallclock import WallClock
from tests.clips import write_clip
from tests.conftest import ROOT
from tests.faults.clips import FPS, small

NULL = 'model: {path: none}\nengine: {kind: "null"}\n'


def gapless(messages: list[DetectionsMessage]) -> bool:
    return all(b.seq - a.seq - 1 == b.dropped for a, b in itertools.pairwise(messages))


def namespace(*kinds: str) -> list[str]:
    """The command that runs another one in new namespaces."""
    command = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), *kinds]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may make no namespaces")
    return command


def test_kill_9(tmp_path: Path) -> None:
    """The file stays lines, the socket is bound again, subscribers come back by themselves: three times."""
    out, endpoint = tmp_path / "o.jsonl", f"ipc://{tmp_path}/z"
    sinks = f"sinks: [{{kind: jsonl, path: '{out}'}}, {{kind: zmq, bind: '{endpoint}'}}]\n"
    config = f"{NULL}{sinks}streams: [{{id: a, kind: synthetic, fps: 500, width: 64, height: 64}}]\n"
    subscriber = Subscriber(endpoint)
    boots = []
    for turn in range(3):
        with daemon(tmp_path, config) as running:
            until(lambda: len({m.boot_id for m in subscriber.frames["a"]}) == turn + 1, 30)  # noqa: B023
            seen = len(subscriber.frames["a"])
            until(lambda: len(subscriber.frames["a"]) > seen + 50, 30)  # noqa: B023
            boots.append(subscriber.frames["a"][-1].boot_id)
            running.process.send_signal(signal.SIGKILL)
            assert running.process.wait(10) == -signal.SIGKILL
    subscriber.close()
    seqs: dict[str, list[int]] = {}
    torn = 0
    for line in out.read_text().splitlines():
        try:
            message = json.loads(line)
            seqs.setdefault(message["boot_id"], []).append(message["seq"])
        except ValueError:
            torn += 1
    assert torn <= 3, "at most the last line of each life"
    assert list(seqs) == boots
    for boot in boots:
        assert len(seqs[boot]) > 50
        assert seqs[boot] == sorted(set(seqs[boot]))


WRITE = """
import sys
from pathlib import Path
from {module} import write_whole
print("writing", flush=True)
while True:
    for letter in b"ab":
        write_whole(Path(sys.argv[1]), bytes([letter]) * (16 << 20))
"""


@pytest.mark.parametrize("module", ["streamd.engine.tensorrt.files", "streamd.models.graph"])
def test_kill_9_leaves_plans_and_caches_whole(tmp_path: Path, module: str) -> None:
    path, chance = tmp_path / "plan", random.Random(5)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE.format(module=module), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        time.sleep(chance.uniform(0.02, 0.15))
        process.kill()
        process.communicate()
        if path.exists():
            found = path.read_bytes()
            assert len(found) == 16 << 20
            assert len(set(found)) == 1
    assert path.exists()


def test_a_full_disk_costs_lines_of_the_file_and_nothing_else(tmp_path: Path) -> None:
    disk, endpoint = tmp_path / "disk", f"ipc://{tmp_path}/z"
    disk.mkdir()
    mounted = [*namespace("--mount"), "sh", "-c", 'mount -t tmpfs -o size=512k none "$0" && exec "$@"', str(disk)]
    sinks = f"sinks: [{{kind: jsonl, path: '{disk}/o.jsonl'}}, {{kind: zmq, bind: '{endpoint}'}}]\n"
    config = f"{NULL}{sinks}streams: [{{id: a, kind: synthetic, fps: 200, width: 64, height: 64}}]\n"
    with daemon(tmp_path, config, within=mounted) as running:
        inside = Path(f"/proc/{running.process.pid}/root{disk}")
        subscriber = Subscriber(endpoint)
        until(lambda: subscriber.frames["a"])
        (inside / "filler").write_bytes(bytes(300_000))
        until(lambda: running.value("streamd_sink_errors_total", sink="jsonl0") > 20, 40)
        assert running.get("/healthz")[0] == 200
        seen = len(subscriber.frames["a"])
        until(lambda: len(subscriber.frames["a"]) > seen + 50)
        (inside / "filler").unlink()
        sent = running.value("streamd_sink_messages_total", sink="jsonl0")
        until(lambda: running.value("streamd_sink_messages_total", sink="jsonl0") > sent + 100)
        lines = (inside / "o.jsonl").read_text().splitlines()
        lost = running.value("streamd_sink_dropped_total", sink="jsonl0", reason="error")
        metrics = running.metrics()
        assert running.stop() == 0
        subscriber.close()
    messages = [json.loads(line) for line in lines]
    gaps = [(b["seq"] - a["seq"] - 1, b["dropped"]) for a, b in itertools.pairwise(messages)]
    assert all(missing == told for missing, told in gaps), "the file itself tells what it lacks"
    # What was published; a busy machine also drops frames before, which both are told of.
    written = {message["seq"] for message in messages}
    published = {frame.seq for frame in subscriber.frames["a"] if frame.seq <= max(written)}
    assert len(published - written) == lost > 20
    assert gapless(subscriber.frames["a"])
    assert ("streamd_sink_errors_total", (("sink", "zmq1"),)) not in {k for k, v in metrics.items() if v}
    (failed, *more) = [line for line in running.log() if line["event"] == "sink failed"]
    assert "No space left on device" in failed["error"]
    assert len(more) < 5, "not a line for each message"


NEVER_READS = """
import sys, time, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.RCVHWM, 1)
socket.subscribe(b"")
socket.connect(sys.argv[1])
time.sleep(300)
"""


def test_more_streams_than_descriptors(tmp_path: Path) -> None:
    """Those that find none wait for one; the port answers, reloads work, and the streams that run go on."""
    clip = write_clip(tmp_path / "clip.mp4", frames=2 * FPS, size=(64, 64), fps=FPS)
    files = "".join(
        f"  - {{id: f{n}, url: '{clip}', loop: true, max_fps: 1, reconnect: {{initial_s: 0.2, max_s: 1}}}}\n"
        for n in range(50)
    )
    config = f"{NULL}sinks: [{{kind: zmq, bind: 'ipc://{tmp_path}/z'}}]\nstreams:\n{files}"
    limit = ("prlimit", "--nofile=64:64")
    with daemon(tmp_path, config, within=limit) as running:

        def moving() -> set[str]:
            counts = running.metrics()
            return {
                dict(labels)["stream"]
                for (name, labels), value in counts.items()
                if name == "streamd_frames_published_total" and value > 1
            }

        until(lambda: len(moving()) >= 5, 40, "some find descriptors")
        failed = running.value("streamd_stream_failures_total", stream="f49", reason="internal")
        assert failed or "f49" in moving()
        told = {line.get("detail", "") for line in running.log() if line.get("reason") == "internal"}
        assert any("too few file descriptors are left; raise LimitNOFILE" in (text or "") for text in told), told
        assert len(os.listdir(f"/proc/{running.process.pid}/fd")) <= 64 - 8
        for path in ("/healthz", "/readyz", "/metrics"):
            assert running.get(path)[0] == 200
        running.reload(
            f"{NULL}sinks: [{{kind: zmq, bind: 'ipc://{tmp_path}/z'}}]\nstreams:\n" + files.split("\n", 48)[48]
        )
        until(lambda: {"f48", "f49"} <= moving(), 40, "there is room for the two that are left")
        assert running.stop() == 0


def test_a_subscriber_that_never_reads(tmp_path: Path) -> None:
    """It is counted, costs the others nothing, and no memory beyond its queue."""
    endpoint = f"ipc://{tmp_path}/z"
    sinks = f"sinks: [{{kind: zmq, bind: '{endpoint}', hwm: 1000, ring: 4096}}]\n"
    config = f"{NULL}{sinks}streams: [{{id: a, kind: synthetic, fps: 500, width: 64, height: 64}}]\n"
    with daemon(tmp_path, config) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: len(subscriber.frames["a"]) > 100)
        process = subprocess.Popen([sys.executable, "-c", NEVER_READS, endpoint])
        until(lambda: running.value("streamd_sink_dropped_total", sink="zmq0", reason="subscriber_slow") >= 1, 60)
        memory = psutil.Process(running.process.pid).memory_info().rss
        seen = len(subscriber.frames["a"])
        until(lambda: len(subscriber.frames["a"]) > seen + 1500, 30)
        assert psutil.Process(running.process.pid).memory_info().rss < memory + 4e6
        process.kill()
        process.wait()
        assert running.stop() == 0
        subscriber.close()
    assert gapless(subscriber.frames["a"])


def test_the_clock_is_stepped_by_an_hour(tmp_path: Path) -> None:
    """Forward, then back: no latency, no wait and no stream knows of it; only what is wall time follows the clock."""
    wall = WallClock(tmp_path)
    endpoint = f"ipc://{tmp_path}/z"
    # The camera's reports tell the true time throughout.
    with FakeCamera(small(tmp_path), report_s=0.5) as camera:
        stream = f"{{id: cam, url: '{camera.url}', read_timeout_s: 4}}"
        config = f"{NULL}sinks: [{{kind: zmq, bind: '{endpoint}', heartbeat_s: 1}}]\nstreams: [{stream}]\n"
        with daemon(tmp_path, config, within=wall.command) as running:
            subscriber = Subscriber(endpoint)
            frames = subscriber.frames["cam"]
            until(lambda: frames[-1:] and frames[-1].clock == "camera", 30)
            for seconds in (3600, -3600, 0):
                wall.step(seconds)
                until(lambda: abs(frames[-1].published_at - time.time() - seconds) < 5)  # noqa: B023
                clock = "arrival" if seconds else "camera"
                until(lambda: frames[-1].clock == clock and abs(frames[-1].captured_at - frames[-1].published_at) < 5)  # noqa: B023
                seen, heard = len(frames), len(subscriber.statuses["cam"])
                until(lambda: len(frames) > seen + 2 * FPS and len(subscriber.statuses["cam"]) > heard)  # noqa: B023
            assert running.value("streamd_stream_reconnects_total", stream="cam") == 0
            summed = running.value("streamd_capture_to_publish_seconds_sum", stream="cam")
            assert running.get("/healthz")[0] == 200
            assert running.stop() == 0
            subscriber.close()
    assert gapless(frames)
    assert all(min(m.latency_ms.decode, m.latency_ms.queue, m.latency_ms.total) >= 0 for m in frames)
    assert max(m.latency_ms.total for m in frames) < 10_000
    assert 0 < summed < 10 * len(frames)
    states = [s.state for s in subscriber.statuses["cam"]]
    assert set(states[states.index("LIVE") :]) <= {"LIVE", "ENDED"}


@contextlib.contextmanager
def own_network() -> Iterator[list[str]]:
    """A network namespace with nothing but a loopback interface, up; the command that runs another one in it."""
    holder = subprocess.Popen([*namespace("--net"), "sleep", "300"])
    user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    enter = ["nsenter", "--target", str(holder.pid), *user, "--net", "--"]
    try:
        until(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True)
        yield enter
    finally:
        holder.kill()
        holder.wait()


def test_the_network_interface_goes_down_and_comes_up(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    small(tmp_path)
    with own_network() as enter:
        camera = subprocess.Popen(
            [*enter, sys.executable, str(ROOT / "tools/fakecam.py"), str(tmp_path / "small.mp4")],
            stdout=subprocess.PIPE, text=True, stdin=subprocess.PIPE,
        )  # fmt: skip
        request.addfinalizer(camera.kill)
        assert camera.stdout is not None
        url = camera.stdout.readline().strip()
        limits = "open_timeout_s: 2, read_timeout_s: 2, reconnect: {initial_s: 0.2, max_s: 1}"
        streams = f"[{{id: cam, url: '{url}', {limits}}}, {{id: far, url: 'rtsp://192.0.2.1/x', {limits}}}]"
        config = f"{NULL}sinks: [{{kind: zmq, bind: '{endpoint}'}}]\nstreams: {streams}\n"
        with daemon(tmp_path, config, within=enter) as running:
            subscriber = Subscriber(endpoint)
            until(lambda: len(subscriber.frames["cam"]) > 5, 30)
            subprocess.run([*enter, "ip", "link", "set", "lo", "down"], check=True)
            until(lambda: subscriber.state("cam") == ("BACKOFF", "timeout_open"), 20)
            subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True)
            until(lambda: subscriber.frames["cam"][-1].epoch == 1, 20)
            assert running.stop() == 0
            subscriber.close()
        camera.kill()
        camera.communicate()
    # All that a lost interface is to a connection is silence; only where there is no route at all is it told.
    assert next(s.reason for s in subscriber.statuses["cam"] if s.state == "BACKOFF") == "timeout_read"
    assert {s.reason for s in subscriber.statuses["far"] if s.state == "BACKOFF"} == {"unreachable"}
    summary = running.summary("cam")
    assert summary["received"] == summary["published"] + sum((summary.get("dropped") or {}).values())
