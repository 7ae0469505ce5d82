"""Many events to a receiver that is killed again and again: none is lost, and the first arrivals are in order.

usage: python -m tests.sinks.kills [mqtt] [nats] [webhook] [--events 10000] [--kills 10]

The suite does the same with fewer events.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.sinks import test_mqtt, test_nats, test_webhook
from tests.sinks.brokers import mosquitto, nats_server
from tests.sinks.receivers import Receiver


def arrivals(kind: str, folder: Path, kills: int, events: int) -> list[dict[str, Any]]:
    """What arrived, after the same checks as in the suite."""
    if kind == "mqtt":
        with mosquitto(folder) as broker:
            return test_mqtt.kills(folder / "j", broker, kills, events)
    if kind == "nats":
        with nats_server(folder) as server:
            return test_nats.interrupted(folder / "j", server, kills, events)
    receiver = Receiver()
    try:
        return test_webhook.interrupted(folder / "j", receiver, kills, events)
    finally:
        receiver.down()


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description="Events to a receiver that is killed again and again.")
    parser.add_argument("kinds", nargs="*", default=["mqtt", "nats", "webhook"])
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    args = parser.parse_args()
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            found = arrivals(kind, Path(folder), args.kills, args.events)
            ids = len({event["id"] for event in found})
            print(
                f"{kind}: {args.kills} kills, {ids} of {args.events} events arrived, in order, "
                f"{len(found) - ids} of them twice; {time.monotonic() - began:.0f} s"
            )


if __name__ == "__main__":
    main()
