"""Message version 1: its schema holds for everything we send, and its decoder refuses everything else."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import jsonschema
import msgspec
import pytest
from hypothesis import given

from streamd.errors import SinkError
from streamd.sinks.message import Gaps, decode, detections_message, encoder, json_schema, status_message, topic
from streamd.types import StreamCounts
from tests.frames import detections, status

NAME = topic("s", "detections")


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("boxes", [0, 3])
def test_what_is_encoded_is_decoded(encoding: Any, boxes: int) -> None:
    message = detections_message(detections(boxes=boxes), "b", 2)
    assert decode([NAME, encoder(encoding)(message)]) == message
    told = status_message(status("s", "FAILED", "auth"), StreamCounts(1, 0, {"ring_full": 1}, 4), "b")
    assert decode([topic("s", "status"), encoder(encoding)(told)]) == told


def test_the_schema_describes_what_is_sent() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for message in (
        detections_message(detections(boxes=4), "b", 0),
        detections_message(detections(), "b", 0, source="x.mp4"),
        status_message(status(), StreamCounts(), "b"),
    ):
        validator.validate(json.loads(encoder("json")(message)))
    good = json.loads(encoder("json")(detections_message(detections(), "b", 0)))
    for broken in (good | {"schema": 2}, good | {"seq": "1"}, {k: v for k, v in good.items() if k != "stream"}):
        assert not validator.is_valid(broken)


def test_the_fields_are_the_ones_subscribers_rely_on() -> None:
    message = json.loads(encoder("json")(detections_message(detections(), "b", 0)))
    assert set(message) == {
        "schema", "boot_id", "stream", "epoch", "seq", "pts_ns", "captured_at", "clock", "published_at", "width",
        "height", "model", "latency_ms", "dropped", "detections",
    }  # fmt: skip
    assert set(message["latency_ms"]) == {"decode", "queue", "preprocess", "infer", "postprocess", "total"}
    assert set(message["detections"][0]) == {"class_id", "label", "score", "box"}
    assert message["captured_at"] <= message["published_at"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "0 parts"),
        ([NAME], "1 parts"),
        ([NAME, b""], "2 parts"),
        ([b"other/topic", b"{}"], "not of schema 1"),
        ([NAME, b"{}"], "missing required field"),
        ([NAME, b"[" * 200_000], "message: streamd/1/s/detections"),
        ([NAME, b"\xc1\xff"], "message: streamd/1/s/detections"),
        ([NAME, b'{"schema":2}'], "schema"),
    ],
)
def test_what_is_not_ours_is_refused(parts: list[bytes], message: str) -> None:
    with pytest.raises(SinkError, match=message):
        decode(parts)


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_no_bytes_crash_the_decoder(parts: list[bytes]) -> None:
    with pytest.raises(SinkError):
        decode([NAME, *parts])


@given(st.sets(st.integers(0, 500)))
def test_gaps_sum_to_what_is_missing(seqs: set[int]) -> None:
    gaps, order = Gaps(), sorted(seqs)
    told = sum(gaps.before("s", s) for s in order)
    assert told == (order[-1] + 1 - len(order) if order else 0)


def test_unknown_fields_of_a_later_version_are_ignored() -> None:
    message = detections_message(detections(), "b", 0)
    later = json.loads(encoder("json")(message)) | {"new": 1}
    assert decode([NAME, msgspec.json.encode(later)]) == message
