"""Worker processes: one address and one port before them all; what dies takes its own streams down and comes back."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.behaviour.daemon import Running, Subscriber, daemon, until
from tests.conftest import shared

HEAD = 'model: {path: none}\nengine: {kind: "null"}\nworkers: 2\n'
NAMES = ("a", "b", "c", "d")
START_S = 60
"""Three Pythons on a busy machine."""


def config(endpoint: str, *streams: str, more: str = "") -> str:
    listed = "".join(f"  - {stream}\n" for stream in streams)
    return f"{HEAD}{more}sinks: [{{kind: zmq, bind: '{endpoint}', heartbeat_s: 0.5}}]\nstreams:\n{listed}"


def drawn(name: str, more: str = "") -> str:
    return f"{{id: {name}, kind: synthetic, width: 64, height: 64, fps: 50{more}}}"


def pids(running: Running) -> dict[int, int]:
    """Of the newest process of each worker."""
    return {line["worker"]: line["pid"] for line in running.log() if line["event"] == "worker started"}


def flowing(subscriber: Subscriber, *streams: str, beyond: int = 10) -> bool:
    return all(len(subscriber.frames[s]) > beyond for s in streams)


@contextlib.contextmanager
def fleet(folder: Path, text: str, metrics: str = "") -> Iterator[Running]:
    """A daemon with workers, none of which is left when the block ends."""
    sockets = folder / "sockets"
    sockets.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNTIME_DIRECTORY", str(sockets))
        with daemon(folder, text, metrics=metrics) as running:
            try:
                yield running
            finally:
                left = list(pids(running).values())
    until(lambda: not any(psutil.pid_exists(pid) for pid in left), 20, "the workers end with their parent")


def gapless(subscriber: Subscriber, stream: str) -> None:
    """Every frame is there or was told as dropped, no number twice, epochs upward."""
    messages = subscriber.frames[stream]
    seqs = [m.seq for m in messages]
    assert seqs == sorted(set(seqs))
    assert sum(b - a - 1 for a, b in itertools.pairwise(seqs)) == sum(m.dropped for m in messages[1:])
    assert [m.epoch for m in messages] == sorted(m.epoch for m in messages)


def settled(running: Running, subscriber: Subscriber, stream: str) -> None:
    """Every frame of a stream that has ended was published or dropped, and all that was published was passed on."""
    summary, messages = running.summary(stream), subscriber.frames[stream]
    dropped = sum((summary.get("dropped") or {}).values())
    assert summary["received"] == summary["published"] + dropped, summary
    after = summary["received"] - 1 - messages[-1].seq
    before = dropped - after - sum(m.dropped for m in messages[1:])
    assert 0 <= before <= messages[0].seq, (summary, after)


def test_all_streams_arrive_at_one_address_and_one_port(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    with fleet(tmp_path, config(endpoint, *map(drawn, NAMES))) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: flowing(subscriber, *NAMES), START_S, "every stream")
        assert len(pids(running)) == 2
        late = Subscriber(endpoint)
        until(lambda: set(late.statuses) == set(NAMES), 2, "a late subscriber is told every status")
        until(lambda: running.get("/readyz")[0] == 200, 5)
        assert running.get("/healthz")[0] == 200
        metrics = running.metrics()
        assert {metrics["streamd_worker_up", (("worker", str(n)),)] for n in (0, 1)} == {1}
        assert {k[1] for k in metrics if k[0] == "streamd_frames_received_total"} == {(("stream", s),) for s in NAMES}
        assert metrics["streamd_sink_messages_total", (("sink", "zmq0"),)] > 40
        until(lambda: running.value("streamd_stage_duration_seconds_count", stage="infer", worker="1") > 0, 5)
        assert len({m.boot_id for s in NAMES for m in subscriber.frames[s]}) == 1
        assert running.stop() == 0
        subscriber.close()
        late.close()
    for name in NAMES:
        gapless(subscriber, name)
        settled(running, subscriber, name)
        assert subscriber.state(name) == ("ENDED", "")


def test_a_worker_that_is_killed_takes_only_its_streams_down_and_comes_back(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    with fleet(tmp_path, config(endpoint, *map(drawn, NAMES))) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: flowing(subscriber, *NAMES), START_S)
        time.sleep(1.2)  # a report at least
        first = pids(running)
        os.kill(first[0], signal.SIGKILL)
        until(lambda: subscriber.state("a") == ("BACKOFF", "worker_died"), 5)
        until(lambda: running.value("streamd_stream_state", stream="a", state="BACKOFF") == 1, 5)
        assert "SIGKILL" in subscriber.statuses["a"][-1].detail
        assert running.get("/readyz")[0] == 503
        assert running.get("/healthz")[0] == 200
        until(lambda: all(subscriber.frames[s][-1].epoch == 1 for s in ("a", "c")), START_S, "they come back")
        until(lambda: running.get("/readyz")[0] == 200, 5)
        assert running.value("streamd_worker_restarts_total", worker="0") == 1
        assert running.value("streamd_worker_restarts_total", worker="1") == 0
        assert pids(running)[1] == first[1]
        for name in ("b", "d"):
            assert {m.epoch for m in subscriber.frames[name]} == {0}
            assert {s.state for s in subscriber.statuses[name]} <= {"CONNECTING", "LIVE"}
        seen = len(subscriber.frames["a"])
        until(lambda: len(subscriber.frames["a"]) > seen + 50, 10)
        assert running.stop() == 0
        subscriber.close()
    for name in NAMES:
        gapless(subscriber, name)
        settled(running, subscriber, name)


def test_a_worker_whose_engine_fails_is_started_again(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    text = config(endpoint, *map(drawn, ("a", "b"))).replace('kind: "null"', 'kind: "null", fail_after: 100')
    with fleet(tmp_path, text) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: subscriber.state("a")[0] == "LIVE", START_S)
        until(lambda: running.value("streamd_worker_restarts_total", worker="0") >= 1, 30)
        until(lambda: subscriber.frames["a"][-1].epoch >= 1, START_S)
        died = next(line for line in running.log() if line["event"] == "worker died")
        assert died["how"] == "ended with code 5"
        assert running.process.poll() is None
        subscriber.close()


def test_a_worker_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    text = config(endpoint, *map(drawn, ("a", "b")), more="stall_s: 1\ndrain_s: 1\n")
    with fleet(tmp_path, text.replace('kind: "null"', 'kind: "null", hang_after: 100')) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: subscriber.state("a")[0] == "LIVE", START_S)
        until(lambda: running.value("streamd_worker_restarts_total", worker="1") >= 1, 30)
        hung = next(line for line in running.log() if line["event"] == "killing a hanging worker")
        assert "postprocess has made no progress" in hung["problem"]
        subscriber.close()


def test_a_worker_that_cannot_start_ends_the_daemon_with_its_code(tmp_path: Path) -> None:
    text = config(f"ipc://{tmp_path}/z", *map(drawn, ("a", "b"))).replace(
        'engine: {kind: "null"}', "engine: {kind: openvino}"
    )
    with daemon(tmp_path, text.replace("path: none", "path: nothing.onnx")) as running:
        assert running.process.wait(START_S) == 3
    assert "nothing.onnx" in (tmp_path / "log").read_text()


def test_a_model_that_no_worker_can_use_ends_the_daemon_although_all_had_started(tmp_path: Path) -> None:
    model = tmp_path / "undecoded.onnx"
    shutil.copy(shared("models/yolov5lite_e_relu_320.onnx"), model)
    text = config(f"ipc://{tmp_path}/z", *map(drawn, ("a", "b"))).replace(
        'model: {path: none}\nengine: {kind: "null"}', f"model: {{path: {model}}}\nengine: {{kind: openvino}}"
    )
    with daemon(tmp_path, text) as running:
        assert running.process.wait(START_S) == 3
        assert any(line["event"] == "worker started" for line in running.log())
    assert "declare model.head.kind: yolov5_sigmoid" in (tmp_path / "log").read_text()


def test_the_page_shows_the_pictures_of_every_worker(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"

    def pictures(running: Running) -> Iterator[tuple[dict[str, Any], bytes]]:
        """(description, JPEG) as a browser gets them."""
        address = f"http://127.0.0.1:{running.port}/pictures?streams=a,b&fps=10&width=64"
        with urllib.request.urlopen(address, timeout=10) as answer:
            while True:
                head, jpeg = struct.unpack("!II", answer.read(8))
                if head:
                    yield json.loads(answer.read(head)), answer.read(jpeg)

    with fleet(tmp_path, config(endpoint, *map(drawn, NAMES)), metrics="page: true") as running:
        subscriber = Subscriber(endpoint)
        until(lambda: flowing(subscriber, *NAMES), START_S)
        seen: dict[str, list[int]] = {"a": [], "b": []}
        for description, jpeg in pictures(running):
            assert jpeg.startswith(b"\xff\xd8")
            assert description["boxes"]
            seen[description["stream"]].append(description["seq"])
            if min(map(len, seen.values())) >= 3:
                break
        assert all(seqs == sorted(set(seqs)) for seqs in seen.values())
        first = pids(running)
        until(lambda: all(s["latency"].get("sum", 0) > 0 for s in json.loads(running.get("/state")[1])["streams"]), 5)
        os.kill(first[0], signal.SIGKILL)
        until(lambda: pids(running)[0] != first[0], 10)
        again = (d for d, _ in pictures(running))
        assert next(d for d in again if d["stream"] == "a" and d["epoch"] == 1), "after a restart, too"
        assert running.stop() == 0
        subscriber.close()


def test_reload(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    with fleet(tmp_path, config(endpoint, *map(drawn, NAMES))) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: flowing(subscriber, *NAMES), START_S)
        cropped = drawn("a", ", crop: {x: 0, y: 0, width: 32, height: 32}")
        running.reload(config(endpoint, drawn("b"), cropped, drawn("c"), drawn("e")))
        until(lambda: flowing(subscriber, "e") and subscriber.frames["a"][-1].epoch == 1, 20)
        until(lambda: subscriber.state("d") == ("ENDED", ""), 10)
        assert {m.epoch for s in ("b", "c") for m in subscriber.frames[s]} == {0}
        assert '"d"' not in running.get("/readyz")[1].decode()
        running.reload(config(endpoint, *map(drawn, ("a", "b", "c", "d", "e"))))
        until(lambda: subscriber.frames["d"][-1].epoch == 1, 20)
        running.reload(config(endpoint, *map(drawn, NAMES)).replace("workers: 2", "workers: 3"), "refused")
        assert "workers: cannot be changed by a reload" in (tmp_path / "log").read_text()
        assert running.stop() == 0
        subscriber.close()
    for name in (*NAMES, "e"):
        gapless(subscriber, name)


def test_a_stream_that_is_given_another_device_goes_to_another_worker(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"

    def text(device: int) -> str:
        streams = drawn("a", f", device: {device}"), drawn("b", ", device: 0"), drawn("c", ", device: 1")
        return config(endpoint, *streams).replace('kind: "null"', 'kind: "null", device: [0, 1]')

    with fleet(tmp_path, text(0)) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: flowing(subscriber, "a", "b", "c"), START_S)
        running.reload(text(1))
        until(lambda: subscriber.frames["a"][-1].epoch == 1, 20)
        until(lambda: running.value("streamd_stream_state", stream="a", state="LIVE") == 1, 5)
        assert [
            line["worker"] for line in running.log() if line["event"] == "stream live" and line["stream"] == "a"
        ] == [0, 1]
        assert running.stop() == 0
        subscriber.close()
    for name in ("a", "b", "c"):
        gapless(subscriber, name)


def test_the_end_of_all_streams_is_the_end(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    with fleet(tmp_path, config(endpoint, drawn("a", ", count: 100"), drawn("b", ", count: 300"))) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: subscriber.state("a") == ("ENDED", "eof"), START_S)
        until(lambda: sum(s.state == "ENDED" for s in subscriber.statuses["a"]) > 2, 5, "it is told on")
        until(lambda: running.process.poll() is not None, START_S, "the daemon ends by itself")
        assert running.process.returncode == 0
        subscriber.close()
    assert subscriber.frames["b"][-1].seq == 299
    assert {m.epoch for s in ("a", "b") for m in subscriber.frames[s]} == {0}


def test_nothing_is_left_of_a_parent_that_is_killed_while_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "sockets"))
    (tmp_path / "sockets").mkdir()
    path, log = tmp_path / "streamd.yaml", tmp_path / "log"
    path.write_text("metrics: {listen: null}\n" + config(f"ipc://{tmp_path}/z", *map(drawn, NAMES)))
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", "streamd", "run", str(path)], stderr=out, text=True)
    running = Running(process, log, path)
    try:
        until(lambda: len(pids(running)) == 2, START_S)
    finally:
        process.kill()
        process.wait()
    left = pids(running).values()
    until(lambda: not any(psutil.pid_exists(pid) for pid in left), 20, "the workers end")
    assert not list((tmp_path / "sockets").iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "two SIGTERM"])
def test_nothing_is_left_of_a_parent_that_goes_at_once(tmp_path: Path, number: signal.Signals) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    with fleet(tmp_path, config(endpoint, *map(drawn, NAMES))) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: flowing(subscriber, *NAMES), START_S)
        folder = Path(
            next(c.laddr for c in psutil.Process(running.process.pid).net_connections("unix") if "/reports" in c.laddr)
        ).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        workers = list(pids(running).values())
        if number == signal.SIGKILL:
            os.kill(workers[0], signal.SIGSTOP)  # it cannot notice by itself
        running.process.send_signal(number)
        if number == signal.SIGTERM:
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)  # so that nothing drains
            time.sleep(0.3)
            running.process.send_signal(number)
        assert running.process.wait(10) == (-9 if number == signal.SIGKILL else 143)
        subscriber.close()
        until(lambda: not folder.exists(), 15, "its sockets are cleared away")
        until(lambda: not any(psutil.pid_exists(pid) for pid in workers), 20, "the workers end")


def test_no_secret_is_on_a_command_line_or_in_a_file(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    camera = "{id: cam, url: 'rtsp://user:s3cretword@127.0.0.1:1/x'}"
    with fleet(tmp_path, config(endpoint, drawn("a"), camera)) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: subscriber.state("cam")[0] == "BACKOFF" and flowing(subscriber, "a"), START_S)
        for pid in pids(running).values():
            process = psutil.Process(pid)
            assert "s3cretword" not in " ".join(process.cmdline()) + str(process.environ())
        assert "s3cretword" not in running.get("/metrics")[1].decode() + str(subscriber.statuses)
        assert running.stop() == 0
        subscriber.close()
    assert "s3cretword" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("there", [False, True])
def test_an_mps_server_ends_with_the_daemon_that_could_not_start(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of its name stands in for the MPS control daemon; there is no GPU, so the workers end at once."""
    control = tmp_path / "nvidia-cuda-mps-control"
    if there:
        control.write_text(
            '#!/bin/sh\ncd "$CUDA_MPS_PIPE_DIRECTORY"\n'
            f'if [ "$1" = -f ]; then echo $$ > {tmp_path}/pid; while [ ! -e quit ]; do sleep 0.05; done; exit; fi\n'
            'read -r command; [ "$command" != quit ] || touch quit\n'
        )
        control.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    text = config(f"ipc://{tmp_path}/z", drawn("a")).replace('{kind: "null"}', "{kind: tensorrt, mps: true}")
    path = tmp_path / "streamd.yaml"
    path.write_text("metrics: {listen: null}\n" + text.replace("path: none", "path: 'builtin:road6'"))
    done = subprocess.run(
        [sys.executable, "-m", "streamd", "run", str(path)], capture_output=True, text=True, timeout=START_S
    )
    assert done.returncode == 5
    assert ("MPS started" in done.stderr) is there
    if there:
        assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    else:
        assert "engine.mps: nvidia-cuda-mps-control cannot be started" in done.stderr
        assert "worker started" not in done.stderr
    assert not list(tmp_path.glob("streamd-*"))
