"""A short run of tools/fuzz.py: what once did harm first, then a few hundred new inputs. The long run is by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import shares
from fuzzing.mutate import Mutator
from fuzzing.run import TARGETS, fuzz

from streamd.sinks import hosts
from tests.constants import changed, constants

COUNT = 500


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_does_harm(name: str) -> None:
    if name == "onnx":
        pytest.importorskip("onnx")
    result = fuzz(name, shares(list(TARGETS), COUNT)[name], seed=1)
    assert not result.findings, result.findings[0].text
    assert result.inputs >= TARGETS[name].least
    assert result.accepted > 0, "not even the good inputs were taken"


def test_making_seeds_changes_no_limit_of_this_process(tmp_path: Path) -> None:
    before = constants()
    for name in ("zmtp", "curve", "peers"):
        assert TARGETS[name].seeds(tmp_path)
    assert not changed(before)
    assert hosts.CONNECTIONS_A_SECOND == 2


def test_the_same_inputs_every_time() -> None:
    seeds = [b"model: {path: x}\n", b"streams: []\n"]
    one, other = (Mutator(seeds, [b"~"], text=True, seed="7/config") for _ in range(2))
    inputs = [one.make(n) for n in range(500)]
    assert inputs[:2] == seeds
    assert inputs == [other.make(n) for n in range(500)]
    assert len(set(inputs)) > 400


def test_each_kind_of_harm_is_seen_and_the_rest_goes_on() -> None:
    told: list[str] = []
    result = fuzz("tests.fuzz.harmful:Harmful", 0, seed=1, told=lambda finding: told.append(finding.kind))
    assert told == ["exception", "hang", "crash"]
    exception, hang, crash = result.findings
    assert "KeyError: 'odd'" in exception.text
    assert "harmful.py" in hang.text  # the stack of where it hung
    assert "Segmentation fault" in crash.text
    assert (result.inputs, result.accepted, result.refused) == (6, 2, 1)
    assert [f.number for f in result.findings] == [2, 3, 4]
