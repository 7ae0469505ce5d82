"""`streamd fleet ACTION`: `plan` is here, what needs a cluster in `fleetrun`.

`plan FILE`: which box would serve which stream, what is lost with a box, and how many are enough.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from streamd.cli import fleetrun
from streamd.cli.console import output_console
from streamd.cli.fleetrun import not_apart
from streamd.config.loader import load_in_time
from streamd.errors import ConfigError
from streamd.fleet import BOX_VARIABLES
from streamd.fleet.placement import Demand, Placement, place
from streamd.fleet.plan import Plan, boxes_needed, boxes_of, demands_of, idle_entries, make_plan, used

MOST_NAMES = 12
"""Streams that a line of the table names; `--json` names all."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "fleet",
        help="run several boxes that share the streams of one configuration",
        description="Runs several boxes that take over each other's streams, on this machine or on a Ray cluster. "
        "docs/fleet.md is the guide.",
    )
    actions = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    plan = actions.add_parser(
        "plan",
        help="show who would serve what, without connecting to anything",
        description="Shows which box would serve which stream, what remains without a box when one is lost, and how "
        "many boxes serve every stream even then. Connects to nothing.",
    )
    plan.add_argument("config", metavar="FILE", help="configuration with a section `fleet`")
    plan.add_argument("--boxes", type=int, metavar="N", help="number of equal boxes, instead of fleet.boxes")
    plan.add_argument("--lose", action="append", default=[], metavar="BOX", help="show what moves if this box is lost")
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    fleetrun.add_parsers(actions)


def run(args: argparse.Namespace) -> int:
    """Prints the plan, or runs another action; exit code 2 for a configuration without a fleet or an unknown box."""
    if args.action != "plan":
        return fleetrun.run(args)
    loaded = load_in_time(args.config, {**BOX_VARIABLES, **os.environ}, secrets=False, share=False)
    fleet = loaded.config.fleet
    if fleet is None:
        raise ConfigError(
            f"{args.config}: there is no section `fleet`; it says what a box can do: fleet: {{box: {{fps: 2000}}}}"
        )
    if args.boxes is not None and not 0 <= args.boxes <= 1000:
        raise ConfigError(f"--boxes: {args.boxes} is not in 0..1000")
    demands, boxes = demands_of(fleet, loaded.config.streams), boxes_of(fleet, args.boxes)
    known = {b.name for b in boxes}
    for name in args.lose:
        if name not in known:
            raise ConfigError(f"--lose: there is no box {name}; there are {', '.join(sorted(known)) or 'none'}")
    plan = make_plan(demands, boxes)
    left = [b for b in boxes if b.name not in args.lose]
    after = place(demands, left, plan.placement.box_of) if args.lose else None
    needed = boxes_needed(fleet, demands)
    if args.json:
        print(json.dumps(_json(plan, demands, needed, after)))
        return 0
    _print(plan, demands, needed)
    for each in idle_entries(fleet, loaded.config.streams):
        print(each, file=sys.stderr)
    if after is not None:
        _print_loss(args.lose, after, used(demands, left, after))
    return 0


def _json(plan: Plan, demands: list[Demand], needed: int | None, after: Placement | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "boxes": [
            {"name": b.name, "streams": b.streams, "fps": round(b.load, 3), "capacity_fps": b.capacity}
            for b in plan.boxes
        ],
        "streams": {d.name: plan.placement.box_of.get(d.name) for d in demands},
        "unplaced": list(plan.placement.unplaced),
        "without": {name: list(streams) for name, streams in plan.without.items()},
        "together": dict(plan.together),
        "spare": plan.spare,
        "boxes_needed": needed,
    }
    if after is not None:
        found["after_loss"] = {
            "streams": {d.name: after.box_of.get(d.name) for d in demands},
            "moved": list(after.moved),
            "unplaced": list(after.unplaced),
        }
    return found


def _table(rows: Any, title: str = "") -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title=title or None, title_justify="left")
    for name, justify in (("box", "left"), ("streams", "right"), ("frames/s", "right"), ("used", "right")):
        made.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for b in rows:
        made.add_row(b.name, str(b.streams), f"{b.load:,.0f} of {b.capacity:,.0f}", f"{b.load / b.capacity:.0%}")
    return made


def _names(streams: tuple[str, ...]) -> str:
    shown = ", ".join(streams[:MOST_NAMES])
    return shown if len(streams) <= MOST_NAMES else f"{shown} and {len(streams) - MOST_NAMES} more"


def _print(plan: Plan, demands: list[Demand], needed: int | None) -> None:
    console = output_console(highlight=False, markup=False)
    console.print(_table(plan.boxes))
    total = sum(d.load for d in demands)
    number = f"{len(demands)} stream{'s' * (len(demands) != 1)}"
    console.print(f"\n{number}, {total:,.0f} frames/s; {len(plan.placement.box_of)} served")
    if plan.placement.unplaced:
        console.print(f"no room for {len(plan.placement.unplaced)}: {_names(plan.placement.unplaced)}")
    for group, streams in plan.together.items():
        console.print(not_apart(group, streams))
    if plan.spare:
        console.print("Whichever box is lost, the others serve every stream (N+1).")
    for name, lost in plan.without.items():
        if lost:
            console.print(f"Losing {name} would leave {len(lost)} without a box: {_names(lost)}")
    if plan.single:
        which = "1 stream is" if len(plan.single) == 1 else f"{len(plan.single)} streams are"
        console.print(f"{which} reached by a single box only, and lost with it in any case")
    besides = " besides the nodes" if any(not b.name.startswith("box-") for b in plan.boxes) else ""
    rest = " for all others" if plan.single else ""
    if needed is None:
        console.print("No number of boxes is enough: a stream is larger than a box, or no box reaches it.")
    else:
        console.print(f"N+1{rest} takes {needed} equal box{'es' * (needed != 1)}{besides}.")


def _print_loss(lost: list[str], after: Placement, boxes: Any) -> None:
    console = output_console(highlight=False, markup=False)
    console.print(f"\nWithout {', '.join(lost)}: {len(after.moved)} streams move, {len(after.unplaced)} have no box\n")
    console.print(_table(boxes))
    if after.unplaced:
        console.print(f"\nno room for: {_names(after.unplaced)}")
