"""Each breach gives one bundle, not a storm; whatever goes wrong with it harms nobody."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from streamd.flow.status import StatusBoard
from streamd.runtime.recorder import breaches, bundle, recorder
from streamd.runtime.recorder.breaches import Watched
from streamd.runtime.recorder.memory import LOG, NOTES, Memory
from streamd.runtime.recorder.place import config_name
from streamd.runtime.recorder.recorder import Recorder
from streamd.security.redact import remember
from streamd.telemetry.logs import configure
from streamd.telemetry.metrics import Metrics
from streamd.types import StreamStatus
from tests.runtime.recorder.archive import Archive, found
from tests.runtime.recorder.test_memory import detections


class Patient:
    """What a recorder watches, with its troubles on command."""

    def __init__(self) -> None:
        self.board = StatusBoard()
        self.metrics = Metrics(CollectorRegistry())
        self.trouble: str | None = None
        self.error: BaseException | None = None
        self.settings: Any = {"streams": []}

    def watched(self) -> Watched:
        return Watched(self.board, self.metrics, lambda: self.trouble, lambda: self.error, lambda: self.settings)

    def bundles(self, reason: str) -> float:
        value = self.metrics.registry.get_sample_value("streamd_bundles_written_total", {"reason": reason})
        return value or 0.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recorder, "PERIOD_S", 0.05)
    configure("info", "json")
    yield
    structlog.reset_defaults()


@contextmanager
def running(
    folder: Path, patient: Patient, *, keep: int = 10, seconds: float = 5, runtime: Path | None = None
) -> Iterator[Recorder]:
    made = Recorder(
        folder, seconds=seconds, keep=keep, config="yard", boot_id="b", watched=patient.watched(), runtime=runtime
    )
    made.start()
    try:
        yield made
    finally:
        made.close(20)


def until(condition: Callable[[], Any], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stuck_stage_is_told_once_until_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "GAP_S", 0.0)
    patient = Patient()
    with running(tmp_path, patient):
        patient.trouble = "stage infer has made no progress for 15 s"
        until(lambda: patient.bundles("stuck") == 1)
        time.sleep(0.5)
        assert patient.bundles("stuck") == 1
        patient.trouble = None
        time.sleep(0.3)
        patient.trouble = "stage infer has made no progress for 15 s"
        until(lambda: patient.bundles("stuck") == 2)
    first = Archive(found(tmp_path, "stuck")[0])
    assert first.summary.startswith("stuck: stage infer has made no progress")
    assert {t["name"] for t in first.json("threads.json")} >= {"MainThread", "recorder"}
    assert first.json("environment.json")["versions"]["numpy"]


def test_no_storm_of_bundles_even_across_restarts(tmp_path: Path) -> None:
    patient = Patient()
    for _ in range(3):
        with running(tmp_path, patient) as made:
            for _ in range(20):
                made.trigger("exception", "again")
    assert len(found(tmp_path)) == 1
    assert patient.bundles("exception") == 1


def test_another_configurations_bundles_are_not_ours(tmp_path: Path) -> None:
    patient = Patient()
    for name in ("yard-2", "yard-2-20260101T000000Z-request"):
        (tmp_path / f"{name}-20260101T000000Z-request-7.tar.gz").write_bytes(b"")
    with running(tmp_path, patient, keep=2) as made:
        for i in range(5):
            made.trigger("request", f"number {i}")
    ours = [p for p in found(tmp_path) if not p.name.startswith("yard-2-")]
    assert [Archive(p).json("breach.json")["detail"] for p in ours] == ["number 3", "number 4"]
    assert len(found(tmp_path)) == 4


def test_bundles_that_were_asked_for_do_not_push_out_others(tmp_path: Path) -> None:
    patient = Patient()
    with running(tmp_path, patient, keep=3) as made:
        made.trigger("stuck", "evidence")
        made.trigger("exception", "evidence")
        for _ in range(4):
            (newest,) = made.request("asked")
            assert newest.exists()
    assert len(found(tmp_path, "request")) == 1
    assert len(found(tmp_path, "stuck")) == len(found(tmp_path, "exception")) == 1


def test_an_objective_that_burns(tmp_path: Path) -> None:
    patient = Patient()
    good, bad, calm = (patient.metrics.stream(name) for name in ("good", "bad", "calm"))
    for stream in (good, bad):
        stream.objective_s, stream.objective_share = 0.04, 0.99
    with running(tmp_path, patient):
        deadline = time.monotonic() + 20
        while patient.bundles("objective") == 0 and time.monotonic() < deadline:
            for stream in (good, bad, calm):
                stream.received += 10
                stream.published += 10
            bad.late += 2  # a fifth: twenty times what is allowed
            time.sleep(0.05)
    (path,) = found(tmp_path, "objective")
    detail = Archive(path).json("breach.json")["detail"]
    assert "stream bad:" in detail
    assert "stream good" not in detail


def test_a_main_loop_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaches, "LOOP_S", 0.3)
    patient = Patient()
    with running(tmp_path, patient) as made:
        time.sleep(0.5)
        assert patient.bundles("watchdog") == 0  # the loop has not begun
        made.beat()
        until(lambda: patient.bundles("watchdog") == 1)
    assert "main loop" in Archive(found(tmp_path, "watchdog")[0]).summary


def test_an_exception_that_nobody_catches(tmp_path: Path) -> None:
    patient = Patient()

    def fails() -> None:
        raise RuntimeError("boom at rtsp://u:geheim@h/")

    with running(tmp_path, patient):
        thread = threading.Thread(target=fails, name="odd-job")
        thread.start()
        thread.join()
        until(lambda: patient.bundles("exception") == 1)
    breach = Archive(found(tmp_path, "exception")[0]).json("breach.json")
    assert breach["detail"] == "thread odd-job: RuntimeError: boom at rtsp://***@h/"
    assert "in fails" in breach["traceback"]


def test_a_failed_stage_is_not_missed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = Patient()
    monkeypatch.setattr(recorder, "PERIOD_S", 60.0)
    with running(tmp_path, patient):
        time.sleep(0.2)
        patient.trouble, patient.error = "stage failed: x", ValueError("x")
    archive = Archive(found(tmp_path, "stage_failed")[0])
    assert "ValueError: x" in archive.json("breach.json")["traceback"]


def test_secrets_are_in_no_file(tmp_path: Path) -> None:
    patient = Patient()
    remember({'pa"ss\\wört', "token-of-the-camera"})
    url = "rtsp://admin:in-the-url@10.0.0.7/x?token=in-the-query"
    patient.settings = {"streams": [{"url": url, "options": {"k": 'pa"ss\\wört'}}], "password": "token-of-the-camera"}
    with running(tmp_path, patient) as made:
        structlog.get_logger("x").warning("cannot open", url=url, why='pa"ss\\wört is wrong')
        patient.board.post(StreamStatus("cam", "BACKOFF", "auth", f"{url} refused token-of-the-camera", 0, 0))
        made.trigger("request", f"asked with token-of-the-camera of {url}", ValueError(url))
    archive = Archive(found(tmp_path, "request")[0])
    everything = b"\0".join(archive.files.values()).decode()
    for secret in ("in-the-url", "in-the-query", "token-of-the-camera", 'pa"ss', 'pa\\"ss', "\\u00f6rt", "wört"):
        assert secret not in everything, secret
    assert "10.0.0.7" in everything
    for name in archive.files:
        if name.endswith(".json"):
            archive.json(name)
    assert archive.log()[0]["why"] == "*** is wrong"


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patient = Patient()
    (tmp_path / "file").write_text("in the way")
    configure("info", "json")
    with running(tmp_path / "file" / "bundles", patient) as made:
        start = capsys.readouterr().err  # told at once, not only when there is something to write
        assert f"{tmp_path}/file is not a folder; expected one" in start
        assert start.count("bundles cannot be written") == 1
        for _ in range(5):
            made.trigger("request", "please")
    text = capsys.readouterr().err
    assert text.count("bundle could not be written") == 1
    assert patient.bundles("request") == 0


def test_the_largest_bundle_is_bounded(tmp_path: Path) -> None:
    patient = Patient()
    with running(tmp_path, patient, seconds=60) as made:
        now = time.monotonic_ns() - 59_000_000_000
        for seq in range(made.memory.frames):
            made.memory.frame(detections(f"camera-{seq % 500}", seq * 7919 % 1000, now))
        for i in range(NOTES):
            made.memory.note(LOG, {"event": f"{i * 7919}", "level": "warning", "text": "long " * 100})
        made.trigger("request", "all of it")
    (path,) = found(tmp_path, "request")
    assert path.stat().st_size < 6_000_000
    assert len(Archive(path).json("frames.json")["rows"]) == made.memory.frames


def test_what_a_writer_that_died_left_is_removed(tmp_path: Path) -> None:
    mine = tmp_path / "yard-20260101T000000Z-request-7.tar.gz.part"
    other = tmp_path / "yard-2-20260101T000000Z-request-7.tar.gz.part"
    mine.touch()
    other.touch()
    with running(tmp_path, Patient()):
        pass
    assert list(tmp_path.iterdir()) == [other]


def test_names() -> None:
    assert config_name("/etc/streamd/yard cam.yaml") == "yard_cam"
    assert bundle.bundles(Path("/nowhere"), "yard") == []


def test_whatever_was_left_behind_harms_nobody(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    (runtime / "flight-1").write_bytes(b"no block at all")
    other = Memory({"config": "yard-worker1"}, 5, None)
    (runtime / "flight-2").write_bytes(bytes(other._map))
    unfinished = Memory({"config": "yard"}, 5, None)  # without a process id or a time
    (runtime / "flight-3").write_bytes(bytes(unfinished._map))
    patient = Patient()
    with running(tmp_path, patient, runtime=runtime) as made:
        made.trigger("request", "still there")
    assert patient.bundles("request") == 1
    assert [path.name for path in runtime.iterdir()] == ["flight-2"]  # another worker's


def test_a_bundle_forgets_streams_that_were_removed_before_its_time() -> None:
    memory = Memory({}, 60)
    for name in ("gone", "stays", "new"):
        memory.number(name)
    for second in range(1, 100):
        for name in ("gone",) if second < 20 else ("stays", "new"):
            memory.stream(name, second * 10**9, (second, second, 0, 0, 0), 1, 0, 0)
    record = bundle._newest(memory.read(), 60)
    assert record.names == ["stays", "new"]
    assert [record.names[i] for i in record.streams["stream"][-2:]] == ["stays", "new"]
    assert len(record.streams) == 2 * 61


def test_a_wrong_clock_costs_no_new_bundle(tmp_path: Path) -> None:
    def made(name: str, days: float) -> Path:
        path = tmp_path / f"cams-{name}.tar.gz"
        path.write_bytes(b"x")
        at = time.time() + days * 86_400
        os.utime(path, (at, at))
        return path

    future = [made(f"2099010{n}T000000Z-killed-{n}", 26_000 + n) for n in range(3)]
    new = made("20270101T000000Z-killed-9", 0)
    bundle.tidy(tmp_path, "cams", 3, new)
    assert sorted(tmp_path.iterdir()) == sorted([*future[1:], new])
    older = made("19700101T000000Z-killed-8", -20_000)
    bundle.tidy(tmp_path, "cams", 2, older)
    assert sorted(tmp_path.iterdir()) == sorted([new, older]), "what has just been written stays"
