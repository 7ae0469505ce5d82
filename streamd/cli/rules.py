"""Zones and lines on the command line: `--zones` and `--lines`, as YAML or JSON in the form of a configuration."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from streamd.analysis.rules.checks import check_rules
from streamd.analysis.rules.settings import LineSettings, RuleSettings, ZoneSettings
from streamd.config.problems import dotted
from streamd.config.yamlfile import MAX_BYTES, read_yaml
from streamd.errors import ConfigError
from streamd.security.trust import read_text

R = TypeVar("R", bound=RuleSettings)


def add_rule_options(p: argparse.ArgumentParser) -> None:
    """Adds `--lines` and `--zones`."""
    form = "YAML or JSON as in a configuration, or a file with it"
    p.add_argument("--lines", metavar="RULES", help=f"lines to count at: {form}")
    p.add_argument("--zones", metavar="RULES", help=f"zones to count in: {form}")


def rules_of(args: argparse.Namespace) -> tuple[tuple[ZoneSettings, ...], tuple[LineSettings, ...]]:
    """The zones and lines of parsed options. They have no schedule; a warning says so if one was given.

    Raises:
        ConfigError: naming the option, the field, and what is wrong there.
    """
    zones = _read("zones", args.zones, ZoneSettings)
    lines = _read("lines", args.lines, LineSettings)
    check(zones, lines)
    return _without_schedule(zones), _without_schedule(lines)


def _without_schedule(rules: tuple[R, ...]) -> tuple[R, ...]:
    for rule in rules:
        if rule.schedule is not None:
            print(f"streamd: {rule.name}: schedule is ignored: a file has no time of day", file=sys.stderr)
    return tuple(rule.model_copy(update={"schedule": None}) for rule in rules)


def check(zones: Sequence[ZoneSettings], lines: Sequence[LineSettings], labels: Sequence[str] | None = None) -> None:
    """Checks what one field alone cannot tell; see `check_rules`.

    Raises:
        ConfigError: with all problems.
    """
    problems = [f"--{dotted(path)}: {message}" for path, message in check_rules(zones, lines, labels)]
    if problems:
        raise ConfigError("; ".join(problems))


def _is_inline(text: str) -> bool:
    return text.lstrip().startswith(("[", "{", "- ")) or "\n" in text


def _read(key: str, given: str | None, settings: type[R]) -> tuple[R, ...]:
    from pydantic import TypeAdapter, ValidationError

    if given is None:
        return ()
    option = f"--{key}"
    try:
        text = given
        if not _is_inline(given):
            text = read_text(Path(given), MAX_BYTES, what=given, expected=f"a YAML or JSON list of {key}")
        document = read_yaml(text, os.environ, secrets=False)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from error
    if document.problems:
        raise ConfigError("; ".join(f"{option}: line {line}: {message}" for line, message in document.problems))
    try:
        return tuple(TypeAdapter(list[settings]).validate_python(_listed(key, document.values)))  # type: ignore[valid-type]
    except ValidationError as error:
        problems = (f"--{dotted((key, *e['loc']))}: {_message(e, settings)}" for e in error.errors(include_url=False))
        raise ConfigError("; ".join(problems)) from error


def _listed(key: str, values: Any) -> list[Any]:
    """The rules in a list, in the mapping that has them, or as a single one."""
    if isinstance(values, dict):
        if key in values:
            values = values[key]
        elif "points" in values or "name" in values:
            values = [values]
    if not isinstance(values, list) or not values:
        raise ConfigError(f"--{key}: expected a list of {key}, such as [{{name: a, points: [[0.5, 0], [0.5, 1]]}}]")
    return values


def _message(error: Any, settings: type[RuleSettings]) -> str:
    if error["type"] == "missing":
        return "is required"
    if error["type"] == "extra_forbidden":
        return f"unknown field; expected one of {', '.join(sorted(settings.model_fields))}"
    return str(error["msg"])
