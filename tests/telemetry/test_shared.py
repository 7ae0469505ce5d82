"""One answer for many."""

from __future__ import annotations

import threading
import time

from streamd.telemetry.shared import LEAST_S, MOST_S, MOST_SHARE, SharedAnswer


class Maker:
    def __init__(self, takes_s: float = 0.0) -> None:
        self.now = 100.0
        self.made = 0
        self.takes_s = takes_s

    def __call__(self) -> bytes:
        self.made += 1
        self.now += self.takes_s
        return str(self.made).encode()


def test_an_answer_is_given_again_until_it_is_old() -> None:
    maker = Maker()
    shared = SharedAnswer(lambda: maker.now)
    assert [shared.get("text", maker), shared.get("text", maker)] == [b"1", b"1"]
    assert shared.get("protobuf", maker) == b"2"
    maker.now += LEAST_S * 0.9
    assert shared.get("text", maker) == b"1"
    maker.now += LEAST_S * 0.2
    assert shared.get("text", maker) == b"3"


def test_an_expensive_answer_is_given_for_longer() -> None:
    maker = Maker(takes_s=0.2)
    shared = SharedAnswer(lambda: maker.now, lambda: maker.now)
    shared.get("text", maker)
    end = maker.now + 200
    while maker.now < end:
        shared.get("text", maker)
        maker.now += 0.1
    assert maker.made <= 200 * MOST_SHARE / 0.2 + 2


def test_no_answer_is_old() -> None:
    maker = Maker(takes_s=20.0)
    shared = SharedAnswer(lambda: maker.now, lambda: maker.now)
    assert shared.get("text", maker) == b"1"
    maker.now += MOST_S
    assert shared.get("text", maker) == b"2"


def test_an_answer_that_only_had_to_wait_is_not_expensive() -> None:
    """On a busy machine it takes far longer to make than it costs."""
    maker = Maker(takes_s=20.0)
    shared = SharedAnswer(lambda: maker.now, lambda: 7.0)
    assert shared.get("text", maker) == b"1"
    maker.now += LEAST_S
    assert shared.get("text", maker) == b"2"


def test_many_at_once_get_one() -> None:
    made: list[int] = []

    def make() -> bytes:
        time.sleep(0.05)
        made.append(1)
        return b"x"

    shared = SharedAnswer()
    threads = [threading.Thread(target=shared.get, args=("text", make)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
