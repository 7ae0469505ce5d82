"""Streams of one group are kept apart as far as there is room, and nobody waits for it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.cli import main
from streamd.config.loader import load
from streamd.errors import ConfigError
from streamd.fleet import FleetSettings
from streamd.fleet.placement import Box, Demand, Placement, place
from streamd.fleet.plan import demands_of, together
from streamd.fleet.records import LEASE_S
from streamd.sources.synthetic import SyntheticStreamSettings
from tests.fleet.simulated import World, fleet
from tests.fleet.test_placement import check, crowd, fleets

GROUPS = ("", "gate", "yard")


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[Demand], list[Box]]:
    demands, boxes = draw(fleets())
    machines, room = st.sampled_from(["", "m1", "m2"]), draw(st.sampled_from([1, 10]))
    return (
        [dataclasses.replace(d, group=draw(st.sampled_from(GROUPS))) for d in demands],
        [
            dataclasses.replace(b, node=draw(machines), capacity=b.capacity * room, streams=b.streams * room)
            for b in boxes
        ],
    )


def closer(placement: Placement, demands: list[Demand], boxes: list[Box]) -> list[tuple[str, str]]:
    """Every single move to a box with room that would keep a group farther apart."""
    by_name = {b.name: b for b in boxes}
    on_box: Counter[tuple[str, str]] = Counter()
    on_machine: Counter[tuple[str, str]] = Counter()
    load: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for d in demands:
        if (name := placement.box_of.get(d.name)) is not None:
            on_box[d.group, name] += 1
            on_machine[d.group, by_name[name].machine] += 1
            load[name] += d.load  # type: ignore[assignment]
            count[name] += 1
    found = []
    for d in demands:
        own = by_name.get(placement.box_of.get(d.name, ""))
        for box in boxes if d.group and own is not None else ():
            assert own is not None
            if box is own or not box.reaches(d) or count[box.name] >= box.streams:
                continue
            if load[box.name] + d.load > box.capacity * (1 + 1e-12):
                continue
            there, here = on_machine[d.group, box.machine], on_machine[d.group, own.machine]
            if own.machine != box.machine and there + 1 != here:
                better = there + 1 < here
            else:
                better = on_box[d.group, box.name] + 1 < on_box[d.group, own.name]
            if better:
                found.append((d.name, box.name))
    return found


@given(grouped())
@settings(max_examples=60, deadline=None)
def test_no_stream_could_be_farther_from_its_group_and_nobody_waits_for_it(
    drawn: tuple[list[Demand], list[Box]],
) -> None:
    demands, boxes = drawn
    placement = place(demands, boxes)
    check(placement, demands, boxes)
    if not placement.unplaced:  # what was placed in a second turn may have left room
        assert closer(placement, demands, boxes) == []
        again = place(demands, boxes, placement.box_of)
        assert (again.box_of, again.moved, again.parted) == (placement.box_of, (), frozenset())


@given(grouped(), st.data())
@settings(max_examples=40, deadline=None)
def test_moves_that_need_not_be_are_limited(drawn: tuple[list[Demand], list[Box]], data: st.DataObject) -> None:
    demands, boxes = drawn
    before = place([dataclasses.replace(d, group="") for d in demands], boxes)
    most = data.draw(st.integers(0, 3))
    after = place(demands, boxes, before.box_of, most=most)
    check(after, demands, boxes)
    if not before.unplaced:
        assert len(after.moved) <= most
        assert set(after.moved) == after.parted
        assert closer(place(demands, boxes, before.box_of), demands, boxes) == []


def crowding(placement: Placement, demands: list[Demand], boxes: list[Box]) -> dict[str, tuple[int, int]]:
    """By group: the sums of the squares of its streams on each machine, and on each box."""
    machine = {b.name: b.machine for b in boxes}
    on_box = Counter((d.group, placement.box_of[d.name]) for d in demands if d.name in placement.box_of)
    on_machine: Counter[tuple[str, str]] = Counter()
    for (group, box), count in on_box.items():
        on_machine[group, machine[box]] += count
    return {
        group: (
            sum(n * n for (g, _), n in on_machine.items() if g == group),
            sum(n * n for (g, _), n in on_box.items() if g == group),
        )
        for group in GROUPS[1:]
    }


@given(grouped())
@settings(max_examples=60, deadline=None)
def test_a_box_that_joins_brings_no_group_closer(drawn: tuple[list[Demand], list[Box]]) -> None:
    demands, boxes = drawn
    before = place(demands, boxes)
    more = [*boxes, Box("new", 60.0, 20, node="m1")]
    after = place(demands, more, before.box_of, joined=["new"])
    check(after, demands, more)
    if not before.unplaced:
        was, now = crowding(before, demands, boxes), crowding(after, demands, more)
        assert all(now[group] <= was[group] for group in was)


def test_a_group_of_as_many_streams_as_boxes_has_each_on_its_own() -> None:
    for which in range(30):
        demands, boxes = crowd(40, 4)
        group = {f"camera-{(which + 7 * i) % 40}" for i in range(4)}
        demands = [dataclasses.replace(d, group="g" if d.name in group else "") for d in demands]
        placement = place(demands, boxes)
        assert {placement.box_of[name] for name in group} == {b.name for b in boxes}
        # Without the group, most would not be: it is not by chance.
    loads = Counter(placement.box_of.values())
    assert max(loads.values()) <= 12


def test_boxes_of_one_machine_count_as_one_as_long_as_there_are_others() -> None:
    boxes = [Box("a1", 100, 9, node="a"), Box("a2", 100, 9, node="a"), Box("b1", 100, 9, node="b")]
    four = [Demand(f"s{i}", 10.0, group="g") for i in range(4)]
    for count, machines, each in ((2, {"a": 1, "b": 1}, 1), (4, {"a": 2, "b": 2}, 2)):
        placement = place(four[:count], boxes)
        assert Counter(placement.box_of[d.name][0] for d in four[:count]) == machines
        assert max(Counter(placement.box_of.values()).values()) <= each
    placement = place(four, boxes)
    assert {placement.box_of[d.name] for d in four} == {"a1", "a2", "b1"}, "and then each box of it gets its own"


def test_a_stream_is_served_beside_its_group_where_nobody_else_has_room() -> None:
    demands = [Demand(f"other-{i}", 10.0) for i in range(6)] + [Demand(f"g{i}", 10.0, group="g") for i in range(2)]
    boxes = [Box("full", 60.0, 9), Box("free", 20.0, 9)]
    current = {f"other-{i}": "full" for i in range(6)}
    placement = place(demands, boxes, current)
    assert placement.unplaced == ()
    assert placement.moved == ()
    assert {placement.box_of["g0"], placement.box_of["g1"]} == {"free"}
    assert together(demands, boxes, placement.box_of) == {"g": ["g0", "g1"]}


def test_a_lost_box_moves_its_own_streams_only_and_keeps_groups_apart() -> None:
    demands, boxes = crowd(120, 6)
    demands = [dataclasses.replace(d, group=f"g{i % 30}") for i, d in enumerate(demands)]  # 30 groups of 4
    before = place(demands, boxes)
    for lost in boxes:
        after = place(demands, [b for b in boxes if b is not lost], before.box_of)
        assert set(after.moved) == {name for name, box in before.box_of.items() if box == lost.name}
        crowded = Counter((d.group, after.box_of[d.name]) for d in demands)
        assert max(crowded.values()) == 1


def test_a_box_that_joins_takes_no_two_of_a_group() -> None:
    demands, boxes = crowd(120, 3)
    demands = [dataclasses.replace(d, group=f"g{i % 40}") for i, d in enumerate(demands)]
    before = place(demands, boxes)
    after = place(demands, [*boxes, Box("new", boxes[0].capacity, 120)], before.box_of, joined=["new"])
    assert len(after.moved) > 15
    assert max(Counter((d.group, after.box_of[d.name]) for d in demands).values()) == 1


def test_two_thousand_cameras_in_groups_take_less_than_a_second() -> None:
    demands, boxes = crowd(2000, 50)
    for groups in (1, 20, 500):
        some = [dataclasses.replace(d, group=f"g{i % groups}") for i, d in enumerate(demands)]
        alike = [dataclasses.replace(b, node=f"m{i // 4}") for i, b in enumerate(boxes)]
        begun = time.process_time()
        before = place(some, alike)
        taken = [time.process_time() - begun]
        begun = time.process_time()
        place(some, alike[1:], before.box_of)
        taken.append(time.process_time() - begun)
        assert max(taken) < 1, (groups, taken)


def test_the_first_entry_that_fits_is_the_group() -> None:
    made = FleetSettings.model_validate(
        {"box": {"fps": 100}, "spread": [{"streams": ["gate-1", "yard-*"]}, {"streams": ["gate-*"]}]}
    )
    names = ("gate-1", "gate-2", "yard-7", "hall")
    found = demands_of(made, [SyntheticStreamSettings(id=name) for name in names])
    assert [d.group for d in found] == ["gate-1, yard-*", "gate-*", "gate-1, yard-*", ""]


def test_a_plan_says_what_is_not_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fleet.yaml"
    head = "model: {path: none}\nengine: {kind: 'null'}\nfleet:\n  boxes: 1\n  box: {fps: 100}\n  stream_fps: 10\n"
    streams = "streams:\n  - {id: gate-1, kind: synthetic}\n  - {id: gate-2, kind: synthetic}\n"
    nodes = "  nodes: [{name: yard, labels: [y]}]\n  reach: [{streams: 'gate-*', labels: [y]}]\n"
    file.write_text(f"{head}{nodes}  spread: [{{streams: ['gate-*']}}]\n{streams}")
    assert main(["fleet", "plan", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["together"] == {}, "only one box reaches them: it is no fault"
    file.write_text(f"{head}  spread: [{{streams: ['gate-*']}}]\n{streams}")
    assert main(["fleet", "plan", str(file), "--boxes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found["streams"].values()) == ["box-1", "box-2"]
    full = "  - {id: hall, kind: synthetic, priority: 1}\n"
    small = head.replace("fps: 100}", "fps: 20}").replace("boxes: 1", "boxes: 2")
    small += "  nodes: [{name: tiny, fps: 10, labels: [t]}]\n  reach: [{streams: hall, labels: [t]}]\n"
    file.write_text(small.replace("boxes: 2", "boxes: 1") + f"  spread: [{{streams: ['gate-*']}}]\n{streams}{full}")
    assert main(["fleet", "plan", str(file)]) == 0
    assert "Not apart, for want of room elsewhere (gate-*): gate-1, gate-2" in capsys.readouterr().out
    file.write_text(f"{head}  spread: [{{streams: []}}]\n{streams}")
    with pytest.raises(ConfigError, match=r"fleet\.spread\[0\]\.streams"):
        load(file)


def test_a_running_fleet_parts_a_group_at_the_rate_of_other_moves() -> None:
    apart = [Demand(f"s{i}", 10.0, group="g" if i < 3 else "") for i in range(12)]
    w = World(fleet(moves=1), [dataclasses.replace(d, group="") for d in apart])
    w.add("b0", "b1", "b2")
    w.begin()
    w.demands = apart
    homes = {name: boxes[0] for name, boxes in w.where().items()}
    alike = sorted(homes, key=lambda n: (homes[n], n))[:3]
    assert len({homes[n] for n in alike}) < 3
    w.demands = [dataclasses.replace(d, group="g" if d.name in alike else "") for d in apart]
    begun = len(w.starts)
    w.coordinator.apply(w.now, w.settings, w.demands, "r2")
    w.seconds(10)
    assert len(w.starts) - begun == 1, "one a minute"
    w.seconds(60)
    assert {boxes[0] for name, boxes in w.where().items() if name in alike} == {"b0", "b1", "b2"}
    assert w.coordinator.status(w.now).moves["spread"] == len(w.starts) - begun
    assert w.coordinator.status(w.now).together == {}
    w.settings = fleet()
    w.coordinator.apply(w.now, w.settings, w.demands, "r3")
    w.boxes["b1"].alive = False
    w.seconds(LEASE_S + 2)
    assert len({boxes[0] for name, boxes in w.where().items() if name in alike}) == 2
    assert w.coordinator.status(w.now).together == {}, "with two boxes, two of three share one"
    w.boxes["b1"].alive = True
    w.seconds(5)
    assert {boxes[0] for name, boxes in w.where().items() if name in alike} == {"b0", "b1", "b2"}


def test_what_shares_a_machine_for_want_of_room_is_told() -> None:
    many = [Demand(f"s{i}", 10.0, reach=frozenset({"big"})) for i in range(2)]
    many += [Demand(f"g{i}", 10.0, group="gate") for i in range(2)]
    w = World(fleet(), many)
    w.settings = FleetSettings.model_validate({"boxes": 0, "box": {"fps": 20}, "moves_per_minute": 1000})
    w.coordinator = w.new_coordinator()
    w.add("a", labels=["big"])
    w.add("b")
    w.begin()
    status = w.coordinator.status(w.now)
    assert status.together == {"gate": ["g0", "g1"]}
    assert w.coordinator.metrics(w.now)["streamd_fleet_streams_together"] == [({}, 2)]
