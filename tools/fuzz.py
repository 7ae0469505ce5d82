#!/usr/bin/env python3
"""Feeds mutated input to all parts of streamd that read external data, to find crashes, hangs and exceptions.

usage: fuzz.py [--count N] [--seed S] [--jobs J] [--save FOLDER] [TARGET …]
       fuzz.py --only NUMBER TARGET     repeats one input and shows the result
       fuzz.py --list

Deterministic: target, seed and number identify an input. Findings are written to FOLDER; once fixed, they belong into
tests/fuzz/seeds/TARGET, which every later run tries first."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzzing.run import TARGETS, Finding, Result, fuzz, serve

from streamd.telemetry.logs import configure


def shares(names: list[str], count: int) -> dict[str, int]:
    """The number of inputs for each target, out of `count`."""
    whole = sum(TARGETS[name].share for name in names)
    return {name: max(TARGETS[name].least, round(count * TARGETS[name].share / whole)) for name in names}


def table(results: list[Result]) -> str:
    """For docs/reliability-evidence.md."""
    lines = [
        "| target | read by | inputs | accepted | rejected | found | slowest ms | peak MB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        *(
            f"| `{r.target}` | {TARGETS[r.target].what} | {r.inputs} | {r.accepted} | {r.refused} | {len(r.findings)} "
            f"| {r.slowest_s * 1e3:.0f} | {r.peak_mb:.0f} |"
            for r in results
        ),
    ]
    total = [sum(getattr(r, k) for r in results) for k in ("inputs", "accepted", "refused")]
    found = sum(len(r.findings) for r in results)
    lines.append(f"| all | | {total[0]} | {total[1]} | {total[2]} | {found} | | |")
    return "\n".join(lines)


def main() -> int:
    """Exit code 1 if there are findings."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    p.add_argument("--count", type=int, default=12_000, help="total number of inputs (default %(default)s)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--jobs", type=int, default=2, help="targets at the same time")
    p.add_argument("--save", type=Path, help="folder for findings")
    p.add_argument("--only", type=int, metavar="NUMBER", help="only this input of one target")
    p.add_argument("--list", action="store_true", help="list the targets")
    p.add_argument("--serve", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.serve:
        serve(args.serve)
        return 0
    names = args.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        p.error(f"unknown target {unknown[0]}; expected one of {', '.join(TARGETS)}")
    if args.list:
        for name in names:
            print(f"{name:<10} {TARGETS[name].what}")
        return 0

    def told(finding: Finding) -> None:
        print(f"{finding.target} {finding.number}: {finding.kind}\n{finding.text}", file=sys.stderr, flush=True)
        if args.save is not None:
            folder = args.save / finding.target
            folder.mkdir(parents=True, exist_ok=True)
            (folder / finding.name).write_bytes(finding.data)

    configure("error", "json")
    only = [args.only] if args.only is not None else None
    with ThreadPoolExecutor(args.jobs) as pool:
        running = [
            pool.submit(fuzz, name, count, seed=args.seed, only=only, told=told)
            for name, count in shares(names, args.count).items()
        ]
        results = [each.result() for each in running]
    print(table(results))
    return 1 if any(r.findings for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
