"""`streamd count INPUT…`: counts what crosses lines and stays in zones of video files."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from streamd.cli.annotate import same_file
from streamd.cli.console import add_engine_options, add_head_option, output_console, positive, progress
from streamd.cli.detect import Run, add_detect_options, detect_settings
from streamd.cli.rules import add_rule_options, rules_of
from streamd.engine import BUILTIN, ModelSettings
from streamd.errors import ConfigError, SinkError
from streamd.security.redact import redact
from streamd.security.text import plain, printable
from streamd.telemetry.logs import configure


@dataclass(frozen=True)
class Row:
    """One count of one input. Where nothing was counted, `label` is empty."""

    input: str
    kind: str
    """line or zone"""
    name: str
    direction: str
    """Lines only."""
    label: str
    count: int
    """Certain crossings, or presences that began."""
    uncertain: int | None
    """Lines: crossings that were not fully observed."""
    dwell_s: float | None
    """Zones: seconds of all presences together."""
    mean_dwell_s: float | None


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "count",
        help="count line crossings and dwell in video files",
        description="Tracks the objects of each video and counts those that cross the lines, and how long they are in "
        "the zones. Time is the video's own.",
        epilog="""example: streamd count clip.mp4 --lines '[{name: gate, points: [[0.5, 0.2], [0.5, 0.9]]}]'""",
    )
    p.add_argument("inputs", metavar="INPUT", nargs="+", help="video file or URL")
    model = f"{BUILTIN}road6"
    p.add_argument("--model", default=model, help=f"model (default {model}: people and road vehicles)")
    add_rule_options(p)
    add_detect_options(p)
    p.add_argument("--labels", help="text file with one class name per line")
    add_head_option(p)
    add_engine_options(p)
    p.add_argument("--csv", metavar="OUT", help="write the counts to this file")
    p.add_argument("--json", action="store_true", help="print the counts as one JSON list instead of a table")
    p.add_argument("--limit", type=positive, metavar="N", help="read at most N frames of each input")


def rows_of(given: str, counts: Mapping[str, Any]) -> Iterable[Row]:
    """The rows of one input.

    Args:
        given: name of the input.
        counts: see `RuleEngine.counters`.
    """
    for name, line in counts["lines"].items():
        for way, certain in line["crossings"].items():
            uncertain = line["uncertain"][way]
            for label in sorted({*certain, *uncertain}) or [""]:
                yield Row(given, "line", name, way, label, certain.get(label, 0), uncertain.get(label, 0), None, None)
    for name, zone in counts["zones"].items():
        for label in sorted(zone["begun"]) or [""]:
            total, ended = zone["dwell_s"].get(label, 0.0), zone["ended"].get(label, 0)
            mean = round(total / ended, 3) if ended else None
            yield Row(given, "zone", name, "", label, zone["begun"].get(label, 0), None, total, mean)


def table(rows: Sequence[Row]) -> Any:
    """The rows as a table that fits into 80 columns; the input is shown where there are several."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    several = len({row.input for row in rows}) > 1
    for name in [*(["input"] if several else []), "rule", "direction", "label"]:
        made.add_column(name, overflow="fold")
    for name in ("count", "uncertain", "mean s", "total s"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        words = [*([Path(row.input).name] if several else []), f"{row.kind} {row.name}", row.direction, row.label]
        seconds = ("" if value is None else f"{value:.1f}" for value in (row.mean_dwell_s, row.dwell_s))
        uncertain = "" if row.uncertain is None else str(row.uncertain)
        made.add_row(*(escape(plain(word)) for word in words), str(row.count), uncertain, *seconds)
    return made


def _write_csv(path: str, rows: Iterable[Row]) -> None:
    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(field.name for field in fields(Row))
            writer.writerows(map(astuple, rows))
    except OSError as error:
        raise SinkError(f"--csv {printable(path)}: {error.strerror}") from error


def _frames_in(path: str) -> int:
    """Pictures in a video file, as its container declares; 0 if it does not."""
    import av

    try:
        with av.open(path) as container:
            video = container.streams.video[0]
            rate = video.average_rate
            declared = float(container.duration / av.time_base * rate) if container.duration and rate else 0.0
            return video.frames or round(declared)
    except (OSError, IndexError, ValueError):
        return 0  # reading it will say why


def _total(args: argparse.Namespace) -> int:
    """Frames to be read, 0 if unknown."""
    each = [0 if "://" in given else _frames_in(given) for given in args.inputs]
    if args.limit is not None:
        each = [min(n or args.limit, args.limit) for n in each]
    return sum(each) if all(each) else 0


def run(args: argparse.Namespace) -> int:
    """Counts and shows what was counted. Inputs that cannot be read are named; the others go on."""
    configure("warning")
    zones, lines = rules_of(args)
    if not zones and not lines:
        raise ConfigError("count: nothing to count; give --lines or --zones")
    read = [*args.inputs, *filter(None, (args.model, args.labels, args.lines, args.zones))]
    if args.csv is not None and any(same_file(args.csv, given) for given in read):
        raise ConfigError(f"--csv {args.csv}: is one of the files that are read; choose another one")
    if args.csv is not None and not Path(args.csv).absolute().parent.is_dir():
        raise ConfigError(f"--csv {args.csv}: its folder does not exist")
    job = Run(
        args.inputs, ModelSettings(path=args.model, labels=args.labels), detect_settings(args), engine=args.engine,
        head=args.head, limit=args.limit, track=True, zones=zones, lines=lines,
    )  # fmt: skip
    try:
        total = _total(args)
        with progress() as report:
            for done, _ in enumerate(job.results_of(), 1):
                report("frames", done, total)
    finally:
        job.close()
    if job.pipeline.error is not None:
        raise job.pipeline.error
    rows = [row for given, counts in job.counts() for row in rows_of(redact(given), counts)]
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
    elif rows:
        _print_table(rows)
    if args.csv is not None:
        _write_csv(args.csv, rows)
    for error in job.errors:
        print(f"streamd: {redact(str(error))}", file=sys.stderr)
    return job.errors[0].exit_code if job.errors else 0


def _print_table(rows: Sequence[Row]) -> None:
    output_console().print(table(rows))
