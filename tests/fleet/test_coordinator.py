"""The coordinator beside simulated boxes: every frame is known, so the accounts can be checked exactly."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamd.errors import ConfigError
from streamd.fleet.coordinator import REBUILD_S, Coordinator
from streamd.fleet.placement import Demand
from streamd.fleet.records import LEASE_S, BoxReport, Order, decode
from streamd.fleet.view import METRICS
from tests.fleet.simulated import STEP_S, World, fleet


def demands(count: int, **more: object) -> list[Demand]:
    return [Demand(f"s{i}", 10.0, **more) for i in range(count)]  # type: ignore[arg-type]


def world(boxes: int = 3, streams: int = 12, **settings_: float) -> World:
    made = World(fleet(**settings_), demands(streams))  # type: ignore[arg-type]
    made.add(*(f"b{i}" for i in range(boxes)))
    made.begin()
    return made


def served(w: World) -> None:
    assert {name: len(boxes) for name, boxes in w.where().items()} == {d.name: 1 for d in w.demands}
    for name, (box,) in w.where().items():
        assert (shown := w.stream(name)).box == box
        assert shown.state == "RUNNING"
        assert shown.generation == w.boxes[box].streams[name].generation


def test_streams_are_placed_once_every_box_had_time_to_report() -> None:
    w = World(fleet(), demands(12))
    w.add("a", "b")
    w.seconds(REBUILD_S - 1)
    assert w.where() == {}
    assert w.stream("s0").reason == "rebuilding"
    w.seconds(3)
    served(w)
    assert {b.state for b in w.coordinator.status(w.now).boxes} == {"UP"}


def test_a_lost_box_loses_its_streams_within_a_lease_and_no_other_moves() -> None:
    w = world()
    before = {name: boxes[0] for name, boxes in w.where().items()}
    mine = {n for n, b in before.items() if b == "b1"}
    begun = len(w.starts)
    w.boxes["b1"].alive = False
    w.seconds(LEASE_S + 3 * STEP_S)
    served(w)
    after = {name: boxes[0] for name, boxes in w.where().items()}
    assert {n for n in after if after[n] != before[n]} == mine
    assert {name for name, _, _ in w.starts[begun:]} == mine, "no other stream was touched"
    status = w.coordinator.status(w.now)
    assert next(b for b in status.boxes if b.box == "b1").state == "LOST"
    assert status.moves["box_lost"] == len(mine)
    for name in mine:
        # Two frames of the last report were on their way; what came after it is not known.
        account = w.stream(name).account
        assert account.lost > 0
        assert not account.exact
    assert all(w.stream(n).account.exact for n in before if n not in mine)


def test_a_stopped_box_that_comes_back_gives_up_what_others_have_and_the_account_is_exact_again() -> None:
    w = world()
    mine = [n for n, boxes in w.where().items() if boxes == ["b0"]]
    w.boxes["b0"].cut = True  # it goes on with what it has
    w.seconds(10)
    assert all(len(w.where()[n]) == 2 for n in mine)
    w.boxes["b0"].cut = False
    w.seconds(2)
    served(w)
    w.seconds(1)
    for name in mine:
        account = w.stream(name).account
        assert account.exact
        assert account.superseded > 0
        assert account.received == w.captured[name]


def test_a_box_that_was_cut_off_for_less_than_a_lease_keeps_its_streams() -> None:
    w = world()
    begun = len(w.starts)
    w.boxes["b0"].cut = True
    w.seconds(LEASE_S - 0.5)
    w.boxes["b0"].cut = False
    w.seconds(5)
    served(w)
    assert len(w.starts) == begun


def test_where_nobody_has_room_the_returning_box_goes_on_as_if_nothing_had_been() -> None:
    w = world(boxes=2, streams=12, fps=60.0)
    mine = [n for n, boxes in w.where().items() if boxes == ["b0"]]
    begun = len(w.starts)
    w.boxes["b0"].cut = True
    w.seconds(6)
    assert {w.stream(n).reason for n in mine} == {"no_room"}
    w.boxes["b0"].cut = False
    w.seconds(2)
    served(w)
    assert len(w.starts) == begun
    assert all(w.stream(n).account.exact and w.stream(n).account.lost == 0 for n in mine)
    assert all(w.stream(n).account.received == w.captured[n] for n in mine)


def test_a_drained_box_is_left_by_make_before_break_and_every_frame_is_accounted_for() -> None:
    w = world()
    w.coordinator.drain(w.now, "b2")
    w.seconds(4)
    served(w)
    assert not w.boxes["b2"].streams
    assert w.boxes["b2"].order.drained
    assert next(b for b in w.coordinator.status(w.now).boxes if b.box == "b2").state == "DRAINED"
    w.step()
    for name in w.where():
        account = w.stream(name).account
        assert account.exact
        assert (account.lost, account.superseded) == (0, 0)
        assert account.received == w.captured[name]
    w.boxes["b2"].alive = False
    w.coordinator.report(w.now, BoxReport("b2", "n", problem="drained"))
    w.seconds(5)
    status = w.coordinator.status(w.now)
    assert next(b for b in status.boxes if b.box == "b2").state == "DRAINED", "a daemon that was stopped is not lost"
    assert "box_lost" not in status.moves
    w.boxes["b2"].alive = True
    w.coordinator.undrain(w.now, "b2")
    w.seconds(20)
    assert w.boxes["b2"].streams, "it takes its share again"
    served(w)


def test_moves_that_need_not_be_are_limited_per_minute() -> None:
    w = world(boxes=3, streams=30, moves=5)
    w.coordinator.drain(w.now, "b0")
    had = len(w.boxes["b0"].streams)
    w.seconds(20)
    assert len(w.boxes["b0"].streams) == had - 5
    assert [b.reason for b in w.coordinator.status(w.now).boxes] == ["", "", ""], "the rest waits for its turn"
    w.seconds(60)
    assert len(w.boxes["b0"].streams) == max(0, had - 10)
    # A death waits for no limit.
    w.boxes["b1"].alive = False
    w.seconds(LEASE_S + 1)
    assert all("b1" not in boxes and boxes for boxes in w.where().values())
    assert len(w.where()) == 30


def test_a_drained_box_says_that_the_others_have_no_room_until_they_have() -> None:
    w = world(boxes=2, streams=8, fps=50.0)
    w.coordinator.drain(w.now, "b0")
    w.seconds(20)
    left = {n for n, boxes in w.where().items() if boxes == ["b0"]}
    assert len(left) == 3
    assert [b.reason for b in w.coordinator.status(w.now).boxes] == ["no_room", ""]
    w.coordinator.drain(w.now, "b1")
    w.seconds(2)
    assert not w.coordinator.status(w.now).spare, "no box is left that would serve them"
    w.coordinator.undrain(w.now, "b1")
    w.seconds(2)
    served(w)
    w.add("b2")
    w.seconds(10)
    assert next((b.state, b.reason) for b in w.coordinator.status(w.now).boxes) == ("DRAINED", "")
    assert all(w.where()[n] == ["b2"] for n in left)


def test_a_camera_with_one_session_is_released_before_another_box_connects() -> None:
    w = World(fleet(), demands(4))
    w.coordinator = Coordinator(
        w.settings, w.demands, now=w.now, start_generation=w.started, single_session={d.name for d in w.demands}
    )
    w.add("a")
    w.begin()
    w.add("b")
    w.coordinator.drain(w.now, "a")
    for _ in range(12):
        w.step()
        for name in w.where():
            assert sum(name in box.streams for box in w.boxes.values()) <= 1
    assert {tuple(boxes) for boxes in w.where().values()} == {("b",)}


def test_a_new_coordinator_learns_everything_from_the_boxes_and_stops_no_stream() -> None:
    w = world()
    begun, before = len(w.starts), w.where()
    w.seconds(1)
    w.new_coordinator()
    w.seconds(20)
    assert len(w.starts) == begun
    assert w.where() == before
    served(w)
    for name in before:
        assert w.stream(name).account.received == w.captured[name]


def test_a_new_coordinator_moves_nothing_where_shares_are_uneven() -> None:
    w = world(boxes=3, streams=40)
    gone = [n for n, boxes in w.where().items() if boxes == ["b1"]][2:]
    w.demands = [d for d in w.demands if d.name not in gone]
    w.coordinator.apply(w.now, w.settings, w.demands, "")
    w.seconds(20)
    begun, before = len(w.starts), w.where()
    w.new_coordinator()
    w.seconds(20)
    assert len(w.starts) == begun
    assert w.where() == before


def test_a_box_that_was_being_given_its_share_gets_it_from_a_new_coordinator() -> None:
    w = world(boxes=2, streams=30, moves=2)
    w.add("b2")
    w.seconds(10)
    assert len(w.boxes["b2"].streams) == 2
    w.new_coordinator()
    w.seconds(400)
    assert len(w.boxes["b2"].streams) >= 8
    served(w)


def test_generations_grow_over_a_new_coordinator_that_cannot_hear_who_had_the_highest() -> None:
    w = world(boxes=2, streams=6)
    mine = [n for n, boxes in w.where().items() if boxes == ["b0"]]
    w.boxes["b0"].cut = True
    w.new_coordinator()
    w.seconds(REBUILD_S + 2)
    for name in mine:
        old, new = w.boxes["b0"].streams[name].generation, w.boxes["b1"].streams[name].generation
        assert new > old
    w.boxes["b0"].cut = False
    w.seconds(3)
    served(w)


def test_generations_grow_over_a_whole_fleet_that_starts_again_with_its_clock_set_back() -> None:
    w = world(boxes=2, streams=6)
    before = {name: w.stream(name).generation for name in w.where()}
    for box in w.boxes.values():
        box.forget()
    w.started -= 86_400_000
    w.new_coordinator()
    w.captured.clear()
    w.begin()
    for name, generation in before.items():
        assert w.stream(name).generation > generation
    served(w)


def test_a_daemon_that_started_again_continues_with_a_new_generation() -> None:
    w = world()
    mine = [n for n, boxes in w.where().items() if boxes == ["b0"]]
    before = {n: w.stream(n) for n in mine}
    w.boxes["b0"].boot()
    w.seconds(1)
    for name in mine:
        now = w.stream(name)
        assert now.box == "b0"
        assert now.generation > before[name].generation
        assert now.account.received >= before[name].account.received
        assert not now.account.exact


def test_a_stream_that_only_one_box_reaches_waits_for_it() -> None:
    w = World(fleet(), [Demand("yard", 10.0, reach=frozenset({"yard"})), Demand("hall", 10.0)])
    w.add("a")
    w.add("y", labels=["yard"])
    w.begin()
    assert w.where()["yard"] == ["y"]
    w.seconds(2)
    assert w.coordinator.status(w.now).without["y"] == ["yard"]
    w.boxes["y"].alive = False
    w.seconds(LEASE_S + 1)
    assert (w.stream("yard").state, w.stream("yard").reason) == ("WAITING", "no_reach")
    w.boxes["y"].alive = True
    w.seconds(3)
    assert w.where()["yard"] == ["y"]


def test_priorities_first_when_there_is_not_enough() -> None:
    many = [Demand(f"s{i}", 10.0, priority=i % 2) for i in range(12)]
    w = World(fleet(60.0), many)
    w.add("a", "b")
    w.begin()
    w.boxes["b"].alive = False
    w.seconds(LEASE_S + 3)
    assert set(w.where()) == {f"s{i}" for i in range(12) if i % 2}
    assert {w.stream(f"s{i}").reason for i in range(0, 12, 2)} == {"no_room"}


def test_a_refused_stream_goes_to_another_box() -> None:
    w = world(boxes=2, streams=4)
    name, (box,) = next(iter(w.where().items()))
    other = "b1" if box == "b0" else "b0"
    report = w.boxes[box].report()
    assert report.daemon is not None
    told = {**report.daemon.streams}
    del told[name]
    del w.boxes[box].streams[name]
    import msgspec

    refused = msgspec.structs.replace(report.daemon, streams=told, refused={name: "failed_to_start"})
    w.boxes[box].obey(w.coordinator.report(w.now, msgspec.structs.replace(report, daemon=refused)))
    w.seconds(2)
    assert w.where()[name] == [other]


def test_an_overloaded_box_is_relieved_but_nothing_is_cut_off_for_a_measurement() -> None:
    # Each stream asks for 15 frames a second; what is seen to be possible is 10.
    w = World(fleet(1000.0), [Demand(f"s{i}", 15.0) for i in range(20)])
    w.add("a", "b")
    w.begin()
    slow = w.boxes["a"]
    had = len(slow.streams)
    for _ in range(480):
        slow.late += 1 + slow.published // 1000
        slow.published -= 0
        w.step()
    meter = next(b for b in w.coordinator.status(w.now).boxes if b.box == "a")
    assert meter.measured
    assert meter.capacity < 1000
    assert len(w.where()) == 20
    assert len(slow.streams) < had
    assert w.coordinator.status(w.now).moves["overload"] > 0


def test_a_new_configuration_ends_removed_streams_and_begins_new_ones() -> None:
    w = world()
    w.demands = [*w.demands[1:], Demand("new", 10.0)]
    w.coordinator.apply(w.now, w.settings, w.demands, "r2")
    w.seconds(2)
    served(w)
    assert {b.order.revision for b in w.boxes.values()} == {"r2"}
    assert not any(b.partings for b in w.boxes.values()), "nobody waits for what is not configured any more"


def test_a_coordinator_that_was_stopped_itself_blames_no_box() -> None:
    w = world()
    begun = len(w.starts)
    w.now += 20.0
    w.coordinator.tick(w.now)
    w.seconds(2)
    assert len(w.starts) == begun
    served(w)


def test_why_a_box_has_no_daemon_is_told_once() -> None:
    w = World(fleet(), [Demand("gate", 10.0)])
    for problem in ("starting", "exited with code 3", "exited with code 3", ""):
        w.coordinator.report(w.now, BoxReport("a", "n", problem=problem))
    assert w.coordinator.status(w.now).boxes[0].reason == ""
    told = [(h.kind, h.detail) for h in w.coordinator.tick(w.now)]
    assert told == [("box_joined", "n"), ("box_problem", "exited with code 3")]
    w.add("a")
    w.seconds(1)
    w.coordinator.tick(w.now)
    w.coordinator.report(w.now, BoxReport("a", "n", problem="exited with code 3"))
    assert [h.kind for h in w.coordinator.tick(w.now)] == ["box_problem"], "it was up meanwhile"


def test_metrics_and_targets_tell_what_they_promise() -> None:
    w = world()
    w.seconds(2)
    assert w.coordinator.status(w.now).spare
    found = w.coordinator.metrics(w.now)
    assert set(found) == set(METRICS)
    assert {tuple(labels.values()): v for labels, v in found["streamd_fleet_boxes"]}[("UP",)] == 3
    assert w.coordinator.targets()[0] == {"targets": ["h:1"], "labels": {"box": "b0", "node": "n-b0"}}


def test_what_does_not_exist_is_named() -> None:
    w = world()
    with pytest.raises(ConfigError, match="no box nowhere; there are: b0, b1, b2"):
        w.coordinator.drain(w.now, "nowhere")
    with pytest.raises(ConfigError, match="b0 is UP; stop it"):
        w.coordinator.forget(w.now, "b0")
    with pytest.raises(ConfigError, match="not a valid Order"):
        decode(b'{"number": "x"}', Order)
    with pytest.raises(ConfigError, match="another version"):
        decode(b"\xff", BoxReport)


ACTIONS = ("kill", "return", "cut", "heal", "reboot", "drain", "undrain", "coordinator", "join", "apply", "wait")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 3), st.integers(1, 16)), max_size=12))
def test_whatever_happens_there_is_one_generation_and_all_runs_again(script: list[tuple[str, int, int]]) -> None:
    w = world(boxes=3, streams=5)
    for action, which, steps in script:
        box = w.boxes[f"b{which % len(w.boxes)}"]
        known = {b.box for b in w.coordinator.status(w.now).boxes}
        if action == "kill":
            box.alive = False
        elif action == "return" and not box.alive:
            box.alive = True
            if which % 2:
                box.boot()  # a node that was lost, instead of stopped
        elif action in ("cut", "heal"):
            box.cut = action == "cut"
        elif action == "reboot":
            box.boot()
        elif action == "drain" and box.name in known:
            w.coordinator.drain(w.now, box.name)
        elif action == "undrain" and box.name in known:
            w.coordinator.undrain(w.now, box.name)
        elif action == "coordinator":
            w.new_coordinator()
        elif action == "join" and len(w.boxes) < 5:
            w.add(f"b{len(w.boxes)}")
        elif action == "apply":
            w.demands = [*demands(4), Demand(f"x{which}", 10.0)]
            w.coordinator.apply(w.now, w.settings, w.demands, f"r{which}")
        w.step(steps)
    for box in w.boxes.values():
        box.alive, box.cut = True, False
    w.seconds(REBUILD_S + 3)
    for name in list(w.boxes):
        w.coordinator.undrain(w.now, name)
    w.seconds(12)
    served(w)
    generations = [(name, generation) for name, generation, _ in w.starts]
    assert len(generations) == len(set(generations)), "no generation is ever given twice"


@settings(max_examples=15, deadline=None)
@example([("cut", 0, 1), ("cut", 1, 1), ("cut", 0, 11)])  # b1 is lost before its order arrives
@given(st.lists(st.tuples(st.sampled_from(("cut", "heal", "drain", "undrain")), st.integers(0, 2), st.integers(1, 16)),
                max_size=10))  # fmt: skip
def test_over_moves_and_partitions_the_account_is_exact_once_all_have_reported(
    script: list[tuple[str, int, int]],
) -> None:
    w = world(boxes=3, streams=4)
    for action, which, steps in script:
        if action in ("cut", "heal"):
            w.boxes[f"b{which}"].cut = action == "cut"
        else:
            getattr(w.coordinator, action)(w.now, f"b{which}")
        w.step(steps)
    for box in w.boxes.values():
        box.cut = False
    w.seconds(15)
    for demand in w.demands:
        account = w.stream(demand.name).account
        assert account.exact
        assert account.received == w.captured[demand.name]


def test_a_stream_that_is_to_leave_a_box_before_its_order_came_is_not_away_for_long() -> None:
    w = world(2, 12)
    mine = [n for n, boxes in w.where().items() if boxes == ["b1"]]
    w.boxes["b1"].alive = False
    w.seconds(LEASE_S - 1)
    w.boxes["b0"].cut = True
    while {b.box: b.state for b in w.coordinator.status(w.now).boxes}["b1"] != "LOST":
        w.step()
    # b0 has been given its streams, has not heard of it yet, and is to give some back.
    w.boxes["b1"].boot()
    w.boxes["b1"].alive = True
    w.step(2)
    moving = [n for n in mine if w.stream(n).state == "MOVING"]
    assert moving
    w.boxes["b0"].cut = False
    w.seconds(2 * LEASE_S)
    served(w)
    assert {w.stream(n).box for n in moving} == {"b1"}
    w.seconds(1)
    for name in moving:
        account = w.stream(name).account
        assert account.received + account.lost >= account.published + account.dropped
        assert name not in {n for n, _, box in w.starts if box == "b0" and n in moving}, "b0 never ran it"
