"""What the offline commands share: a progress bar on standard error, and backend options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def positive(text: str) -> int:
    """An option's value: a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def share(text: str) -> float:
    """An option's value: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return value


def add_engine_options(p: argparse.ArgumentParser) -> None:
    """The options that say what runs the model."""
    p.add_argument("--engine", choices=("auto", "openvino", "tensorrt"), default="auto", help="what runs the model")


def add_head_option(p: argparse.ArgumentParser) -> None:
    """The option that declares the head."""
    from streamd.heads import KINDS

    p.add_argument("--head", choices=KINDS, help="what the outputs mean. Default: sidecar, else from their shapes")


def engine_of(args: argparse.Namespace) -> dict[str, Any]:
    """Backend settings of parsed options."""
    return {"kind": args.engine}


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yields report(what, done, total): one bar for each `what`; total 0 is unknown. Silent where nobody looks."""
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
