#!/usr/bin/env python3
"""Writes requirements.lock: every package that the daemon runs with, pinned, with the hashes of its files.

One file for CPython 3.10 to 3.13 on x86_64 and aarch64 Linux: lines that differ carry markers. Needs `uv` (pip install
uv) and a package index; --check needs neither, and checks whether the file still matches pyproject.toml.

usage: lock.py [--upgrade | --check]
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
HEAD = "# Written by tools/lock.py. pip install --require-hashes -r requirements.lock\n"
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Pin:
    """One entry of the file."""

    name: str
    version: str
    requirement: Requirement
    hashes: int


def environment(python: str, machine: str) -> dict[str, str]:
    """The markers' values on such a machine."""
    return {
        **{name: str(value) for name, value in default_environment().items()},
        "implementation_name": "cpython", "platform_python_implementation": "CPython", "os_name": "posix",
        "sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine,
        "python_version": python, "python_full_version": f"{python}.0", "extra": "",
    }  # fmt: skip


def wanted(project: str) -> list[Requirement]:
    """`dependencies` of a pyproject.toml."""
    found = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    return [Requirement(text) for text in re.findall(r'"([^"]+)"', found[1])] if found else []


def pins(lock: str) -> list[Pin]:
    """The entries of a lock file.

    Raises:
        ValueError: a line that is not a pin.
    """
    out = []
    for entry in re.sub(r"\s*\\\n\s*", " ", lock).splitlines():
        text = _HASH.sub("", entry).strip()
        if not text or text.startswith("#"):
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise ValueError(f"{text}: not a requirement ({error})") from None
        specifiers = list(requirement.specifier)
        if requirement.url or len(specifiers) != 1 or specifiers[0].operator != "==":
            raise ValueError(f"{text}: expected NAME==VERSION")
        name = canonicalize_name(requirement.name)
        out.append(Pin(name, specifiers[0].version, requirement, len(_HASH.findall(entry))))
    return out


def problems(project: str, lock: str) -> Iterator[str]:
    """The problems of a lock file for a pyproject.toml; both as text."""
    if "://" in lock or "--index-url" in lock:
        yield "names a host; whoever installs chooses the index"
    try:
        entries = pins(lock)
    except ValueError as error:
        yield str(error)
        return
    yield from (f"{pin.name}=={pin.version} has no hash" for pin in entries if not pin.hashes)
    for python in PYTHONS:
        for machine in MACHINES:
            here = environment(python, machine)
            where = f"on Python {python}, {machine}"
            found: dict[str, list[str]] = {}
            for pin in entries:
                if pin.requirement.marker is None or pin.requirement.marker.evaluate(here):
                    found.setdefault(pin.name, []).append(pin.version)
            yield from (
                f"{name} is pinned to {versions} {where}" for name, versions in found.items() if len(versions) > 1
            )
            for requirement in wanted(project):
                if requirement.marker is not None and not requirement.marker.evaluate(here):
                    continue
                name = canonicalize_name(requirement.name)
                for version in found.get(name, [""]):
                    if not version:
                        yield f"{name} is not pinned {where}"
                    elif not requirement.specifier.contains(version, prereleases=True):
                        yield f"{name}=={version} does not satisfy {requirement} {where}"


def write(*, upgrade: bool) -> None:
    """Resolves again; without `upgrade`, pins that still fit are kept."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin") or shutil.which("uv")
    if uv is None:
        raise SystemExit("lock.py: uv is not installed; pip install uv")
    command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", PYTHONS[0], "--generate-hashes",
               "--no-header", "--no-annotate", "--no-emit-index-url", "--output-file", str(LOCK)]  # fmt: skip
    command += ["--upgrade"] if upgrade else []
    subprocess.run([*command, "pyproject.toml"], cwd=ROOT, check=True)
    LOCK.write_text(HEAD + LOCK.read_text().removeprefix(HEAD))


def main() -> int:
    """Writes or checks the file."""
    p = argparse.ArgumentParser(description="Writes requirements.lock; --check compares it with pyproject.toml.")
    p.add_argument("--upgrade", action="store_true", help="take the newest releases")
    p.add_argument("--check", action="store_true", help="change nothing")
    args = p.parse_args()
    if not args.check:
        write(upgrade=args.upgrade)
    found = list(dict.fromkeys(problems((ROOT / "pyproject.toml").read_text(), LOCK.read_text())))
    for problem in found:
        print(f"{LOCK.name}: {problem}", file=sys.stderr)
    print(f"{LOCK.name} {'does not match pyproject.toml: run tools/lock.py' if found else 'is up to date'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
