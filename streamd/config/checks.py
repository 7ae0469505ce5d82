"""What no single field of a configuration can know: whether they fit together, and where secrets come from.

What only the fields of one kind have to do with each other is that kind's own `check`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from streamd.config import Config, MetricsSettings, is_loopback, sink_names
from streamd.config.yamlfile import Document
from streamd.settings import ExternalMark, FieldPath, KindSettings, Problems, marked


def cross_check(config: Config) -> Problems:
    """What fields have wrong together."""
    if not config.streams:
        yield ("streams",), "expected at least one stream"
    ids = Counter(s.id for s in config.streams)
    for i, stream in enumerate(config.streams):
        if ids[stream.id] > 1:
            yield ("streams", i, "id"), f"{stream.id} is the id of {ids[stream.id]} streams; ids must be unique"
        age_s = stream.max_age_s
        if age_s is not None and age_s * 1e3 <= config.batch.age_ms:
            field = "max_age_ms" if stream.max_age_ms is not None else "id"
            message = f"frames may wait {age_s * 1e3:g} ms, which batch.age_ms ({config.batch.age_ms:g}) uses up"
            yield ("streams", i, field), f"{message}; set max_age_ms higher or batch.age_ms lower"
    yield from _each("streams", config.streams)
    yield from _check_devices(config)
    yield from _check_page(config.metrics)
    names = Counter(sink_names(config))
    for i, name in enumerate(sink_names(config)):
        if names[name] > 1:
            yield ("sinks", i, "name"), f"{name} is the name of {names[name]} sinks; names must be unique"
    yield from _each("sinks", config.sinks)
    yield from _check_claims(config)


def _each(section: str, settings: Sequence[KindSettings]) -> Problems:
    for i, one in enumerate(settings):
        yield from (((section, i, *path), message) for path, message in one.check())


def _check_claims(config: Config) -> Problems:
    """Two sinks that want the same file or address."""
    claims: defaultdict[tuple[str, str], list[FieldPath]] = defaultdict(list)
    for i, sink in enumerate(config.sinks):
        for path, what, which in sink.claims():
            claims[what, which].append(("sinks", i, *path))
    for (what, which), paths in claims.items():
        for path in paths[1:]:
            yield path, f"{which} is taken by another sink; give another {what}"


def _check_devices(config: Config) -> Problems:
    known = config.engine.devices
    if 1 < config.workers < len(known):
        message = f"{config.workers} processes cannot use {len(known)} devices; set {len(known)} or more, or 1"
        yield ("workers",), f"{message} (one process with them all)"
    if config.engine.shares_gpu and config.workers == 1:
        yield ("engine", "mps"), "one process shares the GPU with nobody; set workers to 2 or more, or leave mps out"
    yield from ((("engine", *path), message) for path, message in config.engine.check())
    for i, stream in enumerate(config.streams):
        if stream.device is not None and stream.device not in known:
            listed = ", ".join(map(str, known))
            yield ("streams", i, "device"), f"{stream.device} is not one of the engine's devices ({listed})"


def _check_page(metrics: MetricsSettings) -> Problems:
    """Pictures of every camera are for this machine's own users, or for whoever can log in."""
    if not metrics.page:
        return
    if metrics.listen is None:
        yield ("metrics", "page"), "needs metrics.listen"
    elif metrics.login is None and not is_loopback(metrics.listen):
        message = f"{metrics.listen} can be reached from other machines and nobody has to log in"
        yield ("metrics", "page"), f"{message}; listen on 127.0.0.1 or set metrics.login"


def check_secrets(config: Config, document: Document) -> Problems:
    """What opens a door stands in no configuration: those are copied, shown and kept under version control.

    Args:
        config: made of `document`.
        document: knows which values came from elsewhere.
    """
    for path, secret, _ in marked(config, ExternalMark):
        if secret is not None and secret.get_secret_value() not in document.secrets:
            yield path, "may not stand in the file itself; write ${file:PATH} or ${NAME}"
