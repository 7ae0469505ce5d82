"""The flight recorder in a daemon that breaks in each of its ways, and `streamd bundle`."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.behaviour.daemon import daemon, until
from tests.runtime.recorder.archive import Archive, found

NULL = """model: {path: none}
recorder: {folder: bundles}
streams: [{id: a, kind: synthetic, fps: 50}]
"""


@contextmanager
def process(
    folder: Path, config: str, *, more: Mapping[str, str] | None = None, before: Callable[[], None] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A daemon without a metrics port; its log is in the file `log`."""
    path = folder / "yard.yaml"
    path.write_text("metrics: {listen: null}\n" + config)
    environment = {**os.environ, **(more or {})}
    with (folder / "log").open("w") as out:
        running = subprocess.Popen(
            [sys.executable, "-m", "streamd", "run", str(path)],
            stderr=out,
            text=True,
            env=environment,
            preexec_fn=before,
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def streamd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "streamd", *arguments], capture_output=True, text=True, timeout=60)


def live(folder: Path) -> None:
    until(lambda: '"stream live"' in (folder / "log").read_text(), 60, "the stream is live")


def test_one_by_hand_without_a_metrics_port_and_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("geheim-in-a-file\n")
    config = """model: {path: none}
engine: {kind: "null"}
recorder: {folder: bundles}
streams:
  - {id: a, kind: synthetic, fps: 50}
  - {id: dark, url: "rtsp://admin:${CAM_PASSWORD}@127.0.0.1:1/x?token=${file:secret}"}
  - {id: grey, url: "rtsp://admin:geheim-in-place@127.0.0.1:1/x"}
"""
    with process(tmp_path, config, more={"CAM_PASSWORD": "geheim/from@the environment"}) as running:
        live(tmp_path)
        until(lambda: "stream backoff" in (tmp_path / "log").read_text())
        # The operator's shell does not have the camera's password.
        asked = streamd("bundle", str(tmp_path / "yard.yaml"))
        assert (asked.returncode, asked.stderr) == (0, "")
        archive = Archive(Path(asked.stdout.strip()))
        again = streamd("bundle", str(tmp_path / "yard.yaml"))
        assert again.stdout not in ("", asked.stdout)
        running.send_signal(signal.SIGTERM)
        assert running.wait(15) == 0
    everything = b"\0".join(archive.files.values()).decode() + (tmp_path / "log").read_text()
    assert "geheim" not in everything
    assert "the environment" not in everything
    assert {row["stream"] for row in archive.rows("frames.json")} == {"a"}
    assert {row["stream"] for row in archive.rows("streams.json")} == {"a", "dark", "grey"}
    assert archive.json("config.json")["streams"][0]["fps"] == 50
    assert {t["name"] for t in archive.json("threads.json")} >= {"infer", "source-a", "recorder"}
    assert "stream grey is BACKOFF (refused)" in archive.summary
    row = archive.rows("frames.json")[-1]
    parts = sum(row[f"{s}_ms"] for s in ("decode", "queue", "preprocess", "infer", "postprocess"))
    assert row["total_ms"] == pytest.approx(parts, abs=0.01)
    gone = streamd("bundle", str(tmp_path / "yard.yaml"))
    assert gone.returncode == 8
    assert gone.stderr.endswith(f"no daemon with this configuration records to {tmp_path}/bundles; start it\n")


def test_each_worker_of_several_writes_its_own(tmp_path: Path) -> None:
    config = """model: {path: none}
engine: {kind: "null"}
workers: 2
recorder: {folder: bundles}
streams: [{id: a, kind: synthetic, fps: 50}, {id: b, kind: synthetic, fps: 50}]
"""
    with process(tmp_path, config) as running:
        until(lambda: (tmp_path / "log").read_text().count('"stream live"') == 2, 60, "both streams are live")
        asked = streamd("bundle", str(tmp_path / "yard.yaml"))
        assert (asked.returncode, asked.stderr) == (0, "")
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    archives = [Archive(Path(line)) for line in asked.stdout.split()]
    assert len(archives) == 2
    assert {row["stream"] for archive in archives for row in archive.rows("streams.json")} == {"a", "b"}
    assert not list((tmp_path / "bundles").glob("*.pid"))


def test_a_request_while_nothing_is_recorded_harms_nothing(tmp_path: Path) -> None:
    config = NULL.replace("folder: bundles", "folder: bundles, keep: 0") + 'engine: {kind: "null"}\n'
    with process(tmp_path, config) as running:
        live(tmp_path)
        running.send_signal(signal.SIGUSR2)
        until(lambda: "flight recorder is not running" in (tmp_path / "log").read_text())
        running.send_signal(signal.SIGTERM)
        assert running.wait(15) == 0
    assert not (tmp_path / "bundles").exists()


def test_a_stage_that_fails(tmp_path: Path) -> None:
    with process(tmp_path, NULL + 'engine: {kind: "null", fail_after: 50}\n') as running:
        assert running.wait(60) == 5
    (path,) = found(tmp_path / "bundles")
    archive = Archive(path)
    assert archive.json("breach.json")["reason"] == "stage_failed"
    assert "told to fail after 50 batches" in archive.summary
    assert "BackendError" in archive.json("breach.json")["traceback"]
    assert any(line["event"] == "stage failed" for line in archive.log())
    assert len(archive.rows("frames.json")) >= 40
    assert not list((tmp_path / "bundles").glob("*.pid"))


def test_a_stage_that_hangs(tmp_path: Path) -> None:
    with daemon(tmp_path, NULL + 'engine: {kind: "null", hang_after: 50}\nstall_s: 1\ndrain_s: 1\n') as running:
        until(lambda: running.value("streamd_bundles_written_total", reason="stuck") == 1, 30)
        (path,) = found(tmp_path / "bundles")
        assert running.process.poll() is None
    archive = Archive(path)
    assert "stage postprocess has made no progress for 1 s" in archive.summary
    (stack,) = (t["stack"] for t in archive.json("threads.json") if t["name"] == "postprocess")
    assert any("null.py" in line and line.endswith("collect") for line in stack)


@pytest.mark.slow
def test_an_objective_that_is_missed(tmp_path: Path) -> None:
    config = (
        NULL.replace("fps: 50", "fps: 50, objective: {latency_ms: 20}") + 'engine: {kind: "null", latency_ms: 60}\n'
    )
    with daemon(tmp_path, config) as running:
        until(lambda: running.value("streamd_bundles_written_total", reason="objective") == 1, 60)
    (path,) = found(tmp_path / "bundles")
    archive = Archive(path)
    assert archive.summary.startswith("objective: stream a: ")
    assert "infer (" in archive.summary
    assert archive.rows("streams.json")[-1]["missed"] > 10


CRASH = """
import sys, threading, time
from streamd.cli.run import run
from streamd.cli import parser
def crash():
    while not any(t.name == "postprocess" for t in threading.enumerate()):
        time.sleep(0.05)
    time.sleep(2.5)
    import faulthandler
    faulthandler._sigsegv() if sys.argv[1] == "segv" else 1 / 0
threading.Thread(target=crash, daemon=True, name="crasher").start()
sys.exit(run(parser().parse_args(["run", sys.argv[2]])))
"""


def crash(folder: Path, how: str, config: str) -> subprocess.CompletedProcess[str]:
    path = folder / "yard.yaml"
    path.write_text("metrics: {listen: null}\n" + config)
    runtime = folder / "runtime"
    runtime.mkdir(exist_ok=True)
    command = [sys.executable, "-c", CRASH, how, str(path)]
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(runtime)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_a_segmentation_fault_is_told_by_the_next_process(tmp_path: Path) -> None:
    config = NULL + 'engine: {kind: "null"}\n'
    crashed = crash(tmp_path, "segv", config)
    assert crashed.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in crashed.stderr
    assert 'File "' in crashed.stderr  # the stacks
    assert found(tmp_path / "bundles") == []
    with process(tmp_path, config, more={"RUNTIME_DIRECTORY": str(tmp_path / "runtime")}) as running:
        until(lambda: found(tmp_path / "bundles", "killed"), 30)
        # The bundle may be there before the daemon is: as long as it starts, SIGTERM kills it.
        live(tmp_path)
        running.send_signal(signal.SIGTERM)
        code = running.wait(15)
    left = [path.name for path in (tmp_path / "runtime").iterdir()]
    assert (code, left) == (0, []), f"process {running.pid}; its log:\n{(tmp_path / 'log').read_text()}"
    archive = Archive(found(tmp_path / "bundles", "killed")[0])
    assert len(archive.rows("frames.json")) > 50
    assert any(line["event"] == "stream live" for line in archive.log())
    assert "threads.json" not in archive.files


HANG = """
import ctypes, sys, time
import streamd.runtime.daemon
from streamd.cli import main
begun = time.monotonic()
def hang(self):
    if time.monotonic() - begun > 3:
        mutex = ctypes.create_string_buffer(64)  # locked twice: nothing ends that, and no Python runs here any more
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
streamd.runtime.reload.Reloads.step = hang
sys.exit(main(["run", sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_main_thread_that_hangs(tmp_path: Path) -> None:
    path = tmp_path / "yard.yaml"
    path.write_text("metrics: {listen: null}\n" + NULL + 'engine: {kind: "null"}\n')
    running = subprocess.Popen([sys.executable, "-c", HANG, str(path)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: found(tmp_path / "bundles", "watchdog"), 40)
        asked = streamd("bundle", str(path))
        assert asked.returncode == 0
        stacks = {t["name"]: t["stack"] for t in Archive(Path(asked.stdout.strip())).json("threads.json")}
        assert stacks["MainThread"][0].endswith(" hang")
    finally:
        running.kill()
        running.wait()


def test_an_exception_in_a_thread(tmp_path: Path) -> None:
    crash(tmp_path, "raise", NULL + 'engine: {kind: "null", fail_after: 300}\n')
    (path,) = found(tmp_path / "bundles", "exception")
    assert "thread crasher: ZeroDivisionError" in Archive(path).summary


def test_a_full_disk_harms_nothing(tmp_path: Path) -> None:
    def small() -> None:
        # What the kernel does to a file that grows past it is what a full disk does: the write fails.
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    with process(tmp_path, NULL + 'engine: {kind: "null"}\n', before=small) as running:
        live(tmp_path)
        for _ in range(3):
            asked = streamd("bundle", str(tmp_path / "yard.yaml"), "--timeout", "2")
            assert asked.returncode == 6
            assert "wrote no bundle" in asked.stderr
        running.send_signal(signal.SIGTERM)
        assert running.wait(15) == 0
    assert (tmp_path / "log").read_text().count("bundle could not be written") == 1
    assert list((tmp_path / "bundles").iterdir()) == []


def test_a_daemon_that_is_no_service_and_has_no_folder(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("model: {path: none}\nstreams: [{id: a, kind: synthetic}]\n")
    asked = streamd("bundle", str(tmp_path / "plain.yaml"))
    assert asked.returncode == 8
    advice = "start its service, or set recorder.folder if it does not run as one"
    assert asked.stderr.endswith(f"records to /var/lib/streamd/bundles; {advice}\n")
