"""Frames that are not looked at: their way through ring, batcher and pipeline, in order and in the accounts."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from streamd.analysis.glance.gate import Gate
from streamd.analysis.glance.settings import LookSettings
from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.null import NullBackend, NullSettings
from streamd.flow.batcher import RECORDS_S, Batcher
from streamd.flow.gated import LATE_NS, GatedRing, is_record
from streamd.flow.glimpse import NO_PICTURE
from streamd.flow.pipeline import Pipeline
from streamd.flow.ring import Bell, Closed, Ring
from streamd.flow.stream import StreamOutput
from streamd.heads import DetectSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head
from streamd.telemetry.metrics import Metrics
from streamd.types import Detections, Frame, Glanced, Look, Why
from tests.frames import MODEL, frames


def _frames(name: str, *whys: Why) -> list[Frame]:
    """One frame for each reason."""
    out = list(frames(name, len(whys)))
    for frame, why in zip(out, whys, strict=True):
        frame.decoded_ns = time.monotonic_ns()
        frame.view = Look(why not in ("still", "rate"), why)
        if not frame.view.wanted:
            frame.picture = NO_PICTURE
    return out


def _ring(capacity: int = 2, policy: Any = "drop_oldest", bell: Bell | None = None) -> tuple[GatedRing, list[Any]]:
    dropped: list[Any] = []
    ring = GatedRing(
        capacity, policy, Gate(LookSettings(when="motion")), on_drop=lambda f, why: dropped.append((f.seq, why)),
        bell=bell,
    )  # fmt: skip
    return ring, dropped


def test_the_gate_hears_of_a_frame_that_was_given_up_for_no_newer_one() -> None:
    """It would take the picture for seen, and pass over what shows the same."""
    gate = Gate(LookSettings(when="motion"))
    ring = GatedRing(2, "drop_oldest", gate)
    first, second = _frames("a", "motion", "motion")
    gate._owed = False
    ring.put(first)
    ring.put(second)
    with ring._lock:
        assert ring._yield(moving=True)
    assert first.view is not None
    assert first.view.why == "overload"
    assert not gate._owed, "the newer one is looked at"
    assert ring.take() is first
    assert ring.take() is second
    assert ring.give_up(second), "too old"
    assert gate._owed


def test_records_take_up_no_room_and_keep_their_place() -> None:
    ring, dropped = _ring()
    for frame in _frames("a", "motion", "still", "still", "still", "motion"):
        ring.put(frame)
    assert ring.pictures == 2
    assert len(ring) == 5
    assert [ring.take().seq for _ in range(5)] == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    assert ring.take() is None
    assert (ring.pictures, dropped) == (0, [])


def test_a_full_ring_gives_up_frames_without_motion_first() -> None:
    ring, dropped = _ring()
    for frame in _frames("a", "motion", "interval", "motion", "motion"):
        ring.put(frame)
    left = [ring.take() for _ in range(4)]
    assert [(f.seq, f.view.why, f.view.wanted) for f in left if f is not None and f.view is not None] == [
        (0, "overload", False), (1, "busy", False), (2, "motion", True), (3, "motion", True),
    ], "once only frames with motion are left, the oldest"  # fmt: skip
    assert (ring.pictures, dropped) == (0, [])
    assert left[0] is not None
    assert left[0].picture is NO_PICTURE


def test_latest_keeps_one_picture_and_all_records() -> None:
    ring, dropped = _ring(4, "latest")
    for frame in _frames("a", "motion", "still", "motion", "still", "hold", "motion"):
        ring.put(frame)
    assert dropped == []
    assert [f.seq for f in ring.records()] == [0, 1, 2, 3, 4], "those that were to be looked at have become some, too"
    assert [(f.seq, is_record(f)) for f in iter(ring.take, None)] == [(5, False)]


def test_block_waits_for_pictures_only() -> None:
    ring, _ = _ring(1, "block")
    motion, still, another = _frames("a", "motion", "still", "motion")
    ring.put(motion)
    ring.put(still, timeout=0)
    with pytest.raises(TimeoutError):
        ring.put(another, timeout=0.01)
    assert ring.get(0) is motion
    ring.put(another, timeout=0)
    ring.change(2, "drop_oldest")
    ring.close(discard=True)
    with pytest.raises(Closed):
        ring.put(still)
    assert ring.exhausted


class Rig:
    """A pipeline over streams, some of which are not always looked at."""

    def __init__(self, gated: str, plain: str = "", batch: int = 4, capacity: int = 64, max_age_s: float | None = None):
        self.backend = NullBackend(NullSettings(), ModelSettings(path="x"), batch=BatchSettings(max=batch))
        self.backend.start()
        self.metrics = Metrics(CollectorRegistry())
        bell = Bell()
        self.batcher = Batcher(self.backend.spec.max_batch, 0, bell)
        self.rings: dict[str, Ring[Frame]] = {}
        self.dropped: list[Any] = []
        for name in gated:
            ring, self.dropped = _ring(capacity, bell=bell)
            self.rings[name] = ring
        for name in plain:
            self.rings[name] = Ring(capacity, bell=bell)
        for name, each in self.rings.items():
            self.batcher.add(name, each, max_age_s=max_age_s)
        self.batcher.seal()
        detect = DetectSettings()
        post = Postprocess(open_head(None, self.backend.spec, detect), detect, ("thing",))
        self.out: list[Detections | Glanced] = []
        self.pipeline = Pipeline(self.backend, self.batcher, post, MODEL, self.metrics)
        for name in self.rings:
            output = StreamOutput(name, self.metrics, MODEL, self.out.append, publish_glance=self.out.append)
            self.pipeline.add(output)

    def run(self, **whys: list[Why]) -> None:
        for name, reasons in whys.items():
            for frame in _frames(name, *reasons):
                self.rings[name].put(frame)
        for ring in self.rings.values():
            ring.close()
        self.pipeline.start()
        assert self.pipeline.join(30)


def test_everything_is_published_in_order_and_counted() -> None:
    rig = Rig("ab")
    reasons: list[Why] = ["motion", "still", "still", "hold", "rate", "interval", "still", "motion", "motion", "still"]
    rig.run(a=reasons, b=reasons)
    for name in "ab":
        mine = [d for d in rig.out if d.stream == name]
        assert [d.seq for d in mine] == list(range(10))
        assert [isinstance(d, Glanced) for d in mine] == [why in ("still", "rate") for why in reasons]
        counters = rig.metrics.stream(name)
        assert counters.published == 10
        assert counters.looked == {"motion": 3, "hold": 1, "interval": 1}
        assert counters.passed == {"still": 4, "rate": 1}
        assert [d.unlooked for d in mine if isinstance(d, Detections)] == [0, 2, 3, 4, 4]
        assert [(d.looked_seq, d.unlooked) for d in mine if isinstance(d, Glanced)] == [
            (0, 1), (0, 2), (3, 1), (5, 1), (8, 1),
        ]  # fmt: skip
    text = generate_latest(rig.metrics.registry).decode()
    assert 'streamd_frames_looked_total{stream="a",why="motion"} 3.0' in text
    assert 'streamd_frames_glanced_total{stream="a",why="rate"} 1.0' in text


def test_frames_that_are_not_looked_at_are_taken_together() -> None:
    bell = Bell()
    batcher = Batcher(4, 0, bell)
    rings = {name: _ring(4, bell=bell)[0] for name in "ab"}
    for name, ring in rings.items():
        batcher.add(name, ring)
    taken: list[tuple[float, list[Frame], list[Frame]]] = []

    def take() -> None:
        with contextlib.suppress(Closed):
            while True:
                batch = batcher.take()
                taken.append((time.monotonic(), batch, batcher.order))

    thread = threading.Thread(target=take)
    thread.start()
    quiet: list[Why] = ["still"] * 40
    still = {name: _frames(name, *quiet) for name in rings}
    signals = bell.count
    began = time.monotonic()
    for pair in zip(*still.values(), strict=True):
        for frame in pair:
            rings[frame.stream].put(frame)
        time.sleep(0.005)
    lasted = time.monotonic() - began
    (urgent,) = _frames("a", "motion")
    (early,) = _frames("b", "still")
    rings["b"].put(early)
    rings["a"].put(urgent)
    at = time.monotonic()
    while not taken[-1][1] and time.monotonic() < at + 5:
        time.sleep(0.001)
    assert taken[-1][1] == [urgent]
    assert early in taken[-1][2], "what waits comes along with a frame to look at"
    (last,) = _frames("a", "still")
    rings["a"].put(last)
    until = time.monotonic() + 5
    while taken[-1][2] != [last] and time.monotonic() < until:
        time.sleep(0.001)
    assert taken[-1][2] == [last], "nothing else has to come for it"
    batcher.seal()
    for ring in rings.values():
        ring.close()
    thread.join(5)
    assert not thread.is_alive()
    order = [f for _, _, order in taken for f in order]
    for name, mine in still.items():
        assert [f for f in order if f.stream == name][:40] == mine
    times = [t for t, batch, _ in taken if not batch]
    assert len(times) <= lasted / RECORDS_S + 3
    assert bell.count - signals < 80, "most of them do not wake the batcher"


def test_the_end_of_a_stream_does_not_wait() -> None:
    bell = Bell()
    batcher = Batcher(4, 0, bell)
    ring, _ = _ring(4, bell=bell)
    batcher.add("a", ring)
    batcher.seal()
    first, second = _frames("a", "still", "still")
    ring.put(first)
    batcher.take()
    batcher._records_at = time.monotonic() + 60
    ring.put(second)
    ring.close()
    batcher.take()
    assert batcher.order == [second]
    with pytest.raises(Closed):
        batcher.take()


def test_a_stream_in_which_nothing_is_looked_at_still_says_so() -> None:
    rig = Rig("a")
    rig.run(a=["still"] * 7)
    assert [(type(d).__name__, d.seq) for d in rig.out] == [("Glanced", i) for i in range(7)]
    assert rig.out[0].looked_seq is None  # type: ignore[union-attr]
    assert "streamd_batch_size_count 0.0" in generate_latest(rig.metrics.registry).decode()


def test_streams_that_are_always_looked_at_are_not_affected() -> None:
    rig = Rig("a", "b")
    for frame in frames("b", 6):
        rig.rings["b"].put(frame)
    rig.run(a=["still", "motion", "still"])
    assert [(d.seq, type(d).__name__) for d in rig.out if d.stream == "b"] == [(i, "Detections") for i in range(6)]
    assert [d.seq for d in rig.out if d.stream == "a"] == [0, 1, 2]
    assert rig.metrics.stream("b").looked == {}


def test_motion_goes_first() -> None:
    rig = Rig("abc", batch=2)
    for name, reasons in {"a": ["hold", "hold"], "b": ["motion", "motion"], "c": ["hold", "motion"]}.items():
        for frame in _frames(name, *reasons):  # type: ignore[arg-type]
            rig.rings[name].put(frame)
    taken = [(f.stream, f.seq) for _ in range(2) for f in rig.batcher.take()]
    assert {stream for stream, _ in taken[:2]} == {"b", "c"}, "also a stream with motion behind another frame"
    assert ("a", 0) not in taken[:3]


def test_frames_that_waited_too_long_are_given_up_not_dropped() -> None:
    rig = Rig("a", max_age_s=1e-6)
    rig.run(a=["interval", "motion", "still"])
    assert [(type(d).__name__, d.seq) for d in rig.out] == [("Glanced", 0), ("Glanced", 1), ("Glanced", 2)]
    assert rig.metrics.stream("a").passed == {"busy": 1, "overload": 1, "still": 1}
    assert rig.dropped == []


def test_a_network_that_cannot_keep_up_looks_less_often_not_later() -> None:
    """Three streams move, at three times the rate of the network: each is looked at as often, and soon."""
    bell = Bell()
    batcher = Batcher(1, 0, bell)
    rings = {name: _ring(8, bell=bell)[0] for name in "abc"}
    for name, ring in rings.items():
        batcher.add(name, ring)
    moves: list[Why] = ["motion"] * 120
    sent = {name: _frames(name, *moves) for name in rings}
    looked: list[tuple[str, float]] = []
    passed = 0
    for i in range(120):  # a frame of each in 10 ms, of which the network takes one
        now_ns = time.monotonic_ns()
        for name, ring in rings.items():
            sent[name][i].decoded_ns = now_ns
            ring.put(sent[name][i])
        time.sleep(0.01)
        (frame,) = batcher.take()
        looked.append((frame.stream, (time.monotonic_ns() - frame.decoded_ns) / 1e6))
        passed += sum(f.view is not None and f.view.why == "overload" for f in batcher.order)
    shares = [sum(name == each for name, _ in looked) for each in rings]
    assert min(shares) >= 36, shares
    late = sorted(ms for _, ms in looked)[int(0.95 * len(looked))]
    assert late < LATE_NS / 1e6 + 60, late
    assert passed >= 180
    assert all(len(ring) <= 12 for ring in rings.values())


def test_looks_without_motion_are_fresh_though_others_go_first() -> None:
    bell = Bell()
    batcher = Batcher(1, 0, bell)
    moving, calm = "abc", "defghi"
    rings = {name: _ring(8, bell=bell)[0] for name in moving + calm}
    for name, ring in rings.items():
        batcher.add(name, ring)
    late: list[float] = []
    for i in range(160):
        for name, ring in rings.items():
            due = ring._gate._owed or i % 60 == 0
            (frame,) = _frames(name, "motion" if name in moving else "interval" if due else "still")
            ring._gate._owed = False
            ring.put(frame)
        time.sleep(0.01)
        (taken,) = batcher.take()
        if taken.stream in calm:
            late.append((time.monotonic_ns() - taken.decoded_ns) / 1e6)
    assert max(late) < LATE_NS / 1e6 + 60, late
    assert len(late) >= 10, "every eighth frame goes to whoever has waited longest"


def test_a_file_that_waits_for_the_network_is_not_thinned_out() -> None:
    ring, _ = _ring(8, "block")
    for frame in _frames("a", "motion", "motion", "hold", "motion"):
        ring.put(frame)
    ring.thin(time.monotonic_ns() + 10 * LATE_NS)
    assert ring.pictures == 4
    ring.change(8, "drop_oldest")
    ring.thin(time.monotonic_ns())
    assert ring.pictures == 4, "they have not waited for long"
    ring.thin(time.monotonic_ns() + 10 * LATE_NS)
    assert [(f.seq, is_record(f)) for f in iter(ring.take, None)] == [(0, True), (1, True), (2, True), (3, False)]


def test_a_failed_stage_counts_every_frame_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig("a")
    dropped: dict[str, int] = rig.metrics.stream("a").dropped

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(rig.backend, "infer", fail)
    rig.run(a=["still", "motion", "still"])
    rig.rings["a"].close(discard=True)
    published = rig.metrics.stream("a").published
    assert published + sum(dropped.values()) + len(rig.dropped) == 3
