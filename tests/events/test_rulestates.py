"""What rules have counted: kept with their events, for the process that continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamd.events.channel import Inbox, Outbox, decode_burst, encode
from streamd.events.record import RuleStates
from tests.events.journals import T0, event, journal


def line(n: int, name: str = "gate") -> dict[str, Any]:
    return {"name": name, "crossings": {"in": {"person": n}}}


def zone(n: int, name: str = "yard") -> dict[str, Any]:
    return {"name": name, "begun": {"person": n}}


def test_the_newest_state_is_that_of_the_last_event(tmp_path: Path) -> None:
    with journal(tmp_path) as j:
        assert j.rules("a") is None
        for n in (1, 2):
            j.submit(event(f"{n}", state=line(n)))
        j.submit(event("3", "begin", state=zone(7)))
        j.submit(event("3", "update"))
        # Known at once, before the commit.
        found = j.rules("a")
        assert found is not None
        assert (found["lines"], found["zones"]) == ([line(2)], [zone(7)])
        assert j.rules("b") is None
    with journal(tmp_path) as j:
        assert j.flush()
        assert j.rules("a") == {"version": 1, "wall_ns": None, "memory": [], "lines": [line(2)], "zones": [zone(7)]}


def test_how_a_process_leaves_a_stream_holds_until_the_next_one_counts(tmp_path: Path) -> None:
    memory = [["yard", 0, [0.1, 0.1, 0.2, 0.2], "e1", T0, 3.0, 3.0, False, True]]
    with journal(tmp_path) as j:
        j.keep(RuleStates("a", T0, [line(3), zone(1)], memory))
    with journal(tmp_path) as j:
        assert j.flush()
        found = j.rules("a")
        assert found is not None
        assert (found["wall_ns"], found["memory"]) == (T0, memory)
        j.keep(RuleStates("a", None, [line(4)]))
        found = j.rules("a")
        assert found is not None
        assert (found["wall_ns"], found["memory"], found["lines"]) == (None, [], [line(4)])


def test_a_deletion_forgets_where_objects_were(tmp_path: Path) -> None:
    with journal(tmp_path) as j:
        for stream in ("a", "b"):
            j.keep(RuleStates(stream, T0, [zone(1)], [["yard"]]))
        j.delete("a", T0, T0 + 1)
        kept = {stream: j.rules(stream) for stream in ("a", "b")}
    with journal(tmp_path) as j:
        assert j.flush()
        for stream, memory in (("a", []), ("b", [["yard"]])):
            found = j.rules(stream)
            assert found == kept[stream]
            assert found is not None
            assert (found["memory"], found["zones"]) == (memory, [zone(1)])


def test_a_lost_event_s_counts_are_known_to_the_next_worker(tmp_path: Path) -> None:
    with journal(tmp_path, bound=1) as j:
        j._writer.close(5)
        for n in (1, 2, 3):
            j.submit(event(f"{n}", state=line(n)))
        found = j.rules("a")
        assert found is not None
        assert found["lines"] == [line(3)]


def test_states_of_a_worker_arrive_in_order_with_its_events(tmp_path: Path) -> None:
    outbox = Outbox("w")
    outbox.put(event("1", state=line(1)))
    outbox.note(RuleStates("a", T0, [line(2), zone(1)], [["yard"]]))
    with journal(tmp_path) as j:
        inbox = Inbox(j)
        burst = outbox.burst()
        assert burst is not None
        for _ in range(2):
            inbox.take(decode_burst(encode(burst)))
        assert j.flush()
        found = j.rules("a")
        assert found == {"version": 1, "wall_ns": T0, "memory": [["yard"]], "lines": [line(2)], "zones": [zone(1)]}
        outbox.acknowledge(inbox.ack("w"))
    assert len(outbox) == 0
