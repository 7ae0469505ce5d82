"""What a plan says about loads, losses and the number of boxes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamd.errors import ConfigError
from streamd.fleet import FleetSettings
from streamd.fleet.plan import boxes_needed, boxes_of, demands_of, idle_entries, make_plan
from streamd.sources.synthetic import SyntheticStreamSettings


def fleet(**values: Any) -> FleetSettings:
    return FleetSettings.model_validate({"box": {"fps": 100}} | values)


def streams(count: int, **values: Any) -> list[SyntheticStreamSettings]:
    return [SyntheticStreamSettings.model_validate({"id": f"cam-{i}"} | values) for i in range(count)]


def test_the_load_of_a_stream_is_its_rate_or_its_limit() -> None:
    settings = fleet(
        stream_fps=20, rates=[{"streams": "fast-*", "fps": 50}], reach=[{"streams": "*-1", "labels": ["x"]}]
    )
    found = demands_of(
        settings,
        [
            SyntheticStreamSettings(id="cam-1"),
            SyntheticStreamSettings(id="fast-2", priority=3),
            SyntheticStreamSettings(id="cam-3", max_fps=5),
            SyntheticStreamSettings(id="cam-4", max_fps=30),
        ],
    )
    assert [(d.load, d.priority, d.reach) for d in found] == [
        (20, 0, frozenset({"x"})), (50, 3, frozenset()), (5, 0, frozenset()), (20, 0, frozenset()),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "boxes"),
    # Four streams of 25 frames/s fill a box; without any box, n - 1 others must be enough.
    [(4, 2), (8, 3), (9, 4), (12, 4), (0, 0)],
)
def test_the_number_of_boxes_for_the_loss_of_one(count: int, boxes: int) -> None:
    demands = demands_of(fleet(), streams(count))
    assert boxes_needed(fleet(), demands) == boxes
    assert make_plan(demands, boxes_of(fleet(), boxes)).spare
    if boxes > 1:
        assert not make_plan(demands, boxes_of(fleet(), boxes - 1)).spare


def test_what_is_lost_with_a_box() -> None:
    demands = demands_of(fleet(), [*streams(6), SyntheticStreamSettings(id="first", priority=5)])
    plan = make_plan(demands, boxes_of(fleet(boxes=2)))
    assert not plan.placement.unplaced
    for box, lost in plan.without.items():
        assert len(lost) == 3
        assert "first" not in lost, box
    assert not plan.spare


def test_streams_with_a_single_box_are_told_apart() -> None:
    settings = fleet(nodes=[{"name": "yard", "labels": ["y"]}], reach=[{"streams": "cam-0", "labels": ["y"]}], boxes=2)
    demands = demands_of(settings, streams(4))
    plan = make_plan(demands, boxes_of(settings))
    assert plan.single == {"cam-0"}
    assert plan.placement.box_of["cam-0"] == "yard"
    assert plan.without["yard"] == ("cam-0",)
    assert boxes_needed(settings, demands) == 1


def test_no_number_of_boxes_is_enough_for_a_stream_larger_than_a_box() -> None:
    demands = demands_of(fleet(stream_fps=101), streams(1))
    assert boxes_needed(fleet(), demands) is None


def test_what_names_no_stream_is_told() -> None:
    settings = fleet(
        reach=[{"streams": "cam-*", "labels": ["x"]}, {"streams": "cma-1", "labels": ["x"]}],
        rates=[{"streams": "fast-*", "fps": 50}], spread=[{"streams": ["cam-0", "cam-9"]}], single_session=["yard"],
    )  # fmt: skip
    assert idle_entries(settings, streams(3)) == [
        "fleet.reach[1]: cma-1 fits no stream",
        "fleet.rates[0]: fast-* fits no stream",
        "fleet.spread[0]: cam-9 fits no stream",
        "fleet.single_session: yard fits no stream",
    ]


@pytest.mark.parametrize("names", [("a", "a"), ("box-1", "b")])
def test_every_box_has_a_name_of_its_own(names: tuple[str, str]) -> None:
    settings = fleet(boxes=1, nodes=[{"name": n} for n in names])
    with pytest.raises(ConfigError, match=r"two boxes are named (a|box-1)"):
        boxes_of(settings)


def streamd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "streamd", *arguments], capture_output=True, text=True, timeout=60)


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(
        json.dumps(
            {
                "model": {"path": "m.onnx"},
                "fleet": {"boxes": 2, "box": {"fps": 100}},
                "streams": [{"kind": "synthetic", "id": f"cam-{i}"} for i in range(6)],
            }
        )
    )
    done = streamd("fleet", "plan", str(file), "--json", "--lose", "box-2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["boxes_needed"] == 3
    assert not found["spare"]
    lost = [name for name, box in found["streams"].items() if box == "box-2"]
    assert found["after_loss"]["moved"] == lost
    assert len(found["after_loss"]["unplaced"]) == 2

    done = streamd("fleet", "plan", str(file), "--lose", "box-2")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "N+1 takes 3 equal boxes" in done.stdout
    done = streamd("fleet", "plan", str(file), "--lose", "box-9")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no box box-9; there are box-1, box-2" in done.stderr
