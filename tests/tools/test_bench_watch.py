"""What the bench sees of a daemon, on processes and metrics that are known."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec
import pytest
from bench_watch import GilWatch, PageViewer, Tree, Window, held_by, means, sums
from prometheus_client import CollectorRegistry, start_http_server

from streamd.sinks.encoding import detections_message
from streamd.telemetry.metrics import Metrics
from tests.behaviour.daemon import until
from tests.frames import detections, status
from tests.web.test_page import Served
from tests.web.test_tap import picture, seen

BUSY = "import time\nwhile True: time.process_time()"
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BUSY!r}])"


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", PARENT])
    yield process
    for child in Tree(process.pid).root.children(recursive=True):
        child.kill()
    process.kill()
    process.wait(10)


def test_children_count_and_the_busiest_is_found(parent: subprocess.Popen[bytes]) -> None:
    tree = Tree(parent.pid)
    deadline = time.monotonic() + 20
    while (tree.busiest() == parent.pid or tree.cpu() < 0.5) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tree.busiest() != parent.pid
    assert tree.rss() > 3
    threads = tree.threads()
    assert "parent" in threads
    assert sum(threads.values()) == pytest.approx(tree.cpu(), abs=0.3)
    assert not tree.over


def test_a_daemon_that_has_ended_is_over() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    tree = Tree(process.pid)
    deadline = time.monotonic() + 20
    while not tree.over and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tree.over
    process.wait()


def test_without_py_spy_there_is_no_share() -> None:
    assert GilWatch("", 1, 1.0).held() is None


def test_means_are_those_between_two_readings_of_the_port() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        metrics.batch_size.observe(100)
        before = sums(server.server_port)
        assert before["batch"] == (100, 1)
        for size in (2, 5):
            metrics.batch_size.observe(size)
            metrics.device_duration.labels(stage="infer").observe(0.004)
        assert means(before, sums(server.server_port)) == {"batch": 3.5, "infer": 4.0}
        assert means(before, before) == {}
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_who_holds_the_lock() -> None:
    stacks = "run (a.py:1);take (ring.py:7) 30\nrun (a.py:1);work (a.py:9);take (ring.py:7) 10\nmain (b.py:3) 20\n"
    assert held_by(stacks, 120) == (0.5, {"take (ring.py:7)": 0.333, "main (b.py:3)": 0.167})
    assert held_by("", 100) == (0.0, {})


def test_a_frame_counts_for_when_it_was_published_not_for_when_it_was_taken() -> None:
    """A subscriber that was away takes what piled up at once: 25 frames a second stay 25."""
    window = Window(1000.0, 90.0)
    message = detections_message(detections(), "boot", 1)
    over = []
    for i in range(-50, 25 * 92):
        stamped = msgspec.structs.replace(message, published_at=1000.0 + (i + 0.5) / 25, stream=f"s{i % 2}")
        over.append(window.take(stamped))
    assert over == [i >= 25 * 90 for i in range(-50, 25 * 92)]
    assert window.frames == 25 * 90
    assert window.dropped == window.frames
    assert window.per_stream == {"s0": 1125, "s1": 1125}
    assert [len(minute) for minute in window.by_minute] == [1500, 750]
    assert window.minutes == 2
    assert len(window.latencies()) == window.frames
    assert {len(values) for values in window.stages.values()} == {window.frames}


def test_a_viewer_of_the_page_counts_what_it_is_shown() -> None:
    served = Served()
    try:
        for stream in ("a", "b"):
            served.board.post(status(stream))
        viewer = PageViewer(served.http.port, ["a", "b"], 10, width=160)
        until(lambda: len(served.tap.wanted) == 2, 5)
        for seq in range(3):
            for stream in ("a", "b"):
                frame = picture(stream=stream)
                served.tap.take(frame, seen(frame, seq))
            time.sleep(0.15)
        until(lambda: viewer.pictures >= 4, 5)
        assert (viewer.empty, viewer.pictures <= 6, viewer.bytes > 1000) == (0, True, True)
    finally:
        served.tap.close()
        served.http.close()
