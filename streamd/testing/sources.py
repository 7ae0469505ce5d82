"""What every source promises."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamd.sources import SOURCES, SourceSettings, open_source
from streamd.testing.contract import Contract
from streamd.types import Box

WIDTH, HEIGHT, COUNT, FPS = 192, 108, 12, 25
"""Of the pictures that a source plays for the suite."""
Make = Callable[..., Any]


class SourceContract(Contract):
    """Tests that hold for every source. The class that derives from it has `kind` and `contract`."""

    registry = SOURCES

    def contract(self, folder: Path, paced: bool, **settings: Any) -> SourceSettings:
        """The settings of a source with `COUNT` pictures of `WIDTH` × `HEIGHT` pixels, and then an end.

        Args:
            folder: for this test alone; it may be called several times with the same.
            paced: at `FPS` pictures a second; otherwise as fast as possible.
            settings: further fields of the settings, such as `crop`. The `id` is s.
        """
        raise NotImplementedError("define contract(folder, paced, **settings), which returns settings")

    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        """Makes the source; `paced` and fields of its settings may be given."""

        def made(paced: bool = False, **settings: Any) -> Any:
            return open_source(self._checked(self.contract(tmp_path, paced, **settings)))

        return made

    def test_frames_come_in_order_with_their_times(self, make: Make) -> None:
        source = make()
        info = source.open()
        before = time.monotonic_ns()
        frames = list(source.frames())
        source.close()
        assert len(frames) == COUNT
        assert (info.width, info.height) == (WIDTH, HEIGHT)
        assert info.codec
        assert info.decoder == "software"
        stamps = [f.pts_ns for f in frames]
        assert stamps == sorted(stamps)
        for frame in frames:
            assert frame.stream == "s"
            assert (frame.width, frame.height) == (WIDTH, HEIGHT)
            assert before - 10**9 < frame.captured_ns <= frame.decoded_ns <= time.monotonic_ns()
            assert abs(frame.wall_ns - time.time_ns()) < 60e9
            assert frame.picture.native.planes[0].buffer_ptr
            assert frame.roi is None

    def test_a_paced_source_keeps_the_rate(self, make: Make) -> None:
        source = make(paced=True)
        source.open()
        arrivals = [frame.captured_ns for frame in source.frames()]
        source.close()
        # Twelve frames at 25 fps span 0.44 s. On a loaded machine the first one may be late, which makes that shorter.
        assert 0.25e9 < arrivals[-1] - arrivals[0] < 2e9

    def test_close_from_another_thread_ends_it_within_a_second(self, make: Make) -> None:
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

    def test_crop_travels_with_the_frame(self, make: Make) -> None:
        source = make(crop={"x": 10, "y": 20, "width": 64, "height": 48})
        source.open()
        frame = next(iter(source.frames()))
        source.close()
        assert frame.roi == Box(10, 20, 64, 48)
        assert (frame.width, frame.height) == (WIDTH, HEIGHT)

    def test_a_frame_outlives_its_source(self, make: Make) -> None:
        source = make()
        source.open()
        frame = next(iter(source.frames()))
        source.close()
        del source
        assert bytes(frame.picture.native.planes[0])[:4]

    @pytest.mark.parametrize("closed", [True, False])
    def test_what_is_dropped_is_freed_at_once(self, make: Make, closed: bool) -> None:
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
