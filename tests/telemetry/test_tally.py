"""Histograms and counters without locks say what prometheus_client's own would."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from streamd.telemetry.tally import Histograms, LabelCounts

BUCKETS = (0.001, 0.01, 0.1, 1.0)


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_a_histogram_is_exposed_like_the_librarys() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Histograms("x_seconds", "Of x.", "stage", BUCKETS, ours)
    reference = Histogram("x_seconds", "Of x.", ["stage"], buckets=BUCKETS, registry=theirs)
    draw = random.Random(4)
    # Powers of two: sums are exact in whichever order they are made.
    values = [0.0, 0.001, 0.01, 0.1, 1.0, 1.0000001, 7.0] + [draw.randrange(1, 2**20) / 2**18 for _ in range(500)]
    mine.tally("none")
    reference.labels(stage="none")
    writers = [mine.tally("a"), mine.tally("b"), mine.tally("a")]
    for i, value in enumerate(values):
        stage = "ab"[i % 3 % 2]
        writers[i % 3].observe(value)
        reference.labels(stage=stage).observe(value)
    writers[0].observe(0.25, 3)
    for _ in range(3):
        reference.labels(stage="a").observe(0.25)

    def lines(registry: CollectorRegistry) -> list[str]:
        text = generate_latest(registry).decode()
        return sorted(line for line in text.splitlines() if "_created" not in line and "_sum" not in line)

    assert lines(ours) == lines(theirs)
    for stage in ("a", "b", "none"):
        assert ours.get_sample_value("x_seconds_sum", {"stage": stage}) == pytest.approx(
            theirs.get_sample_value("x_seconds_sum", {"stage": stage})
        )


def test_nothing_is_lost_while_somebody_scrapes(switching: None) -> None:
    registry = CollectorRegistry()
    histograms = Histograms("x_seconds", "Of x.", "stage", BUCKETS, registry)
    counts = LabelCounts("seen", "Of x.", registry)
    each, done = 5_000, threading.Event()

    def write() -> None:
        tally, seen = histograms.tally("a"), counts.of("s", ("car", "person"))
        for i in range(each):
            tally.observe(0.5)
            seen[i % 2] += 1

    scraped: list[float] = []

    def scrape() -> None:
        while not done.is_set():
            scraped.append(registry.get_sample_value("x_seconds_count", {"stage": "a"}) or 0.0)
            buckets = [s for f in registry.collect() for s in f.samples if s.name == "x_seconds_bucket"]
            assert [s.value for s in buckets] == sorted(s.value for s in buckets)

    reader = threading.Thread(target=scrape)
    reader.start()
    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert scraped == sorted(scraped)
    assert registry.get_sample_value("x_seconds_count", {"stage": "a"}) == 3 * each
    assert registry.get_sample_value("x_seconds_sum", {"stage": "a"}) == 3 * each * 0.5
    assert registry.get_sample_value("seen_total", {"stream": "s", "label": "car"}) == 3 * each / 2


def test_labels_are_added_up_and_what_was_never_seen_is_not_told() -> None:
    registry = CollectorRegistry()
    counts = LabelCounts("seen", "Of x.", registry)
    first, again, other = counts.of("a", ("car", "person", "car")), counts.of("a", ("car",)), counts.of("b", ("bus",))
    first[0] += 2
    first[2] += 3
    again[0] += 4
    assert other == [0]
    found = Counter({tuple(s.labels.values()): s.value for f in registry.collect() for s in f.samples})
    assert found == {("a", "car"): 9}
