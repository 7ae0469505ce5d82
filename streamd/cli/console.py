"""Shared by the offline commands: a progress bar on standard error, and backend options."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


def positive(text: str) -> int:
    """An option's value: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def duration(text: str) -> float:
    """An option's value: seconds above 0, an end that comes."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return value


def options_told(error: ValidationError) -> str:
    """What is wrong with options whose names are those of the settings that could not be made of them."""
    from streamd.config.expected import out_of_bounds

    return "; ".join(
        f"--{str(e['loc'][0]).replace('_', '-')}: {out_of_bounds(e['type'], e.get('ctx', {}), e['input']) or e['msg']}"
        for e in error.errors()
    )


def share(text: str) -> float:
    """An option's value: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return value


ENGINE = "inference backend. Default: auto, which is TensorRT where it finds an NVIDIA GPU, otherwise OpenVINO"


def add_engine_options(p: argparse.ArgumentParser) -> None:
    """Adds the options that select the backend."""
    p.add_argument("--engine", choices=("auto", "openvino", "tensorrt"), default="auto", help=ENGINE)


def add_head_option(p: argparse.ArgumentParser) -> None:
    """Adds the option that declares the head."""
    from streamd.heads import HEADS

    p.add_argument(
        "--head",
        metavar="HEAD",
        choices=HEADS.names(),
        help=f"how to read the outputs: {', '.join(HEADS.names())}. Default: as the sidecar declares, otherwise from "
        "their shapes",
    )


def add_judging_options(p: Any) -> None:
    """The options of the accuracy gate that `quantize` and `build` share."""
    p.add_argument(
        "--max-drop", type=share, default=0.01, metavar="MAP", help="largest acceptable loss of mAP (default 0.01)"
    )
    p.add_argument(
        "--prove",
        action="store_true",
        help="refuse unless the whole 95 %% interval of the loss is within --max-drop",
    )
    add_classes_option(p)


def add_classes_option(p: Any) -> None:
    """The option that restricts accuracy to some classes."""
    p.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="count only these classes, for labels that are complete for some only. Default: all that the labels have",
    )


def engine_of(args: argparse.Namespace) -> dict[str, Any]:
    """Backend settings from parsed options."""
    return {"kind": args.engine}


def say(text: str, indent: int = 0) -> None:
    """Prints a paragraph. On a terminal, it is broken between words; to a file or another program goes one line.

    Args:
        text: what to print.
        indent: of the second line and those that follow, in columns.
    """
    if sys.stdout.isatty():
        width = max(40, shutil.get_terminal_size().columns)
        text = textwrap.fill(
            text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
            replace_whitespace=False,
        )  # fmt: skip
    print(text)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yields report(what, done, total): one bar per `what`; total 0 means unknown. Silent if not on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bars: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def report(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = bar.add_task(what, total=total or None)
            bar.update(bars[what], completed=done, total=total or None)

        yield report


def output_console(**options: Any) -> Any:
    """Standard output for tables: as wide as the terminal, or 80 columns where there is none.

    Args:
        options: of `rich.console.Console`.
    """
    from rich.console import Console

    console = Console(**options)
    return console if console.is_terminal else Console(width=80, **options)


def enumerated(counts: Mapping[str, int], most: int | None = None) -> str:
    """Numbers of things in words, as `3 car, 3 person, 1 bus`: the most frequent first, by name among equals.

    Args:
        counts: by name.
        most: so many names.
    """
    found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {name}" for name, n in found[:most])
