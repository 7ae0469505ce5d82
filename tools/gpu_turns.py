"""Two daemons that differ in one section of their configuration, measured in turns of seconds (`gpu_suite.py`)."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import time
from collections.abc import Mapping
from typing import Any

from bench_daemon import Started, started
from bench_watch import Tree, Window
from gpu_pairs import averaged, both_ways

from streamd.sinks.message import DetectionsMessage, decode

Table = dict[str, Any]
KINDS = ("off", "on")
SETTLE_S = 0.5
"""After a daemon was resumed: rings, batches and decoders are full again."""
OPEN_LIMIT_S = 120.0
SILENCE_MS = 5000


class Turns:
    """One daemon, which runs during its turns only, and is stopped by SIGSTOP in between.

    Args:
        daemon: that publishes as fast as it can.
    """

    def __init__(self, daemon: Started) -> None:
        self._daemon, self._tree = daemon, Tree(daemon.pid)
        self.rates: list[float] = []
        """Frames a second of each turn, by the daemon's own time stamps."""
        self.frames = 0
        self.threads: dict[str, float] = {}
        """CPU seconds of all turns by type of thread."""

    def _next(self) -> DetectionsMessage | None:
        if not self._daemon.subscriber.poll(SILENCE_MS):
            raise SystemExit("the daemon sent nothing" + (": it has ended" if self._tree.over else ""))
        message = decode(self._daemon.subscriber.recv_multipart())
        return message if isinstance(message, DetectionsMessage) else None

    def open(self, streams: int) -> None:
        """Waits until every stream has published, then pauses the daemon.

        Raises:
            SystemExit: one has not after two minutes.
        """
        seen: set[str] = set()
        deadline = time.monotonic() + OPEN_LIMIT_S
        while len(seen) < streams:
            if time.monotonic() > deadline or self._tree.over:
                raise SystemExit(f"{len(seen)} of {streams} streams have published")
            if self._daemon.subscriber.poll(1000) and (message := self._next()):
                seen.add(message.stream)
        os.killpg(self._daemon.pid, signal.SIGSTOP)

    def turn(self, seconds: float) -> None:
        """Lets the daemon run for so long, and counts."""
        os.killpg(self._daemon.pid, signal.SIGCONT)
        try:
            begin = time.time() + SETTLE_S
            window, before = Window(begin, seconds), None
            while True:
                message = self._next()
                if before is None and time.time() >= begin:
                    before = self._tree.threads()
                if message is not None and window.take(message):
                    break
            after = self._tree.threads()
        finally:
            os.killpg(self._daemon.pid, signal.SIGSTOP)
        self.rates.append(window.frames / seconds)
        self.frames += window.frames
        for name, spent in after.items():
            self.threads[name] = self.threads.get(name, 0.0) + spent - (before or {}).get(name, 0.0)

    def end(self) -> None:
        """Lets the daemon go on, so that it can be told to end."""
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self._daemon.pid, signal.SIGCONT)

    def per_frame(self) -> dict[str, float]:
        """Microseconds of CPU a frame of the types of thread that take most."""
        most = sorted(self.threads.items(), key=lambda item: -item[1])[:7]
        return {name: round(spent / self.frames * 1e6, 1) for name, spent in most}


def alternating(
    options: argparse.Namespace, config: Mapping[str, Any], section: str, *,
    streams: int, pairs: int, turns: int, seconds: float,
) -> Table:  # fmt: skip
    """The rate of a daemon with and without one section of its configuration.

    A rate drifts by a tenth within minutes where a machine is shared, and differs from process to process. So both
    daemons of a pair are open at once, and one of them is always stopped: turns of seconds see the same machine.

    Args:
        options: those of `bench.py`, but for its `config`.
        config: the other sections.
        section: what is compared, with its defaults.
        streams: of each daemon.
        pairs: of daemons, one pair after another.
        turns: of both daemons of each pair.
        seconds: of each turn.

    Returns:
        `off` and `on`, frames/s of each turn, and `pairs`, the share that is left with the section in each pair (the
        median of its turns); `mean` and `standard_error` of the latter (of the turns where there is one pair);
        `cpu_us`, CPU a frame by type of thread.
    """
    wanted = {
        kind: argparse.Namespace(**{**vars(options), "config": sections})
        for kind, sections in both_ways(config, section).items()
    }
    found: Table = {"off": [], "on": [], "each": [], "pairs": [], "cpu_us": {kind: [] for kind in KINDS}}
    for _ in range(pairs):
        with started(wanted["off"]) as off, started(wanted["on"]) as on:
            both = {"off": Turns(off), "on": Turns(on)}
            try:
                for each in both.values():
                    each.open(streams)
                for turn in range(turns):
                    # The order changes, so that what drifts affects both alike.
                    for kind in KINDS if turn % 2 == 0 else KINDS[::-1]:
                        both[kind].turn(seconds)
            finally:
                for each in both.values():
                    each.end()
        shares = [b / a for a, b in zip(both["off"].rates, both["on"].rates, strict=True)]
        found["each"] += [round(share, 3) for share in shares]
        found["pairs"].append(round(statistics.median(shares), 4))
        for kind, each in both.items():
            found[kind] += [round(rate, 1) for rate in each.rates]
            found["cpu_us"][kind].append(each.per_frame())
    return found | averaged(found["pairs"] if pairs > 1 else found["each"], 4)


def say_turns(result: Table) -> str:
    """One line."""
    if "error" in result:
        return str(result["error"])
    rates = " and ".join(f"{statistics.median(result[kind]):.0f}" for kind in KINDS)
    cpu = ", ".join(f"{kind} {[each.get('postprocess') for each in result['cpu_us'][kind]]}" for kind in KINDS)
    return (
        f"{rates} frames/s (medians of {len(result['off'])} turns), share by pair {result['pairs']}, "
        f"mean {result['mean']} ± {result['standard_error']}; postprocess thread, µs a frame: {cpu}"
    )
