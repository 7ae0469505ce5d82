"""Which boxes there are to be, and their names, which stay: a box finds its daemon and its folder by its name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

_ID = 12
"""Characters of a node's id that an actor's name has."""


@dataclass(frozen=True)
class Node:
    """A node that can have boxes."""

    id: str
    name: str
    address: str
    labels: tuple[str, ...]
    boxes: int
    """How many it is to have."""
    gpus: bool = False
    """Whether each takes a share of a GPU."""


@dataclass(frozen=True)
class Wanted:
    """A box that is to be there."""

    name: str
    node: Node
    index: int

    @property
    def actor(self) -> str:
        """A node that has come back is another one: its box needs another actor, and finds its daemon by the name."""
        return f"box:{self.name}:{self.node.id[:_ID]}"


class Roster:
    """The names of the nodes' boxes, for one coordinator."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        """By id of a node: the name of its box, without a number."""
        self._left: set[str] = set()
        """Ids of nodes that have been started again as others, until Ray notices."""

    def wanted(self, nodes: Sequence[Node], there: Collection[str], most: int) -> list[Wanted]:
        """The boxes that there are to be, in the order of their names.

        A node is called by its name. Ray takes a node that died for alive for half a minute; if one of the same name
        and address joins meanwhile, it is that one, started again, and the other one is left out. Of several machines
        with the same name, the later ones have a part of their id behind it.

        Args:
            nodes: those that are alive, as far as Ray knows.
            there: actors of boxes that there are, by `Wanted.actor`: a new coordinator learns the names from them.
            most: most boxes.
        """
        self._left.intersection_update(n.id for n in nodes)
        alive = {n.id: n for n in nodes if n.id not in self._left}
        self._names = {i: name for i, name in self._names.items() if i in alive}
        ids = {i[:_ID]: i for i in alive}
        for actor in sorted(there):
            _, name, short = actor.split(":")
            if (known := ids.get(short)) is not None and known not in self._names:
                self._names[known] = name if alive[known].boxes == 1 else name.rpartition("-")[0]
        old, new = dict(self._names), sorted(alive.keys() - self._names.keys(), key=lambda i: (alive[i].name, i))
        for each in new:
            node = alive[each]
            before = next((i for i in old if (alive[i].name, alive[i].address) == (node.name, node.address)), None)
            if before is not None:
                self._names[each] = self._names.pop(before)
                del old[before]
                self._left.add(before)
            else:
                taken = node.name in self._names.values()
                self._names[each] = f"{node.name}-{each[:6]}" if taken else node.name
        found: list[Wanted] = []
        for each, name in sorted(self._names.items(), key=lambda item: (item[1], item[0])):
            node = alive[each]
            own = [name] if node.boxes == 1 else [f"{name}-{i + 1}" for i in range(node.boxes)]
            found += [Wanted(box, node, i) for i, box in enumerate(own, 1)]
        return found[:most]
