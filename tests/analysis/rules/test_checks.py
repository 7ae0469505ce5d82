"""What is said of zones and lines that cannot be meant so."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from streamd.analysis.rules.checks import check_rules
from streamd.analysis.rules.settings import LineSettings, RuleSettings, ZoneSettings

SQUARE = ((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9))
LABELS = ("person", "car")


def zone(**changes: Any) -> ZoneSettings:
    return ZoneSettings.model_validate({"name": "yard", "points": SQUARE} | changes)


def line(**changes: Any) -> LineSettings:
    return LineSettings.model_validate({"name": "gate", "points": ((0.1, 0.5), (0.9, 0.5))} | changes)


def test_sound_rules_are_not_complained_of() -> None:
    hours = {"timezone": "Europe/Berlin", "times": [{"days": ["mon"], "start": "22:00", "end": "06:00"}]}
    assert list(check_rules([zone(classes=["person", 1], schedule=hours)], [line(schedule=hours)], LABELS)) == []


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"points": SQUARE[:2]}, ("points",), "at least three corners, got 2"),
        (
            {"points": (SQUARE[0], SQUARE[2], SQUARE[1], SQUARE[3])},
            ("points",),
            "edges from corner 0 and from corner 2",
        ),
        ({"points": ((0.1, 0.1), (0.5, 0.5), (0.9, 0.9))}, ("points",), "on one line"),
        ({"points": ((0.1, 0.1), (1.2, 0.1), (0.9, 0.9))}, ("points", 1), "(1.2, 0.1) is outside the picture"),
        ({"points": ((100, 100), (500, 100), (300, 400))}, ("points", 0), "fractions of the picture, not pixels"),
        ({"points": (*SQUARE, SQUARE[0])}, ("points", 4), "closes by itself"),
        ({"points": (SQUARE[0], *SQUARE)}, ("points", 1), "lies on corner 0"),
        ({"classes": ["persn"]}, ("classes", 0), "the model has no class persn; did you mean person?"),
        ({"classes": ["person", 7]}, ("classes", 1), "there is no class 7; expected a number that is 0 to 1"),
        ({"schedule": {"timezone": "Mars/Olympus", "times": [{}]}}, ("schedule", "timezone"), "no time zone Mars"),
        (
            {"schedule": {"timezone": "UTC", "times": [{"start": "08:00", "end": "08:00"}]}},
            ("schedule", "times", 0, "end"),
            "a whole day is 00:00 to 24:00",
        ),
        (
            {"schedule": {"timezone": "UTC", "times": [{"start": "24:00", "end": "08:00"}]}},
            ("schedule", "times", 0, "start"),
            "midnight is 00:00",
        ),
    ],
)
def test_what_is_wrong_with_a_zone(changes: Any, path: tuple[str | int, ...], words: str) -> None:
    found = list(check_rules([zone(**changes)], [], LABELS))
    assert [(p, words in message) for p, message in found if p == ("zones", 0, *path)] == [
        (("zones", 0, *path), True)
    ], found


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"points": ((0.1, 0.1),)}, ("points",), "expected two points, got 1"),
        ({"points": ((0.1, 0.1), (0.1, 0.1))}, ("points",), "no length"),
        ({"points": ((0.1, 0.1), (0.1, -0.1))}, ("points", 1), "outside the picture"),
        ({"directions": ("in", "in")}, ("directions",), "both directions are named in"),
    ],
)
def test_what_is_wrong_with_a_line(changes: Any, path: tuple[str | int, ...], words: str) -> None:
    ((found, message),) = check_rules([], [line(**changes)], None)
    assert found == ("lines", 0, *path)
    assert words in message


def test_names_are_unique_among_zones_and_lines() -> None:
    found = list(check_rules([zone(), zone(name="gate")], [line()]))
    assert [path for path, _ in found] == [("zones", 1, "name"), ("lines", 0, "name")]


def test_classes_are_left_alone_while_labels_are_unknown() -> None:
    assert list(check_rules([zone(classes=["anything", 900])], [])) == []


def test_a_thousand_zones_are_checked_in_a_moment() -> None:
    zones = [
        zone(name=f"z{k}", points=tuple((0.1 + 0.8 * ((k * 37 + i * i) % 97) / 97, i / 130) for i in range(1, 33)))
        for k in range(1000)
    ]
    begin = time.thread_time()
    list(check_rules(zones, [], LABELS))
    assert time.thread_time() - begin < 2


def test_every_field_has_its_meaning_and_bad_values_are_refused() -> None:
    for section in (ZoneSettings, LineSettings, RuleSettings):
        assert [name for name, field in section.model_fields.items() if not field.description] == []
    for wrong in ({"min_s": -1}, {"anchor": "left"}, {"hysteresis": 99}, {"name": "a b"}, {"colour": "red"}):
        with pytest.raises(ValidationError):
            zone(**wrong)
    with pytest.raises(ValidationError):
        line(points=((0.1, 0.1), (0.2, 0.2), (0.3, 0.3)))
    with pytest.raises(ValidationError):
        zone(schedule={"timezone": "UTC", "times": [{"start": "8:00"}]})
