"""Hours of the day, over both changes of daylight saving."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamd.analysis.rules.schedule import Schedule
from streamd.analysis.rules.settings import DAYS, ScheduleSettings, TimesSettings
from streamd.errors import ConfigError

BERLIN = "Europe/Berlin"


def schedule(*times: TimesSettings, zone: str = BERLIN) -> Schedule:
    return Schedule(ScheduleSettings(timezone=zone, times=times))


def active_minutes(s: Schedule, begin: datetime, hours: int) -> list[datetime]:
    """Minutes (UTC) in which the schedule is on."""
    minutes = (begin + timedelta(minutes=k) for k in range(hours * 60))
    return [m for m in minutes if s.active(int(m.timestamp()) * 10**9)]


def utc(*args: int) -> datetime:
    return datetime(*args, tzinfo=timezone.utc)  # type: ignore[misc,arg-type]


def test_an_hour_that_is_skipped_in_spring_is_never_active() -> None:
    # On 29 March 2026 clocks in Berlin go from 02:00 to 03:00, at 01:00 UTC.
    s = schedule(TimesSettings(start="02:00", end="03:00"))
    assert active_minutes(s, utc(2026, 3, 28, 23), 24) == []
    s = schedule(TimesSettings(start="01:30", end="03:30"))
    found = active_minutes(s, utc(2026, 3, 28, 23), 24)
    assert (found[0], found[-1]) == (utc(2026, 3, 29, 0, 30), utc(2026, 3, 29, 1, 29))
    assert len(found) == 60


def test_an_hour_that_is_repeated_in_autumn_is_active_twice() -> None:
    # On 25 October 2026 clocks go from 03:00 back to 02:00, at 01:00 UTC.
    s = schedule(TimesSettings(start="02:00", end="03:00"))
    found = active_minutes(s, utc(2026, 10, 24, 22), 25)
    assert (found[0], found[-1], len(found)) == (utc(2026, 10, 25, 0, 0), utc(2026, 10, 25, 1, 59), 120)
    s = schedule(TimesSettings(start="02:30", end="02:45"))
    found = active_minutes(s, utc(2026, 10, 24, 22), 25)
    assert found == [utc(2026, 10, 25, h, m) for h in (0, 1) for m in range(30, 45)]


def test_a_night_over_a_change_is_an_hour_shorter_or_longer() -> None:
    night = schedule(TimesSettings(days=("sat",), start="22:00", end="06:00"))
    assert len(active_minutes(night, utc(2026, 3, 28, 12), 24)) == 7 * 60
    assert len(active_minutes(night, utc(2026, 10, 24, 12), 24)) == 9 * 60
    assert len(active_minutes(night, utc(2026, 6, 6, 12), 24)) == 8 * 60


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    s = schedule(TimesSettings(days=("fri",), start="22:00", end="06:00"), zone="UTC")
    found = active_minutes(s, utc(2026, 6, 1), 24 * 7)
    assert (found[0], found[-1], len(found)) == (utc(2026, 6, 5, 22), utc(2026, 6, 6, 5, 59), 480)


def test_the_last_minute_of_the_week_runs_into_the_first() -> None:
    s = schedule(TimesSettings(days=("sun",), start="23:59", end="00:01"), zone="UTC")
    assert active_minutes(s, utc(2026, 6, 1), 24 * 7) == [utc(2026, 6, 1, 0, 0), utc(2026, 6, 7, 23, 59)]


clock = st.integers(0, 24 * 60 - 1)


@given(
    st.sampled_from(("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC")),
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
    clock,
    clock,
    st.sets(st.sampled_from(DAYS), min_size=1),
)
def test_any_minute_equals_what_a_clock_on_the_wall_shows(
    zone: str, at: datetime, start: int, end: int, days: set[str]
) -> None:
    times = {"days": sorted(days), "start": f"{start // 60:02}:{start % 60:02}", "end": f"{end // 60:02}:{end % 60:02}"}
    if start == end:
        return
    s = schedule(TimesSettings.model_validate(times), zone=zone)
    moment = at.replace(tzinfo=timezone.utc)
    local = moment.astimezone(ZoneInfo(zone))
    now, today = local.hour * 60 + local.minute, DAYS[local.weekday()]
    yesterday = DAYS[(local.weekday() - 1) % 7]
    if start < end:
        expected = today in days and start <= now < end
    else:
        expected = (today in days and now >= start) or (yesterday in days and now < end)
    # Floor division: times before 1970 do not occur, fractions of a second do.
    assert s.active(int(moment.timestamp() * 1e9)) == expected


@pytest.mark.parametrize(
    ("zone", "told"),
    [
        ("Mars/Olympus", "no time zone Mars/Olympus; expected an IANA name"),
        ("europe/berlin", "did you mean Europe/Berlin?"),
        ("New York", "did you mean America/New_York?"),
        ("UTC+2", "UTC[+]2 is an offset"),
        ("+02:00", "[+]02:00 is an offset"),
    ],
)
def test_a_time_zone_that_does_not_exist(zone: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        schedule(TimesSettings(), zone=zone)
