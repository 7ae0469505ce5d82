"""The ring's three policies, its end, and that nothing is lost uncounted."""

from __future__ import annotations

import threading

import pytest

from streamd.flow.ring import Bell, Closed, Policy, Ring


def test_drop_oldest_counts_what_it_drops() -> None:
    dropped: list[tuple[int, str]] = []
    ring: Ring[int] = Ring(2, on_drop=lambda item, reason: dropped.append((item, reason)))
    for i in range(5):
        ring.put(i)
    assert dropped == [(0, "ring_full"), (1, "ring_full"), (2, "ring_full")]
    assert [ring.get(), ring.get()] == [3, 4]


def test_latest_keeps_only_the_newest() -> None:
    dropped: list[int] = []
    ring: Ring[int] = Ring(8, "latest", on_drop=lambda item, _: dropped.append(item))
    for i in range(3):
        ring.put(i)
    assert dropped == [0, 1]
    assert ring.get() == 2


def test_block_waits_for_room() -> None:
    ring: Ring[int] = Ring(1, "block")
    ring.put(0)
    with pytest.raises(TimeoutError):
        ring.put(1, timeout=0.01)
    threading.Timer(0.05, ring.get).start()
    ring.put(1, timeout=10)
    assert ring.get() == 1


def test_close_lets_what_waits_come_out_and_nothing_in() -> None:
    ring: Ring[int] = Ring(4)
    ring.put(1)
    ring.close()
    with pytest.raises(Closed):
        ring.put(2)
    assert ring.get() == 1
    assert ring.exhausted
    with pytest.raises(Closed):
        ring.get()


def test_close_with_discard_counts_the_rest() -> None:
    dropped: list[tuple[int, str]] = []
    ring: Ring[int] = Ring(4, on_drop=lambda item, reason: dropped.append((item, reason)))
    ring.put(1)
    ring.put(2)
    ring.close(discard=True)
    assert dropped == [(1, "shutdown"), (2, "shutdown")]
    assert ring.exhausted


def test_close_wakes_a_blocked_producer_and_a_waiting_consumer() -> None:
    full: Ring[int] = Ring(1, "block")
    full.put(0)
    empty: Ring[int] = Ring(1)
    woken: list[str] = []

    def produce() -> None:
        try:
            full.put(1)
        except Closed:
            woken.append("producer")

    def consume() -> None:
        try:
            empty.get()
        except Closed:
            woken.append("consumer")

    threads = [threading.Thread(target=f) for f in (produce, consume)]
    for t in threads:
        t.start()
    full.close()
    empty.close()
    for t in threads:
        t.join(10)
    assert sorted(woken) == ["consumer", "producer"]


def test_get_times_out() -> None:
    with pytest.raises(TimeoutError):
        Ring[int](1).get(timeout=0.01)


def test_a_ring_holds_something() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Ring(0)


def test_the_bell_does_not_miss_a_ring_between_look_and_wait() -> None:
    bell = Bell()
    seen = bell.count
    bell.ring()
    assert bell.wait(seen, timeout=0)
    assert not bell.wait(bell.count, timeout=0)


@pytest.mark.parametrize("policy", ["drop_oldest", "latest", "block"])
def test_two_threads_lose_nothing_uncounted(policy: Policy) -> None:
    dropped: list[int] = []
    got: list[int] = []
    ring: Ring[int] = Ring(3, policy, on_drop=lambda item, _: dropped.append(item))

    def consume() -> None:
        try:
            while True:
                got.append(ring.get())
        except Closed:
            return

    consumer = threading.Thread(target=consume)
    consumer.start()
    for i in range(20_000):
        ring.put(i)
    ring.close()
    consumer.join(30)
    assert got == sorted(got)
    assert sorted(got + dropped) == list(range(20_000))
    assert policy != "block" or not dropped
