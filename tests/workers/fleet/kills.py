"""Nodes of a fleet are killed or stopped again and again: how long streams are away, whether accounts are exact.

usage: python -m tests.workers.fleet.kills [--nodes 3] [--streams 60] [--kills 20] [--minutes 10] [--seed 0]

`deaths` does the same with fewer streams and one death of each kind.
"""

from __future__ import annotations

import argparse
import random
import signal
import time

from tests.events.journals import until
from tests.workers.fleet.rays import PATIENCE_S, Running, accepted, fleet


def disturb(running: Running, node: str, kind: str) -> float:
    """One death or stop, until the fleet is whole again; returns the seconds until all its streams were back."""
    status = running.status()
    lost = {s.stream for s in status.streams if s.box == node}
    before = {s.stream: s.generation for s in status.streams}
    began = time.monotonic()
    running.rays.signal(node, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    back = running.wait_published(lost, began, generation=before) - began if lost else 0.0
    for stream in set(before) - lost:
        frames = running.listener.since(stream, began - 2)
        assert len({(h.boot_id, h.epoch, h.generation) for h in frames}) == 1, f"{stream} was touched"
        assert [h.seq for h in frames] == list(range(frames[0].seq, frames[0].seq + len(frames))), f"{stream} has gaps"
    if kind == "kill":
        running.rays.add(node)
    else:
        running.rays.signal(node, signal.SIGCONT)
    running.wait_steady(4 * PATIENCE_S)  # else streams are on their way to the box that is back
    return back


def check(running: Running) -> str:
    """Compares the accounts with what came in."""
    until(lambda: all(s.state == "RUNNING" for s in running.status().streams), PATIENCE_S)
    streams = running.status().streams
    heard = running.listener.streams()
    totals = dict.fromkeys(("received", "published", "dropped", "lost", "superseded", "in_flight"), 0)
    inexact = 0
    for stream in streams:
        account = stream.account
        parts = account.published + account.dropped + account.lost + account.superseded + account.in_flight
        assert account.received == parts, f"{stream.stream}: {account}"
        inexact += not account.exact
        for name in totals:
            totals[name] += getattr(account, name)
        frames = [(h.generation, h.seq) for h in accepted(heard[stream.stream])]
        assert frames == sorted(set(frames)), f"{stream.stream}: a frame twice"
    arrived = sum(len(accepted(h)) for h in heard.values())
    late = sum(len(h) for h in heard.values()) - arrived
    return f"{totals}; {inexact} inexact; {arrived} messages accepted, {late} of older generations dropped"


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description="Nodes of a fleet are killed again and again.")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--streams", type=int, default=60)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chosen = random.Random(args.seed)
    # A box that is back is to have its share before the next death.
    with fleet(args.nodes, args.streams, more="  moves_per_minute: 1000\n") as running:
        began = time.monotonic()
        away = []
        for i in range(args.kills):
            node, kind = f"n{chosen.randint(1, args.nodes)}", "stop" if i % 5 == 4 else "kill"
            away.append(disturb(running, node, kind))
            print(f"{time.monotonic() - began:6.0f} s  {kind} {node}: back after {away[-1]:.1f} s", flush=True)
            next_at = began + (i + 1) * args.minutes * 60 / args.kills
            time.sleep(max(0.0, next_at - time.monotonic()))
        away.sort()
        print(f"{len(away)} times: median {away[len(away) // 2]:.1f} s, longest {away[-1]:.1f} s; {check(running)}")


if __name__ == "__main__":
    main()
