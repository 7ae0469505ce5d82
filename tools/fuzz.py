#!/usr/bin/env python3
"""Feeds mutated input to everything of streamd that reads what others wrote; looks for crashes, hangs and exceptions.

usage: fuzz.py [--count N] [--seed S] [--jobs J] [--save FOLDER] [TARGET …]
       fuzz.py --only NUMBER TARGET     one input again, with what came of it
       fuzz.py --list

Deterministic: an input is known by its target, the seed and its number. What is found is written to FOLDER; once
mended, it belongs into tests/fuzz/seeds/TARGET, from where it is tried first by every later run.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzzing.run import TARGETS, Finding, Result, fuzz, serve

from streamd.telemetry.logs import configure


def shares(names: list[str], count: int) -> dict[str, int]:
    """How many of `count` inputs each target gets."""
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
    """Exit code 1 where something was found."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    p.add_argument("--count", type=int, default=12_000, help="inputs in all (default %(default)s)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--jobs", type=int, default=2, help="targets at the same time")
    p.add_argument("--save", type=Path, help="folder for what is found")
    p.add_argument("--only", type=int, metavar="NUMBER", help="just this input of one target")
    p.add_argument("--list", action="store_true", help="name the targets")
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
