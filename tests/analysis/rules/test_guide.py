"""The examples of docs/rules.md are what they say."""

from __future__ import annotations

import re
from typing import get_args

import yaml

from streamd.analysis.rules import Change
from streamd.analysis.rules.checks import check_rules
from streamd.analysis.rules.settings import LineSettings, ZoneSettings
from tests.analysis.rules.scene import Scene
from tests.conftest import ROOT

GUIDE = (ROOT / "docs" / "rules.md").read_text()


def test_the_example_is_sound_and_its_gate_counts_as_it_says() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    values = yaml.safe_load(text)
    zones = [ZoneSettings.model_validate(zone) for zone in values["zones"]]
    lines = [LineSettings.model_validate(line) for line in values["lines"]]
    assert list(check_rules(zones, lines, ("person", "car"))) == []
    s = Scene(lines=lines)
    s.walk(1, (900, 500), (750, 500), (450, 500), (450, 500))
    assert s.lines() == [("in", True)]


def test_every_change_is_explained() -> None:
    assert [word for word in get_args(Change) if word != "crossed" and f"`{word}`" not in GUIDE] == []
