"""No test changes a constant of streamd for those after it: see `constants`."""

from __future__ import annotations

import pytest

from streamd.sinks import hosts
from tests.constants import changed, constants


def test_a_constant_that_was_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = constants()
    assert before["streamd.sinks.hosts", "CONNECTIONS_A_SECOND"] == 2
    assert not changed(before)
    monkeypatch.setattr(hosts, "CONNECTIONS_A_SECOND", 1e6)
    assert changed(before) == ["streamd.sinks.hosts.CONNECTIONS_A_SECOND"]
    monkeypatch.undo()
    assert not changed(before)
