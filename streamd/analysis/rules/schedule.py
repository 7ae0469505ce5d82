"""Whether a rule is active at a time. Hours are local time, including daylight saving."""

from __future__ import annotations

import re
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from streamd.analysis.rules.settings import DAYS, ScheduleSettings
from streamd.errors import ConfigError

_DAY = 24 * 60
_MINUTE_NS = 60_000_000_000
_OFFSET = re.compile(r"(UTC|GMT)?[+-]\d{1,2}(:?\d\d)?")


def zone_problem(name: str) -> str | None:
    """What is wrong with the name of a time zone; None if it is valid."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        if _OFFSET.fullmatch(name):
            return (
                f"{name} is an offset, which knows no daylight saving; expected a place, such as Europe/Berlin, or "
                "Etc/GMT-2, whose sign is reversed: it is two hours ahead of UTC"
            )
        plain = name.casefold().replace(" ", "_")
        near = sorted(z for z in available_timezones() if plain in (z.casefold(), z.casefold().rpartition("/")[2]))
        if near:
            return f"there is no time zone {name}; did you mean {near[0]}?"
        return f"there is no time zone {name}; expected an IANA name such as Europe/Berlin (from the package tzdata)"
    return None


def _minutes(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


class Schedule:
    """Tells whether a rule is active.

    The time is turned into local time first and compared as hours and minutes. An hour that is skipped in spring is
    therefore never active, and one that is repeated in autumn is active twice.

    Args:
        settings: the hours.

    Raises:
        ConfigError: the time zone does not exist.
    """

    def __init__(self, settings: ScheduleSettings) -> None:
        if problem := zone_problem(settings.timezone):
            raise ConfigError(f"schedule.timezone: {problem}")
        self._zone = ZoneInfo(settings.timezone)
        self._spans: list[list[tuple[int, int]]] = [[] for _ in DAYS]
        for times in settings.times:
            start, end = _minutes(times.start), _minutes(times.end)
            for day in times.days:
                today = DAYS.index(day)
                self._spans[today].append((start, end if end > start else _DAY))
                if end <= start:
                    self._spans[(today + 1) % 7].append((0, end))
        self._minute = -1
        self._answer = False

    def active(self, wall_ns: int) -> bool:
        """True if the rule is active at this Unix time. Cheap: it is computed once a minute."""
        minute = wall_ns // _MINUTE_NS
        if minute != self._minute:
            self._minute = minute
            local = datetime.fromtimestamp(minute * 60, self._zone)
            clock = local.hour * 60 + local.minute
            self._answer = any(start <= clock < end for start, end in self._spans[local.weekday()])
        return self._answer
