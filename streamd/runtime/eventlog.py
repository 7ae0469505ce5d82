"""The daemon's event journal, and the delivery of its events to the sinks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog

from streamd.config import Config
from streamd.events.evidence.keeper import MediaCounts, MediaKeeper, MediaLimits
from streamd.events.journal import Journal
from streamd.events.place import default_state_dir, user_folder
from streamd.events.record import Event, Media, Record, RuleStates, data
from streamd.events.upkeep import Limits
from streamd.sinks.envelope import OutgoingEvent

log = structlog.get_logger(__name__)

_READ_S = 3.0
"""How long the start waits for the journal, in which the counts of the rules are."""


class Outlet(Protocol):
    """What the journal needs of a sink."""

    name: str

    def put_event(self, event: OutgoingEvent) -> None: ...

    def attach(self, journal: Journal, instance: str) -> None: ...

    def put_media(self, stream: str, role: str, media: Media) -> None: ...


def state_dir(config: Config, name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of the journal; see `EventsSettings.state_dir`.

    Args:
        config: may set it.
        name: the configuration file's name without its suffix.
        environment: environment variables.
    """
    if config.events.state_dir is not None:
        return Path(config.events.state_dir)
    found = default_state_dir(name, environment)
    return found if found is not None else user_folder(environment) / name


def media_dir(config: Config, name: str) -> Path:
    """The folder of clips and snapshots; see `MediaSettings.folder`."""
    return Path(config.media.folder) if config.media.folder is not None else state_dir(config, name) / "media"


def has_rules(config: Config) -> bool:
    """Whether any stream has a zone or a line, or can have events of its camera's health."""
    return any(s.zones or s.lines or s.camera_health.enabled for s in config.streams)


def has_clips(config: Config) -> bool:
    """Whether anything asks for clips or snapshots."""
    return any(s.has_snapshots or s.clip_ring_s for s in config.streams)


class EventLog:
    """Opens the journal once a configuration has rules, and passes committed events to every sink.

    Args:
        name: name of the configuration, used in the folder's.
        boot_id: identity of this daemon in event messages.
        outlets: returns the current sinks.
    """

    def __init__(self, name: str, boot_id: str, outlets: Callable[[], Sequence[Outlet]]) -> None:
        self._name, self._boot_id, self._outlets = name, boot_id, outlets
        self.journal: Journal | None = None
        self.keeper: MediaKeeper | None = None

    def ensure(self, config: Config) -> None:
        """Opens the journal if `config` has rules and it is not open yet.

        Events that an earlier process left open are ended at the last time known for them.

        Raises:
            ConfigError: the folder cannot be used, or belongs to another daemon.
        """
        if self.journal is None and has_rules(config):
            self._open(config)
        if self.journal is not None and self.keeper is None:
            self._keep(config, self.journal)

    def _keep(self, config: Config, journal: Journal) -> None:
        """Looks after the media folder, once there is one or a rule will make it."""
        folder = media_dir(config, self._name)
        if has_clips(config) or folder.exists():
            limits = config.media
            kept = MediaLimits(int(limits.keep_gb * 1e9), limits.keep_days * 86_400, int(limits.min_free_gb * 1e9))
            self.keeper = MediaKeeper(folder, kept, journal)
            self.keeper.start()

    def _open(self, config: Config) -> None:
        keep = config.events
        folder = state_dir(config, self._name)
        journal = Journal(folder, retention=Limits(max_age_s=keep.keep_days * 86_400, max_events=keep.keep_events))
        journal.listen(self._committed)
        journal.listen_media(self._recorded)
        journal.start()
        # Before the first event: a sink that is new today receives all of them.
        journal.keep_cursors([outlet.name for outlet in self._outlets()])
        for outlet in self._outlets():
            outlet.attach(journal, self._name)
        journal.end_open("process_died")
        if not journal.flush(_READ_S):
            log.warning("event journal cannot be read yet: rules count from zero", problem=journal.status().problem)
        self.journal = journal
        log.info("event journal", folder=str(folder))

    def submit(self, event: Event) -> bool:
        """Passes an event to the journal. Never waits. Any thread."""
        return self.journal is not None and self.journal.submit(event)

    def alive(self, at_ns: Mapping[str, int]) -> None:
        """See `Journal.alive`."""
        if self.journal is not None and at_ns:
            self.journal.alive(at_ns)

    def keep(self, told: RuleStates) -> None:
        """Keeps what rules have counted without an event. Never waits. Any thread."""
        if self.journal is not None:
            self.journal.keep(told)

    def rules(self, stream: str) -> Mapping[str, Any] | None:
        """What the rules of a stream had counted before, see `Journal.rules`; None if nothing is known of them."""
        return self.journal.rules(stream) if self.journal is not None else None

    def link(self, event_id: str, role: str, media: Media) -> None:
        """Notes a file of an event. Never waits. Any thread."""
        if self.journal is not None:
            self.journal.link(event_id, role, media)

    @property
    def problem(self) -> str | None:
        """Why the journal cannot be written; None if it can, or if there is none."""
        return (self.journal.status().problem or None) if self.journal is not None else None

    @property
    def media_problem(self) -> str | None:
        """Why the media folder cannot be kept within its limits; None if it can."""
        counts = self.media_counts()
        return (counts.problem or None) if counts is not None else None

    def media_counts(self) -> MediaCounts | None:
        """What is in the media folder; None if nobody looks after it."""
        return self.keeper.counts if self.keeper is not None else None

    def _committed(self, records: Sequence[Record]) -> None:
        for record in records:
            body = {"boot_id": self._boot_id, **data(record)}
            event = OutgoingEvent(record.stream, record.epoch, record.seq, body)
            for outlet in self._outlets():
                outlet.put_event(event)

    def _recorded(self, stream: str, role: str, media: Media) -> None:
        for outlet in self._outlets():
            outlet.put_media(stream, role, media)

    def flush(self, timeout: float) -> None:
        """Commits waiting events within `timeout` seconds, so that sinks can deliver them before they close."""
        if self.journal is not None:
            self.journal.flush(timeout)

    def close(self, timeout: float) -> None:
        """Ends the care of the media folder, and commits within `timeout` seconds what is still waiting: events, and
        the positions of the sinks' cursors."""
        if self.keeper is not None and not self.keeper.close(timeout / 4):
            log.warning("the disk of the media folder does not answer")
        if self.journal is not None and not self.journal.close(timeout):
            log.error("events could not be written in time and are lost")
