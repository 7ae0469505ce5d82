"""Checks across fields of a configuration: whether they fit together, and where secrets come from.

Checks among the fields of one kind are that kind's own `check`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from streamd.config import MOST_STREAMS, Config, MetricsSettings, is_loopback, sink_names
from streamd.config.classifiers import check_classifiers
from streamd.config.foreign import broken_kinds
from streamd.config.yamlfile import Document
from streamd.settings import ExternalMark, FieldPath, KindSettings, Problems, marked


def cross_check(config: Config) -> Problems:
    """Problems that involve several fields."""
    if not config.streams:
        yield ("streams",), "expected at least one stream"
    if len(config.streams) > MOST_STREAMS and config.fleet is None and config.share is None:
        several = "divide them among several boxes by `fleet` or `share`"
        yield ("streams",), f"expected at most {MOST_STREAMS}, not {len(config.streams)}; {several}"
    yield from duplicate_ids([s.id for s in config.streams])
    if broken := list(broken_kinds(config)):
        yield from broken
        return
    yield from _check_sound(config)
    for i, stream in enumerate(config.streams):
        age_s = stream.max_age_s
        if age_s is not None and age_s * 1e3 <= config.batch.age_ms:
            field = "max_age_ms" if stream.max_age_ms is not None else "id"
            message = f"frames may wait {age_s * 1e3:g} ms, no longer than batch.age_ms ({config.batch.age_ms:g})"
            yield ("streams", i, field), f"{message}; increase max_age_ms or reduce batch.age_ms"
    if config.tracking is not None:
        yield from ((("tracking", *path), message) for path, message in config.tracking.check())
    yield from check_classifiers(config.classifiers, frozenset(s.id for s in config.streams))
    yield from _check_devices(config)
    yield from _check_page(config.metrics)
    names = Counter(sink_names(config))
    for i, name in enumerate(sink_names(config)):
        if names[name] > 1:
            yield ("sinks", i, "name"), f"{name} is the name of {names[name]} sinks; names must be unique"


def duplicate_ids(ids: Sequence[str]) -> Problems:
    """Streams that share an id.

    Args:
        ids: of all streams, in order; an empty one is left out.
    """
    times = Counter(ids)
    for i, name in enumerate(ids):
        if name and times[name] > 1:
            yield ("streams", i, "id"), f"{name} is the id of {times[name]} streams; ids must be unique"


def check_each(config: Config) -> Problems:
    """Problems of streams and sinks that do not depend on other sections."""
    yield from list(broken_kinds(config)) or _check_sound(config)


def _check_sound(config: Config) -> Problems:
    yield from _each("streams", config.streams)
    yield from _each("sinks", config.sinks)
    yield from _check_claims(config)
    yield from _check_ports(config)


def _each(section: str, settings: Sequence[KindSettings]) -> Problems:
    for i, one in enumerate(settings):
        yield from (((section, i, *path), message) for path, message in one.check())


def _check_claims(config: Config) -> Problems:
    """Two sinks that use the same file or address."""
    claims: defaultdict[tuple[str, str], list[FieldPath]] = defaultdict(list)
    for i, sink in enumerate(config.sinks):
        for path, what, which in sink.claims():
            claims[what, which].append(("sinks", i, *path))
    for (what, which), paths in claims.items():
        for path in paths[1:]:
            yield path, f"{which} is used by another sink; give another {what}"


_ANY = ("*", "0.0.0.0", "::")  # noqa: S104 - nothing is bound here


def _check_ports(config: Config) -> Problems:
    """Two listeners on one TCP port. One on all addresses takes it from one on any."""
    taken: list[tuple[str, str, str]] = []
    listens: list[tuple[FieldPath, str, str]] = []
    if config.metrics.listen is not None:
        listens.append((("metrics", "listen"), "metrics.listen", config.metrics.listen))
    for i, sink in enumerate(config.sinks):
        for path, what, which in sink.claims():
            if what == "endpoint" and which.startswith("tcp://"):
                field = ".".join(map(str, path))
                listens.append((("sinks", i, *path), f"sinks[{i}].{field}", which.removeprefix("tcp://")))
    for place, name, address in listens:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        other = next((n for n, h, p in taken if p == port and h != host and (h in _ANY or host in _ANY)), None)
        if other is None and place[0] == "sinks":
            other = next((n for n, h, p in taken if n == "metrics.listen" and (h, p) == (host, port)), None)
        if other is not None and port != "0":
            yield place, f"port {port} is taken by {other}; give another one"
        taken.append((name, host, port))


def _check_devices(config: Config) -> Problems:
    known = config.engine.devices
    if config.workers != "auto" and 1 < config.workers < len(known):
        message = f"{config.workers} processes cannot use {len(known)} devices; set {len(known)} or more, or 1"
        yield ("workers",), f"{message} (one process with them all)"
    if config.engine.shares_gpu is True and config.workers == 1:
        yield ("engine", "mps"), "only useful with several processes; set workers to 2 or more, or omit mps"
    yield from ((("engine", *path), message) for path, message in config.engine.check())
    if config.model.head is not None:
        yield from ((("model", "head", *path), message) for path, message in config.model.head.check())
    for i, stream in enumerate(config.streams):
        if stream.device is not None and stream.device not in known:
            listed = ", ".join(map(str, known))
            yield ("streams", i, "device"), f"{stream.device} is not one of the engine's devices ({listed})"


def _check_page(metrics: MetricsSettings) -> Problems:
    """Pictures of the cameras require a login, or a port that only this machine can reach."""
    if not metrics.page:
        return
    if metrics.listen is None:
        yield ("metrics", "page"), "needs metrics.listen; set it to HOST:PORT"
    elif metrics.login is None and not is_loopback(metrics.listen):
        message = f"{metrics.listen} can be reached from other machines without a login"
        yield ("metrics", "page"), f"{message}; listen on 127.0.0.1 or set metrics.login"


def check_secrets(config: Config, document: Document) -> Problems:
    """Rejects access secrets in the configuration itself, which is copied, shown and kept under version control.

    Args:
        config: created from `document`.
        document: knows which values were substituted.
    """
    for path, secret, _ in marked(config, ExternalMark):
        value = secret.get_secret_value() if secret is not None else None
        if value is not None and value not in document.secrets and not document.unreplaced(value):
            yield path, "must not be written in the file itself; use ${file:PATH} or ${NAME}"
