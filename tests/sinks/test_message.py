"""Message version 1: its schema holds for everything we send, and its decoder refuses everything else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis.extra import numpy as hnp

from streamd.errors import SinkError
from streamd.sinks import attributes
from streamd.sinks.encoding import detections_message, encoded_number, encoder, split_detections, status_message
from streamd.sinks.envelope import DETECTIONS, STATUS, Gaps
from streamd.sinks.message import Detection, DetectionsMessage, Track, decode, json_schema
from streamd.types import Attribute, Boxes, Details, Detections, ModelInfo, StreamCounts, Tracks
from tests.frames import MODEL, detections, status

NAME = DETECTIONS.topic("s")


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("boxes", [0, 3])
def test_what_is_encoded_is_decoded(encoding: Any, boxes: int) -> None:
    message = detections_message(detections(boxes=boxes), "b", 2)
    assert decode([NAME, encoder(encoding)(message)]) == message
    told = status_message(status("s", "FAILED", "auth"), StreamCounts(1, 0, {"ring_full": 1}, 4), "b")
    assert decode([STATUS.topic("s"), encoder(encoding)(told)]) == told


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


def one_by_one(d: Detections) -> list[Detection]:
    """The boxes of a message as Python's own round() makes them, which is correct to the last digit."""
    return [
        Detection(
            class_id,
            d.model.labels[class_id],
            round(float(score), 4),
            (round(float(x1), 2), round(float(y1), 2), round(float(x2), 2), round(float(y2), 2)),
        )
        for class_id, score, (x1, y1, x2, y2) in zip(d.class_id.tolist(), d.score, d.xyxy, strict=True)
    ]


def hold_rounding(rows: Any) -> None:
    """`rows` (N, 5) float32, corners and score, come out as the same bytes in both encodings."""
    n = len(rows)
    d = replace(
        detections(boxes=n),
        boxes=Boxes(rows[:, :4], rows[:, 4], np.arange(n, dtype=np.int32) % len(MODEL.labels)),
    )
    message = detections_message(d, "b", 0)
    wanted = msgspec.structs.replace(message, detections=one_by_one(d))
    for encoding in ("json", "msgpack"):
        assert encoder(encoding)(message) == encoder(encoding)(wanted)


_EDGES = [
    0.0, -0.0, -0.001, 0.005, 0.015, 0.125, 0.375, 2.675, 1.00005, 12.34, 4095.995, 8191.5, 16777216.0, 3e38, -3e38,
    1e-45, np.inf, -np.inf, np.nan,
]  # fmt: skip


@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 300), st.just(5)), elements=st.floats(width=32)))
@example(np.resize(np.array(_EDGES, np.float32), (300, 5)))
@example((np.arange(1500, dtype=np.float32) / 8).reshape(300, 5))
@example((np.arange(1500, dtype=np.float32) / 20_000).reshape(300, 5))
def test_corners_and_scores_are_rounded_as_round_does(rows: Any) -> None:
    hold_rounding(rows)


def test_pixels_and_scores_of_real_sizes_are_rounded_as_round_does() -> None:
    random = np.random.default_rng(5)
    for n in (1, 2, 10, 300) * 25:
        hold_rounding((random.uniform(-20, 7680, (n, 5)) * [1, 1, 1, 1, 1 / 7680]).astype(np.float32))


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


@given(
    st.integers(0, 12),
    st.sampled_from([0, 1, 23, 24, 127, 128, 255, 65_535, 65_536, 1 << 40]),
    st.sampled_from(["plain", '"dropped":0,', "\xa7dropped\x00", "ü\\"]),
)
def test_a_message_in_parts_is_the_message_as_a_whole(boxes: int, dropped: int, name: str) -> None:
    d = replace(detections(boxes=boxes), model=ModelInfo(name, "0" * 64, ("person",) * 8))
    encodings: tuple[Any, ...] = ("json", "msgpack")
    for encoding in encodings:
        before, after = split_detections(d, "b", encoding)
        payload = before + encoded_number(dropped, encoding) + after
        decoded = decode([NAME, payload])
        assert isinstance(decoded, DetectionsMessage)
        assert payload == encoder(encoding)(decoded), "byte for byte, in the order of the fields"
        assert (decoded.dropped, decoded.model.name, len(decoded.detections)) == (dropped, name, boxes)


DETAILS = Details(
    keypoints=np.array([[[1.234, 5.678, 0.98765], [0, 0, 0]], [[7, 8, 1], [9.999, 1, 0.5]]], np.float32),
    oriented=np.arange(16, dtype=np.float32).reshape(2, 4, 2) + np.float32(0.26),
    polygons=[np.array([[1.04, 2.06], [3, 4], [5, 6]], np.float32), np.empty((0, 2), np.float32)],
)


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("details", [False, True])
def test_what_classifiers_say_is_an_optional_field(encoding: Any, details: bool) -> None:
    colour = Attribute("colour", "red", 0.9, 17, 2, (("blue", 0.06),))
    tracks = Tracks(np.array([4, 5]), np.array([1.5, 0]), np.zeros((2, 2)))
    said = [(colour, Attribute("type", "van", 0.5, 18, 1)), ()]
    d = replace(
        detections(boxes=2, tracks=tracks), attributes=said, details=DETAILS if details else None,
    )  # fmt: skip
    payload = encoder(encoding)(detections_message(d, "b", 0))
    message = decode([NAME, payload])
    assert isinstance(message, DetectionsMessage)
    assert encoder(encoding)(message) == payload
    first, second = message.detections
    assert first.attributes == [
        attributes.Attribute("colour", "red", 0.9, 17, 2, [("blue", 0.06)]),
        attributes.Attribute("type", "van", 0.5, 18, 1),
    ]
    assert second.attributes is msgspec.UNSET
    assert (first.keypoints is msgspec.UNSET) == (not details)
    if encoding == "json":
        jsonschema.validate(json.loads(payload), json_schema())
        assert "attributes" not in json.loads(payload)["detections"][1]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("tracked", [False, True])
def test_details_of_boxes_are_optional_fields(encoding: Any, tracked: bool) -> None:
    tracks = Tracks(np.array([4, 0]), np.array([1.5, 0]), np.array([[1.0, 2.0], [0, 0]]))
    d = replace(detections(boxes=2, tracks=tracks if tracked else None), details=DETAILS)
    payload = encoder(encoding)(detections_message(d, "b", 2))
    message = decode([NAME, payload])
    assert isinstance(message, DetectionsMessage)
    assert encoder(encoding)(message) == payload
    first, second = message.detections
    assert first.keypoints == [(1.23, 5.68, 0.988), (0, 0, 0)]
    assert first.oriented_box == [(0.3, 1.3), (2.3, 3.3), (4.3, 5.3), (6.3, 7.3)]
    assert first.polygon == [(1, 2.1), (3, 4), (5, 6)]
    assert second.polygon == []
    assert (first.track == Track(4, 1.5, True, (1, 2))) == tracked
    assert second.track is (None if tracked else msgspec.UNSET)
    before, after = split_detections(d, "b", encoding)
    whole = decode([NAME, before + encoded_number(2, encoding) + after])
    assert isinstance(whole, DetectionsMessage)
    assert encoder(encoding)(whole.detections) == encoder(encoding)(message.detections)
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads(encoder("json")(message)))
    only = replace(d, details=Details(keypoints=DETAILS.keypoints))
    assert set(json.loads(encoder("json")(detections_message(only, "b", 0)))["detections"][0]) == {
        "class_id", "label", "score", "box", "keypoints", *(["track"] if tracked else []),
    }  # fmt: skip


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_the_generation_is_there_only_in_a_fleet(encoding: Any) -> None:
    d, told = detections(boxes=1), status()
    alone = (
        encoder(encoding)(detections_message(d, "b", 0)),
        encoder(encoding)(status_message(told, StreamCounts(), "b")),
    )
    assert not any(b"generation" in payload for payload in alone)
    generation = 1_796_000_000_123
    before, after = split_detections(d, "b", encoding, generation)
    message = decode([NAME, before + encoded_number(3, encoding) + after])
    assert isinstance(message, DetectionsMessage)
    assert (message.generation, message.dropped) == (generation, 3)
    assert encoder(encoding)(message) == before + encoded_number(3, encoding) + after
    payload = encoder(encoding)(status_message(told, StreamCounts(), "b", generation))
    assert getattr(decode([b"streamd/1/s/status", payload]), "generation") == generation  # noqa: B009
