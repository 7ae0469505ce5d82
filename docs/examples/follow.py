#!/usr/bin/env python3
"""Follows every camera and reports everything that is missing: states, gaps and their cause, restarts, silence.

    python follow.py [tcp://127.0.0.1:5555]

Needs: pip install pyzmq
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import zmq

SILENCE_S = 15.0
"""streamd sends every stream's status at least every five seconds (heartbeat_s): three missing ones are a fault."""


class Follower:
    """The state of each stream; `take` returns what to report about one message."""

    def __init__(self) -> None:
        self.boot_id = ""
        self.expected: dict[str, int] = {}
        """The next seq, by stream."""
        self.states: dict[str, tuple[str, str]] = {}
        """State and reason, by stream: a live one may have trouble, such as overload."""
        self.heard: dict[str, float] = {}
        """Monotonic time of each stream's last message."""

    def take(self, message: dict[str, Any]) -> list[str]:
        """Processes one message."""
        told = []
        if message["boot_id"] != self.boot_id:
            if self.boot_id:
                told.append("streamd was restarted: its counters start from zero")
            self.boot_id = message["boot_id"]
            self.expected.clear()
        stream = message["stream"]
        self.heard[stream] = time.monotonic()
        return told + (self._status(message) if "state" in message else self._detections(message))

    def _status(self, message: dict[str, Any]) -> list[str]:
        stream, state = message["stream"], message["state"]
        if self.states.get(stream) == (state, message["reason"]):
            return []  # a heartbeat
        self.states[stream] = (state, message["reason"])
        why = f" ({message['reason']}: {message['detail']})" if message["reason"] else ""
        return [f"{stream}: is {state}{why}"]

    def _detections(self, message: dict[str, Any]) -> list[str]:
        stream, seq = message["stream"], message["seq"]
        told = []
        # Before the first message of a stream we cannot know what we missed.
        if stream in self.expected:
            missing = seq - self.expected[stream]
            dropped = min(missing, message["dropped"])
            if dropped > 0:
                told.append(f"{stream}: streamd dropped {dropped} before {seq}: it could not keep up")
            if missing > dropped:
                told.append(f"{stream}: {missing - dropped} before {seq} were lost in transit: we were too slow")
        self.expected[stream] = seq + 1
        if message["detections"]:
            seen = ", ".join(f"{d['label']} {d['score']:.2f}" for d in message["detections"])
            told.append(f"{stream}: {seq} {seen}")
        return told

    def silent(self) -> list[str]:
        """Streams that have been silent for too long; each is reported once."""
        late = [s for s, at in self.heard.items() if time.monotonic() - at > SILENCE_S]
        for stream in late:
            del self.heard[stream]
            self.states.pop(stream, None)
        return [f"{stream}: nothing for {SILENCE_S:g} s: is streamd running, and the network up?" for stream in late]


def main() -> None:
    """Runs until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Reports states, gaps, restarts and silence of every camera.")
    parser.add_argument("endpoint", nargs="?", default="tcp://127.0.0.1:5555", help="zmq sink (default %(default)s)")
    endpoint = parser.parse_args().endpoint
    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 10_000)  # messages queued for us while we are busy
    socket.subscribe("streamd/1/")
    socket.connect(endpoint)  # reconnects automatically
    follower = Follower()
    while True:
        told = follower.silent()
        if socket.poll(1000):
            _, payload = socket.recv_multipart()
            told += follower.take(json.loads(payload))
        for line in told:
            print(line, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
