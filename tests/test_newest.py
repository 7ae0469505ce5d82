"""The consumer's filter of generations in docs/examples: in Python, and the same in Node.js."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import subprocess
from typing import Any

import pytest

from tests.conftest import ROOT

EXAMPLES = ROOT / "docs" / "examples"
Message = dict[str, Any]


def newest() -> Any:
    spec = importlib.util.spec_from_file_location("newest", EXAMPLES / "newest.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Newest()


def frame(generation: int | None, at: float, stream: str = "gate") -> Message:
    made = {"stream": stream, "seq": 1, "captured_at": at, "published_at": at + 0.1, "detections": []}
    return made if generation is None else {**made, "generation": generation}


def event(generation: int, at: float, reason: str = "", stream: str = "gate") -> Message:
    details = {"reason": reason} if reason else {}
    return {"stream": stream, "event_seq": 4, "at": at, "details": details, "generation": generation}


def test_an_older_generation_is_dropped_once_a_newer_one_was_seen() -> None:
    told = newest()
    assert told.accepts(frame(5, 10.0))
    assert told.accepts(frame(7, 20.0)), "another box has it"
    assert not told.accepts(frame(5, 20.1)), "the old one does not know it yet"
    assert told.accepts(frame(5, 20.1, "hall")), "other streams are not concerned"
    assert told.accepts(frame(7, 20.2))
    status = {"stream": "gate", "state": "ENDED", "published_at": 30.0}
    assert not told.accepts({**status, "generation": 5})
    assert told.accepts({**status, "generation": 7})


def test_events_of_before_are_late_and_those_of_after_are_double() -> None:
    told = newest()
    assert told.accepts(frame(5, 10.0))
    assert told.accepts(event(7, 12.0, "node_lost")), "the end of what the lost box left open"
    assert told.accepts(frame(5, 12.5)), "it began nothing"
    assert told.accepts(frame(7, 20.0))
    assert told.accepts(event(5, 19.9))
    assert not told.accepts(event(5, 20.1))
    assert not told.accepts({"specversion": "1.0", "data": event(5, 20.1)}), "the same in its envelope"
    assert told.accepts({"specversion": "1.0", "data": event(8, 21.0)})
    assert not told.accepts(frame(7, 21.5))


def test_a_single_daemon_has_no_generation() -> None:
    told = newest()
    assert all(told.accepts(frame(None, at)) for at in (3.0, 1.0, 2.0))


def test_node_js_says_the_same() -> None:
    if (node := shutil.which("node")) is None:
        if os.environ.get("CI"):
            pytest.fail("Node.js is not installed (Debian's package nodejs)")
        pytest.skip("Node.js is not installed")
    draw = random.Random(4)
    messages = []
    for _ in range(3000):
        generation, at = draw.choice([None, 1, 2, 3, 5, 9]), draw.randrange(0, 60) / 2
        made = frame(generation, at, draw.choice("ab"))
        if generation is not None and draw.random() < 0.5:
            made = event(generation, at, draw.choice(["", "", "node_lost"]), draw.choice("ab"))
            made = {"id": "x", "data": made} if draw.random() < 0.5 else made
        elif draw.random() < 0.3:
            del made["captured_at"]
        messages.append(made)
    script = (
        'import { Newest } from "./newest.mjs"; import { readFileSync } from "node:fs"; let newest = new Newest();'
        'const lines = readFileSync(0, "utf8").trim().split("\\n");'
        "console.log(JSON.stringify(lines.map((line, i) => {"
        " if (i % 60 === 0) newest = new Newest(); return newest.accepts(JSON.parse(line)); })));"
    )
    done = subprocess.run(
        [node, "--input-type=module", "-e", script], cwd=EXAMPLES, input="\n".join(map(json.dumps, messages)),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = []
    told = newest()
    for i, message in enumerate(messages):
        if i % 60 == 0:
            told = newest()
        expected.append(told.accepts(message))
    assert json.loads(done.stdout) == expected
    assert 200 < expected.count(False) < 2800
