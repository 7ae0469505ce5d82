"""Logs: one JSON object a line, no credential, no flood."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import sys
import threading
from typing import Any

import hypothesis.strategies as st
import pytest
import structlog
from hypothesis import given

from streamd.security.redact import credentials, known, redact, remember
from streamd.telemetry.logs import RateLimit, Redactor, configure


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


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("rtsp://u:p@h:554/x", "rtsp://***@h:554/x"),
        ("rtsp://u:p@ss@w@h/x", "rtsp://***@h/x"),
        ("rtsp://h/x", "rtsp://h/x"),
        ("http://h/x?user=a&pwd=b&channel=1", "http://h/x?user=***&pwd=***&channel=1"),
        ("srt://h:1?passphrase=longenough1", "srt://h:1?passphrase=***"),
        ("a = b, 3 @ 4", "a = b, 3 @ 4"),
        ("two rtsp://a:b@c and http://d:e@f/g", "two rtsp://***@c and http://***@f/g"),
        ("rtsp://u:p/w?x#y@h/x", "rtsp://***@h/x"),
        ("rtsp://u:12345@h/x", "rtsp://***@h/x"),
        ("rtsp://h:554/x?at=a@b", "rtsp://h:554/x?at=a@b"),
        ("rtsp://[::1]:554/x@y", "rtsp://[::1]:554/x@y"),
    ],
)
def test_redaction(text: str, clean: str) -> None:
    assert redact(text) == clean


@given(
    user=st.text("abcXYZ019._~-", min_size=1, max_size=8),
    password=st.text("abcXYZ019!$&'()*+,;=:@%._~-", min_size=6, max_size=20),
)
def test_no_password_survives_in_a_url(user: str, password: str) -> None:
    assert redact(f"error: rtsp://{user}:{password}@camera/live: refused") == "error: rtsp://***@camera/live: refused"


def test_containers_are_copied_not_changed() -> None:
    original = {"url": "rtsp://a:b@c/"}
    assert Redactor().clean(original) == {"url": "rtsp://***@c/"}
    assert original == {"url": "rtsp://a:b@c/"}


def test_what_is_known_is_hidden_in_every_encoding() -> None:
    remember({"p@ss/w ord", "token-1", "token-1-longer"})
    text = "p@ss/w ord p%40ss/w%20ord p%40ss%2Fw%20ord token-1-longer token-1 token-2"
    assert redact(text) == "*** *** *** *** *** token-2"
    assert "token-1" in known()


def test_the_secrets_of_a_url() -> None:
    found = credentials("http://admin:geheim%401@cam/x?channel=1&token=T0PSECRET")
    assert found == {"geheim%401", "T0PSECRET", base64.b64encode(b"admin:geheim@1").decode()}
    assert "abcdef" in credentials("rtsp://abcdef@cam/x")
    assert credentials("rtsp://cam:554/x") == set()


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
