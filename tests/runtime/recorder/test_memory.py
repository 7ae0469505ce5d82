"""The rings: bounded, in order, and still there after the process is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamd.runtime.recorder.memory import LOG, NAMES, NOTE_BYTES, NOTES, Memory, left_behind, read_left_behind
from streamd.types import Boxes, Detections, ModelInfo, StageTimes

NOTHING = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


def detections(stream: str, seq: int, start_ns: int = 1_000_000) -> Detections:
    times = StageTimes(*(start_ns + seq * 1_000_000 + i * 1000 for i in range(6)))
    return Detections(stream, 0, seq, None, 0, 64, 48, times, ModelInfo("m", "", ()), NOTHING)


def test_the_newest_frames_are_kept_in_order() -> None:
    memory = Memory({}, 1)
    count = memory.frames * 2 + 17
    for seq in range(count):
        memory.frame(detections("ab"[seq % 2], seq))
    record = memory.read()
    assert record.frames["seq"].tolist() == list(range(count - memory.frames, count))
    assert [record.names[i] for i in record.frames["stream"][:2]] == ["b", "a"]


def test_memory_is_bounded_whatever_happens() -> None:
    memory = Memory({}, 60)
    assert memory.size < 8_000_000
    for i in range(NAMES + 10):
        memory.stream(f"stream{i}", i + 1, (1, 1, 0, 0, 0), 1, 0, 0)
    for i in range(NOTES + 5):
        memory.note(LOG, {"event": f"e{i}"})
    record = memory.read()
    assert len(record.names) == NAMES
    assert record.names[-1] == "(others)"
    assert [n.values["event"] for n in record.notes] == [f"e{i}" for i in range(5, NOTES + 5)]


def test_a_removed_stream_s_number_is_given_again_once_its_history_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("streamd.runtime.recorder.memory.time.monotonic", lambda: now)
    memory = Memory({}, 60)
    numbers = [memory.number(f"s{i}") for i in range(NAMES - 1)]
    memory.forget("s5")
    memory.forget("s7")
    memory.keep("s7")  # it came back
    now = 150.0
    assert memory.number("early") == NAMES - 1  # rows of s5 are still kept
    now = 161.0
    assert memory.number("late") == numbers[5]
    assert memory.number("more") == NAMES - 1
    names = memory.read().names
    assert (names[5], names[7], names[-1]) == ("late", "s7", "(others)")


def test_long_notes_are_cut_at_the_right_end() -> None:
    memory = Memory({}, 5)
    trace = "Traceback (most recent call last):\n" + "  File x\n" * 2000 + "ValueError: the point"
    memory.note(LOG, {"event": "failed", "exception": trace, "list": ["x" * 3000]})
    memory.note(LOG, {f"k{i}": "y" * 150 for i in range(100)})
    first, second = memory.read().notes
    assert first.values["event"] == "failed"
    assert first.values["exception"].endswith("ValueError: the point")
    assert second.values["event"] == "(too long)"
    assert len(str(second.values)) < NOTE_BYTES


WRITER = """
import sys, time
from pathlib import Path
from streamd.runtime.recorder.memory import LOG, Memory
from tests.runtime.recorder.test_memory import detections
memory = Memory({"boot_id": "b"}, 5, Path(sys.argv[1]))
assert memory.path is not None
for seq in range(100):
    memory.frame(detections("cam", seq))
memory.note(LOG, {"event": "last words"})
print("ready", flush=True)
if sys.argv[2] == "close":
    memory.close()
else:
    time.sleep(100)
"""


def writer(folder: Path, how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_killed_process_leaves_its_memory(tmp_path: Path) -> None:
    process = writer(tmp_path, "stay")
    assert left_behind(tmp_path) == []  # it lives
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (path,) = left_behind(tmp_path)
    record = read_left_behind(path)
    assert record.header["boot_id"] == "b"
    assert record.frames["seq"].tolist() == list(range(100))
    assert record.notes[-1].values == {"event": "last words"}
    for length in (5000, 30, 0):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ValueError, match=r"block|cut short|Unterminated|Expecting"):
            read_left_behind(path)


def test_one_that_ends_as_it_should_leaves_nothing(tmp_path: Path) -> None:
    process = writer(tmp_path, "close")
    process.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used_costs_only_that(tmp_path: Path) -> None:
    memory = Memory({}, 5, tmp_path / "missing")
    memory.frame(detections("a", 1))
    assert memory.path is None
    assert len(memory.read().frames) == 1
