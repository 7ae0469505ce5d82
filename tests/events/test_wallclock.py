"""A wall clock that is wrong for a while deletes nothing that is sound."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from streamd.events import upkeep, wallclock
from streamd.events.schema import open_writer
from streamd.events.store import Store
from streamd.events.upkeep import Limits
from streamd.events.wallclock import EARLIEST_S, STEADY_S, Clock, plausible
from tests.events.journals import event

DAY = 86_400
TODAY = 1_800_000_000.0
YEARS = 5 * 365 * DAY


_asked = wallclock.synchronized


@pytest.fixture(autouse=True)
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wallclock, "synchronized", lambda: False)


def believed(clock: Clock, walls: dict[int, float], until: int, max_age_s: float = 30 * DAY) -> list[int]:
    """The seconds at which belief changed; `walls`: by second, the offset of the wall clock from then on."""
    offset, changes, was = 0.0, [], False
    for second in range(1, until):
        offset = walls.get(second, offset)
        now = clock.look(float(second), TODAY + second + offset, max_age_s)
        if now is not was:
            changes.append(second)
        was = now
    return changes


def test_it_is_believed_ten_minutes_after_its_last_step() -> None:
    assert believed(Clock(0.0, TODAY), {1000: 3600.0, 1100: 0.0}, 2000) == [600, 1000, 1700]


def test_years_ahead_at_the_start_it_is_not_believed_until_it_is_set_right() -> None:
    clock = Clock(0.0, TODAY + YEARS)
    clock.newest = TODAY - 3600
    right = 5 * 3600
    assert believed(clock, {1: YEARS, right: 0.0}, right + 2000) == [right + int(STEADY_S)]


def test_years_behind_at_the_start_it_is_not_believed_until_it_is_set_right() -> None:
    clock = Clock(0.0, 100.0)
    clock.newest = TODAY - 3600
    right = 5 * 3600
    assert believed(clock, {1: 100 - TODAY, right: 0.0}, right + 2000) == [right + int(STEADY_S)]
    fresh = Clock(0.0, 100.0)
    assert believed(fresh, {1: 100 - TODAY}, 5000) == [], "also where nothing was left by earlier runs"


def test_a_machine_that_was_off_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(0.0, TODAY)
    clock.newest = TODAY - 40 * DAY
    assert believed(clock, {}, 4000, max_age_s=3000) == [3000], (
        "what it has is that old by now, whatever the clock says"
    )
    monkeypatch.setattr(wallclock, "synchronized", lambda: True)
    clock = Clock(0.0, TODAY)
    clock.newest = TODAY - 40 * DAY
    assert believed(clock, {}, 1000) == [600]


def test_the_kernel_can_be_asked() -> None:
    assert _asked() in (True, False)


def test_what_is_plausible() -> None:
    assert plausible(TODAY - YEARS / 5, TODAY)
    assert plausible(TODAY + 3600, TODAY)
    assert not plausible(TODAY + YEARS, TODAY)
    assert not plausible(0.0, TODAY)


@pytest.mark.parametrize("wrong_s", [YEARS, -EARLIEST_S])
def test_events_that_a_wrong_clock_has_stamped_are_as_old_as_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong_s: float
) -> None:
    store = Store(open_writer(tmp_path / "events.db"))
    real = time.time_ns

    def add(name: str, at_s: float) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: int(at_s * 1e9))
        store.begin()
        store.add(event(name))
        store.commit()
        monkeypatch.setattr(time, "time_ns", real)

    def kept(at_s: float) -> int:
        store.begin()
        upkeep.retain(store, Limits(10 * DAY, 1000), {}, int(at_s * 1e9), ages=True)
        store.commit()
        return int(store.connection.execute("SELECT COUNT(*) FROM events").fetchone()[0])

    add("a", TODAY - 20 * DAY)
    add("b", TODAY + wrong_s)
    add("c", TODAY + wrong_s + 60)
    add("d", TODAY)
    assert kept(TODAY + DAY) == 3, "only what is known to be old goes"
    assert kept(TODAY + 11 * DAY) == 0
    assert store.newest_ns() == 0
