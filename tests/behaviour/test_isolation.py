"""isolation: process. A decoder that dies or hangs costs its own stream a reconnection, and nobody else anything."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil

from tests.behaviour.daemon import Running, Subscriber, daemon, until
from tests.behaviour.test_reload import NULL, exact_at_the_end, gapless
from tests.clips import write_clip
from tests.sources.test_process import segments

HEALTHY = [f"h{i}" for i in range(8)]
FPS = 20


def decoder_of(running: Running, name: str) -> psutil.Process:
    """The process that decodes a stream; StopIteration where there is none."""
    children = psutil.Process(running.process.pid).children()
    return next(p for p in children if p.name() == f"dec-{name}" and p.status() != psutil.STATUS_ZOMBIE)


def test_a_decoder_that_crashes_or_hangs_takes_down_one_stream(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    write_clip(tmp_path / "clip.mp4", frames=50)
    before = segments()
    head = f"{NULL}sinks: [{{kind: zmq, bind: '{endpoint}'}}]\nstreams:\n"
    head += "".join(f"  - {{id: {name}, kind: synthetic, fps: {FPS}}}\n" for name in HEALTHY)
    sick = "  - {id: sick, url: clip.mp4, loop: true, reconnect: {initial_s: 0.2, max_s: 1}"
    with daemon(tmp_path, f"{head}{sick}, isolation: process}}\n") as running:
        subscriber = Subscriber(endpoint)
        until(lambda: subscriber.state("sick")[0] == "LIVE", 60)
        until(lambda: len(subscriber.frames["sick"]) > 10)
        counts = {name: len(subscriber.frames[name]) for name in HEALTHY}
        started = time.monotonic()
        for turn, (deadly, reason) in enumerate(
            [(signal.SIGSEGV, "decoder_crashed"), (signal.SIGKILL, "decoder_crashed"), (signal.SIGSTOP, "stuck")], 1
        ):
            decoder = decoder_of(running, "sick")
            decoder.send_signal(deadly)
            until(lambda: any(s.reason == reason for s in subscriber.statuses["sick"]), 20)  # noqa: B023 - in this turn only
            until(lambda: subscriber.frames["sick"][-1].epoch == turn, 60)  # noqa: B023
            assert not decoder.is_running()
            assert running.value("streamd_stream_reconnects_total", stream="sick") == turn
        elapsed = time.monotonic() - started
        for name in HEALTHY:
            assert len(subscriber.frames[name]) - counts[name] > elapsed * FPS * 0.9, name
            assert running.value("streamd_stream_reconnects_total", stream=name) == 0
        told = [s.detail for s in subscriber.statuses["sick"] if s.reason == "decoder_crashed"]
        assert any("SIGSEGV" in text for text in told)
        assert running.value("streamd_stream_threads_abandoned_total", stream="sick") == 0
        assert running.get("/healthz")[0] == 200

        running.reload(f"{head}{sick}, isolation: thread}}\n")
        until(lambda: subscriber.frames["sick"][-1].epoch == 4)
        assert not psutil.Process(running.process.pid).children()
        running.reload(f"{head}{sick}, isolation: process}}\n")
        until(lambda: subscriber.frames["sick"][-1].epoch == 5, 60)
        last = decoder_of(running, "sick")
        assert running.stop() == 0
        assert not last.is_running()
        subscriber.close()
    exact_at_the_end(running, "sick", *HEALTHY)
    gapless(subscriber, "sick")
    assert segments() == before


def test_sigkill_of_the_daemon_leaves_no_decoder(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    config = f"{NULL}streams: [{{id: a, url: clip.mp4, loop: true, isolation: process}}]\n"
    with daemon(tmp_path, config) as running:
        until(lambda: running.value("streamd_frames_published_total", stream="a") > 0, 60)
        decoder = decoder_of(running, "a")
        running.process.kill()
        running.process.wait()
        until(lambda: not decoder.is_running() or decoder.status() == psutil.STATUS_ZOMBIE, 5)


def test_nothing_is_lost_where_the_ring_blocks(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", frames=80)
    write_clip(tmp_path / "b.mp4", frames=60, size=(320, 240))
    streams = "".join(
        f"  - {{id: {name}, url: {name}.mp4, pace: asap, isolation: process, policy: block}}\n" for name in "ab"
    )
    slow = 'model: {path: none}\nengine: {kind: "null", latency_ms: 20}\n'
    with daemon(tmp_path, f"{slow}streams:\n{streams}") as running:
        assert running.process.wait(60) == 0
    for name, count in (("a", 80), ("b", 60)):
        assert running.summary(name)["received"] == running.summary(name)["published"] == count
