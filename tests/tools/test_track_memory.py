"""The tool that measures what short tracks leave behind."""

from __future__ import annotations

import json

import pytest
import track_memory


@pytest.mark.parametrize("rules", [True, False])
def test_a_short_run(rules: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tracks", "600", "--streams", "2", "--json", *([] if rules else ["--no-rules"])]
    monkeypatch.setattr("sys.argv", ["track_memory.py", *arguments])
    assert track_memory.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tracks"] >= 600
    # Half of the objects are in a zone, and many cross a line.
    assert (found["events"] > 300) == rules
