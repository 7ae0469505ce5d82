"""The configuration: YAML in, one frozen, fully checked `Config` out; every error at once, with its field and line."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError

from streamd.engine import BUILTIN, AutoSettings, BatchSettings, EngineConfig, ModelSettings, per_device
from streamd.errors import ConfigError
from streamd.heads import DetectSettings, HeadConfig
from streamd.redact import redact, remember
from streamd.settings import NAME_PATTERN, Seconds, Settings
from streamd.sinks import KEY_PATTERN, SinkConfig, ZmqSettings
from streamd.sources import AvStreamSettings, StreamConfig, max_age
from streamd.trust import read_text
from streamd.yamlfile import MAX_BYTES, Document, Path_, read_yaml

USER_PATTERN = r"^[^:\x00-\x1f]+$"
LISTEN_PATTERN = r"^(\[[0-9A-Fa-f:.]+\]|[^:\s]+):\d{1,5}$"


class DetectorSettings(ModelSettings):
    """The detector: its file, its head, and what counts as a detection."""

    head: HeadConfig | None = Field(
        None, description="What the outputs mean. Default: the sidecar's word, else recognised from their shapes."
    )
    detect: DetectSettings = Field(DetectSettings(), description="Which boxes count as detections.")


class TlsSettings(Settings):
    """HTTPS. Both files are read again when they change: a renewed certificate needs no restart."""

    certificate: str = Field(description="PEM file with the certificate and its chain.")
    key: str = Field(description="PEM file with the private key, without a passphrase.")


class LoginSettings(Settings):
    """One user name and its password (HTTP basic authentication)."""

    username: str = Field(min_length=1, max_length=256, pattern=USER_PATTERN, description="User name.")
    password: SecretStr = Field(
        min_length=8, max_length=1024, description="Its password, as ${file:PATH} or ${NAME}; 8 characters at least."
    )


class MetricsSettings(Settings):
    """The HTTP port with /metrics, /healthz and /readyz."""

    listen: str | None = Field(
        "127.0.0.1:9188",
        pattern=LISTEN_PATTERN,
        description="HOST:PORT to listen on; null for none. Port 0 takes a free one.",
    )
    tls: TlsSettings | None = Field(None, description="Certificate and key for HTTPS. Default: plain HTTP.")
    login: LoginSettings | None = Field(
        None, description="Who may ask; holds for every path, /healthz too. Default: everybody who reaches the port."
    )
    page: bool = Field(
        False,
        description="Show a web page with every camera at / of the port: pictures, states, latency. Needs a login, or "
        "an address that only this machine can reach, as 127.0.0.1.",
    )


class LoggingSettings(Settings):
    """Structured logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is written.")
    format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal, else JSON.")


class RecorderSettings(Settings):
    """The flight recorder: the last seconds of everything, written as a bundle when something breaks."""

    folder: str | None = Field(
        None,
        min_length=1,
        description="Where bundles go. Default: `bundles` in the service manager's state folder (`$STATE_DIRECTORY`); "
        "where there is none, nothing is recorded.",
    )
    seconds: float = Field(60.0, ge=5, le=600, description="How much is kept and written, in seconds.")
    keep: int = Field(10, ge=0, le=1000, description="Bundles in the folder at most; 0 records nothing.")


class Config(Settings):
    """The whole configuration. Relative paths are relative to the configuration file."""

    model: DetectorSettings = Field(description="The detector.")
    streams: tuple[StreamConfig, ...] = Field(max_length=1024, description="What to watch; at least one stream.")
    sinks: tuple[SinkConfig, ...] = Field((), max_length=64, description="Where detections go.")
    engine: EngineConfig = Field(AutoSettings(), description="What runs the model.")
    batch: BatchSettings = Field(BatchSettings(), description="How frames are gathered into batches.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share the streams, each with its own engine. More than one pays on a GPU that one "
        "process cannot keep busy.",
    )
    metrics: MetricsSettings = Field(MetricsSettings(), description="Metrics and health over HTTP.")
    logging: LoggingSettings = Field(LoggingSettings(), description="Logs.")
    recorder: RecorderSettings = Field(RecorderSettings(), description="The flight recorder.")
    drain_s: Seconds = Field(5.0, description="Longest time to finish what is under way at SIGTERM, in seconds.")
    stall_s: Seconds = Field(
        15.0,
        description="A stage at one batch for longer than this is dead: the watchdog is no longer fed, in seconds.",
    )


@dataclass(frozen=True)
class Loaded:
    """A configuration with what must be remembered of its file."""

    config: Config
    path: Path
    secrets: frozenset[str]
    """Substituted values and passwords in the file itself. `redact` knows them already."""
    warnings: tuple[str, ...]
    """What is allowed and unwise."""
    line: Callable[[Path_], int | None]
    """The line of a field, or of what it would stand in."""

    def where(self, path: Path_) -> str:
        """FILE:LINE: FIELD, as errors begin."""
        return f"{self.path}:{self.line(path) or 1}: {dotted(path)}"


def load(path: str | os.PathLike[str], environment: Mapping[str, str] | None = None, *, secrets: bool = True) -> Loaded:
    """Reads, substitutes, validates.

    Args:
        path: the file.
        environment: the process's own by default.
        secrets: False reads no `${file:…}`; see `yamlfile.read_yaml`.

    Raises:
        ConfigError: every problem at once, one a line: `FILE:LINE: field: message`.
    """
    file = Path(os.path.expanduser(path))
    document = _parse(file, os.environ if environment is None else environment, secrets=secrets)
    problems = [(line, message) for line, message in document.problems]
    config: Config | None = None
    try:
        config = Config.model_validate(document.values if document.values is not None else {})
    except ValidationError as error:
        problems += _validation_problems(error, document)
    if config is not None:
        config = _absolute(config, file.parent)
        found = [*_cross_check(config), *_check_secrets(config, document)]
        problems += [(document.line(path) or 1, f"{dotted(path)}: {message}") for path, message in found]
    if problems or config is None:
        raise ConfigError("\n".join(f"{file}:{line}: {redact(message)}" for line, message in sorted(set(problems))))
    return Loaded(config, file, frozenset(document.secrets | document.inline), _warnings(file, document), document.line)


def _parse(file: Path, environment: Mapping[str, str], *, secrets: bool) -> Document:
    text = read_text(file, MAX_BYTES, what=str(file), expected="a YAML file, streamd's configuration")
    try:
        document = read_yaml(text, environment, file.parent, secrets=secrets)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    # Before anything is said of the values, whoever says it.
    remember(document.secrets | document.inline)
    if document.values is not None and not isinstance(document.values, dict):
        raise ConfigError(f"{file}:1: expected `model:`, `streams:` and so on at the top level")
    return document


def dotted(path: Path_) -> str:
    """A field's name as errors have it: streams[1].url."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out or "file"


def _in_file(location: Path_, values: Any) -> Path_:
    """Drops the union tags that pydantic puts between a list item and its fields."""
    path: list[str | int] = []
    for i, part in enumerate(location):
        last = i == len(location) - 1
        if isinstance(values, dict) and (part in values or last):
            values = values.get(part)
        elif isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif not last:
            continue  # a tag
        path.append(part)
    return tuple(path)


def _value_at(values: Any, path: Path_) -> Any:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _validation_problems(error: ValidationError, document: Document) -> Iterator[tuple[int, str]]:
    for item in error.errors(include_url=False, include_input=False):
        path = _in_file(item["loc"], document.values)
        message = item["msg"]
        if item["type"] == "extra_forbidden":
            message = f"unknown field{_suggestion(str(path[-1]), item['loc'])}"
        elif item["type"] == "missing":
            message = "is required"
        elif item["type"] == "string_type" and isinstance(_value_at(document.values, path), bool):
            message = "expected text; YAML reads on, off, yes and no as true or false: put it in quotes"
        elif item["type"] == "string_pattern_mismatch":
            message = _PATTERNS.get(item["ctx"]["pattern"], message)
        elif item["type"] == "union_tag_invalid":
            path = (*path, "kind")
            message = f"expected one of {item['ctx']['expected_tags']}"
        yield document.line(path) or 1, f"{dotted(path)}: {message}"


_PATTERNS = {
    NAME_PATTERN: "expected at most 63 letters, digits, dots, dashes and underscores, not beginning with a dot or dash",
    LISTEN_PATTERN: "expected HOST:PORT, as in 127.0.0.1:9188",
    USER_PATTERN: "expected a name without a colon",
    KEY_PATTERN: "expected a public key of 40 characters, as `streamd keygen` makes them",
}


def _suggestion(name: str, location: Path_) -> str:
    known = sorted(_known_fields(location))
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _known_fields(location: Path_) -> set[str]:
    """Names of the fields beside the one at `location`, found in the JSON schema, which knows the unions."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]

    def options(node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            return options(definitions[node["$ref"].rsplit("/", 1)[1]])
        found = [o for key in ("anyOf", "oneOf", "allOf") for option in node.get(key, ()) for o in options(option)]
        return found or [node]

    nodes = [schema]
    for part in location[:-1]:
        following: list[dict[str, Any]] = []
        for node in nodes:
            if isinstance(part, int):
                following += options(node["items"]) if "items" in node else []
            elif part in node.get("properties", {}):
                following += options(node["properties"][part])
            elif node.get("properties", {}).get("kind", {}).get("const") == part:
                following.append(node)
        nodes = following or nodes
    return {name for node in nodes for name in node.get("properties", {})}


_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(text: str) -> bool:
    """True for scheme://…; a plain path is not a URL."""
    return bool(_SCHEME.match(text))


def _absolute(config: Config, folder: Path) -> Config:
    """Makes file paths relative to the configuration file absolute, so that the service's own folder never matters."""

    def resolved(text: str) -> str:
        return text if is_url(text) or text.startswith(BUILTIN) else str((folder / os.path.expanduser(text)).absolute())

    model = config.model
    update: dict[str, Any] = {"path": resolved(model.path)}
    if isinstance(model.labels, str):
        update["labels"] = resolved(model.labels)
    streams = tuple(
        s.model_copy(update={"url": resolved(s.url)}) if isinstance(s, AvStreamSettings) else s for s in config.streams
    )

    def sink(settings: Any) -> Any:
        if settings.kind == "jsonl" and settings.path != "-":
            return settings.model_copy(update={"path": resolved(settings.path)})
        if isinstance(settings, ZmqSettings) and settings.curve and isinstance(settings.curve.clients, str):
            clients = settings.curve.clients
            if clients != "any":
                curve = settings.curve.model_copy(update={"clients": resolved(clients)})
                return settings.model_copy(update={"curve": curve})
        return settings

    sinks = tuple(map(sink, config.sinks))
    changed: dict[str, Any] = {"model": model.model_copy(update=update), "streams": streams, "sinks": sinks}
    if config.recorder.folder is not None:
        changed["recorder"] = config.recorder.model_copy(update={"folder": resolved(config.recorder.folder)})
    if (tls := config.metrics.tls) is not None:
        found = TlsSettings(certificate=resolved(tls.certificate), key=resolved(tls.key))
        changed["metrics"] = config.metrics.model_copy(update={"tls": found})
    return config.model_copy(update=changed)


def _cross_check(config: Config) -> Iterator[tuple[Path_, str]]:
    """What no single field can know."""
    if not config.streams:
        yield ("streams",), "expected at least one stream"
    ids = Counter(s.id for s in config.streams)
    for i, stream in enumerate(config.streams):
        if ids[stream.id] > 1:
            yield ("streams", i, "id"), f"{stream.id} is the id of {ids[stream.id]} streams; ids must be unique"
        if isinstance(stream, AvStreamSettings):
            if stream.loop and is_url(stream.url) and not stream.url.startswith("file:"):
                yield ("streams", i, "loop"), "only a file can loop"
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


def _check_secrets(config: Config, document: Document) -> Iterator[tuple[Path_, str]]:
    """What opens a door stands in no configuration: those are copied, shown and kept under version control."""
    for i, sink in enumerate(config.sinks):
        if isinstance(sink, ZmqSettings) and sink.curve is not None:
            yield from _external(("sinks", i, "curve", "secret_key"), sink.curve.secret_key, document)

    if config.metrics.login is not None:
        yield from _external(("metrics", "login", "password"), config.metrics.login.password, document)


def _warnings(file: Path, document: Document) -> tuple[str, ...]:
    if not document.inline or not file.exists():
        return ()
    mode = stat.S_IMODE(file.stat().st_mode)
    if not mode & (stat.S_IRGRP | stat.S_IROTH):
        return ()
    advice = "chmod 600 it, or write ${file:PATH} or ${NAME} instead"
    return (f"passwords stand in the file and others may read it (mode {mode:04o}); {advice}",)


def _external(path: Path_, secret: SecretStr, document: Document) -> Iterator[tuple[Path_, str]]:
    if secret.get_secret_value() not in document.secrets:
        yield path, "may not stand in the file itself; write ${file:PATH} or ${NAME}"


def _check_devices(config: Config) -> Iterator[tuple[Path_, str]]:
    known = list(per_device(config.engine))
    if 1 < config.workers < len(known):
        message = f"{config.workers} processes cannot use {len(known)} devices; set {len(known)} or more, or 1"
        yield ("workers",), f"{message} (one process with them all)"
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


def is_loopback(listen: str) -> bool:
    """True where HOST:PORT is reached from this machine only."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def sink_names(config: Config) -> list[str]:
    """Each sink's name in metrics and logs."""
    return [sink.name or f"{sink.kind}{i}" for i, sink in enumerate(config.sinks)]
