"""The latest log lines in memory."""

from __future__ import annotations

import json

import structlog

from streamd.security.redact import remember
from streamd.telemetry import tail
from streamd.telemetry.logs import configure, recent
from streamd.telemetry.tail import MAX_BYTES, MAX_LINE_BYTES, MAX_LINES, Tail


def events(lines: list[tuple[int, str]]) -> list[str]:
    return [json.loads(line)["event"] for _, line in lines]


def test_the_newest_lines_are_kept_within_both_bounds() -> None:
    many, large = Tail(), Tail()
    for n in range(MAX_LINES + 5):
        many.add({"event": str(n)})
        large.add({"event": str(n), "exception": "x" * 4000})
    assert events(many.after(0))[:: MAX_LINES - 1] == ["5", str(MAX_LINES + 4)]
    kept = large.after(0)
    assert MAX_BYTES - 5000 < sum(len(line) for _, line in kept) <= MAX_BYTES
    assert events(kept)[-1] == str(MAX_LINES + 4)
    assert events(many.after(MAX_LINES + 2)) == [str(MAX_LINES + n) for n in (2, 3, 4)]
    assert events(many.after(0, 2)) == [str(MAX_LINES + 3), str(MAX_LINES + 4)]
    assert many.after(10**9) == []


def test_a_long_line_is_cut_and_stays_json() -> None:
    one = Tail()
    one.add({"event": "broken", "level": "error", "number": 7, "exception": "begin" + "ä" * 10**6 + "the cause"})
    one.add({"event": "e" * 10_000, "a": "\0" * 10_000, "b": "\0" * 10_000})
    (_, first), (_, second) = one.after(0)
    assert len(first) <= MAX_LINE_BYTES
    found = json.loads(first)
    assert (found["event"], found["level"], found["number"]) == ("broken", "error", 7)
    assert found["exception"].endswith("ääthe cause")
    assert json.loads(second)["cut"] is True


def test_each_line_of_another_process_is_passed_on_once() -> None:
    worker, parent = Tail(), Tail()
    for n in range(3):
        worker.add({"event": f"a{n}"})
    parent.pass_on(1, worker.lately())
    parent.add({"event": "own"})
    worker.add({"event": "a3"})
    parent.pass_on(1, worker.lately())
    successor = Tail()
    successor.add({"event": "b0"})
    parent.pass_on(2, successor.lately())
    assert events(parent.after(0)) == ["a0", "a1", "a2", "own", "a3", "b0"]
    for n in range(tail.LATELY + 50):
        worker.add({"event": f"storm {n}"})
    assert len(worker.lately()) == tail.LATELY


def test_it_has_what_the_log_has_without_secrets() -> None:
    remember(["geheim-in-tail"])
    configure("info", "json")
    before = recent.after(0)[-1:]
    structlog.get_logger("x").info("camera lost", url="rtsp://u:other@h/geheim-in-tail", stream="gate")
    structlog.get_logger("x").debug("not written")
    (_, line), *more = recent.after(before[0][0] if before else 0)
    assert more == []
    assert json.loads(line)["stream"] == "gate"
    assert "geheim" not in line
    assert "other" not in line
