"""`streamd kinds`: lists what a configuration may name as a kind, and the packages that add to it."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator
from typing import Any

from streamd import __version__
from streamd.errors import ConfigError


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "kinds",
        help="list the kinds of sources, engines, heads, trackers and sinks, with the packages that add some",
        description="Lists all kinds of sources, engines, heads, trackers and sinks, with the packages that they come "
        "from, which are imported. The exit code is 2 if one of them cannot be used.",
    )
    p.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the kinds. Returns the code of a configuration error if one cannot be used."""
    from streamd.config.foreign import REGISTRIES

    found = {registry.group: list(_kinds(registry)) for registry in REGISTRIES}
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        for group, kinds in found.items():
            print(group)
            widths = [max(len(each[key]) for each in kinds) for key in ("kind", "package")]
            for each in kinds:
                says = each.get("problem", each.get("description"))
                print(f"  {each['kind']:{widths[0]}}  {each['package']:{widths[1]}}  {says}".rstrip())
    broken = any("problem" in each for kinds in found.values() for each in kinds)
    return ConfigError.exit_code if broken else 0


def _kinds(registry: Any) -> Iterator[dict[str, str]]:
    """The kinds of one registry: name, package, and description or problem."""
    from pydantic_core import PydanticCustomError

    from streamd.settings.registry import package

    for name, settings in registry.builtin().items():
        yield {"kind": name, "package": f"streamd {__version__}", "description": _description(settings)}
    for name, points in registry.offers().items():
        for point in points:
            entry = {"kind": name, "package": package(point)}
            if name in registry.builtin():
                yield entry | {"problem": "is not used, since streamd has a kind of that name; rename it"}
                continue
            try:
                yield entry | {"description": _description(registry.find(name))}
            except PydanticCustomError as error:
                yield entry | {"problem": error.message()}


def _description(settings: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join(inspect.cleandoc(settings.__doc__ or "").partition("\n\n")[0].split())
