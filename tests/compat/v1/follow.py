#!/usr/bin/env python3
"""Follows every camera and misses nothing unnoticed: states, gaps and whose they are, a restart, silence.

    python follow.py [tcp://127.0.0.1:5555]

Needs: pip install pyzmq
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import zmq

SILENCE_S = 15.0
"""streamd sends every stream's status at least every five seconds (heartbeat_s): three of them in a row are a fault."""


class Follower:
    """What is known of each stream; `take` returns what is worth telling of one message."""

    def __init__(self) -> None:
        self.boot_id = ""
        self.expected: dict[str, int] = {}
        """The seq that comes next, by stream."""
        self.states: dict[str, str] = {}
        self.heard: dict[str, float] = {}
        """When a stream last said anything, monotonic."""

    def take(self, message: dict[str, Any]) -> list[str]:
        """Takes one message in."""
        told = []
        if message["boot_id"] != self.boot_id:
            if self.boot_id:
                told.append("streamd was started again: its counts begin anew")
            self.boot_id = message["boot_id"]
            self.expected.clear()
        stream = message["stream"]
        self.heard[stream] = time.monotonic()
        return told + (self._status(message) if "state" in message else self._detections(message))

    def _status(self, message: dict[str, Any]) -> list[str]:
        stream, state = message["stream"], message["state"]
        if self.states.get(stream) == state:
            return []  # a heartbeat
        self.states[stream] = state
        why = f" ({message['reason']}: {message['detail']})" if message["reason"] else ""
        return [f"{stream}: is {state}{why}"]

    def _detections(self, message: dict[str, Any]) -> list[str]:
        stream, seq = message["stream"], message["seq"]
        told = []
        # Before the first message of a stream nobody can tell what we missed: we were not there.
        if stream in self.expected:
            missing = seq - self.expected[stream]
            dropped = min(missing, message["dropped"])
            if dropped > 0:
                told.append(f"{stream}: streamd dropped {dropped} before {seq}, for it could not keep up")
            if missing > dropped:
                told.append(f"{stream}: {missing - dropped} before {seq} were lost on the way: we were too slow")
        self.expected[stream] = seq + 1
        if message["detections"]:
            seen = ", ".join(f"{d['label']} {d['score']:.2f}" for d in message["detections"])
            told.append(f"{stream}: {seq} {seen}")
        return told

    def silent(self) -> list[str]:
        """Streams of which nothing has come for too long; each is told once."""
        late = [s for s, at in self.heard.items() if time.monotonic() - at > SILENCE_S]
        for stream in late:
            del self.heard[stream]
            self.states.pop(stream, None)
        return [f"{stream}: nothing for {SILENCE_S:g} s: is streamd running, and the network up?" for stream in late]


def main() -> None:
    """Until Ctrl-C."""
    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 10_000)  # messages kept for us while we are busy
    socket.subscribe("streamd/1/")
    socket.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5555")  # again and again by itself
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
