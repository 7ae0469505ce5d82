"""What installed packages offer: their entry points, and the version of the contract that each was written for.

The version is the number at the end of the entry point's group: in `streamd.sinks.1` are sinks for version 1 of the
contract for sinks. It is read with the group, so no package is imported for it. The group without a number says nothing
about a version; a kind in it is used as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from streamd import __version__


@dataclass(frozen=True)
class Offer:
    """One kind that a package announces."""

    point: EntryPoint
    contract: int | None = None
    """The version that it was written for; None if it says none."""
    problem: str = ""
    """Why it cannot be used with this streamd, and what to do, to follow the name of its package; empty if it can."""

    @property
    def package(self) -> str:
        """Name and version of the distribution; its module if it was uninstalled since."""
        dist = self.point.dist
        known = dist is not None and "Name" in dist.metadata
        return f"{dist.name} {dist.version}" if dist is not None and known else self.point.module

    @property
    def _name(self) -> str:
        return self.package.partition(" ")[0]


def offers(group: str, contract: int) -> dict[str, list[Offer]]:
    """Every offer of a part, by kind: more than one if several packages offer a kind of that name.

    Of a package that offers a kind for several versions, only the one to be used is listed; if none can be, the newest.

    Args:
        group: the part's entry points, without a version.
        contract: the version that this streamd offers.
    """
    found: dict[str, list[Offer]] = {}
    every = entry_points()
    for name in sorted(every.groups):
        if name == group or name.startswith(f"{group}."):
            for point in sorted(every.select(group=name)):
                found.setdefault(point.name, []).append(_offer(point, group, contract))
    return {kind: _best(each) if len(each) > 1 else each for kind, each in sorted(found.items())}


def elsewhere(groups: Sequence[str]) -> Mapping[str, list[Offer]]:
    """Entry points in groups that look like streamd's, but are none of `groups` or their versions: by group."""
    every = entry_points()
    wanted = [name for name in every.groups if name.startswith("streamd.") and not _part_of(name, groups)]
    problem = f"is in no group that streamd reads ({', '.join(groups)}); repair its entry point"
    return {name: [Offer(point, None, problem) for point in sorted(every.select(group=name))] for name in wanted}


def _part_of(name: str, groups: Iterable[str]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def _offer(point: EntryPoint, group: str, contract: int) -> Offer:
    if point.group == group:
        return Offer(point)
    version = point.group[len(group) + 1 :]
    if not (version.isascii() and version.isdigit()):
        return Offer(
            point, None, f"has it in the group {point.group}; expected a number at the end: {group}.{contract}"
        )
    number = int(version)
    if number == contract:
        return Offer(point, number)
    remedy = "upgrade streamd, or install an older version of the package"
    if number < contract:
        remedy = "install a newer version of the package, or the streamd that it was written for"
    written = f"was written for version {number} of the contract ({group}.{number})"
    return Offer(point, number, f"{written}; this streamd {__version__} offers version {contract}; {remedy}")


def _best(found: Sequence[Offer]) -> list[Offer]:
    """One offer of each package: what can be used, rather with a version, otherwise the newest."""
    best: dict[str, Offer] = {}
    for offer in found:
        known = best.get(offer._name)
        if known is None or _worth(offer) > _worth(known):
            best[offer._name] = offer
    return list(best.values())


def _worth(offer: Offer) -> tuple[bool, int]:
    # A package that names versions means those: without a fitting one, its offer without a version does not count.
    return offer.contract is not None and not offer.problem, -1 if offer.contract is None else offer.contract
