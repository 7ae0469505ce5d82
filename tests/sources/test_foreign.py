"""Sources of other packages: no fault of one leaves its stream, and each names the package."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest
from structlog.testing import capture_logs

from streamd.errors import SourceError
from streamd.flow.contracts import UNKNOWN_CLOCK, Source, SourceInfo
from streamd.flow.ring import Ring
from streamd.flow.runner import StreamRunner
from streamd.settings.plugins import Origin
from streamd.sources.foreign import CLOSE_S, MOST_CLOSING, ForeignSource
from streamd.sources.synthetic import SyntheticSource, SyntheticStreamSettings
from streamd.telemetry.streams import StreamMetrics
from streamd.types import Box, Frame

ORIGIN = Origin("stream", "odd", "acme-sources 2.0")
FRACTIONS: Any = (0, 0, 10.5, 10)
NANS: Any = (0, 0, math.nan, 10)
SETTINGS = SyntheticStreamSettings(id="s", width=64, height=48, fps=0, count=3)


class SenderTimes:
    """See `SenderClock`."""

    drift = None

    def __init__(self, offset_s: Any, jumps: Any = 0) -> None:
        self.offset_s, self.jumps = offset_s, jumps


class Odd(Source):
    """A sound source with one fault."""

    def __init__(self, change: Callable[[Frame], Any] = lambda frame: frame, **faults: Any) -> None:
        self._sound, self._change, self._faults = SyntheticSource(SETTINGS), change, faults

    def open(self) -> SourceInfo:
        if "open" in self._faults:
            info: SourceInfo = self._faults["open"]()
            return info
        return self._sound.open()

    def frames(self) -> Iterator[Frame]:
        for frame in self._sound.frames():
            yield self._change(frame)

    @property
    def behind_s(self) -> float | None:
        if "behind" in self._faults:
            self._faults["behind"]()
        behind: float | None = self._faults.get("told", 1.5)
        return behind

    def close(self) -> None:
        self._sound.close()
        self._faults.get("close", lambda: None)()


def info(**said: Any) -> SourceInfo:
    return replace(SourceInfo("h264", "software", 64, 48, 25.0, True), **said)


def raises(error: BaseException) -> Any:
    raise error


def painted(**changed: Any) -> Callable[[Frame], Frame]:
    """Makes a frame whose picture says something else."""
    return lambda frame: replace(frame, picture=replace(frame.picture, **changed))


def foreign(source: Any) -> ForeignSource:
    return ForeignSource("s", ORIGIN, lambda: source)


def test_a_sound_one_passes_its_frames_counters_and_deadline() -> None:
    odd = Odd()
    source = foreign(odd)
    assert source.open().width == 64
    assert len(list(source.frames())) == 3
    odd.corrupt, odd.deadline = 7, 12.5
    assert (source.corrupt, source.deadline, source.skipped, source.behind_s) == (7, 12.5, 0, 1.5)
    assert source.clock is UNKNOWN_CLOCK


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: None, "a NoneType; expected streamd.types.Frame"),
        (lambda f: np.zeros((48, 64, 3), np.uint8), "a ndarray; expected streamd.types.Frame"),
        (lambda f: replace(f, picture=np.zeros((48, 64))), "whose picture is a ndarray; use streamd.sources.picture"),
        (lambda f: replace(f, stream="other"), "of the stream 'other'; expected its settings' id, 's'"),
        (lambda f: replace(f, roi=Box(*FRACTIONS)), "whose width, height or roi is not in whole pixels"),
        (lambda f: replace(f, roi=Box(*NANS)), "whose width, height or roi is not in whole pixels"),
        (lambda f: replace(f, width=np.int64(64)), "whose width, height or roi is not in whole pixels"),
        (lambda f: replace(f, roi=(0, 0, 10, 10)), r"whose roi is \(0, 0, 10, 10\); expected streamd.types.Box"),
        (lambda f: replace(f, begins=7), "whose begins is 7; expected True or False"),
        (lambda f: replace(f, width=0, height=0), "of 0 x 0 pixels with an upright picture of 64 x 48"),
        (lambda f: replace(f, picture=replace(f.picture, rotation=90)), "of 64 x 48 pixels with .* of 48 x 64"),
        (
            lambda f: replace(f, width=640, picture=replace(f.picture, width=640)),
            "a picture of 640 x 48 pixels whose memory has 64 x 48",
        ),
        (lambda f: replace(f, roi=Box(0, 0, 65, 48)), r"roi \(0, 0, 65, 48\) is not within its picture of 64 x 48"),
        (lambda f: replace(f, roi=Box(0, 0, 0, 0)), "is not within its picture"),
        (
            lambda f: replace(f, captured_ns=time.time_ns()),
            r"captured_ns or decoded_ns is not of time.monotonic_ns\(\)",
        ),
        (lambda f: replace(f, pts_ns=0.5), "a time that is not a whole number of nanoseconds"),
        (lambda f: replace(f, wall_ns=1 << 64), "a time that is not a whole number of nanoseconds, below 2"),
        (lambda f: replace(f, clock="mine"), "whose clock is 'mine' and whose view is None; expected 'arrival'"),
        (lambda f: replace(f, view=3), "whose view is 3"),
        (painted(native=np.zeros((48, 64, 3), np.uint8), format="bgr24"), "whose native is a ndarray; expected PyAV's"),
        (painted(native=av.VideoFrame(64, 48, "gray")), "of the format 'yuv420p' whose memory has gray"),
        (painted(format="yuv444p"), "of the format 'yuv444p' whose memory has yuv420p"),
        (painted(device=0), "of the device 0 whose memory has yuv420p; expected None for the host"),
        (painted(rotation=45), "with rotation 45 and matrix 'bt601'"),
        (painted(matrix="bt470"), "with rotation 0 and matrix 'bt470'"),
        (painted(pixel_aspect=0.0), "whose pixel_aspect is 0.0; expected a float from 0.0625 to 16"),
        (painted(pixel_aspect=math.nan), "whose pixel_aspect is nan"),
        (painted(pixel_aspect="4:3"), "whose pixel_aspect is '4:3'"),
    ],
)
def test_a_frame_that_cannot_be_one_is_an_error_of_its_stream(change: Callable[[Frame], Any], words: str) -> None:
    source = foreign(Odd(change))
    source.open()
    with pytest.raises(
        SourceError, match="stream s: stream kind odd of the package acme-sources 2.0 .*" + words
    ) as caught:
        list(source.frames())
    assert caught.value.reason == "internal"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            Odd(open=lambda: raises(ValueError("boom"))),
            r"failed to open \(ValueError: boom, in sources/test_foreign.py",
        ),
        (Odd(open=lambda: raises(SystemExit(2))), r"failed to open \(SystemExit: 2"),
        (Odd(open=lambda: None), "open returned None; expected streamd.flow.contracts.SourceInfo"),
        (Odd(lambda f: raises(KeyError("size"))), r"failed to read \(KeyError: 'size'"),
        (Odd(open=lambda: info(width=np.int64(64))), "a SourceInfo whose width is .*64.*; expected int, not float or"),
        (Odd(open=lambda: info(height=48.0)), "a SourceInfo whose height is 48.0; expected int"),
        (Odd(open=lambda: info(fps=math.nan)), "a SourceInfo whose fps is nan; expected float, 0 if it is not known"),
        (Odd(open=lambda: info(codec=None)), "a SourceInfo whose codec is None; expected text"),
        (Odd(open=lambda: info(live=1)), "a SourceInfo with live=1 and still=False; expected True or False"),
        (None, "what its open returns is None; expected an object of a class derived from streamd.flow.contracts"),
        (3, "what its open returns has no "),
    ],
)
def test_what_it_raises_is_an_error_of_its_stream(source: Any, words: str) -> None:
    with pytest.raises(
        SourceError, match="stream s: stream kind odd of the package acme-sources 2.0 .*" + words
    ) as caught:
        opened = foreign(source)
        opened.open()
        list(opened.frames())
    assert caught.value.reason == "internal"


def test_its_own_errors_are_passed_on_with_a_reason_that_subscribers_know() -> None:
    with pytest.raises(SourceError, match=r"^stream s: no such folder$") as caught:
        foreign(Odd(open=lambda: raises(SourceError("not_found", "stream s: no such folder", permanent=True)))).open()
    assert (caught.value.reason, caught.value.permanent) == ("not_found", True)
    unknown: Any = "my_reason"
    with pytest.raises(SourceError, match=r"own words \(.* gave the reason 'my_reason', which is none of") as caught:
        foreign(Odd(open=lambda: raises(SourceError(unknown, "own words", permanent=True)))).open()
    assert (caught.value.reason, caught.value.permanent) == ("internal", True)


def test_neither_an_error_nor_a_wait_in_close_reaches_who_calls_it() -> None:
    with capture_logs() as logs:
        foreign(Odd(close=lambda: raises(ValueError("boom")))).close()
    assert [each["event"] for each in logs] == ["source failed to close"]
    assert "package acme-sources 2.0 failed to close (ValueError: boom" in logs[0]["error"]
    gate = threading.Event()
    slow = foreign(Odd(close=gate.wait))
    began = time.monotonic()
    with capture_logs() as logs:
        slow.close()
        slow.close()
    assert 2 * CLOSE_S <= time.monotonic() - began < 2 * CLOSE_S + 2
    assert [(each["event"], each["package"]) for each in logs] == [
        ("source does not close in time", "acme-sources 2.0")
    ] * 2
    gate.set()


def test_nothing_that_the_watching_thread_asks_fails() -> None:
    assert foreign_behind(lambda: None) == 1.5
    assert foreign_behind(lambda: raises(ValueError("boom"))) is None


@pytest.mark.parametrize("told", [None, "soon", math.nan])
def test_what_is_no_number_is_no_deadline_and_no_delay(told: Any) -> None:
    """The thread that compares them watches all streams."""
    gate = threading.Event()
    odd: Any = Odd(open=lambda: gate.wait(10) and raises(ValueError("boom")))
    source = foreign(odd)
    odd.deadline = told
    runner = StreamRunner("s", lambda: source, Ring(8, "block"), StreamMetrics("s"), lambda status: None)
    runner.start()
    while runner.package is None:
        time.sleep(0.01)
    runner.watch()
    runner.stop()
    gate.set()
    assert runner.join(5)
    assert foreign_behind(lambda: None, told) is None


def foreign_behind(ask: Callable[[], Any], told: Any = 1.5) -> float | None:
    faults: dict[str, Any] = {"told": told}
    source = foreign(Odd(**faults))
    source._source._faults["behind"] = ask  # type: ignore[attr-defined]
    return source.behind_s


def test_a_reload_that_it_cannot_adapt_to_is_logged() -> None:
    odd: Any = Odd()
    odd.adapt = lambda settings: raises(ValueError("boom"))
    with capture_logs() as logs:
        foreign(odd).adapt(SETTINGS)
    assert "package acme-sources 2.0 failed to adapt (ValueError: boom" in logs[0]["error"]


@pytest.mark.parametrize(
    ("name", "told", "words"),
    [
        ("corrupt", [0, None], "its source's corrupt is None; expected an int of at least 0, as before"),
        ("skipped", [0, 0.5], "its source's skipped is 0.5"),
        ("lost", [0, "1"], "its source's lost is '1'"),
        ("overtaken", [3, 2], "its source's overtaken is 2; expected an int of at least 3, as before"),
        ("discarded", [0, -1], "its source's discarded is -1"),
        ("overtaken", [0, 1 << 70], "its source's overtaken is 1180591620717411303424"),
        ("codec", ["h264", 264], "its source's codec is 264; expected text"),
    ],
)
def test_what_is_no_counter_is_an_error_of_its_stream(name: str, told: list[Any], words: str) -> None:
    """Frames are numbered by it, and a status with it goes to every subscriber."""
    odd = Odd()
    source = foreign(odd)
    for each in told[:-1]:
        setattr(odd, name, each)
        assert getattr(source, name) == each
    setattr(odd, name, told[-1])
    with pytest.raises(SourceError, match="stream s: stream kind odd of the package acme-sources 2.0 .*" + words):
        getattr(source, name)


def test_counters_of_numpy_are_numbers() -> None:
    odd: Any = Odd()
    odd.overtaken = np.int64(5)
    assert type(foreign(odd).overtaken) is int


@pytest.mark.parametrize("told", [None, 3, SenderTimes("soon"), SenderTimes(math.nan), SenderTimes(None, np.int64(1))])
def test_a_clock_that_tells_no_numbers_tells_nothing(told: Any) -> None:
    class Timed(Odd):
        @property
        def clock(self) -> Any:
            return told

    assert foreign(Timed()).clock is UNKNOWN_CLOCK


def test_sources_that_cannot_be_closed_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamd.sources.foreign.CLOSE_S", 0.05)
    gate = threading.Event()
    threads = threading.active_count()
    for _ in range(MOST_CLOSING):
        foreign(Odd(close=gate.wait)).close()
    with pytest.raises(SourceError, match=f"the close of {MOST_CLOSING} sources of stream kind odd of the package"):
        foreign(Odd(close=gate.wait))
    assert threading.active_count() == threads + MOST_CLOSING
    gate.set()
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    foreign(Odd()).close()
