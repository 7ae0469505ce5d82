"""What every source promises, tested for each kind of `tests/contracts.py`.

`contract(folder, paced, **settings)` among the kind's cases returns the settings of a source with the id s, 192×108
pixels and `COUNT` frames, at 25 frames/s if `paced` and as fast as possible if not.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamd.errors import SourceError
from streamd.sources import SOURCES, open_source
from streamd.sources.synthetic import SyntheticStreamSettings
from streamd.types import Box
from tests import contracts
from tests.sources.test_synthetic import COUNT

Make = Callable[..., Any]


@pytest.fixture(params=[*contracts.kinds(SOURCES), *(["av in a process"] * (not contracts.external))])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes a finite 192×108 source at 25 fps, as fast as possible unless `paced`."""
    kind, _, isolation = request.param.partition(" in a ")
    cases = contracts.cases("sources", kind)
    assert hasattr(cases, "contract"), f"{cases.__file__} needs contract(folder, paced, **settings)"
    more = {"isolation": isolation} if isolation else {}
    return lambda paced=False, **kw: open_source(cases.contract(tmp_path, paced, **more, **kw))


def test_frames_come_in_order_with_their_times(make: Make) -> None:
    source = make()
    info = source.open()
    before = time.monotonic_ns()
    frames = list(source.frames())
    source.close()
    assert len(frames) == COUNT
    assert (info.width, info.height) == (192, 108)
    assert info.codec
    assert info.decoder == "software"
    stamps = [f.pts_ns for f in frames]
    assert stamps == sorted(stamps)
    for frame in frames:
        assert frame.stream == "s"
        assert (frame.width, frame.height) == (192, 108)
        assert before - 10**9 < frame.captured_ns <= frame.decoded_ns <= time.monotonic_ns()
        assert abs(frame.wall_ns - time.time_ns()) < 60e9
        assert frame.picture.native.planes[0].buffer_ptr
        assert frame.roi is None


def test_a_paced_source_keeps_the_rate(make: Make) -> None:
    source = make(paced=True)
    source.open()
    arrivals = [frame.captured_ns for frame in source.frames()]
    source.close()
    # Twelve frames at 25 fps span 0.44 s. On a loaded machine the first one may be late, which makes that shorter.
    assert 0.25e9 < arrivals[-1] - arrivals[0] < 2e9


def test_close_from_another_thread_ends_it_within_a_second(make: Make) -> None:
    source = make(paced=True)
    source.open()
    ended = threading.Event()

    def read() -> None:
        for _ in source.frames():
            pass
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.1)
    source.close()
    source.close()
    assert ended.wait(1.0)
    thread.join()


def test_crop_travels_with_the_frame(make: Make) -> None:
    source = make(crop={"x": 10, "y": 20, "width": 64, "height": 48})
    source.open()
    frame = next(iter(source.frames()))
    source.close()
    assert frame.roi == Box(10, 20, 64, 48)
    assert (frame.width, frame.height) == (192, 108)


def test_a_frame_outlives_its_source(make: Make) -> None:
    source = make()
    source.open()
    frame = next(iter(source.frames()))
    source.close()
    del source
    assert bytes(frame.picture.native.planes[0])[:4]


@pytest.mark.parametrize("closed", [True, False])
def test_what_is_dropped_is_freed_at_once(make: Make, closed: bool) -> None:
    """A decoder has megabytes, and a camera that flaps gets a new source a second: none may wait for the garbage
    collector, whichever way it ended."""
    gc.collect()
    gc.disable()
    try:
        source = make()
        source.open()
        frames = source.frames()
        next(frames)
        if closed:
            source.close()
        kept = weakref.ref(source)
        del frames, source
        assert kept() is None
    finally:
        gc.enable()


def test_an_input_that_breaks_raises_a_source_error() -> None:
    source = open_source(SyntheticStreamSettings(id="s", fps=0, count=9, fail_after=3))
    source.open()
    seen = 0
    with pytest.raises(SourceError) as caught:
        for _ in source.frames():
            seen += 1
    assert (seen, caught.value.reason) == (3, "corrupt")
