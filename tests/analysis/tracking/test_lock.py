"""Postprocessing with tracking, encoding, and publishing by ZeroMQ keep the interpreter lock through a batch.

Each time a thread lets go of it while others decode, it waits for 2 ms until it is its turn again. NumPy does so in
every operation on more than some 500 values, which is what a batch has and a test of one stream does not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compiler import shared_library

STREAMS, BOXES, FRAMES = 16, 50, 40
_CHILD = """
import ctypes, json, sys
from pathlib import Path
import numpy as np
from bench_tracking import Recording, Row
from streamd.analysis.tracking import native
from streamd.sinks import open_sink
from streamd.sinks.envelope import MessageBuilder, Outgoing
from streamd.sinks.zmq import ZmqSettings

native.SHORT_NS = 1e9  # a step of so many boxes lets go of it on purpose
lock = ctypes.PyDLL(sys.argv[1])
large = np.ones(10_000)

def releases(work):
    lock.watch_this_thread()
    work()
    return lock.releases()

found = {"control": releases(lambda: large > 0)}
builder, sink = MessageBuilder("test"), open_sink(ZmqSettings(bind="tcp://127.0.0.1:*"))
sink.open()
for name in ("without", "with"):
    row = Row(Recording(Path(sys.argv[2])), int(sys.argv[3]), 0.25, tracking=name == "with", numpy=False)
    for part in ("post", "encode", "send"):
        found[f"{name}, {part}"] = 0
    for i in range(60):
        work = row.batch()
        row.out.clear()
        post = releases(lambda: row.post(work))
        made = []
        encode = releases(lambda: made.extend(builder.detections(Outgoing(each, "test")) for each in row.out))
        send = releases(lambda: [sink.send(message) for message in made])
        if i >= 10:
            found[f"{name}, post"] += post
            found[f"{name}, encode"] += encode
            found[f"{name}, send"] += send
sink.close()
print(json.dumps(found))
"""


def recorded(path: Path) -> None:
    """A crowd that moves, in a clip that begins again and again."""
    rng = random.Random(5)
    people = [(rng.uniform(200, 1600), rng.uniform(0, 800), rng.uniform(-4, 4)) for _ in range(BOXES)]
    lines = []
    for i in range(FRAMES):
        corners = [[x + v * i, y, x + v * i + 60, y + 160] for x, y, v in people]
        boxes = [{"class_id": 0, "label": "person", "score": rng.uniform(0.12, 0.9), "box": box} for box in corners]
        lines.append(json.dumps({"width": 1920, "height": 1080, "detections": boxes}))
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
def test_a_batch_keeps_the_lock(tmp_path: Path) -> None:
    shim = shared_library(tmp_path, [Path(__file__).with_name("lock_releases.c")])
    recorded(tmp_path / "boxes.jsonl")
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, shim, str(tmp_path / "boxes.jsonl"), str(STREAMS)],
        env=os.environ | {"LD_PRELOAD": shim, "PYTHONPATH": os.pathsep.join(["tools", *sys.path])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(child.stdout.splitlines()[-1])
    if not found.pop("control"):
        pytest.skip("this CPython does not signal through the library's function")
    assert found == dict.fromkeys(found, 0)
