"""A whole daemon whose network looks only where something moves."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import pytest

from streamd.config.loader import load
from streamd.errors import ConfigError
from streamd.runtime.daemon import Daemon
from streamd.sinks.envelope import MessageBuilder, Outgoing, OutgoingGlance
from streamd.sinks.message import GlanceMessage, decode
from streamd.telemetry.notify import Notifier
from streamd.types import Boxes, Detections, Glanced, Look, ModelInfo, StageTimes
from streamd.workers.relay import Route, pack
from tests.clips import write_clip
from tests.compat.v1 import decoder

FRAMES, BEGINS, ENDS = 430, 300, 330
"""Twelve seconds of nothing, ten of which are for learning; something crosses the picture; four seconds of nothing."""


def yard(width: int, height: int, index: int, pix_fmt: str) -> av.VideoFrame:
    y, x = np.mgrid[0:height, 0:width]
    image = (100 + 40 * np.sin(x / 17) + 20 * np.cos(y / 11)).astype(np.uint8)
    if BEGINS <= index < ENDS:
        left = 20 + 8 * (index - BEGINS)
        image[60:110, left : left + 25] = 220
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = image
    return av.VideoFrame.from_ndarray(planes, format="yuv420p").reformat(format=pix_fmt)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("yard") / "yard.mp4", frames=FRAMES, size=(320, 180), gop=50, draw=yard)


@pytest.mark.parametrize(("isolation", "skip"), [("thread", False), ("process", False), ("thread", True)])
def test_motion_is_looked_at_and_everything_is_accounted_for(
    clip: Path, tmp_path: Path, isolation: str, skip: bool
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"""
model: {{path: none}}
engine: {{kind: "null"}}
tracking: {{}}
metrics: {{listen: null}}
events: {{state_dir: state}}
recorder: {{keep: 0}}
streams:
  - id: yard
    url: {clip}
    pace: asap
    isolation: {isolation}
    look: {{when: motion, at_least_every_s: 1, hold_s: 1, min_fps: 5, skip_followed: {str(skip).lower()}}}
    zones: [{{name: all, points: [[0, 0], [1, 0], [1, 1], [0, 1]]}}]
sinks: [{{kind: jsonl, path: out.jsonl, glances: true, ring: 4096}}]
""")
    daemon = Daemon(load(file).config, notifier=Notifier({}))
    thread = threading.Thread(target=daemon.run, kwargs={"handle_signals": False}, daemon=True)
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    frames = [line for line in lines if "seq" in line and "width" in line]
    assert [line["seq"] for line in frames] == list(range(FRAMES)), "in order, each once"
    looked = {line["seq"]: line for line in frames if "detections" in line}
    glanced = {line["seq"]: line for line in frames if "detections" not in line}
    counters = daemon.metrics.stream("yard")
    assert (counters.received, counters.published, dict(counters.dropped)) == (FRAMES, FRAMES, {})
    assert (sum(counters.looked.values()), sum(counters.passed.values())) == (len(looked), len(glanced))
    assert all(line["dropped"] == 0 for line in looked.values())
    for seq in range(BEGINS, ENDS):
        if not skip:
            assert seq in looked, "every frame with motion, the first one included"
        elif seq not in looked:
            assert glanced[seq]["why"] == "followed"
            assert seq - 1 in looked, "at most every second frame is passed over"
    assert looked[BEGINS]["look"]["why"] in ("motion", "light")
    still = [seq for seq in range(255, BEGINS) if seq in looked]
    assert 1 <= len(still) <= 8, "once a second"
    assert len([seq for seq in range(ENDS + 60, FRAMES) if seq in looked]) <= 12
    for line in glanced.values():
        message = msgspec.convert(line, GlanceMessage)
        assert message.looked_seq == max(seq for seq in looked if seq < message.seq)
        assert message.looked_seq is not None
        assert message.unlooked == message.seq - message.looked_seq
        assert "all" in message.counts["zones"]  # type: ignore[index]
    # The null engine finds a thing in every frame: it is one track all along, with one entry.
    assert {d["track"]["id"] for line in list(looked.values())[3:] for d in line["detections"]} == {1}
    assert looked[max(looked)]["counts"]["zones"]["all"]["begun"] == {"thing": 1}


def test_what_look_refuses(clip: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    text = f"""
model: {{path: none}}
engine: {{kind: "null"}}
streams: [{{id: yard, url: {clip}, look: {{when: motion, sensitivity: LEVEL, masks: MASKS}}}}]
"""

    def problem(level: str = "auto", masks: str = "[]") -> str:
        file.write_text(text.replace("LEVEL", level).replace("MASKS", masks))
        with pytest.raises(ConfigError) as caught:
            load(file)
        return str(caught.value)

    assert "from 1 to 10" in problem(level="11")
    assert "masks" in problem(masks="[[[0, 0], [400, 0], [1, 1]]]")


# -------------------------------------------------------------------------------------------------------- messages

MODEL = ModelInfo("m", "0" * 64, ("thing",))
NONE = Boxes(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))


def found(seq: int, unlooked: int) -> Outgoing:
    times = StageTimes(0, 1, 2, 3, 4, 5)
    return Outgoing(
        Detections("a", 0, seq, None, 10**18, 64, 48, times, MODEL, NONE, unlooked=unlooked, why="motion"), "boot"
    )


def passed(seq: int) -> OutgoingGlance:
    look = Look(False, "still")
    return OutgoingGlance(Glanced("a", 0, seq, None, 10**18, 64, 48, "arrival", look, 3, 10**18, seq - 3), "boot")


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_frames_that_were_not_looked_at_are_not_lost(encoding: Any) -> None:
    """Also through a worker's relay, for an older subscriber, and after a restart of a worker."""
    builder, parent = MessageBuilder("boot", encoding), MessageBuilder("boot", encoding)
    #      seq, unlooked, lost before it
    told = [(0, 0, 0), (5, 4, 0), (9, 5, 2), (10, 5, 0), (20, 2, 7)]
    for seq, unlooked, lost in told:
        message = builder.detections(found(seq, unlooked))
        assert message.dropped == lost
        head, payload = pack(1, message)
        _, relayed = Route(b"detections\na\n").take(head, payload, encoding)
        parent.number(relayed)
        assert (relayed.dropped, relayed.unlooked) == (lost, unlooked)
        old: Any = decoder.decode([relayed.topic, relayed.payload])
        assert (old.seq, old.dropped) == (seq, lost)
        new: Any = decode([relayed.topic, relayed.payload])
        assert (new.look.why, new.look.unlooked) == ("motion", unlooked)


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_a_glance_has_a_topic_of_its_own_and_no_detections(encoding: Any) -> None:
    message = MessageBuilder("boot", encoding).glance(passed(7))
    head, payload = pack(1, message)
    _, relayed = Route(b"glance\na\n").take(head, payload, encoding)
    assert relayed.topic == b"streamd/glance/1/a"
    assert not relayed.topic.startswith(b"streamd/1/")
    glance = decode([relayed.topic, relayed.payload])
    assert isinstance(glance, GlanceMessage)
    assert (glance.seq, glance.why, glance.looked_seq, glance.unlooked) == (7, "still", 3, 4)
    assert not hasattr(glance, "detections")
