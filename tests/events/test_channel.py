"""The channel over a line that loses, repeats and tears down: nothing is lost, nothing twice, all in order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamd.errors import SinkError
from streamd.events.channel import (
    BURST,
    RESEND_S,
    WINDOW,
    Ack,
    Burst,
    Inbox,
    Link,
    Outbox,
    decode_ack,
    decode_burst,
    encode,
)
from streamd.events.losses import Lost
from streamd.events.query import Filter
from streamd.events.record import Event, Media, RuleStates
from tests.events.journals import T0, event, journal, rows


class Journal:
    """What a receiver needs of a journal; commits when it is told to, and may forget what is not committed."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.committed: list[tuple[int, Event | None, Lost | None]] = []
        self.waiting: list[tuple[int, Event | None, Lost | None]] = []
        self.links: list[tuple[str, str, Media]] = []

    def submit(self, event: Event | None, origin: str = "", n: int = 0, lost: Lost | None = None) -> bool:
        if n <= self.taken(origin):
            return True
        if len(self.waiting) >= self.room:
            return False
        self.waiting.append((n, event, lost))
        return True

    def taken(self, origin: str) -> int:
        return max((n for n, *_ in (*self.committed, *self.waiting)), default=0)

    def acknowledged(self, origin: str) -> int:
        return max((n for n, *_ in self.committed), default=0)

    def link(self, event_id: str, role: str, media: Media) -> None:
        self.links.append((event_id, role, media))

    def keep(self, told: RuleStates) -> None:
        raise AssertionError(told)

    def commit(self) -> None:
        self.committed += self.waiting
        self.waiting = []


STEPS = st.lists(
    st.sampled_from(["put", "send", "drop", "repeat", "late", "ack", "drop ack", "commit", "crash", "wait"])
)


@given(steps=STEPS, room=st.integers(1, 5), bound=st.integers(2, 12))
@settings(max_examples=300, deadline=None)
def test_a_bad_line_and_a_receiver_that_dies_change_nothing(steps: list[str], room: int, bound: int) -> None:
    now = [0.0]
    outbox = Outbox("w", bound=bound, clock=lambda: now[0])
    sink = Journal(room)
    inbox = Inbox(sink)
    put = kept = 0
    held: list[Burst] = []

    def send(times: int) -> None:
        burst = outbox.burst()
        if burst is not None:
            held.append(burst)
            for _ in range(times):
                inbox.take(decode_burst(encode(burst)))

    for step in steps:
        if step == "put":
            put += 1
            kept += outbox.put(event(f"{put}", counts={"in": 1}))
        elif step in ("send", "drop", "repeat"):
            send({"send": 1, "drop": 0, "repeat": 2}[step])
        elif step == "late" and held:
            inbox.take(held[len(held) // 2])
        elif step in ("ack", "drop ack"):
            ack = inbox.ack("w")
            if step == "ack":
                outbox.acknowledge(decode_ack(encode(ack)))
        elif step == "commit":
            sink.commit()
        elif step == "crash":
            sink.waiting = []
            inbox = Inbox(sink)
        else:
            now[0] += RESEND_S * 1.1
    for _ in range(200):
        now[0] += RESEND_S * 1.1
        while (burst := outbox.burst()) is not None:
            inbox.take(burst)
            sink.commit()
        outbox.acknowledge(inbox.ack("w"))
        if not len(outbox):
            break
    assert not len(outbox)
    assert [n for n, *_ in sink.committed] == list(range(1, len(sink.committed) + 1))
    ids = [int(e.id) for _, e, _ in sink.committed if e is not None]
    assert ids == sorted(set(ids))
    assert len(ids) == kept
    assert (
        sum(sum(lost.events.values()) for *_, lost in sink.committed if lost is not None) == put - kept == outbox.lost
    )
    counted = sum(lost.counts["a"]["in"] for *_, lost in sink.committed if lost is not None)
    assert counted == put - kept


def test_a_receiver_that_knows_nothing_begins_at_what_is_kept() -> None:
    """The journal was lost with what it had acknowledged."""
    outbox = Outbox("w")
    for number in range(5):
        outbox.put(event(f"{number}"))
    burst = outbox.burst()
    assert burst is not None
    outbox.acknowledge(Ack(3))
    outbox.put(event("5"))
    sink = Journal()
    inbox = Inbox(sink)
    inbox.take(Burst("w", 4, 6, [event("5")]))
    assert inbox.early == 1, "4 and 5 are still to come"
    inbox.take(Burst("w", 4, 4, [event("3"), event("4"), event("5")]))
    sink.commit()
    assert [n for n, *_ in sink.committed] == [4, 5, 6]
    outbox.acknowledge(inbox.ack("w"))
    assert len(outbox) == 0


def test_only_so_much_is_under_way() -> None:
    now = [0.0]
    outbox = Outbox("w", bound=1 << 20, clock=lambda: now[0])
    for number in range(3 * WINDOW):
        outbox.put(event(f"{number}"))
    bursts = []
    while (burst := outbox.burst()) is not None:
        bursts.append(burst)
    assert sum(len(b.events) for b in bursts) == WINDOW
    assert max(len(b.events) for b in bursts) == BURST
    outbox.acknowledge(Ack(BURST))
    burst = outbox.burst()
    assert burst is not None
    assert (burst.base, burst.first) == (BURST + 1, WINDOW + 1)
    now[0] = RESEND_S * 1.1
    burst = outbox.burst()
    assert burst is not None
    assert burst.first == BURST + 1, "nothing was heard: from the oldest on"
    assert outbox.resent == WINDOW


def test_an_end_that_found_no_room_at_the_sender_is_made_up_for(tmp_path: Path) -> None:
    outbox = Outbox("boot/1", bound=2)
    outbox.put(event("x", "begin", 0))
    outbox.put(event("y"))
    assert not outbox.put(event("x", "end", 9, counts={"in": 1}))
    assert not outbox.put(event("z", "end", 9))
    with journal(tmp_path) as one:
        inbox = Inbox(one)
        while len(outbox):
            burst = outbox.burst()
            if burst is not None:
                inbox.take(burst)
            assert one.flush()
            outbox.acknowledge(inbox.ack("boot/1"))
        assert one.counters("a")["in"].value == 1
        assert one.status().open == 0
    found = rows(tmp_path, "SELECT id, kind, at_ns, lost, details FROM events ORDER BY position")
    assert found[:2] == [("x", "begin", T0, 0, "{}"), ("y", "instant", T0, 0, "{}")]
    assert found[2:] == [("x", "end", T0 + 9 * 10**9, 2, '{"reason":"events_lost"}')]


@pytest.mark.parametrize("data", [b"", b"\xc1", b"{}", encode(Ack(1))[:-1], b"\x93\xa1x\x02\x03"])
def test_what_is_no_message_is_an_error(data: bytes) -> None:
    with pytest.raises(SinkError, match="event channel"):
        decode_burst(data)
    with pytest.raises(SinkError, match="event channel"):
        decode_ack(data)


def test_a_file_of_an_event_follows_it(tmp_path: Path) -> None:
    outbox = Outbox("w")
    outbox.put(event("1", "begin"))
    outbox.note(Link("1", "clip", Media("/m/1.mp4", "pending")))
    outbox.put(event("1", "end", 1))
    outbox.note(Link("1", "clip", Media("/m/1.mp4")))
    with journal(tmp_path) as one:
        inbox = Inbox(one)
        sent = outbox.burst()
        assert sent is not None
        for _ in range(2):  # the second time as after a lost answer
            inbox.take(decode_burst(encode(sent)))
        assert one.flush()
        outbox.acknowledge(inbox.ack("w"))
        assert len(outbox) == 0
        records = one.find(Filter())
        assert [r.kind for r in records] == ["begin", "end"]
        assert records[0].media == {"clip": Media("/m/1.mp4")}
    full = Outbox("w", bound=1)
    assert full.note(Link("1", "clip", Media("x")))
    assert not full.note(Link("1", "clip", Media("x")))
