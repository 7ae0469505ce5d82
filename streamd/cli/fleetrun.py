"""`streamd fleet run | apply | status | drain | stop`: a fleet on Ray."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamd.cli.console import output_console, positive
from streamd.config.yamlfile import MAX_BYTES
from streamd.errors import ConfigError, NoAnswerError
from streamd.fleet.records import FleetStatus, FleetStream, encode
from streamd.security.trust import read_text

if TYPE_CHECKING:
    from streamd.fleet import FleetSettings
    from streamd.workers.fleet.box import Configuration
    from streamd.workers.fleet.cluster import Fleet

MOST_STREAMS = 12
"""Streams that a table shows; `--json` has all."""
SETTLE_S = 60.0
"""How long `run` waits for every stream to have a box."""
PATIENCE_S = 20.0
"""A drain without a move for so long, and without room elsewhere, has come to its end."""
_LOOK_S = 0.5
_HAPPENED = {
    "box_joined": "{box} joined on node {detail}",
    "box_up": "{box} is up",
    "box_problem": "{box}: {detail}",
    "box_lost": "{box} was lost with {detail}",
    "daemon_died": "{box}: its daemon died with {detail}",
    "move": "{stream} moves to {box} ({reason})",
    "stream_refused": "{stream} was refused by {box} ({reason})",
    "standby_failed": "{stream} has no pictures at {box} yet, and is handed over all the same ({reason})",
    "parting_failed": "{stream} was not given up by {box} in time ({reason})",
}
"""What happens in a fleet, in words."""


def add_parsers(actions: Any) -> None:
    """Adds the actions that need a cluster."""
    run = _action(
        actions, "run", "start a fleet on a Ray cluster, or on this machine",
        "Starts a fleet on a Ray cluster, or on this machine. On the cluster at --address or $RAY_ADDRESS, it returns "
        "once the streams are placed. Without an address, it starts a cluster on this machine, stays in the "
        "foreground, and stops the fleet at its end.",
    )  # fmt: skip
    run.add_argument("config", metavar="FILE", help="configuration with a section `fleet`")
    run.add_argument("--boxes", type=positive, metavar="N", help="boxes on this machine, instead of fleet.boxes")
    apply = _action(
        actions, "apply", "apply a changed configuration to the running fleet",
        "Applies a changed configuration to the running fleet.",
    )  # fmt: skip
    apply.add_argument("config", metavar="FILE", help="configuration with a section `fleet`")
    status = _action(actions, "status", "show boxes and streams", "Shows boxes and streams.")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    drain = _action(
        actions, "drain", "move all streams away from a node, then stop its daemons",
        "Moves all streams away from a node, then stops its daemons. "
        "Another box connects to each camera first, unless the camera serves a single session.",
    )  # fmt: skip
    drain.add_argument("node", metavar="NODE", help="name of a node or of one box")
    drain.add_argument("--undo", action="store_true", help="let the node take streams again")
    drain.add_argument("--no-wait", action="store_true", help="return at once")
    stop = _action(
        actions, "stop", "stop the fleet: every daemon publishes what is in flight, then ends",
        "Stops the fleet: every daemon publishes what is in flight, then ends. "
        "With --here, stops what runs on this machine without asking the cluster, such as after the cluster was lost.",
    )  # fmt: skip
    stop.add_argument("--here", action="store_true", help="only the boxes of this machine, without the cluster")
    stop.add_argument("--state-dir", metavar="DIR", help="with --here: the configuration's fleet.state_dir")


def _action(actions: Any, name: str, what: str, description: str) -> Any:
    p = actions.add_parser(name, help=what, description=description)
    p.add_argument("--address", metavar="HOST:PORT", help="the Ray cluster. Default: $RAY_ADDRESS, else this machine")
    return p


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    action: Callable[[argparse.Namespace], int] = globals()[f"_{args.action}"]
    return action(args)


def _configuration(path: str) -> tuple[Configuration, FleetSettings]:
    """FLEET.yaml, checked, and its section `fleet`."""
    from streamd.workers.fleet.box import Configuration
    from streamd.workers.fleet.host import read_fleet

    file = Path(os.path.expanduser(path))
    text = read_text(file, MAX_BYTES, what=str(file), expected="a YAML file with streamd's configuration")
    found = Configuration(text, str(file.parent.absolute()))
    try:
        read = read_fleet(found)
        for each in read.idle:
            print(_named(each, file), file=sys.stderr)
        return found, read.settings
    except ConfigError as error:
        raise ConfigError("\n".join(_named(line, file) for line in str(error).splitlines())) from error


def _named(line: str, file: Path) -> str:
    return line.replace("FLEET.yaml:", f"{file}:", 1) if line.startswith("FLEET.yaml:") else f"{file}: {line}"


def _run(args: argparse.Namespace) -> int:
    from streamd.workers.fleet.cluster import Fleet, GivenUpError, connected, local

    configuration, settings = _configuration(args.config)
    if args.address or os.environ.get("RAY_ADDRESS"):
        with connected(args.address) as ray:
            fleet = Fleet(ray)
            print("fleet started" if fleet.start(configuration) else "the fleet runs already; configuration applied")
            end = time.monotonic() + SETTLE_S
            while not settled(status := fleet.status()) and time.monotonic() < end:
                time.sleep(_LOOK_S)
            show(status)
        return 0
    boxes = args.boxes or max(1, settings.boxes)
    with contextlib.ExitStack() as signals, local(boxes, settings.state_dir, _stopped) as ray:
        asked = signals.enter_context(_asked())  # after Ray, which has a handler of its own; until all has ended
        fleet = Fleet(ray, lambda: bool(asked))
        with contextlib.suppress(GivenUpError):
            fleet.start(configuration)
            listens = fleet.listens()
            print("fleet started on this machine; Ctrl+C stops it" + (f"; http://{listens}/status" if listens else ""))
            sys.stdout.flush()
            _watch(fleet, asked)
    return 0


def in_words(fields: Mapping[str, str]) -> str:
    """A `Happening` without its empty fields, as a line."""
    kind = fields["kind"]
    if kind == "move" and "box" not in fields:
        return "{stream} leaves its box ({reason})".format_map(fields)
    return _HAPPENED[kind].format_map(fields) if kind in _HAPPENED else " ".join(fields.values())


def _watch(fleet: Fleet, asked: list[int]) -> None:
    """Prints what happens until a signal arrives or somebody else stops the fleet."""
    from streamd.workers.fleet.cluster import FleetError

    since, shown = 0, False
    while not asked:
        if not fleet.runs():
            print("the fleet was stopped")
            return
        with contextlib.suppress(FleetError):  # it is being restarted
            since, happened = fleet.happenings(since)
            for each in happened:
                print(time.strftime("%H:%M:%S"), in_words(each), flush=True)
            if not shown and settled(status := fleet.status()):
                show(status)
                sys.stdout.flush()
                shown = True
        time.sleep(_LOOK_S)


@contextlib.contextmanager
def _asked() -> Iterator[list[int]]:
    """The signals that asked for the end; after the second, they act as usual."""
    found: list[int] = []

    def note(number: int, _: Any) -> None:
        found.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(box: str) -> None:
    print(f"{box} stopped", flush=True)


def _end(fleet: Fleet) -> int:
    left = fleet.stop(_stopped)
    for box in left:
        print(f"{box} did not answer: `streamd fleet stop --here` on its node ends its daemon", file=sys.stderr)
    return NoAnswerError.exit_code if left else 0


def _apply(args: argparse.Namespace) -> int:
    from streamd.workers.fleet.cluster import Fleet, connected

    configuration, _ = _configuration(args.config)
    with connected(args.address) as ray:
        Fleet(ray).apply(configuration)
    print("configuration applied")
    return 0


def _status(args: argparse.Namespace) -> int:
    from streamd.workers.fleet.cluster import Fleet, connected

    with connected(args.address) as ray:
        status = Fleet(ray).status()
    if args.json:
        print(encode(status).decode())
    else:
        show(status)
    return 0


def _drain(args: argparse.Namespace) -> int:
    from streamd.workers.fleet.cluster import Fleet, connected

    with connected(args.address) as ray:
        fleet = Fleet(ray)
        boxes = fleet.drain(args.node, undo=args.undo)
        names = ", ".join(boxes)
        if args.undo or args.no_wait:
            print(f"{names}: {'takes streams again' if args.undo else 'is being drained'}")
            return 0
        streams, since = -1, time.monotonic()
        while True:
            left = {b.box: b for b in fleet.status().boxes if b.box in boxes and b.state != "DRAINED"}
            if not left:
                print(f"{names}: drained")
                return 0
            if (now := sum(box.streams for box in left.values())) != streams:
                streams, since = now, time.monotonic()
            stuck = sorted(name for name, box in left.items() if box.reason == "no_room")
            # The reason also stands before the first move, and between moves.
            if stuck and time.monotonic() - since > PATIENCE_S:
                print(f"{', '.join(stuck)}: no other box has room for the rest of the streams", file=sys.stderr)
                return 1
            time.sleep(_LOOK_S)


def _stop(args: argparse.Namespace) -> int:
    from streamd.workers.fleet.cluster import Fleet, connected, stop_here

    if args.here:
        if not stop_here(args.state_dir, _stopped):
            print("no box runs on this machine")
        return 0
    if args.state_dir:
        raise ConfigError("--state-dir is for --here; the fleet knows its own")
    with connected(args.address) as ray:
        return _end(Fleet(ray))


def settled(status: FleetStatus) -> bool:
    """Whether nothing is about to change: every stream runs, or has a reason not to."""
    busy = status.rebuilding or not status.boxes or any(b.state == "JOINING" for b in status.boxes)
    # A camera that cannot be reached has a reason; one without is still being opened.
    opening = any(s.state in ("STARTING", "MOVING") or (s.state, s.reason) == ("DOWN", "") for s in status.streams)
    return not busy and not opening


def show(status: FleetStatus) -> None:
    """Prints a status as tables of at most 80 columns."""
    console = output_console(highlight=False, markup=False)
    boxes = _table(("box", "left"), ("state", "left"), ("streams", "right"), ("frames/s", "right"), ("node", "left"))
    for b in status.boxes:
        state = f"{b.state} ({b.reason})" if b.reason and " " not in b.reason else b.state
        boxes.add_row(b.box, state, str(b.streams), f"{b.load:,.0f} of {b.capacity:,.0f}", b.node)
    console.print(boxes)
    for b in status.boxes:
        if " " in b.reason:  # in words: why it has no daemon
            console.print(f"{b.box}: {b.reason}")
    counts = Counter(s.state for s in status.streams)
    parts = ", ".join(f"{counts[state]} {state.lower()}" for state in sorted(counts)) or "none"
    console.print(f"\n{len(status.streams)} streams: {parts}")
    odd = [s for s in status.streams if s.state != "RUNNING"]
    if odd:
        console.print(_streams(odd[:MOST_STREAMS]))
    if len(odd) > MOST_STREAMS:
        console.print(f"and {len(odd) - MOST_STREAMS} more; --json lists them")
    for group, streams in status.together.items():
        console.print(not_apart(group, streams))
    console.print(_margin(status))


def not_apart(group: str, streams: list[str]) -> str:
    """Says that streams of an entry of `spread` share a machine."""
    shown = ", ".join(streams[:MOST_STREAMS]) + (" …" if len(streams) > MOST_STREAMS else "")
    return f"Not apart, for want of room elsewhere ({group}): {shown}"


def _streams(streams: list[FleetStream]) -> Any:
    table = _table(("stream", "left"), ("state", "left"), ("reason", "left"), ("box", "left"))
    for s in streams:
        box = f"{s.box or '-'} to {s.moving_to}" if s.moving_to else s.box or "-"
        table.add_row(s.stream, s.state, s.reason, box)
    return table


def _margin(status: FleetStatus) -> str:
    if status.rebuilding:
        return "The coordinator has just been started, and waits for the boxes."
    worst = max(status.without.items(), key=lambda item: len(item[1]), default=("", []))
    if worst[1]:
        return f"Losing {worst[0]} would leave {len(worst[1])} streams without a box."
    return "Whichever box is lost, the others serve every stream (N+1)." if status.spare else ""


def _table(*columns: tuple[str, Any]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name, justify in columns:
        made.add_column(name, justify=justify, overflow="fold")
    return made
