"""A configuration file becomes a `Config`; every error at once, with its field and line."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from streamd.config import Config, TlsSettings, is_url
from streamd.config.checks import check_secrets, cross_check
from streamd.config.problems import dotted, validation_problems
from streamd.config.yamlfile import MAX_BYTES, Document, Path_, read_yaml
from streamd.engine import BUILTIN
from streamd.errors import ConfigError
from streamd.security.redact import redact, remember
from streamd.security.trust import read_text
from streamd.sinks import ZmqSettings
from streamd.sources import AvStreamSettings


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
        problems += validation_problems(error, document)
    if config is not None:
        config = _absolute(config, file.parent)
        found = [*cross_check(config), *check_secrets(config, document)]
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


def _warnings(file: Path, document: Document) -> tuple[str, ...]:
    if not document.inline or not file.exists():
        return ()
    mode = stat.S_IMODE(file.stat().st_mode)
    if not mode & (stat.S_IRGRP | stat.S_IROTH):
        return ()
    advice = "chmod 600 it, or write ${file:PATH} or ${NAME} instead"
    return (f"passwords stand in the file and others may read it (mode {mode:04o}); {advice}",)
