"""SIGHUP: streams come, change and go one by one; what is wrong is refused and the old configuration kept."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from streamd.config.loader import load
from streamd.errors import ConfigError
from streamd.runtime.daemon import Daemon
from streamd.telemetry.notify import Notifier
from tests.behaviour.daemon import Running, Subscriber, daemon, until
from tests.conftest import shared
from tests.rtsp import rtsp_server

NULL = 'model: {path: none}\nengine: {kind: "null"}\n'


def exact(running: Running, stream: str) -> bool:
    """received = published + dropped, in the metrics of a stream that is not running."""
    metrics = running.metrics()
    of = ("stream", stream)
    dropped = sum(v for (name, labels), v in metrics.items() if name == "streamd_frames_dropped_total" and of in labels)
    received = metrics["streamd_frames_received_total", (of,)]
    return received > 0 and received == metrics["streamd_frames_published_total", (of,)] + dropped


def exact_at_the_end(running: Running, *streams: str) -> None:
    for stream in streams:
        summary = running.summary(stream)
        assert summary["received"] == summary["published"] + sum((summary.get("dropped") or {}).values()), summary
        assert summary["published"] > 0


def gapless(subscriber: Subscriber, stream: str) -> None:
    """Every frame is there or was told as dropped, over all epochs."""
    messages = subscriber.frames[stream]
    seqs = [m.seq for m in messages]
    assert seqs == sorted(set(seqs))
    assert sum(b - a - 1 for a, b in itertools.pairwise(seqs)) == sum(m.dropped for m in messages[1:])
    epochs = [m.epoch for m in messages]
    assert epochs == sorted(epochs)


def test_streams_come_change_and_go_and_the_others_do_not_notice(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    clip = shared("videos/rknn_people-walking.mp4")
    head = f"{NULL}sinks: [{{kind: zmq, bind: '{endpoint}'}}]\nstreams:\n"

    def stream(name: str, more: str = "") -> str:
        return f"  - {{id: {name}, url: '{clip}', loop: true{more}}}\n"

    with daemon(tmp_path, head + stream("stays") + stream("other") + stream("goes")) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: all(len(subscriber.frames[s]) > 10 for s in ("stays", "other", "goes")), 20)
        running.reload(head + stream("stays") + stream("other", ", decoder_threads: 2") + stream("comes"))
        until(lambda: len(subscriber.frames["comes"]) > 10, 20)
        until(lambda: subscriber.frames["other"][-1].epoch == 1, 20)
        until(lambda: subscriber.state("goes") == ("ENDED", ""), 10)
        assert exact(running, "goes"), "a removed stream keeps its exact counters"
        assert not [k for k in running.metrics() if k[0] == "streamd_stream_state" and ("stream", "goes") in k[1]]
        assert "goes" not in running.get("/readyz")[1].decode()
        gone = running.value("streamd_frames_received_total", stream="goes")
        beats = len(subscriber.statuses["goes"])

        running.reload(head + stream("stays") + stream("goes"))
        until(lambda: subscriber.frames["goes"][-1].epoch == 1, 20)
        # Scrapes share one answer, which may be a little older.
        until(lambda: running.value("streamd_frames_received_total", stream="goes") > gone, 10, "its counters go on")
        assert [s.state for s in subscriber.statuses["goes"][beats:][:2]] == ["CONNECTING", "LIVE"]
        # The one that stayed: one connection, and a picture every 40 ms throughout.
        states = [s.state for s in subscriber.statuses["stays"]]
        assert set(states[states.index("LIVE") :]) == {"LIVE"}
        assert {m.epoch for m in subscriber.frames["stays"]} == {0}
        assert running.value("streamd_stream_reconnects_total", stream="stays") == 0
        assert running.value("streamd_config_last_reload_success") == 1
        assert running.stop() == 0
        subscriber.close()
    for name in ("stays", "other", "goes", "comes"):
        gapless(subscriber, name)
    exact_at_the_end(running, "stays", "other", "goes", "comes")
    applied = [line for line in running.log() if line["event"] == "configuration applied"]
    assert [(line.get("added"), line.get("changed"), line.get("removed")) for line in applied] == [
        (["comes"], ["other"], ["goes"]),
        (["goes"], None, ["other", "comes"]),
    ]


def test_one_of_two_cameras_is_changed(tmp_path: Path) -> None:
    """Over RTSP: the other one's connection, epoch and sequence go on; the changed one is connected anew."""
    endpoint = f"ipc://{tmp_path}/z"
    clip = shared("videos/intel_one-by-one-person-detection.mp4")  # longer than this test can last
    with rtsp_server(f"one={clip}:h264", f"two={clip}:h264") as server:

        def config(more: str) -> str:
            return (
                f"{NULL}sinks: [{{kind: zmq, bind: '{endpoint}'}}]\nstreams:\n"
                f"  - {{id: one, url: 'rtsp://127.0.0.1:{server.port}/one'}}\n"
                f"  - {{id: two, url: 'rtsp://127.0.0.1:{server.port}/two'{more}}}\n"
            )

        with daemon(tmp_path, config("")) as running:
            subscriber = Subscriber(endpoint)
            until(lambda: all(len(subscriber.frames[s]) > 10 for s in ("one", "two")), 30)
            for turn in (1, 2):
                running.reload(config(f", open_timeout_s: {19 + turn}"))
                until(lambda: subscriber.frames["two"][-1].epoch == turn, 30)  # noqa: B023 - called in this turn only
            assert {m.epoch for m in subscriber.frames["one"]} == {0}
            assert running.value("streamd_stream_reconnects_total", stream="one") == 0
            assert running.value("streamd_stream_reconnects_total", stream="two") == 0, "asked for, not broken"
            assert running.stop() == 0
            subscriber.close()
    for name in ("one", "two"):
        gapless(subscriber, name)
    exact_at_the_end(running, "one", "two")


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_what_does_not_concern_the_connection_changes_between_two_frames(tmp_path: Path, isolation: str) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    clip = shared("videos/intel_one-by-one-person-detection.mp4")
    with rtsp_server(f"one={clip}:h264") as server:

        def config(more: str) -> str:
            return (
                f"{NULL}sinks: [{{kind: zmq, bind: '{endpoint}'}}]\nstreams:\n"
                f"  - {{id: a, url: 'rtsp://127.0.0.1:{server.port}/one', isolation: {isolation}, ring: 8{more}}}\n"
            )

        with daemon(tmp_path, config("")) as running:
            subscriber = Subscriber(endpoint)
            until(lambda: len(subscriber.frames["a"]) > 10, 30)
            running.reload(config(", max_fps: 2, priority: 3, objective: {latency_ms: 50}, max_age_ms: 500"))
            (line,) = [e for e in running.log() if e["event"] == "configuration applied"]
            assert (line.get("adapted"), line.get("changed")) == (["a"], None)
            time.sleep(0.5)
            before, started = len(subscriber.frames["a"]), time.monotonic()
            until(lambda: len(subscriber.frames["a"]) >= before + 6, 30)
            assert time.monotonic() - started > 1.5, "two frames a second"
            running.reload(config(", policy: latest").replace("ring: 8, ", ""))
            before, started = len(subscriber.frames["a"]), time.monotonic()
            until(lambda: len(subscriber.frames["a"]) >= before + 20, 30)
            assert {m.epoch for m in subscriber.frames["a"]} == {0}
            assert running.value("streamd_stream_reconnects_total", stream="a") == 0
            assert running.stop() == 0
            subscriber.close()
    gapless(subscriber, "a")
    exact_at_the_end(running, "a")


def test_what_is_wrong_is_refused_and_everything_stays_as_it_is(tmp_path: Path) -> None:
    stream = "streams: [{id: a, kind: synthetic, fps: 50}]\n"
    with daemon(tmp_path, NULL + stream) as running:
        until(lambda: running.value("streamd_frames_published_total", stream="a") > 10)

        def refusal(config: str) -> str:
            before = len(running.log())
            running.reload(config, "refused")
            assert running.value("streamd_config_last_reload_success") == 0
            (line,) = [e for e in running.log()[before:] if e["event"].startswith("new configuration rejected")]
            assert line["level"] == "error"
            assert len(line["problems"]) == 1
            return str(line["problems"][0]).removeprefix(f"{running.config}:")

        assert refusal(NULL + "streams: [\n  {id: a, kind: synthetic, fsp: 50}]\n").startswith(
            "5: streams[0].fsp: unknown"
        )
        assert "cannot be changed by a reload" in refusal(NULL.replace("none", "other") + stream)
        assert refusal(NULL + stream + "batch: {max: 4}\n").startswith("5: batch.max: cannot be changed")
        assert refusal("model: [\n").startswith("3: not valid YAML")
        os.rename(running.config, tmp_path / "away")
        running.process.send_signal(signal.SIGHUP)
        until(lambda: running.value("streamd_config_reloads_total", result="refused") == 5)
        os.rename(tmp_path / "away", running.config)
        assert running.value("streamd_stream_reconnects_total", stream="a") == 0
        published = running.value("streamd_frames_published_total", stream="a")
        until(lambda: running.value("streamd_frames_published_total", stream="a") > published + 10)
        assert running.get("/readyz")[0] == 200
        running.reload(NULL + stream + "logging: {level: warning}\n")
        assert running.value("streamd_config_last_reload_success") == 1
        assert running.stop() == 0
    assert not [line for line in running.log() if line["event"] == "stream summary"], "the level has changed"


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    text = NULL + "metrics: {listen: null}\nstreams: [{id: a, kind: synthetic, fps: 50}]\n"
    config.write_text(text)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(15)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        process = subprocess.Popen(
            [sys.executable, "-m", "streamd", "run", str(config)], env=environment, stderr=subprocess.DEVNULL
        )

        def told(begin: str) -> str:
            while not (text := manager.recv(4096).decode()).startswith(begin):
                pass
            return text

        try:
            told("READY=1")
            for after, said in ((text.replace("fps: 50", "fps: 40"), "1 "), (text + "batch: {max: 9}\n", "rejected")):
                config.write_text(after)
                asked_us = time.monotonic_ns() // 1000
                process.send_signal(signal.SIGHUP)
                lines = told("RELOADING=1").splitlines()
                assert int(lines[1].removeprefix("MONOTONIC_USEC=")) >= asked_us
                ready = told("READY=1")
                assert said in ready
            assert "batch.max" in ready
            assert "batch.max" in told("STATUS=")
            process.terminate()
            told("STOPPING=1")
            assert process.wait(15) == 0
        finally:
            process.kill()
            process.wait()


def test_the_only_stream_may_change_and_a_failed_one_is_tried_again(tmp_path: Path) -> None:
    clip = shared("videos/rknn_people-walking.mp4")
    config = f"{NULL}streams: [{{id: a, url: clip.mp4, loop: true}}, {{id: b, kind: synthetic}}]\n"
    with daemon(tmp_path, config) as running:
        failed = ("streamd_stream_state", (("state", "FAILED"), ("stream", "a")))
        until(lambda: running.metrics()[failed] == 1)
        (tmp_path / "clip.mp4").symlink_to(clip)
        running.reload(config)
        until(lambda: running.value("streamd_frames_published_total", stream="a") > 10)
        one = f"{NULL}streams: [{{id: a, url: clip.mp4, loop: true, decoder_threads: 5}}]\n"
        for threads in (6, 7, 8):
            running.reload(one.replace("5", str(threads)))
            before = running.value("streamd_frames_published_total", stream="a")
            until(lambda: running.value("streamd_frames_published_total", stream="a") > before + 5)  # noqa: B023 - called in this turn only
        assert running.value("streamd_stream_reconnects_total", stream="a") == 0
        assert running.stop() == 0
    exact_at_the_end(running, "a", "b")


def test_a_stream_that_hangs_in_open_holds_no_other_up(tmp_path: Path) -> None:
    """A FIFO that nobody writes to, behind a protocol of FFmpeg's: open(2) never returns and nothing can cut it."""
    os.mkfifo(tmp_path / "pipe")
    head = f"{NULL}drain_s: 4\nstreams:\n"
    stays = "  - {id: stays, kind: synthetic, fps: 50}\n"
    hangs = "".join(
        f"  - {{id: {name}, url: 'cache://{tmp_path}/pipe', open_timeout_s: 60}}\n" for name in ("changes", "goes")
    )
    with daemon(tmp_path, head + stays + hangs) as running:
        until(lambda: running.value("streamd_frames_published_total", stream="stays") > 10)
        started = time.monotonic()
        running.reload(
            f"{head}{stays}  - {{id: comes, kind: synthetic, fps: 50}}\n  - {{id: changes, kind: synthetic, fps: 50}}\n"
        )
        until(lambda: running.value("streamd_frames_published_total", stream="comes") > 10)
        if time.monotonic() - started < 3:  # on a machine that is not overloaded
            assert running.value("streamd_frames_published_total", stream="changes") == 0
        until(lambda: running.value("streamd_frames_published_total", stream="changes") > 10)
        for name in ("changes", "goes"):
            assert running.value("streamd_stream_threads_abandoned_total", stream=name) == 1
            assert running.value("streamd_stream_threads_stuck", stream=name) == 1
        assert running.get("/healthz")[0] == 200
        assert running.value("streamd_stream_reconnects_total", stream="stays") == 0
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:  # lets both calls return
            pipe.write(b"no video")
        until(lambda: running.value("streamd_stream_threads_stuck", stream="changes") == 0)
        until(lambda: running.value("streamd_stream_threads_stuck", stream="goes") == 0)
        assert running.stop() == 0
    exact_at_the_end(running, "stays", "comes", "changes")
    assert running.summary("goes")["received"] == 0


def test_streams_move_between_devices_and_a_device_may_be_idle(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    head = (
        f'model: {{path: none}}\nengine: {{kind: "null", device: [0, 1], latency_ms: 20}}\n'
        f"sinks: [{{kind: zmq, bind: '{endpoint}'}}]\nstreams:\n"
    )

    def stream(name: str, device: int) -> str:
        return f"  - {{id: {name}, kind: synthetic, fps: 40, device: {device}}}\n"

    with daemon(tmp_path, head + stream("a", 0)) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: len(subscriber.frames["a"]) > 10)
        for device in (1, 0, 1):
            seen = len(subscriber.frames["a"])
            running.reload(head + stream("a", device) + stream("b", 1 - device))
            until(lambda: len(subscriber.frames["a"]) > seen + 10)  # noqa: B023 - called in this turn only
        until(lambda: subscriber.frames["a"][-1].epoch == 3 and subscriber.frames["b"][-1].epoch == 2)
        assert running.stop() == 0
        subscriber.close()
    gapless(subscriber, "a")
    gapless(subscriber, "b")
    exact_at_the_end(running, "a", "b")


def test_fifteen_reloads_under_overload_lose_no_frame_from_the_accounts(tmp_path: Path) -> None:
    """Real clips, an engine that is far too slow, streams that come and go while batches with them are in flight."""
    clip = shared("videos/rknn_people-walking.mp4")
    head = 'model: {path: none}\nengine: {kind: "null", latency_ms: 40}\nbatch: {max: 2}\nstreams:\n'
    stays = f"  - {{id: stays, url: '{clip}', loop: true, priority: 5}}\n"

    def config(turn: int) -> str:
        names = [f"s{i}" for i in range(4) if (turn >> i) & 1]
        return head + stays + "".join(
            f"  - {{id: {name}, url: '{clip}', loop: true, max_fps: {20 + turn % 5}}}\n" for name in names
        )  # fmt: skip

    with daemon(tmp_path, config(0)) as running:
        until(lambda: running.value("streamd_frames_published_total", stream="stays") > 5)
        tasks = Path(f"/proc/{running.process.pid}/task")
        before = len(list(tasks.iterdir()))
        for turn in range(1, 16):
            running.reload(config(turn))
            time.sleep(0.1)
        running.reload(config(0))
        until(lambda: all(exact(running, f"s{i}") for i in range(4)), 20, "exact accounts")
        until(lambda: len(list(tasks.iterdir())) <= before + 2, 10, "threads are gone")
        assert running.value("streamd_stream_reconnects_total", stream="stays") == 0
        assert running.stop() == 0
    exact_at_the_end(running, "stays", "s0", "s1", "s2", "s3")


def test_the_caller_may_hand_another_configuration_over(tmp_path: Path) -> None:
    """As a parent process does: from another thread, down to no stream at all, which is idleness and no end."""
    (tmp_path / "c.yaml").write_text(
        NULL
        + "metrics: {listen: null}\nstreams: [{id: a, kind: synthetic, fps: 50}, {id: b, kind: synthetic, fps: 50}]\n"
    )
    config = load(tmp_path / "c.yaml").config
    running = Daemon(config.model_copy(update={"streams": ()}), notifier=Notifier({}))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(running.run(handle_signals=False)))
    thread.start()

    def published(stream: str) -> int:
        return running.metrics.stream(stream).published

    until(lambda: running.started)
    running.reload(config)
    until(lambda: published("a") > 10 and published("b") > 10)
    running.reload(config.model_copy(update={"streams": config.streams[:1]}))
    running.reload(config.model_copy(update={"streams": ()}))  # the last word counts
    until(lambda: len(running.streams) == 0)
    with pytest.raises(ConfigError, match=r"^model\.path: cannot be changed by a reload"):
        running.reload(config.model_copy(update={"model": config.model.model_copy(update={"path": "x"})}))
    before = published("b")
    running.reload(config.model_copy(update={"streams": config.streams[1:]}))
    until(lambda: published("b") > before + 10)
    running.stop()
    thread.join(15)
    assert codes == [0]
    for stream in ("a", "b"):
        counts = running.metrics.stream(stream).counts()
        assert counts.received == counts.published + sum(counts.dropped.values())
    assert running.metrics.stream("b").reconnects == 0, "it was taken out and put in again"


def test_a_storm_of_signals_is_a_few_reloads_and_no_harm(tmp_path: Path) -> None:
    config = f"{NULL}streams: [{{id: a, kind: synthetic, fps: 100}}]\n"
    with daemon(tmp_path, config) as running:
        for _ in range(1000):
            running.process.send_signal(signal.SIGHUP)
            time.sleep(0.001)
        until(lambda: running.value("streamd_config_reloads_total", result="applied") >= 2)
        assert running.value("streamd_config_reloads_total", result="refused") == 0
        assert running.value("streamd_stream_reconnects_total", stream="a") == 0
        assert running.stop() == 0
    exact_at_the_end(running, "a")


def test_a_reload_asked_for_while_the_model_loads_is_done_after_it(tmp_path: Path) -> None:
    path, log = tmp_path / "c.yaml", tmp_path / "log"
    model = shared("models/yolov5lite_e_relu_320.onnx")
    head = f"model: {{path: {model}, head: {{kind: yolov5_sigmoid}}}}\nmetrics: {{listen: null}}\n"
    path.write_text(head + "streams: [{id: a, kind: synthetic, fps: 5}]\n")
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", "streamd", "run", str(path)], stderr=out, text=True)
    running = Running(process, log, path)

    def caught() -> bool:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return bool(int(status.split("SigCgt:")[1].split()[0], 16) & 1 << (signal.SIGHUP - 1))

    try:
        until(caught, 30, "the handler is there")
        (tmp_path / "new").write_text(head + "streams: [{id: b, kind: synthetic, fps: 5}]\n")
        os.replace(tmp_path / "new", path)  # whole at any time: it may be about to be read for the first time
        process.send_signal(signal.SIGHUP)
        until(lambda: any(line["event"] == "configuration applied" for line in running.log()), 60)
        assert running.stop() == 0
    finally:
        process.kill()
        process.wait()
