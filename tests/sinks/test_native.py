"""The compiled encoder gives msgspec's bytes."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.sinks import encoding as module
from streamd.sinks.encoding import detections_message, encoded_number, encoder, split_detections
from streamd.sinks.native import SHORT, BoxEncoder, library
from streamd.types import Boxes, Detections, ModelInfo, Tracks
from tests.compiler import shared_library
from tests.frames import detections

LABELS = ("person", 'a "quoted" one', "Straßenbahn 電車", "", "\n\x00\\", *(f"class {i}" for i in range(5, 300)))
MODEL = ModelInfo("m", "0" * 64, LABELS)
ENCODINGS: tuple[Literal["json", "msgpack"], ...] = ("json", "msgpack")
NUMBERS = (0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**53)


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = library(shared_library(tmp_path_factory.mktemp("native"), [Path(module.__file__).with_name("encode.c")]))
    assert found is not None
    return found


def frame(xyxy: Any, score: Any, class_id: Any, number: Any = None, age: Any = (), velocity: Any = ()) -> Detections:
    tracks = None
    if number is not None:
        tracks = Tracks(np.array(number, np.int64), np.array(age, float), np.array(velocity, float).reshape(-1, 2))
    return replace(
        detections(), model=MODEL,
        boxes=Boxes(
            np.array(xyxy, np.float32).reshape(-1, 4), np.array(score, np.float32), np.array(class_id, np.int32), tracks
        ),
    )  # fmt: skip


def by_msgspec(d: Detections, encoding: Literal["json", "msgpack"]) -> bytes:
    return encoder(encoding)(module._rounded(d))


def random_frame(seed: int, n: int, tracked: bool, largest: float) -> Detections:
    rng = np.random.default_rng(seed)
    values = rng.uniform(-largest, largest, (n, 7)) * rng.choice([0, 1e-6, 1e-3, 1, 1], (n, 7))
    score = rng.choice([0, 1, 0.00004, 0.5, 0.9999, 0.99996, 0.25], n) * rng.choice([1, rng.random()])
    number = rng.choice(NUMBERS, n) if tracked else None
    return frame(
        values[:, :4], score, rng.integers(0, len(LABELS), n), number, np.abs(values[:, 4]), values[:, 5:]
    )  # fmt: skip


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 5, 15, 16, SHORT + 1]), st.booleans(),
    st.sampled_from([1.0, 50.0, 4000.0, 1e6, 1e9]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_the_bytes_are_msgspecs(functions: Any, seed: int, n: int, tracked: bool, largest: float) -> None:
    d = random_frame(seed, n, tracked, largest)
    for encoding in ENCODINGS:
        made = BoxEncoder(encoding, functions)(d)
        assert made is not None
        assert bytes(made) == by_msgspec(d, encoding)


@given(
    st.lists(
        st.tuples(
            st.tuples(*[st.floats(width=32)] * 4), st.floats(width=32), st.sampled_from([0, 4, 299]),
            st.integers(0, 2**53), st.floats(), st.tuples(st.floats(), st.floats()),
        ),
        min_size=1, max_size=3,
    )
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_numbers_are_msgspecs_or_left_to_it(functions: Any, boxes: Any) -> None:
    with np.errstate(all="ignore"):
        d = frame(*zip(*boxes, strict=True))
        for encoding in ENCODINGS:
            made = BoxEncoder(encoding, functions)(d)
            if made is not None:
                assert bytes(made) == by_msgspec(d, encoding)


def test_every_score_and_every_hundredth_of_a_pixel(functions: Any) -> None:
    for first in range(0, 10_001, 1000):
        score = np.arange(first, first + 1001) / 10_000
        corners = np.stack([score * 100, score * 99, score * 1e4, -score], axis=1)
        number = np.ones(len(score), np.int64)
        d = frame(corners, score, np.zeros(len(score)), number, score * 10, corners[:, :2])
        for encoding in ENCODINGS:
            made = BoxEncoder(encoding, functions)(d)
            assert made is not None
            assert bytes(made) == by_msgspec(d, encoding)


@pytest.mark.parametrize(
    ("box", "class_id", "number"),
    [
        ((np.nan, 0, 1, 1), 0, 1), ((0, 0, np.inf, 1), 0, 1), ((0, 0, 3e38, 1), 0, 1), ((0, 0, 1, 1), 300, 1),
        ((0, 0, 1, 1), -1, 1), ((0, 0, 1, 1), 0, -5),
    ],
)  # fmt: skip
def test_what_msgspec_does_is_left_to_it(functions: Any, box: Any, class_id: int, number: int) -> None:
    d = frame([box], [0.5], [class_id], [number], [1.0], [(0, 0)])
    assert all(BoxEncoder(encoding, functions)(d) is None for encoding in ENCODINGS)


def test_arrays_with_gaps_and_of_other_types(functions: Any) -> None:
    d = random_frame(1, 8, True, 500)
    assert d.tracks is not None
    wide = np.zeros((8, 6), np.float32)
    wide[:, 1:5] = d.xyxy
    other = replace(
        d,
        boxes=Boxes(
            wide[:, 1:5], d.score.astype(np.float64), d.class_id.astype(np.int64),
            d.tracks._replace(velocity=np.asfortranarray(d.tracks.velocity)),
        ),
    )  # fmt: skip
    for encoding in ENCODINGS:
        encode = BoxEncoder(encoding, functions)
        assert bytes(encode(other) or b"") == bytes(encode(d) or b"-")


def test_many_threads_at_a_time(functions: Any) -> None:
    encode, wrong = BoxEncoder("json", functions), list[int]()
    frames = [random_frame(seed, 3 * seed, True, 900) for seed in range(40)]
    expected = [by_msgspec(d, "json") for d in frames]

    def work() -> None:
        for _ in range(20):
            wrong.extend(i for i, d in enumerate(frames) if bytes(encode(d) or b"") != expected[i])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("boxes", [0, 9])
@pytest.mark.parametrize(
    ("more", "generation"),
    [
        ({}, 0), ({}, 1), ({"counts": {}}, 0), ({"counts": {"lines": {"a": {"in": 1}}}}, 4),
        ({"why": "motion", "unlooked": 3}, 0),
    ],
)  # fmt: skip
def test_a_whole_message_is_the_same(
    functions: Any, encoding: Literal["json", "msgpack"], boxes: int, more: dict[str, Any], generation: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    d = replace(random_frame(3, boxes, True, 700), **more)
    monkeypatch.setattr("time.time", lambda: 1e9)
    monkeypatch.setattr("time.monotonic_ns", lambda: 10**9)
    monkeypatch.setitem(module._NATIVE, encoding, BoxEncoder(encoding, functions))
    compiled = split_detections(d, "b", encoding, generation)
    monkeypatch.setitem(module._NATIVE, encoding, None)
    assert compiled == split_detections(d, "b", encoding, generation)
    whole = encoder(encoding)(detections_message(d, "b", 7, generation=generation))
    assert encoded_number(7, encoding).join(compiled) == whole


def test_without_the_library_msgspec_does_it(tmp_path: Path) -> None:
    assert library(str(tmp_path / "none.so")) is None
