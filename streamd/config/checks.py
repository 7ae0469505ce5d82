"""What no single field of a configuration can know: whether they fit together, and where secrets come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pydantic import SecretStr

from streamd.config import Config, MetricsSettings, is_loopback, is_url, sink_names
from streamd.config.yamlfile import Document, Path_
from streamd.engine import per_device
from streamd.sinks import ZmqSettings
from streamd.sources import AvStreamSettings, is_live, max_age


def cross_check(config: Config) -> Iterator[tuple[Path_, str]]:
    """What fields have wrong together.

    Yields:
        Each field, and what is wrong there.
    """
    if not config.streams:
        yield ("streams",), "expected at least one stream"
    ids = Counter(s.id for s in config.streams)
    for i, stream in enumerate(config.streams):
        if ids[stream.id] > 1:
            yield ("streams", i, "id"), f"{stream.id} is the id of {ids[stream.id]} streams; ids must be unique"
        if isinstance(stream, AvStreamSettings):
            if stream.loop and is_url(stream.url) and not stream.url.startswith("file:"):
                yield ("streams", i, "loop"), "only a file can loop"
            if stream.start_s and is_live(stream):
                yield ("streams", i, "start_s"), "only a file has a beginning"
            if not is_url(stream.url) and stream.transport == "udp":
                yield ("streams", i, "transport"), "a file has no transport"
            yield from _check_isolation(i, stream)
        if stream.policy == "latest" and stream.ring != type(stream).model_fields["ring"].default:
            yield ("streams", i, "ring"), "policy latest keeps one frame; remove ring"
        age_s = max_age(stream)
        if age_s is not None and age_s * 1e3 <= config.batch.age_ms:
            field = "max_age_ms" if stream.max_age_ms is not None else "id"
            message = f"frames may wait {age_s * 1e3:g} ms, which batch.age_ms ({config.batch.age_ms:g}) uses up"
            yield ("streams", i, field), f"{message}; set max_age_ms higher or batch.age_ms lower"
    yield from _check_devices(config)
    yield from _check_page(config.metrics)
    names = Counter(sink_names(config))
    for i, (sink, name) in enumerate(zip(config.sinks, sink_names(config), strict=True)):
        if names[name] > 1:
            yield ("sinks", i, "name"), f"{name} is the name of {names[name]} sinks; names must be unique"
        if isinstance(sink, ZmqSettings) and (sink.bind is None) == (sink.connect is None):
            yield ("sinks", i), "give either bind (subscribers connect to us) or connect (the subscriber binds)"
    stdout = [i for i, s in enumerate(config.sinks) if s.kind == "jsonl" and s.path == "-"]
    for i in stdout[1:]:
        yield ("sinks", i, "path"), "standard output is taken by another sink; give a file"


def _check_isolation(i: int, stream: AvStreamSettings) -> Iterator[tuple[Path_, str]]:
    if stream.isolation == "process" and stream.decode == "nvdec":
        message = "pictures in GPU memory cannot be handed over by a decoder process"
        yield ("streams", i, "decode"), f"{message}; set decode: software or isolation: thread"
    if stream.isolation == "thread" and stream.max_rss_mb is not None:
        yield ("streams", i, "max_rss_mb"), "only a decoder process has a limit of its own; set isolation: process"


def _check_devices(config: Config) -> Iterator[tuple[Path_, str]]:
    known = list(per_device(config.engine))
    if 1 < config.workers < len(known):
        message = f"{config.workers} processes cannot use {len(known)} devices; set {len(known)} or more, or 1"
        yield ("workers",), f"{message} (one process with them all)"
    if getattr(config.engine, "mps", False) and config.workers == 1:
        yield ("engine", "mps"), "one process shares the GPU with nobody; set workers to 2 or more, or leave mps out"
    if isinstance(ordinals := getattr(config.engine, "device", None), tuple) and len(set(ordinals)) < len(ordinals):
        yield ("engine", "device"), "names a device twice"
    for i, stream in enumerate(config.streams):
        if stream.device is not None and stream.device not in known:
            listed = ", ".join(map(str, known))
            yield ("streams", i, "device"), f"{stream.device} is not one of the engine's devices ({listed})"


def _check_page(metrics: MetricsSettings) -> Iterator[tuple[Path_, str]]:
    """Pictures of every camera are for this machine's own users, or for whoever can log in."""
    if not metrics.page:
        return
    if metrics.listen is None:
        yield ("metrics", "page"), "needs metrics.listen"
    elif metrics.login is None and not is_loopback(metrics.listen):
        message = f"{metrics.listen} can be reached from other machines and nobody has to log in"
        yield ("metrics", "page"), f"{message}; listen on 127.0.0.1 or set metrics.login"


def check_secrets(config: Config, document: Document) -> Iterator[tuple[Path_, str]]:
    """What opens a door stands in no configuration: those are copied, shown and kept under version control.

    Args:
        config: made of `document`.
        document: knows which values came from elsewhere.

    Yields:
        Each field, and what is wrong there.
    """
    for i, sink in enumerate(config.sinks):
        if isinstance(sink, ZmqSettings) and sink.curve is not None:
            yield from _external(("sinks", i, "curve", "secret_key"), sink.curve.secret_key, document)

    if config.metrics.login is not None:
        yield from _external(("metrics", "login", "password"), config.metrics.login.password, document)


def _external(path: Path_, secret: SecretStr, document: Document) -> Iterator[tuple[Path_, str]]:
    if secret.get_secret_value() not in document.secrets:
        yield path, "may not stand in the file itself; write ${file:PATH} or ${NAME}"
