"""Changing the configuration of a running daemon: what differs, what must not, and SIGHUP, which requests it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from streamd.config import Config
from streamd.config.classifiers import ClassifierSettings
from streamd.config.loader import LOAD_LIMIT_S, Loaded, load
from streamd.config.problems import dotted
from streamd.errors import ConfigError
from streamd.flow.threads import NamedThread
from streamd.security.redact import redact
from streamd.settings import FieldPath, Settings
from streamd.sources import SourceSettings
from streamd.telemetry.logs import configure
from streamd.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from streamd.runtime.service import Service

log = structlog.get_logger(__name__)

CHANGEABLE = frozenset({"streams", "share", "fleet", "logging", "drain_s", "stall_s", "classifiers"})
"""Sections that may change while running. The others belong to parts that live as long as the process."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The changes from one configuration to the next. Streams are identified by their ids; their order does not
    matter."""

    added: tuple[SourceSettings, ...]
    """Settings of streams that are new."""
    changed: tuple[SourceSettings, ...]
    """New settings of streams that must be reconnected."""
    adapted: tuple[SourceSettings, ...]
    """New settings of streams that keep their connection."""
    removed: tuple[str, ...]
    """Ids of removed streams."""
    fixed: tuple[FieldPath, ...]
    """Fields that differ and cannot change while running."""


def difference(old: Config, new: Config) -> Difference:
    """The changes from `old` to `new`."""
    before = {s.id: s for s in old.streams}
    after = {s.id: s for s in new.streams}
    return Difference(
        added=tuple(s for name, s in after.items() if name not in before),
        changed=tuple(s for name, s in after.items() if name in before and not s.connects_as(before[name])),
        adapted=tuple(
            s for name, s in after.items() if name in before and s != before[name] and s.connects_as(before[name])
        ),
        removed=tuple(name for name in before if name not in after),
        fixed=(
            *_newly_tracked(old, new),
            *_other_classifiers(old, new),
            *tuple(
                path
                for name in Config.model_fields
                if name not in CHANGEABLE
                for path in _differing(getattr(old, name), getattr(new, name), (name,))
            ),
        ),
    )


def _newly_tracked(old: Config, new: Config) -> Iterator[FieldPath]:
    """The first zones or lines if boxes were not tracked before: the model then decodes boxes with other thresholds."""
    if (old.tracker is None) == (new.tracker is None) or old.tracking != new.tracking:
        return
    config = new if old.tracker is None else old
    stream = next(i for i, s in enumerate(config.streams) if s.zones or s.lines)
    yield ("streams", stream, "zones" if config.streams[stream].zones else "lines")


def _other_classifiers(old: Config, new: Config) -> Iterator[FieldPath]:
    """Fields of classifiers that belong to an opened model."""
    if [each.name for each in old.classifiers] != [each.name for each in new.classifiers]:
        yield ("classifiers",)
        return
    for i, (one, other) in enumerate(zip(old.classifiers, new.classifiers, strict=True)):
        for path in _differing(one, other, ("classifiers", i)):
            if path[2] not in ClassifierSettings.HOT:
                yield path


def _differing(old: Any, new: Any, path: FieldPath) -> Iterator[FieldPath]:
    if old == new:
        return
    if isinstance(old, Settings) and isinstance(new, Settings):
        if type(old) is not type(new):
            yield (*path, "kind")
            return
        for name in type(old).model_fields:
            yield from _differing(getattr(old, name), getattr(new, name), (*path, name))
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for i, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differing(one, other, (*path, i))
    else:
        yield path


def check(found: Difference, name: Callable[[FieldPath], str] = dotted) -> None:
    """Rejects changes that need a restart.

    Args:
        found: see `difference`.
        name: returns the name of a field; `Loaded.where` includes file and line.

    Raises:
        ConfigError: names each such field, one per line.
    """
    if found.fixed:
        what = "cannot be changed by a reload; restore it, or restart the service (systemctl restart)"
        raise ConfigError("\n".join(f"{name(path)}: {what}" for path in found.fixed))


class Reconfigured(Protocol):
    """What takes a new configuration on: the daemon, or the parent of workers."""

    config: Config
    """The running one."""

    def admit(self, config: Config, where: Callable[[FieldPath], str]) -> None:
        """Checks what only it can, and opens what the new configuration needs besides.

        Raises:
            ConfigError: names what cannot be; nothing is changed.
        """

    def take_on(self, config: Config, number: int) -> None:
        """Begins to run `config`, which was admitted; tells `Reloads.applied`. Main thread."""

    @property
    def changing(self) -> bool:
        """Whether an earlier change is still under way."""


class Reloads:
    """Changes of the configuration: reads the file when SIGHUP asks for it, accepts or rejects a new one, and has it
    taken on, one after the other. Main thread only, except `accept` and `refused`.

    Args:
        target: takes it on.
        metrics: counts them.
        service: knows of SIGHUP, and is told when a reload is over.
        wake: makes the main loop look.
    """

    def __init__(
        self, target: Reconfigured, metrics: Metrics, service: Service, wake: Callable[[], None] = lambda: None
    ) -> None:
        self._target, self._metrics, self._service, self._wake = target, metrics, service, wake
        self._lock = threading.Lock()
        self._next: tuple[Config, int] | None = None
        """Accepted, with its number."""
        self._loading: Loading | None = None
        """The configuration file while a thread reads it."""
        self.refused = ""
        """Why the latest one was rejected."""

    def step(self) -> None:
        """One step; to be called by the main loop. A change begins only after the one before is complete."""
        target = self._target
        if target.changing:
            return
        if (found := self._read()) is not None:
            self._read_again(found)
        if self._loading is not None:
            return
        with self._lock:
            accepted, self._next = self._next, None
        if accepted is not None:
            target.take_on(*accepted)
        if not target.changing:
            self._service.reload_done()

    def _read(self) -> Loaded | Exception | None:
        """Begins to read the file if that was asked for; the result, or the error, once it is there."""
        if self._loading is None and (reread := self._service.reload_asked()) is not None:
            self._loading = Loading(reread)
        if self._loading is None or (found := self._loading.result()) is None:
            return None
        self._loading = None
        return found

    def _read_again(self, found: Loaded | Exception) -> None:
        if isinstance(found, Exception):
            self._refuse(found)
            return
        # Whatever is wrong with a file, weeks of running do not end by it.
        with contextlib.suppress(Exception):
            self.accept(found.config, where=found.where)

    def accept(self, config: Config, *, where: Callable[[FieldPath], str] = dotted, number: int = 0) -> None:
        """Accepts a configuration, which the main loop takes on soon after. Any thread.

        Args:
            config: checked.
            where: names a field in the error.
            number: of the configuration.

        Raises:
            ConfigError: something differs that cannot change while running; nothing is changed.
        """
        before = self._target.config
        try:
            check(difference(before, config), where)
            self._target.admit(config, where)
        except Exception as error:
            self._refuse(error)
            raise
        if config.logging != before.logging:
            configure(config.logging.level, config.logging.format)
        with self._lock:
            self._next = config, number
        self._wake()

    def _refuse(self, error: Exception) -> None:
        """The configuration is invalid; the old one is kept."""
        problems = str(error).splitlines() or [type(error).__name__]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        self.refused = redact(problems[0]) + more
        self._metrics.reloads.labels(result="refused").inc()
        self._metrics.last_reload_success.set(0)
        log.error("new configuration rejected; keeping the old one", problems=problems)

    def applied(
        self, found: Difference, streams: int, *, failed: Sequence[str] = (), moved: Iterable[str] = ()
    ) -> None:
        """The configuration is now running.

        Args:
            found: what has changed.
            streams: number of all its streams.
            failed: ids of FAILED streams that are tried again.
            moved: ids of streams that another worker runs now.
        """
        self.refused = ""
        self._metrics.reloads.labels(result="applied").inc()
        self._metrics.last_reload_success.set(1)
        log.info(
            "configuration applied", added=[s.id for s in found.added] or None, removed=found.removed or None,
            changed=[s.id for s in found.changed] or None, adapted=[s.id for s in found.adapted] or None,
            moved=sorted(moved) or None, tried_again=failed or None, streams=streams,
        )  # fmt: skip


class Loading:
    """Reads the file in a thread of its own: a large or unusual one must not keep the main loop from feeding the
    watchdog.

    Args:
        reread: what to read.
    """

    def __init__(self, reread: Reread) -> None:
        self._reread = reread
        self._began = time.monotonic()
        self._found: Loaded | Exception | None = None
        try:
            NamedThread(self._load, "reload").start()
        except RuntimeError as error:
            self._found = error

    def _load(self) -> None:
        try:
            self._found = self._reread.load()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, weeks of running do not end by it
            self._found = error
        except BaseException as error:  # noqa: BLE001 - a package asked for a check may exit
            self._found = ConfigError(f"{self._reread.path}: {type(error).__name__}: {error}")
        self._reread.wake()

    def result(self) -> Loaded | Exception | None:
        """The result, or the error; None while the file is being read."""
        if self._found is None and time.monotonic() - self._began > LOAD_LIMIT_S:
            return ConfigError(f"{self._reread.path}: could not be read within {LOAD_LIMIT_S:g} s")
        return self._found


class Reread:
    """Reads the configuration file again at every SIGHUP.

    Args:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.settle: Callable[[Config], Config] = lambda config: config
        """What `auto` stands for in the running configuration."""
        self._asked = False
        self.wake: Callable[[], None] = lambda: None
        """Called by the signal handler: it must hold no lock."""

    def install(self) -> None:
        """Installs the handler of SIGHUP, which would end the process otherwise. Main thread only."""
        signal.signal(signal.SIGHUP, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        self._asked = True
        self.wake()

    def asked(self) -> bool:
        """True once after one or more signals."""
        asked, self._asked = self._asked, False
        return asked

    def load(self) -> Loaded:
        """The file's current content.

        Raises:
            ConfigError: see `config.loader.load`.
        """
        loaded = load(self.path)
        return replace(loaded, config=self.settle(loaded.config))
