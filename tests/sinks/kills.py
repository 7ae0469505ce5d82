"""Many events to a receiver that is killed again and again: none is lost, and the first arrivals are in order.

usage: python -m tests.sinks.kills [mqtt] [nats] [redis] [webhook] [--events 10000] [--kills 10]

The suite does the same with fewer events.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.sinks import test_mqtt, test_nats, test_redis, test_webhook
from tests.sinks.brokers import mosquitto, nats_server, redis_server
from tests.sinks.receivers import Receiver


@contextlib.contextmanager
def receiver(_: Path) -> Iterator[Receiver]:
    """An HTTP receiver."""
    made = Receiver()
    try:
        yield made
    finally:
        made.down()


KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Path, Any, int, int], list[dict[str, Any]]]]] = {
    "mqtt": (mosquitto, test_mqtt.killed),
    "nats": (nats_server, test_nats.killed),
    "redis": (redis_server, test_redis.killed),
    "webhook": (receiver, test_webhook.killed),
}
"""By kind of sink: what it delivers to, and what delivers so many events while that is killed so often, with the checks
of the suite, and returns what arrived."""


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description="Events to a receiver that is killed again and again.")
    parser.add_argument("kinds", nargs="*", default=list(KINDS), choices=[*KINDS, []], metavar="KIND")
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    args = parser.parse_args()
    for kind in args.kinds:
        opened, killed = KINDS[kind]
        with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as target:
            began = time.monotonic()
            found = killed(Path(folder) / "j", target, args.kills, args.events)
            ids = len({event["id"] for event in found})
            print(
                f"{kind}: {args.kills} kills, {ids} of {args.events} events arrived, in order, "
                f"{len(found) - ids} of them twice; {time.monotonic() - began:.0f} s"
            )


if __name__ == "__main__":
    main()
