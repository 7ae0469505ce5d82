"""The daemon's journal of events, and the road from it to the sinks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from streamd.config import Config
from streamd.events.journal import Journal
from streamd.events.place import default_state_dir, user_folder
from streamd.events.record import Event, Record, data
from streamd.events.upkeep import Limits
from streamd.sinks.envelope import OutgoingEvent

log = structlog.get_logger(__name__)


class Outlet(Protocol):
    """A sink, as far as events are concerned."""

    name: str

    def put_event(self, event: OutgoingEvent) -> None: ...

    def attach(self, journal: Journal, instance: str) -> None: ...


def state_dir(config: Config, name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of the journal; see `EventsSettings.state_dir`.

    Args:
        config: may name it.
        name: of the configuration file, without its ending.
        environment: variables.
    """
    if config.events.state_dir is not None:
        return Path(config.events.state_dir)
    found = default_state_dir(name, environment)
    return found if found is not None else user_folder(environment) / name


def has_rules(config: Config) -> bool:
    """Whether any stream has a zone or a line."""
    return any(s.zones or s.lines for s in config.streams)


class EventLog:
    """Opens the journal once a configuration has rules, and hands what is committed to every sink.

    Args:
        name: of the configuration, for the folder's.
        boot_id: identity of this daemon in every event's message.
        outlets: the sinks, whenever they are asked for.
    """

    def __init__(self, name: str, boot_id: str, outlets: Callable[[], Sequence[Outlet]]) -> None:
        self._name, self._boot_id, self._outlets = name, boot_id, outlets
        self.journal: Journal | None = None

    def ensure(self, config: Config) -> None:
        """Opens the journal where `config` has rules and it is not open yet.

        What an earlier process left open is ended at the last time that is known of it.

        Raises:
            ConfigError: the folder cannot be used, or belongs to another daemon.
        """
        if self.journal is not None or not has_rules(config):
            return
        keep = config.events
        folder = state_dir(config, self._name)
        journal = Journal(folder, retention=Limits(max_age_s=keep.keep_days * 86_400, max_events=keep.keep_events))
        journal.listen(self._committed)
        journal.start()
        # Before the first event: a sink that is new today receives all of them.
        journal.keep_cursors([outlet.name for outlet in self._outlets()])
        for outlet in self._outlets():
            outlet.attach(journal, self._name)
        journal.end_open("process_died")
        self.journal = journal
        log.info("event journal", folder=str(folder))

    def submit(self, event: Event) -> bool:
        """Hands an event to the journal. Never waits. Any thread."""
        return self.journal is not None and self.journal.submit(event)

    @property
    def problem(self) -> str | None:
        """Why the journal cannot be written; None while it can, or where there is none."""
        return (self.journal.status().problem or None) if self.journal is not None else None

    def _committed(self, records: Sequence[Record]) -> None:
        for record in records:
            body = {"boot_id": self._boot_id, **data(record)}
            event = OutgoingEvent(record.stream, record.epoch, record.seq, body)
            for outlet in self._outlets():
                outlet.put_event(event)

    def flush(self, timeout: float) -> None:
        """Commits what waits, within `timeout` seconds, so that sinks can deliver it before they close."""
        if self.journal is not None:
            self.journal.flush(timeout)

    def close(self, timeout: float) -> None:
        """Commits what still waits, within `timeout` seconds: events, and the places of the sinks' cursors."""
        if self.journal is not None and not self.journal.close(timeout):
            log.error("events could not be written in time and are lost")
