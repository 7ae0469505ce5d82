"""Loads a configuration file as a `Config`; reports all errors at once, with field and line."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from streamd.config import Config, is_url
from streamd.config.checks import check_each, check_secrets, cross_check, duplicate_ids
from streamd.config.foreign import unused
from streamd.config.problems import dotted, doubtful, misread_numbers, validation_problems
from streamd.config.yamlfile import MAX_BYTES, Document, InvalidYaml, read_yaml
from streamd.engine import BUILTIN
from streamd.errors import ConfigError
from streamd.fleet.share import own_share
from streamd.flow.threads import NamedThread
from streamd.security.redact import redact, remember
from streamd.security.trust import read_text
from streamd.settings import FieldPath, with_paths
from streamd.settings.plugins import REMEDY, imported_now

MOST_PROBLEMS = 200
"""That are told of one file: all of them may be megabytes, in one line of the log."""
LOAD_LIMIT_S = 30.0
"""Longest time for reading and checking a configuration."""


@dataclass(frozen=True)
class Loaded:
    """A configuration, with information about its file."""

    config: Config
    path: Path
    secrets: frozenset[str]
    """Substituted values and passwords in the file itself. `redact` knows them already."""
    warnings: tuple[str, ...]
    """Things that are allowed, but not recommended."""
    line: Callable[[FieldPath], int | None]
    """The line of a field, or of the section that it belongs to."""

    def where(self, path: FieldPath) -> str:
        """FILE:LINE: FIELD, the start of an error message."""
        return f"{self.path}:{self.line(path) or 1}: {dotted(path)}"


@dataclass(frozen=True)
class Partial:
    """The valid streams and sinks of a configuration that is invalid elsewhere."""

    config: Config
    """Its other sections are of no meaning."""
    numbers: Mapping[str, Sequence[int]]
    """By section: which stream or sink of the file each one is."""
    line: Callable[[FieldPath], int | None]
    """As that of `Loaded`, for paths in the file."""
    unreplaced_at: frozenset[FieldPath] = frozenset()
    """Paths in the file of values with a `${…}` for which there was no text: a problem that is told already."""

    def follows(self, path: FieldPath) -> bool:
        """Whether a problem at `path` in the file may only be that such a value is missing."""
        return any(missing[: len(path)] == path for missing in self.unreplaced_at)

    def in_file(self, path: FieldPath) -> FieldPath:
        """A path in `config` as a path in the file."""
        if len(path) > 1 and isinstance(path[1], int) and (numbers := self.numbers.get(str(path[0]))) is not None:
            return (path[0], numbers[path[1]], *path[2:])
        return path


class InvalidConfig(ConfigError):
    """What is wrong with a configuration file.

    Args:
        message: all problems, one per line.
        partial: what is valid nevertheless, so that more can be checked; None if nothing is.
    """

    def __init__(self, message: str, partial: Partial | None = None) -> None:
        super().__init__(message)
        self.partial = partial


def load(
    path: str | os.PathLike[str],
    environment: Mapping[str, str] | None = None,
    *,
    secrets: bool = True,
    share: bool = True,
    base: Path | None = None,
) -> Loaded:
    """Reads, substitutes, validates.

    Args:
        path: the file.
        environment: the process's own by default.
        secrets: False does not read `${file:…}`; see `yamlfile.read_yaml`.
        share: False takes the streams of all daemons that `share` divides them among.
        base: what relative paths are relative to; by default the file's folder.

    Raises:
        InvalidConfig: all problems, one per line: `FILE:LINE: field: message`.
        ConfigError: the file cannot be read.
    """
    file = Path(os.path.expanduser(path))
    folder = file.parent if base is None else base
    document = _parse(file, folder, os.environ if environment is None else environment, secrets=secrets)
    if document.values is None and not document.problems:
        raise InvalidConfig(f"{file}: is empty; expected a YAML file with the sections model and streams")
    problems = [(line, message) for line, message in document.problems]
    config: Config | None = None
    partial: Partial | None = None
    try:
        config = Config.model_validate(document.values if document.values is not None else {})
        problems += misread_numbers(document)
    except ValidationError as error:
        problems += validation_problems(error, document)
        partial = _salvage(error, document, folder)
    found: list[tuple[FieldPath, str]] = []
    if config is not None:
        config = _absolute(config, folder)
        partial = Partial(config, {}, document.line, frozenset(document.unreplaced_at))
        found = [*cross_check(config), *check_secrets(config, document)]
        try:
            mine = shared(config)
            config = mine if share else config
        except ConfigError as error:
            problems.append((document.line(("share",)) or 1, str(error)))
    elif partial is not None:
        found = [(partial.in_file(path), message) for path, message in check_each(partial.config)]
        found += duplicate_ids(_raw_ids(document))
    problems += [(document.line(path) or 1, f"{dotted(path)}: {message}") for path, message in found]
    if problems or config is None:
        told = sorted(set(problems))
        text = "\n".join(f"{file}:{line}: {redact(message)}" for line, message in told[:MOST_PROBLEMS])
        if len(told) > MOST_PROBLEMS:
            text += f"\n{file}: and {len(told) - MOST_PROBLEMS} more problems"
        raise InvalidConfig(text, partial)
    warnings = (
        *_warnings(file, document),
        *(f"line {document.line(path) or 1}: {text}" for path, text in unused(config)),
    )
    return Loaded(config, file, frozenset(document.secrets | document.inline), warnings, document.line)


def load_in_time(
    path: str | os.PathLike[str],
    environment: Mapping[str, str] | None = None,
    *,
    secrets: bool = True,
    share: bool = True,
) -> Loaded:
    """`load` in a thread of its own, so that a file system that hangs cannot keep a start waiting for ever.

    Raises:
        InvalidConfig: see `load`.
        ConfigError: the file cannot be read, or not within `LOAD_LIMIT_S`.
    """
    found: list[Loaded | BaseException] = []

    def read() -> None:
        try:
            found.append(load(path, environment, secrets=secrets, share=share))
        except BaseException as error:  # noqa: BLE001 - raised below
            found.append(error)

    thread = NamedThread(read, "load")
    try:
        thread.start()
    except RuntimeError:  # no further thread is allowed
        return load(path, environment, secrets=secrets, share=share)
    thread.join(LOAD_LIMIT_S)
    if not found:
        if (of := imported_now()) is not None:
            raise ConfigError(f"{path}: {of} was not imported within {LOAD_LIMIT_S:g} s; {REMEDY}")
        raise ConfigError(f"{path}: could not be read within {LOAD_LIMIT_S:g} s; check its file system, and those of "
                          "the files that it names")  # fmt: skip
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _raw_ids(document: Document) -> list[str]:
    """The ids of all streams as they are in the file; empty for what is none."""
    streams = document.values.get("streams")
    ids = [each.get("id") if isinstance(each, dict) else None for each in streams] if isinstance(streams, list) else []
    return [str(each) if isinstance(each, (str, int)) and not isinstance(each, bool) else "" for each in ids]


def _salvage(error: ValidationError, document: Document, folder: Path) -> Partial | None:
    """The streams and sinks of which `error` does not speak; None if there is none, or more is wrong."""
    values = document.values
    if not isinstance(values, dict):
        return None
    broken = {item["loc"][:2] for item in error.errors(include_url=False, include_input=False, include_context=False)}
    kept: dict[str, list[object]] = {}
    numbers: dict[str, list[int]] = {}
    for section in ("streams", "sinks"):
        given = values.get(section)
        listed = given if isinstance(given, list) else []
        numbers[section] = [i for i in range(len(listed)) if (section, i) not in broken]
        kept[section] = [listed[i] for i in numbers[section]]
    try:
        config = Config.model_validate({"model": {"path": "none"}, **kept})
    except ValidationError:
        return None
    if not (config.streams or config.sinks):
        return None
    return Partial(_absolute(config, folder), numbers, document.line, frozenset(document.unreplaced_at))


def _parse(file: Path, folder: Path, environment: Mapping[str, str], *, secrets: bool) -> Document:
    text = read_text(file, MAX_BYTES, what=str(file), expected="a YAML file with streamd's configuration")
    try:
        document = read_yaml(text, environment, folder, secrets=secrets)
    except InvalidYaml as error:
        raise ConfigError(f"{file}:{error.line or 1}: {error.problem}") from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    # Before any message can contain the values.
    remember(document.secrets | document.inline)
    if document.values is not None and not isinstance(document.values, dict):
        raise ConfigError(f"{file}:1: expected `model:`, `streams:` and so on at the top level")
    return document


def _absolute(config: Config, folder: Path) -> Config:
    """Makes file paths relative to the configuration file absolute, so that the working directory does not matter."""

    def resolved(text: str) -> str:
        return text if is_url(text) or text.startswith(BUILTIN) else str((folder / os.path.expanduser(text)).absolute())

    absolute: Config = with_paths(config, resolved)
    return absolute


def shared(config: Config) -> Config:
    """With the streams of this daemon only, where several divide them.

    Raises:
        ConfigError: `share` does not say which daemon this is.
    """
    if config.share is None:
        return config
    own = own_share(config.share, [s.id for s in config.streams])
    return config.model_copy(update={"streams": tuple(s for s in config.streams if s.id in own)})


def _warnings(file: Path, document: Document) -> tuple[str, ...]:
    told = [f"line {line}: {message}" for line, message in [*document.warnings, *doubtful(document)]]
    if document.inline and file.exists():
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            advice = "chmod 600 it, or use ${file:PATH} or ${NAME} instead"
            told.append(f"the file contains passwords and others can read it (mode {mode:04o}); {advice}")
    return tuple(told)
