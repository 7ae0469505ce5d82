"""What the rules of each stream have counted: kept with the events that change it, for the process that continues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from streamd.events.record import RuleStates

STATE_VERSION = 1
"""Of `RuleEngine.state`, which `assembled` makes."""
_LEFT = ""
"""In place of a rule's name: the stream as its last process left it."""


class Target(Protocol):
    """Where states are kept, by stream and rule."""

    def items(self) -> Iterable[tuple[tuple[str, str], dict[str, Any]]]:
        """All of them."""

    def put(self, key: tuple[str, str], value: dict[str, Any]) -> None:
        """Replaces one."""


def put(target: Target, stream: str, state: Mapping[str, Any]) -> None:
    """Keeps the state of one rule. The stream has a process: it is not as another one left it any more."""
    target.put((stream, str(state["name"])), dict(state))
    target.put((stream, _LEFT), {})


def put_all(target: Target, told: RuleStates) -> None:
    """Keeps the states of several rules, and how the process leaves the stream if it does."""
    for state in told.rules:
        put(target, told.stream, state)
    if told.memory is not None:
        target.put((told.stream, _LEFT), {"wall_ns": told.seen_ns, "memory": told.memory})


def assembled(states: Mapping[tuple[str, str], Mapping[str, Any]], stream: str) -> dict[str, Any] | None:
    """The state from which the rules of a stream continue, as of `RuleEngine.state`; None if none is known.

    `wall_ns` is None where a process has died with the stream: it is not known when it last saw it.
    """
    rules = [dict(state) for rule, state in _of(states, stream) if rule != _LEFT]
    if not rules:
        return None
    left = states.get((stream, _LEFT)) or {"wall_ns": None, "memory": []}
    return {
        "version": STATE_VERSION, "wall_ns": left["wall_ns"], "memory": left["memory"],
        "lines": [each for each in rules if "crossings" in each],
        "zones": [each for each in rules if "crossings" not in each],
    }  # fmt: skip


def _of(states: Mapping[tuple[str, str], Mapping[str, Any]], stream: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for (owner, rule), state in list(states.items()):
        if owner == stream:
            yield rule, state


def forget_memory(target: Target, stream: str | None) -> None:
    """Forgets where objects were when a process left their stream: events are deleted on request.

    Args:
        target: the states.
        stream: id; None for all.
    """
    for (owner, rule), state in list(target.items()):
        if rule == _LEFT and state and stream in (None, owner):
            target.put((owner, rule), {**state, "memory": []})


class Latest(dict[tuple[str, str], dict[str, Any]]):
    """States that may not be committed yet, by stream and rule."""

    def put(self, key: tuple[str, str], value: dict[str, Any]) -> None:
        """See `Target`."""
        self[key] = value
