"""A stream that is read too slowly goes on with the newest picture; nothing is lost where nothing waits."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.sources.catch_up import HOLD_NS, CatchUp
from tests.sources.slow_reader import Reading, S, camera, read

FAST = 0.002

both = pytest.mark.parametrize("kernel", [True, False], ids=["kernel tells", "kernel does not tell"])


def fast(now_s: float) -> float:
    return FAST


def slow(share: float, begin_s: float = 5.0, end_s: float = 1e9, fps: float = 25.0) -> Callable[[float], float]:
    """Decoding that keeps up with `share` of the pictures from `begin_s` to `end_s`."""
    return lambda now_s: 1 / fps / share if begin_s <= now_s < end_s else FAST


def exact(got: Reading) -> None:
    """Every picture that was read was served, left out, or is kept at the end."""
    kept = got.read - len(got.served) - got.catch_up.overtaken - got.catch_up.skipped
    assert 0 <= kept <= 250
    assert got.broken == 0, "no picture without those it is predicted from"


@both
@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_a_machine_that_is_too_slow_serves_pictures_that_are_not_older_than_the_limit(
    share: float, kernel: bool
) -> None:
    got = read(camera(180), slow(share), kernel=kernel)
    exact(got)
    assert got.latency_s() < 2.0 + 0.5 + 1.0, "the limit, a window, and the growth within it"
    assert got.gap_s < 2.5
    assert len(got.served) / got.read > 0.75 * share, "most of what can be decoded is"
    assert got.catch_up.overtaken > 0.9 * (1 - share) * got.read * 0.5
    assert not got.catch_up.keys_only


@both
def test_a_machine_that_is_far_too_slow_decodes_key_frames_for_a_while_and_tries_again(kernel: bool) -> None:
    got = read(camera(120), slow(0.1), kernel=kernel)
    exact(got)
    keys = [taken for _, taken in got.served if taken == int(taken)]
    assert len(keys) > 0.8 * 100, "most key frames are served"
    assert got.latency_s() < 4.5
    late = sorted(now - taken for now, taken in got.served)
    assert late[len(late) // 2] < 1.0, "most of them at once: a key frame takes 0.4 s"
    assert got.gap_s < 4


@both
def test_after_the_overload_everything_is_decoded_again(kernel: bool) -> None:
    got = read(camera(200), slow(0.1, 5, 60), kernel=kernel)
    exact(got)
    assert not got.catch_up.keys_only
    end_s = 60 + 2 * HOLD_NS / S + 10
    assert got.latency_s(end_s) < 0.05
    assert sum(now >= end_s for now, _ in got.served) == pytest.approx((200 - end_s) * 25, abs=5)
    assert got.catch_up.gauge.behind_s == pytest.approx(0, abs=0.05)


@both
def test_a_pause_of_the_reader_costs_what_it_held_up_and_no_more(kernel: bool) -> None:
    """A machine that stood still for five seconds, and is fast enough otherwise: all is read before it is left out."""
    paused: list[float] = []

    def pauses(now_s: float) -> float:
        if now_s > 10 and not paused:
            paused.append(now_s)
            return 5.0
        return 0.0

    got = read(camera(60), fast, pauses=pauses, kernel=kernel)
    assert got.catch_up.overtaken == 0
    assert got.latency_s(16) < 0.1
    paused.clear()
    # 28 pictures a second: what was held up would be made up for in 40 s.
    got = read(camera(60), lambda now: 1 / 28, pauses=pauses, kernel=kernel)
    exact(got)
    assert 75 < got.catch_up.overtaken <= 150
    assert got.latency_s(18.5) < 1.5


@both
def test_without_a_limit_it_is_only_told(kernel: bool) -> None:
    got = read(camera(30), slow(0.5), limit_s=None, kernel=kernel)
    assert (got.catch_up.overtaken, got.decoded) == (0, got.read)
    assert got.catch_up.gauge.behind_s == pytest.approx(got.latency_s(), abs=1.5)


@both
@pytest.mark.parametrize("pause_s", [1.0, 3.0, 4.9, 600.0])
def test_a_camera_whose_clock_stands_still_while_it_pauses_is_not_behind(pause_s: float, kernel: bool) -> None:
    """Its media clock goes on where it stopped: everything seems to come later than before, and nothing waits."""
    got = read(
        camera(
            900, sends=lambda taken: not 20 <= taken < 20 + pause_s,
            media=lambda taken: taken if taken < 20 else max(20, taken - pause_s), fps=5.0,
        ),
        fast, kernel=kernel,
    )  # fmt: skip
    assert got.catch_up.overtaken == 0
    assert got.decoded == len(got.served) == got.read
    assert got.catch_up.gauge.behind_s == 0
    assert max(now - taken for now, taken in got.served) < 0.75, "examining it takes half a second"
    late = [now for now, wait, _ in got.estimates if wait > 0.25]
    assert not late or max(late) - min(late) < (65 if pause_s < 2 else 3)


@both
def test_a_camera_that_stamps_pictures_as_if_they_came_faster_is_not_behind(kernel: bool) -> None:
    """In the dark it takes 20 pictures a second, and counts 25."""
    got = read(camera(120, fps=20.0, media=lambda taken: taken * 0.8), fast, kernel=kernel)
    assert got.catch_up.overtaken == 0
    assert got.catch_up.gauge.behind_s is None, "nothing can be said"
    assert sum(now - taken > 0.05 for now, taken in got.served) < 50


@both
@pytest.mark.parametrize("bunch_s", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("longer_s", [0.8, 2.5, 20.0])
def test_a_way_that_becomes_longer_and_brings_pictures_in_bunches_costs_none(
    longer_s: float, bunch_s: float, kernel: bool
) -> None:
    """Another path, or a relay that buffers: within a bunch more has always arrived, and the wait falls."""

    def way(number: int) -> float:
        taken_s = number / 60
        return (longer_s if taken_s > 20 else 0.0) + (bunch_s - taken_s % bunch_s if bunch_s else 0.0)

    got = read(camera(120, fps=60, way=way), fast, kernel=kernel)
    assert got.catch_up.overtaken == 0
    assert got.decoded == len(got.served) == got.read
    if longer_s > 2:
        assert got.catch_up.gauge.behind_s == pytest.approx(0, abs=0.1)
    assert max(now - taken for now, taken in got.served) < longer_s + bunch_s + 2.6, "examining takes two seconds"


@both
@pytest.mark.parametrize("fps", [0.2, 1.0, 2.0])
def test_a_picture_in_time_after_a_late_one_is_no_backlog(fps: float, kernel: bool) -> None:
    got = read(camera(600, fps=fps, way=lambda number: 1.3 - number / fps % 1.3), fast, limit_s=0.5, kernel=kernel)
    assert got.catch_up.overtaken == 0
    assert got.decoded == len(got.served) == got.read


@both
def test_a_camera_that_sends_pairs_of_pictures_and_stops_its_clock_is_not_behind(kernel: bool) -> None:
    got = read(
        camera(
            200, sends=lambda taken: not 20 <= taken < 25, way=lambda number: 0.04 * (1 - number % 2),
            media=lambda taken: taken if taken < 20 else max(20, taken - 5),
        ),
        fast, kernel=kernel,
    )  # fmt: skip
    assert got.catch_up.overtaken == 0
    assert got.decoded == len(got.served) == got.read
    assert got.catch_up.gauge.behind_s == pytest.approx(0, abs=0.05)


@both
def test_a_clock_that_stops_soon_after_the_machine_was_slow_is_examined_like_any_other(kernel: bool) -> None:
    """The stream was behind by three seconds of ten, which it made up for; then the camera's clock stands still."""
    got = read(
        camera(
            120, sends=lambda taken: not 30 <= taken < 42,
            media=lambda taken: taken if taken < 30 else max(30, taken - 12),
        ),
        slow(0.5, 5, 12), limit_s=10.0, kernel=kernel,
    )  # fmt: skip
    assert max(now - taken for now, taken in got.served if now < 20) > 3
    assert got.catch_up.overtaken == 0
    assert got.catch_up.gauge.behind_s == pytest.approx(0, abs=0.05)


@both
@pytest.mark.parametrize("fps", [1.0, 0.2])
def test_a_camera_of_few_pictures_is_examined_for_seconds(fps: float, kernel: bool) -> None:
    """Its clock stood still, so that it is examined."""
    got = read(
        camera(
            900, fps=fps, sends=lambda taken: not 20 <= taken < 30,
            media=lambda taken: taken if taken < 20 else max(20, taken - 10),
        ),
        fast, kernel=kernel,
    )  # fmt: skip
    assert got.catch_up.overtaken == 0
    assert max(now - taken for now, taken in got.served) < max(2, 1 / fps) + 1


@both
def test_a_key_frame_is_not_held_back_until_others_come(kernel: bool) -> None:
    """Where they alone are decoded, and the clock stood still: what comes between them tells that nothing waits."""
    got = read(
        camera(
            120, gop=250, sends=lambda taken: not 20 <= taken < 25,
            media=lambda taken: taken if taken < 20 else max(20, taken - 5),
        ),
        fast, kernel=kernel, keys_only=True,
    )  # fmt: skip
    assert got.catch_up.overtaken == 0
    assert len(got.served) == 12
    assert max(now - taken for now, taken in got.served) < 0.75, "examining it takes half a second"


@both
def test_key_frames_alone_are_left_out_where_they_wait(kernel: bool) -> None:
    got = read(camera(200), lambda now: 2.0 if now < 60 else FAST, kernel=kernel, keys_only=True)
    keys = 200
    assert len(got.served) + got.catch_up.overtaken == pytest.approx(keys, abs=1)
    assert 20 < got.catch_up.overtaken < 40
    assert got.latency_s() < 2 + 2 + 2 + 1.5, "the limit, two key frames, and a window"


@both
def test_a_camera_with_one_key_frame_only_is_shown_by_a_machine_that_is_far_too_slow(kernel: bool) -> None:
    """Its pictures are renewed bit by bit: after five seconds decoding begins with any of them."""
    got = read(camera(200, gop=1 << 30), slow(0.1), kernel=kernel)
    assert got.gap_s < 8
    assert not got.catch_up.keys_only
    kept = got.read - len(got.served) - got.catch_up.overtaken - got.catch_up.skipped
    assert 0 <= kept <= 250


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1 << 30), ppm=st.floats(-300, 300), gop=st.sampled_from([1, 12, 50, 100]),
    shares=st.lists(st.floats(0.08, 3), min_size=3, max_size=6), limit_s=st.sampled_from([0.5, 2.0, 5.0]),
    jitter_s=st.floats(0, 0.1), kernel=st.booleans(),
)  # fmt: skip
def test_whatever_the_load_accounts_are_exact_and_pictures_new(
    seed: int,
    ppm: float,
    gop: int,
    shares: list[float],
    limit_s: float,
    jitter_s: float,
    kernel: bool,
) -> None:
    rng = random.Random(seed)
    got = read(
        camera(10 * len(shares), gop=gop, ppm=ppm, way=lambda number: rng.random() * jitter_s),
        lambda now: 1 / 25 / shares[min(int(now / 10), len(shares) - 1)], limit_s=limit_s, kernel=kernel,
    )  # fmt: skip
    exact(got)
    slowest = 1 / 25 / min(shares)
    assert got.latency_s() < limit_s + 1.6 + 10 * slowest + jitter_s, "what the examination held back is decoded, too"


def test_a_buffer_that_is_smaller_than_a_picture_is_no_proof_that_nothing_waits() -> None:
    got = read(camera(60), slow(0.5), room=3)
    exact(got)
    assert got.latency_s() < 3.5
    assert got.catch_up.gauge.behind_s is not None


def test_a_machine_that_cannot_even_read_shows_key_frames_and_is_known_to_be_behind() -> None:
    got = read(camera(60), fast, read_s=0.05)
    exact(got)
    assert got.gap_s < 7
    assert 8 < sum(now > 10 for now, _ in got.served) < 20
    assert got.catch_up.gauge.behind_s == pytest.approx(got.latency_s(), abs=2.5)


def test_frames_that_max_fps_leaves_out_count_as_such() -> None:
    got = read(camera(60), slow(0.5), max_fps=5)
    exact(got)
    assert got.catch_up.overtaken > 50
    assert got.catch_up.overtaken == pytest.approx(got.catch_up.skipped / 4, rel=0.3)


def test_a_change_of_the_limit_holds_at_once() -> None:
    catch_up = CatchUp(None)
    assert catch_up.gauge.alarm_ns == 2 * S
    catch_up.change(S)
    assert catch_up.gauge.alarm_ns == S
    catch_up.change(10 * S)
    assert catch_up.gauge.alarm_ns == 2 * S
