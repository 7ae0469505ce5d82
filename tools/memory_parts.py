"""Where the memory of a process lies: by kind, and by mapping. Linux's /proc only."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ \d+ *(.*)")


@dataclass(frozen=True, slots=True)
class Parts:
    """Resident memory of a process, MiB."""

    anon: float
    """Its own: heaps, stacks, private mappings that were written to."""
    file: float
    """Pages of files, libraries above all: the system may take them away at any time."""
    shared: float
    """Memory shared with other processes and with drivers, pinned memory among it."""

    @property
    def sum(self) -> float:
        return self.anon + self.file + self.shared


def parts(pid: int) -> Parts:
    """The parts of a process.

    Raises:
        OSError: there is no such process.
    """
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(Rss\w+):\s*(\d+) kB", text, re.MULTILINE))
    return Parts(*(int(found.get(name, 0)) / 1024 for name in ("RssAnon", "RssFile", "RssShmem")))


def family(pid: int) -> dict[str, int]:
    """A daemon and its children, oldest first: pids by "daemon", "child 1", ... ."""
    root = psutil.Process(pid)
    with contextlib.suppress(psutil.NoSuchProcess):
        children = sorted(root.children(recursive=True), key=lambda child: (child.create_time(), child.pid))
        return {"daemon": pid} | {f"child {i + 1}": child.pid for i, child in enumerate(children)}
    return {"daemon": pid}


def mappings(pid: int) -> Counter[str]:
    """Resident KiB by what is mapped: a file's path, [heap], "anonymous"; and, once more, what of it is in huge pages,
    which the kernel makes of small ones without being asked.

    The text is read line by line, and never held as a whole: of a process with thousands of mappings it takes
    megabytes, which a process that looks at itself would find as its own.

    Raises:
        OSError: there is no such process.
    """
    found: Counter[str] = Counter()
    name = ""
    with Path(f"/proc/{pid}/smaps").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("Rss:"):
                found[name] += int(line.split()[1])
            elif line.startswith("AnonHugePages:"):
                found["huge pages"] += int(line.split()[1])
            elif mapping := _MAPPING.fullmatch(line.rstrip("\n")):
                name = mapping[2] or "anonymous"
    return found


def growth(before: Counter[str], after: Counter[str], most: int = 5) -> dict[str, float]:
    """What changed most between two of `mappings`, MiB."""
    change = {name: (after[name] - before[name]) / 1024 for name in before | after}
    first = sorted(change, key=lambda name: -abs(change[name]))[:most]
    return {name: round(change[name], 2) for name in first if change[name]}


def columns(samples: list[Parts]) -> Iterator[tuple[str, list[float]]]:
    """Each kind's values over time."""
    for field in fields(Parts):
        yield field.name, [getattr(sample, field.name) for sample in samples]
