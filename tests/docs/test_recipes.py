"""The recipes of docs/integrations.md, each run with a real counterpart."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamd.sinks import SINKS
from streamd.sinks.webhook import WebhookSettings, signature
from tests.conftest import ROOT
from tests.events.journals import event, journal, until
from tests.sinks.brokers import free_port, mosquitto, nats_server, reachable, redis_server
from tests.sinks.delivery import rig
from tests.sinks.natskeys import credentials
from tests.sinks.receivers import Answer, Receiver, Request

EXAMPLES = ROOT / "docs" / "examples"
TEXT = (ROOT / "docs" / "integrations.md").read_text()
KEY = "a key for the tests"


@contextmanager
def running(out: Path, *command: str | Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with out.open("wb") as file:
        process = subprocess.Popen(
            list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, env=os.environ | environment
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_bot_tells_each_event_once(tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "out"
    where = WebhookSettings(url=f"http://127.0.0.1:{port}/", signing_key=KEY)
    bot = EXAMPLES / "webhook_bot.py"
    with running(out, sys.executable, bot, "--port", str(port), WEBHOOK_KEY=KEY), rig(tmp_path / "j", where) as sink:
        until(lambda: reachable(port))
        sink.submit(3)
        sink.journal.submit(event("z", "begin", stream="s9"))
        sink.journal.submit(event("z", "end", stream="s9"))
        sink.wait_delivered(5)
    told = [f"s{i}: person line_crossed gate" for i in (0, 1, 2, 9)]
    assert out.read_text().splitlines() == told


def test_the_bot_posts_to_a_chat_and_the_sink_waits_for_it(tmp_path: Path) -> None:
    port = free_port()
    messages: list[bytes] = []

    def answer(request: Request) -> Answer:
        messages.append(request.body)
        return Answer(500 if len(messages) == 1 else 200)

    chat = Receiver(answer)
    where = WebhookSettings(url=f"http://127.0.0.1:{port}/", signing_key=KEY)
    command = (
        sys.executable,
        EXAMPLES / "webhook_bot.py",
        "--port",
        str(port),
        "--post",
        f"http://127.0.0.1:{chat.port}/",
    )
    with running(tmp_path / "out", *command, WEBHOOK_KEY=KEY), rig(tmp_path / "j", where) as sink:
        until(lambda: reachable(port))
        sink.submit(1)
        sink.wait_delivered(1)
    assert messages == [b"s0: person line_crossed gate"] * 2
    chat.down()


def test_the_bot_does_not_listen_to_others(tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "out"
    where = WebhookSettings(url=f"http://127.0.0.1:{port}/", signing_key="a key that is another")
    bot = EXAMPLES / "webhook_bot.py"
    with running(out, sys.executable, bot, "--port", str(port), WEBHOOK_KEY=KEY), rig(tmp_path / "j", where) as sink:
        until(lambda: reachable(port))
        sink.submit(1)
        until(lambda: "401 Unauthorized" in (sink.thread.unreachable or ""))
        assert sink.counts().delivered == 0
    assert out.read_text() == ""


def test_the_snippet_verifies_what_the_sink_signs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    found: dict[str, Any] = {}
    exec(snippet, found)
    headers = {"webhook-id": "log/s/1", "webhook-timestamp": "1800000000"}
    headers["webhook-signature"] = signature(b"key", "log/s/1", 1_800_000_000, b"{}")
    assert found["verified"](b"key", headers, b"{}")
    assert not found["verified"](b"key", headers, b"{ }")


def test_events_go_to_a_database_once(tmp_path: Path) -> None:
    with journal(tmp_path / "state") as made:
        for i in range(5):
            made.submit(event(f"e{i}", details={"n": i}))
        made.flush()
    database = tmp_path / "yard.sqlite"
    read = [sys.executable, "-m", "streamd", "events", "--json", "--state-dir", str(tmp_path / "state")]
    for _ in range(2):
        lines = subprocess.run(read, capture_output=True, check=True, text=True).stdout
        subprocess.run([sys.executable, EXAMPLES / "events_to_sqlite.py", database], input=lines, check=True, text=True)
    connection = sqlite3.connect(database)
    query = re.findall(r"sqlite3 yard\.sqlite \"(.*?)\"", TEXT)[0]
    assert [row[1:] for row in connection.execute(query)] == [("gate", 5)]
    connection.close()


def test_the_nats_consumer_goes_on_where_it_was(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python nats\n(.*?)```", TEXT, re.DOTALL)
    out = tmp_path / "out"
    with nats_server(tmp_path) as server:
        script = tmp_path / "consumer.py"
        script.write_text(snippet.replace("127.0.0.1:4222", f"127.0.0.1:{server.port}"))
        settings = SINKS.validate({"kind": "nats", "servers": [f"127.0.0.1:{server.port}"]})
        with rig(tmp_path / "j", settings) as sink:
            for number in (1, 2):
                sink.submit(1)
                sink.wait_delivered(number)
                with running(out, sys.executable, script):
                    until(lambda: out.read_text().endswith("person\n"), 20)
                assert out.read_text() == f"s{number - 1} line_crossed person\n"


def test_the_redis_consumer_goes_on_where_it_was(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python redis\n(.*?)```", TEXT, re.DOTALL)
    out = tmp_path / "out"
    with redis_server(tmp_path) as server:
        script = tmp_path / "consumer.py"
        script.write_text(snippet.replace("redis.Redis()", f"redis.Redis(port={server.port})").replace(":gate", ":s0"))
        settings = SINKS.validate({"kind": "redis", "server": f"127.0.0.1:{server.port}"})
        with rig(tmp_path / "j", settings) as sink:
            for number in (1, 2):
                sink.submit(1, streams=1)
                sink.wait_delivered(number)
                with running(out, sys.executable, script):
                    until(lambda: out.read_text().endswith("person\n"), 20)
                assert out.read_text() == "s0 line_crossed person\n"


def test_mosquitto_sub_collects_events(tmp_path: Path) -> None:
    program = shutil.which("mosquitto_sub")
    if program is None:
        pytest.skip("needs mosquitto_sub (apt install mosquitto-clients)")
    command = re.findall(r"^\$ mosquitto_sub (.*) >> events\.jsonl$", TEXT, re.MULTILINE)[0]
    arguments = command.replace("'", "").replace("broker.lan", "127.0.0.1").split()
    out = tmp_path / "events.jsonl"
    with mosquitto(tmp_path) as broker, running(out, program, "-p", str(broker.port), *arguments):
        until(lambda: "archive" in broker.log.read_text())
        settings = SINKS.validate({"kind": "mqtt", "broker": f"127.0.0.1:{broker.port}"})
        with rig(tmp_path / "j", settings) as sink:
            sink.submit(3)
            sink.wait_delivered(3)
            until(lambda: len(out.read_text().splitlines()) == 3)


def test_the_examples_of_configurations_are_valid() -> None:
    for block in re.findall(r"```yaml\n(sinks:.*?)```", TEXT, re.DOTALL):
        for sink in yaml.safe_load(block)["sinks"]:
            if "credentials" in sink:
                sink["credentials"] = credentials()[1]  # what the loader would read from the file
            assert not list(SINKS.validate(sink).check())
