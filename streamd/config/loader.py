"""A configuration file becomes a `Config`; every error at once, with its field and line."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from streamd.config import Config, is_url
from streamd.config.checks import check_secrets, cross_check
from streamd.config.problems import dotted, validation_problems
from streamd.config.yamlfile import MAX_BYTES, Document, read_yaml
from streamd.engine import BUILTIN
from streamd.errors import ConfigError
from streamd.security.redact import redact, remember
from streamd.security.trust import read_text
from streamd.settings import FieldPath, with_paths


@dataclass(frozen=True)
class Loaded:
    """A configuration with what must be remembered of its file."""

    config: Config
    path: Path
    secrets: frozenset[str]
    """Substituted values and passwords in the file itself. `redact` knows them already."""
    warnings: tuple[str, ...]
    """What is allowed and unwise."""
    line: Callable[[FieldPath], int | None]
    """The line of a field, or of what it would stand in."""

    def where(self, path: FieldPath) -> str:
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

    absolute: Config = with_paths(config, resolved)
    return absolute


def _warnings(file: Path, document: Document) -> tuple[str, ...]:
    if not document.inline or not file.exists():
        return ()
    mode = stat.S_IMODE(file.stat().st_mode)
    if not mode & (stat.S_IRGRP | stat.S_IROTH):
        return ()
    advice = "chmod 600 it, or write ${file:PATH} or ${NAME} instead"
    return (f"passwords stand in the file and others may read it (mode {mode:04o}); {advice}",)
