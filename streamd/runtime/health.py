"""What the health and readiness answers of a daemon say, with workers or without."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class SinkHealth(Protocol):
    """A sink, as far as its health is concerned."""

    name: str

    @property
    def problem(self) -> str | None: ...


def problems_of(sinks: Iterable[SinkHealth]) -> dict[str, str]:
    """Why sinks are not open, by name; empty where all are."""
    return {sink.name: problem for sink in sinks if (problem := sink.problem) is not None}


def health_of(problem: str | None, boot_id: str, sinks: Iterable[SinkHealth], journal: str | None) -> dict[str, Any]:
    """The body of the health answer.

    A sink that is down and a journal that cannot be written are told and are no reason to restart the daemon: both
    recover by themselves.

    Args:
        problem: what the watchdog holds against the daemon.
        boot_id: of the daemon.
        sinks: all of them.
        journal: why the event journal cannot be written.
    """
    body: dict[str, Any] = {"ok": problem is None, "problem": problem, "boot_id": boot_id}
    if down := problems_of(sinks):
        body["sinks"] = down
    if journal is not None:
        body["events"] = journal
    return body
