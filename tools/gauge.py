"""Measures the resources of a running daemon (memory, file descriptors, threads), and whether they grow."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Held:
    """Resources of a process and all its children."""

    rss: int
    """Bytes."""
    fds: int
    threads: int


def held(pid: int) -> Held:
    """The current resources of the process `pid` and its children."""
    root = psutil.Process(pid)
    found = []
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
    return Held(*(sum(column) for column in zip(*found, strict=True)))


@dataclass(frozen=True, slots=True)
class Slope:
    """A straight line through measurements, by least squares."""

    per: float
    """Units of y for one unit of x."""
    error: float
    """Its standard error."""


def slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """The line through (x, y). Fewer than three points, or all at one x, have none: NaN."""
    n = len(x)
    mean_x, mean_y = sum(x) / max(n, 1), sum(y) / max(n, 1)
    spread = sum((a - mean_x) ** 2 for a in x)
    if n < 3 or not spread:
        return Slope(math.nan, math.nan)
    per = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - mean_y - per * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    return Slope(per, math.sqrt(rest / (n - 2) / spread))
