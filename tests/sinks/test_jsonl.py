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
from streamd.testing.sending import Sender
from tests.frames import detections
from tests.messages import checked


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


def test_a_folder_among_the_archives_is_named_and_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    sink = sink_at(path, rotate_mb=0.001, keep=3)
    for i in range(20):
        sink.publish(detections(seq=i, boxes=5))
    archive = tmp_path / "o.jsonl.2"
    archive.unlink()
    archive.mkdir()
    before = {file.name: file.stat().st_ino for file in tmp_path.iterdir()}
    with pytest.raises(SinkError, match=r"cannot rotate .*o\.jsonl\.2 is a folder; move it away"):
        for i in range(20, 40):
            sink.publish(detections(seq=i, boxes=5))
    assert {file.name: file.stat().st_ino for file in tmp_path.iterdir()} == before
    archive.rmdir()
    sink.publish(detections(seq=50))
    sink.close()
    assert seqs(path)[-1] == 50


def test_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    sink = sink_at("-")
    sink.publish(detections(seq=3))
    sink.close()
    assert json.loads(capfd.readouterr().out)["seq"] == 3
    os.fstat(1)  # still open


def test_a_file_that_was_taken_away_is_begun_anew_and_no_archive_moves(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    sink = sink_at(path, rotate_mb=0.002, keep=3)
    for i in range(40):
        sink.publish(detections(seq=i))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p != path}
    assert len(before) == 3
    path.unlink()
    sink.poll()
    sink.publish(detections(seq=40))
    assert seqs(path) == [40]
    path.unlink()
    for i in range(42, 46):  # a rotation is due before the loss is noticed
        sink.publish(detections(seq=i))
    sink.close()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p != path} == before


def test_a_renamed_file_is_left_to_whoever_renamed_it(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    sink = sink_at(path)
    sink.publish(detections(seq=0))
    path.rename(tmp_path / "o.jsonl-20261129")
    sink.publish(detections(seq=1))
    sink.poll()
    sink.publish(detections(seq=2))
    sink.close()
    assert (seqs(tmp_path / "o.jsonl-20261129"), seqs(path)) == ([0, 1], [2])


def test_a_file_that_was_cut_holds_no_zeros(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    sink = sink_at(path)
    for i in range(5):
        sink.publish(detections(seq=i))
    os.truncate(path, 0)  # logrotate's copytruncate
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limit[1]))
    try:
        sink.publish(detections(seq=5))
        with pytest.raises(SinkError, match="cannot write"):
            sink.publish(detections(seq=6, boxes=8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    sink.publish(detections(seq=7))
    sink.close()
    assert b"\0" not in path.read_bytes()
    assert seqs(path) == [5, 7]


def test_a_rotation_that_is_refused_shifts_nothing_however_often_it_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    sink = sink_at(path, rotate_mb=0.001, keep=4)
    for name in ("1", "2"):
        (tmp_path / f"o.jsonl.{name}").write_text(name)
    sink.publish(detections(seq=0, boxes=5))
    (tmp_path / "o.jsonl.new").mkdir()
    for i in range(1, 9):
        with pytest.raises(SinkError, match="cannot rotate"):
            sink.publish(detections(seq=i, boxes=5))
    assert [(tmp_path / f"o.jsonl.{n}").read_text() for n in "12"] == ["1", "2"]
    (tmp_path / "o.jsonl.new").rmdir()
    sink.publish(detections(seq=9, boxes=5))
    sink.close()
    assert [(tmp_path / f"o.jsonl.{n}").read_text() for n in "23"] == ["1", "2"]
    assert (seqs(tmp_path / "o.jsonl.1"), seqs(path)) == ([0], [9])


def test_a_fifo_waits_for_its_reader_and_blocks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    sink = sink_at(path)
    with pytest.raises(SinkError, match="has no reader"):
        sink.publish(detections(seq=0))
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink.poll()
    sink.publish(detections(seq=1))
    assert json.loads(os.read(reader, 1 << 16))["seq"] == 1
    with pytest.raises(SinkError, match="cannot write"):
        for i in range(10_000):  # a reader that does not read
            sink.publish(detections(seq=i))
    os.close(reader)
    with pytest.raises(SinkError, match="cannot write"):
        sink.publish(detections(seq=3))
    sink.close()
    problems = list(JsonlSettings(path=str(path), rotate_mb=1).check())
    assert problems == [(("rotate_mb",), f"{path} is no regular file and cannot be rotated; remove rotate_mb")]
