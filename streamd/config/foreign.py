"""Settings of other packages: asked for everything that the daemon asks them, so that none fails later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, get_args

from streamd.analysis.tracking import TRACKERS
from streamd.config import Config
from streamd.engine import ENGINES, EngineSettings
from streamd.heads import HEADS, HeadSettings
from streamd.settings import FieldPath, KindSettings, Problems
from streamd.settings.plugins import Origin, origin
from streamd.settings.registry import Registry
from streamd.sinks import SINKS, SinkSettings
from streamd.sinks.envelope import KINDS, Encoding
from streamd.sources import SOURCES

REGISTRIES: Sequence[Registry[Any]] = (SOURCES, ENGINES, HEADS, TRACKERS, SINKS)
"""Of all kinds that a package may add."""


def _sections(config: Config) -> Iterator[tuple[FieldPath, Registry[Any], KindSettings]]:
    """Every section that names a kind: where it is, what kinds there are, its settings."""
    yield from ((("streams", i), SOURCES, each) for i, each in enumerate(config.streams))
    yield ("engine",), ENGINES, config.engine
    if config.model.head is not None:
        yield ("model", "head"), HEADS, config.model.head
    for i, classifier in enumerate(config.classifiers):
        if classifier.engine is not None:
            yield ("classifiers", i, "engine"), ENGINES, classifier.engine
    if config.tracking is not None:
        yield ("tracking",), TRACKERS, config.tracking
    yield from ((("sinks", i), SINKS, each) for i, each in enumerate(config.sinks))


def unused(config: Config) -> Problems:
    """Kinds of other packages that a configuration may mean, but that have the name of one of streamd's own."""
    told = set()
    for path, registry, settings in _sections(config):
        packages = registry.unused(settings.kind)
        if packages and settings.kind not in told:
            told.add(settings.kind)
            listed = ", ".join(packages)
            own = f"{registry.noun} kind {settings.kind} is streamd's own"
            yield path, f"{own}; that of the package {listed} is not used, and has to be renamed there"


def broken_kinds(config: Config) -> Problems:
    """Settings of other packages that raise where they are asked for something, or answer with something else."""
    for path, registry, settings in _sections(config):
        if (of := origin(settings)) is not None:
            yield from ((path, message) for message in _broken(settings, of, registry.base))


def _broken(settings: KindSettings, of: Origin, base: type[KindSettings]) -> Iterator[str]:
    for name in _asked(base):
        try:
            getattr(settings, name)
        except Exception as error:  # noqa: BLE001 - another package may raise anything
            yield of.failed(f"tell {name}", error)
            return
    if isinstance(settings, EngineSettings):
        yield from _unfit_engine(settings, of)
    if isinstance(settings, HeadSettings) and not isinstance(settings.usual_input, Mapping):
        yield of.unfit(f"its usual_input is {settings.usual_input!r:.80}; expected a dict of fields of the sidecar")
    if isinstance(settings, SinkSettings):
        wants, encoding = settings.wants, settings.payload_encoding
        if not isinstance(wants, (set, frozenset)) or not wants <= set(KINDS.values()):
            yield of.unfit(f"its wants are {wants!r:.80}; expected a frozenset of kinds of streamd.sinks.envelope")
        if encoding not in get_args(Encoding):
            yield of.unfit(f"its payload_encoding is {encoding!r}; expected json or msgpack")
    for name, width in (("check", 2), ("claims", 3), ("look", 2)):
        if not hasattr(base, name):
            continue
        try:
            for path, *words in getattr(settings, name)():
                if not isinstance(path, tuple) or len(words) != width - 1:
                    raise TypeError(f"expected tuples of {width}, the first of them with the path of a field")
        except Exception as error:  # noqa: BLE001 - see above
            yield of.failed(name, error)


def _unfit_engine(settings: EngineSettings, of: Origin) -> Iterator[str]:
    """What is wrong with what an engine's settings say of its devices."""
    devices, shares, names = settings.devices, settings.shares_gpu, settings.names_devices
    sound = isinstance(devices, (tuple, list)) and all(type(each) is int and each >= 0 for each in devices)
    if not sound or not devices:
        yield of.unfit(f"its devices are {devices!r:.80}; expected a tuple of one or more numbers")
        return
    if shares not in (True, False, "auto"):
        yield of.unfit(f"its shares_gpu is {shares!r:.80}; expected True, False or 'auto'")
    if names not in (True, False):
        yield of.unfit(f"its names_devices is {names!r:.80}; expected True or False")
    calls: list[tuple[str, Callable[[], object]]] = [("aside()", settings.aside)]
    calls += [(f"for_device({each})", partial(settings.for_device, each)) for each in devices]
    for name, call in calls:
        try:
            made = call()
        except Exception as error:  # noqa: BLE001 - another package may raise anything
            yield of.failed(f"call {name}", error)
            return
        if not isinstance(made, EngineSettings):
            yield of.unfit(f"its {name} returned {made!r:.80}; expected streamd.engine.EngineSettings")
            return


def _asked(base: type[KindSettings]) -> Iterator[str]:
    """Properties that streamd reads of settings of that base."""
    for each in base.__mro__:
        if issubclass(each, KindSettings):
            yield from (name for name, value in vars(each).items() if isinstance(value, property))
