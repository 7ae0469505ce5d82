"""Lines whole or not at all: rotation, a full disk, an unfinished line, standard output."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from streamd.errors import SinkError
from streamd.sinks.jsonl import JsonlSettings, JsonlSink
from tests.frames import detections
from tests.messages import checked
from tests.sinks.sender import Sender


class FileReader:
    """Reads the file that a sink writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, sink: Any) -> None: ...

    def all(self, count: int) -> list[Any]:
        lines = self.path.read_bytes().splitlines()
        names = [b"streamd/1/s/status" if b'"state"' in line else b"streamd/1/s/detections" for line in lines]
        return [checked([name, line]) for name, line in zip(names, lines, strict=True)]

    def close(self) -> None: ...


def contract(folder: Path) -> tuple[JsonlSettings, FileReader]:
    """See tests/sinks/test_contract.py."""
    path = folder / "out.jsonl"
    return JsonlSettings(path=str(path), status=True), FileReader(path)


def sink_at(path: Path | str, **settings: Any) -> Sender:
    sink = Sender(JsonlSink(JsonlSettings(path=str(path), **settings)))
    sink.open()
    return sink


def seqs(path: Path) -> list[int]:
    return [json.loads(line)["seq"] for line in path.read_text().splitlines()]


def test_rotation_keeps_so_many_files_and_loses_no_line_of_them(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    sink = sink_at(path, rotate_mb=0.002, keep=3)
    for i in range(40):
        sink.publish(detections(seq=i))
    sink.close()
    files = [path.with_name(f"o.jsonl.{i}") for i in (3, 2, 1)] + [path]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f.name for f in files)
    kept = [s for f in files for s in seqs(f)]
    assert kept == list(range(kept[0], 40))
    assert all(f.stat().st_size <= 2000 for f in files)


def test_a_restart_appends_and_ends_an_unfinished_line(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text('{"seq": 1}\n{"se')
    sink = sink_at(path)
    sink.publish(detections(seq=2))
    sink.close()
    lines = path.read_text().splitlines()
    assert lines[1] == '{"se'
    assert json.loads(lines[2])["seq"] == 2


def test_a_full_disk_costs_messages_and_leaves_whole_lines(tmp_path: Path) -> None:
    """A file size limit stands for the full disk: the write is cut short, then refused."""
    path = tmp_path / "o.jsonl"
    sink = sink_at(path)
    old_limit, old_handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, old_limit[1]))
    failures = 0
    try:
        for i in range(10):
            try:
                sink.publish(detections(seq=i))
            except SinkError:
                failures += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert failures
    sink.publish(detections(seq=10))
    sink.close()
    found = seqs(path)
    assert found[-1] == 10
    assert len(found) == 11 - failures


def test_rotation_that_is_refused_is_an_error_and_the_sink_recovers(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    sink = sink_at(path, rotate_mb=0.001, keep=1)
    sink.publish(detections(seq=0, boxes=5))
    (tmp_path / "o.jsonl.1").mkdir()
    (tmp_path / "o.jsonl.1" / "x").touch()
    with pytest.raises(SinkError, match="cannot rotate"):
        for i in range(1, 9):
            sink.publish(detections(seq=i, boxes=5))
    (tmp_path / "o.jsonl.1" / "x").unlink()
    (tmp_path / "o.jsonl.1").rmdir()
    sink.publish(detections(seq=20))
    sink.close()
    assert seqs(path)[-1] == 20


def test_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    sink = sink_at("-")
    sink.publish(detections(seq=3))
    sink.close()
    assert json.loads(capfd.readouterr().out)["seq"] == 3
    os.fstat(1)  # still open
