"""Zones and lines as the page gets them."""

from __future__ import annotations

import json

from streamd.analysis.rules.settings import LineSettings, ZoneSettings
from streamd.flow.settings import StreamSettings
from streamd.sources.synthetic import SyntheticStreamSettings
from streamd.web.rules import Rules


def test_rules_are_made_anew_with_another_configuration() -> None:
    zone = ZoneSettings(name="yard", points=((0, 0), (1, 0), (0, 1)), min_s=2)
    line = LineSettings(name="gate", points=((0, 0), (1, 1)))
    streams: tuple[StreamSettings, ...] = (SyntheticStreamSettings(id="a"),)
    rules = Rules(lambda: streams)
    assert json.loads(rules.json()) == {}
    first = rules.revision
    streams = (SyntheticStreamSettings(id="a", zones=(zone,), lines=(line,)), SyntheticStreamSettings(id="b"))
    assert rules.revision != first
    assert json.loads(rules.json()) == {
        "a": {
            "zones": [{"name": "yard", "points": [[0, 0], [1, 0], [0, 1]], "min_s": 2}],
            "lines": [{"name": "gate", "points": [[0, 0], [1, 1]]}],
        }
    }
    assert rules.json() is rules.json()
