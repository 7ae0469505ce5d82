"""Logs: one JSON object a line, no credential, no flood."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
from typing import Any

import pytest
import structlog

from streamd.security.redact import remember
from streamd.telemetry.logs import RateLimit, Redactor, Throttle, configure


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_json_lines_with_level_and_time(stream: io.StringIO) -> None:
    configure("info", "auto", stream=stream)
    log = structlog.get_logger("x")
    log.info("hello", stream="gate", empty=None)
    log.debug("not wanted")
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["stream"]) == ("hello", "info", "gate")
    assert "empty" not in line
    assert line["timestamp"].endswith("Z")


def test_console_for_people(stream: io.StringIO) -> None:
    configure("info", "console", stream=stream)
    structlog.get_logger("x").info("hello", stream="gate")
    assert "hello" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        lines(stream)


def test_no_credential_gets_out(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)
    remember({"hunter2", "abc"})
    log = structlog.get_logger("x")
    log.info("open", url="rtsp://admin:p%40ss@cam/x?token=T0PSECRET", nested={"a": ["hunter2 in a list"]})
    try:
        raise RuntimeError("cannot open rtsp://admin:p@ss@cam/x with hunter2")
    except RuntimeError:
        log.exception("failed")
    logging.getLogger("some.library").warning("connecting to %s", "http://u:librarysecret@h/")
    text = stream.getvalue()
    for secret in ("p%40ss", "p@ss", "T0PSECRET", "hunter2", "librarysecret"):
        assert secret not in text, secret
    assert "***@cam" in text
    assert "RuntimeError" in text


def test_a_flood_is_held_back_and_counted(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("streamd.telemetry.logs.time.monotonic", lambda: now[0])
    limit = RateLimit(burst=3, period_s=10)

    def tell(stream_: str) -> dict[str, Any] | None:
        try:
            return dict(limit(None, "info", {"event": "broke", "stream": stream_}))
        except structlog.DropEvent:
            return None

    told = [tell("a") for _ in range(50)]
    assert sum(t is not None for t in told) == 3
    assert tell("b") is not None  # another stream has its own allowance
    now[0] = 11
    after = tell("a")
    assert after is not None
    assert after["held_back"] == 47


def test_containers_are_copied_not_changed() -> None:
    original = {"url": "rtsp://a:b@c/"}
    assert Redactor().clean(original) == {"url": "rtsp://***@c/"}
    assert original == {"url": "rtsp://a:b@c/"}


def test_what_nobody_caught_is_a_log_line_without_secrets(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)
    remember({"hunter2"})

    def fail() -> None:
        raise RuntimeError("rtsp://u:geheim@cam with hunter2")

    thread = threading.Thread(target=fail, name="source-gate")
    thread.start()
    thread.join()
    try:
        fail()
    except RuntimeError:
        sys.excepthook(*sys.exc_info())
    of_thread, of_process = lines(stream)
    assert of_thread["thread"] == "source-gate"
    for line in (of_thread, of_process):
        assert line["event"] == "unhandled exception"
        assert "RuntimeError: rtsp://***@cam with ***" in line["exception"]
    assert "geheim" not in stream.getvalue()


def test_a_log_that_nobody_takes_ends_nothing() -> None:
    """A thread that says something must not die because the pipe behind standard error has lost its reader."""
    read_end, write_end = os.pipe()
    out = io.TextIOWrapper(io.FileIO(write_end, "w"), write_through=True)
    configure("info", "json", stream=out)
    os.close(read_end)
    structlog.get_logger("x").error("no reader")
    with pytest.raises(BrokenPipeError):
        out.write("so it is")
    out.detach().close()
    structlog.get_logger("x").error("no pipe")


def test_a_throttle_passes_one_event_a_period_and_counts_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1.0
    monkeypatch.setattr("streamd.telemetry.logs.time.monotonic", lambda: now)
    throttle = Throttle(10)
    assert [throttle.take() for _ in range(4)] == [0, None, None, None]
    now = 10.9
    assert throttle.take() is None
    now = 11.0
    assert [throttle.take(), throttle.take()] == [4, None]
