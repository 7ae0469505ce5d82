"""`streamd kinds`: lists what a configuration may name as a kind, and the packages that add to it."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator
from typing import Any

from streamd import __version__
from streamd.cli.console import say
from streamd.errors import ConfigError

SAYS = ("problem", "description", "note")
"""What is printed of a kind, in this order."""


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
    from streamd.settings.offers import elsewhere

    found = {registry.group: list(_kinds(registry)) for registry in REGISTRIES}
    contracts = {registry.group: f": contract {registry.contract}" for registry in REGISTRIES}
    for group, offers in elsewhere(list(found)).items():
        found[group] = [_entry(offer.point.name, offer.package, None) | {"problem": offer.problem} for offer in offers]
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        for group, kinds in found.items():
            print(group + contracts.get(group, ""))
            _print(kinds)
    broken = any("problem" in each for kinds in found.values() for each in kinds)
    return ConfigError.exit_code if broken else 0


def _print(kinds: list[dict[str, Any]]) -> None:
    rows = [(each["kind"], each["package"], " ".join(each[key] for key in SAYS if each.get(key))) for each in kinds]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for kind, package, says in rows:
        head = f"  {kind:{widths[0]}}  {package:{widths[1]}}  "
        say(f"{head}{says}".rstrip(), len(head))


def _entry(kind: str, package: str, contract: int | None) -> dict[str, Any]:
    return {"kind": kind, "package": package, "contract": contract}


def _kinds(registry: Any) -> Iterator[dict[str, Any]]:
    """The kinds of one registry: name, package, contract, and description or problem."""
    from pydantic_core import PydanticCustomError

    for name, settings in registry.builtin().items():
        own = _entry(name, f"streamd {__version__}", registry.contract)
        yield own | {"description": _description(settings)}
    for name, offers in registry.offers().items():
        for offer in offers:
            entry = _entry(name, offer.package, offer.contract)
            if name in registry.builtin():
                yield entry | {"problem": "is not used, since streamd has a kind of that name; rename it"}
                continue
            try:
                entry["description"] = _description(registry.find(name))
            except PydanticCustomError as error:
                yield entry | {"problem": error.message()}
                continue
            if offer.contract is None:
                wanted = f"{registry.group}.{registry.contract}"
                entry["note"] = f"(Names no contract; the group {wanted} would be of this one.)"
            yield entry


def _description(settings: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join(inspect.cleandoc(settings.__doc__ or "").partition("\n\n")[0].split())
