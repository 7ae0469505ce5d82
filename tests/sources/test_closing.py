"""Containers that are closed after their stream has gone."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import av
import pytest

from streamd.sources.closing import FEW, DeferredClose
from tests.clips import write_clip


def test_all_are_closed_and_the_thread_ends(tmp_path: Path) -> None:
    clip = str(write_clip(tmp_path / "a.mp4", frames=3))
    closing = DeferredClose()
    assert closing.finish(time.monotonic())
    for _ in range(2):  # a second time: the thread has ended and another one is started
        containers = [av.open(clip) for _ in range(5)]
        for container in containers:
            closing.close(container)
        assert closing.finish(time.monotonic() + 10)
        for container in containers:
            with pytest.raises(AssertionError):
                next(container.demux())
    assert not [thread for thread in threading.enumerate() if thread.name == "close-decoders" and thread.is_alive()]


def test_it_does_not_wait_longer_than_it_is_told(tmp_path: Path) -> None:
    hold, begun = threading.Event(), threading.Event()

    class Slow:
        def close(self) -> None:
            begun.set()
            hold.wait(10)

    closing = DeferredClose()
    closing.close(Slow())  # type: ignore[arg-type]
    begun.wait(5)
    assert not closing.finish(time.monotonic() + 0.01)
    hold.set()
    assert closing.finish(time.monotonic() + 5)


def test_what_is_held_is_closed_at_the_end_if_it_is_little_and_left_open_if_it_is_much(tmp_path: Path) -> None:
    clip = str(write_clip(tmp_path / "a.mp4", frames=3))
    closing = DeferredClose()
    for count, closed in ((2, True), (FEW + 1, False)):
        containers = [av.open(clip) for _ in range(count)]
        closing.hold()
        for container in containers:
            closing.close(container)
        time.sleep(0.05)
        next(containers[0].demux())
        assert closing.finish(time.monotonic() + 10) is closed
        if not closed:
            next(containers[0].demux())
