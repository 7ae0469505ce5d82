"""YAML with line numbers, environment substitution and no surprises (no tags, no duplicate keys, bounded size)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from streamd.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 32

Path_ = tuple[str | int, ...]

_SUBSTITUTION = re.compile(r"\$(?:\$|\{(?P<name>file:[^}]+|[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})")


@dataclass
class Document:
    """A parsed file: plain values, the line of each, and the secrets that were substituted into it."""

    values: Any
    lines: dict[Path_, int] = field(default_factory=dict)
    """Path of keys and indices -> line, counted from 1."""
    secrets: set[str] = field(default_factory=set)
    """Values that came from the environment or from files: never to be logged."""
    problems: list[tuple[int, str]] = field(default_factory=list)
    """(line, message) of what could not be read."""

    def line(self, path: Path_) -> int | None:
        """The line of `path`, or of its nearest ancestor that is in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._nodes = 0
        self._loader = yaml.SafeLoader("")
        self.document = Document(None)

    def problem(self, node: yaml.Node, message: str) -> None:
        self.document.problems.append((node.start_mark.line + 1, message))

    def read(self, node: yaml.Node, path: Path_) -> Any:
        # Aliases make a small file expand without bound ("billion laughs"): count what is built, not what is written.
        self._nodes += 1
        if self._nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise ConfigError(f"more than {MAX_NODES} values or {MAX_DEPTH} levels; this is no streamd configuration")
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
        if node.tag == "tag:yaml.org,2002:str":
            return self._substitute(node)
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            self.problem(node, f"{node.value!r} cannot be read as {node.tag}: {error}")
            return None

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in out:
                self.problem(key_node, f"{key}: given twice; keep one")
            out[key] = self.read(value_node, (*path, key))
            where = (*path, key)
            self.document.lines[where] = key_node.start_mark.line + 1
        return out

    def _substitute(self, node: yaml.Node) -> str:
        def value(match: re.Match[str]) -> str:
            name = match["name"]
            if name is None:
                return "$"
            found = self._secret_file(node, name[5:]) if name.startswith("file:") else self._environment.get(name)
            if found is None:
                if match["default"] is not None:
                    return match["default"]
                if not name.startswith("file:"):
                    self.problem(node, f"environment variable {name} is not set; set it, or write ${{{name}:-default}}")
                return match[0]  # a value of some kind: the field itself is not at fault
            if found:
                self.document.secrets.add(found)
            return found

        return _SUBSTITUTION.sub(value, str(node.value))

    def _secret_file(self, node: yaml.Node, name: str) -> str | None:
        path = Path(os.path.expandvars(name))
        try:
            if path.stat().st_size > 65_536:
                self.problem(node, f"{path}: larger than 65536 bytes; expected one secret")
                return None
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            self.problem(node, f"{path} cannot be read: {reason}; expected a file with one secret")
            return None


def read_yaml(text: str, environment: Mapping[str, str]) -> Document:
    """Parses `text`; `${NAME}`, `${NAME:-default}` and `${file:PATH}` in strings are substituted, `$$` is a dollar.

    Substitution happens after parsing, so no value can change the structure.

    Raises:
        ConfigError: not YAML at all, or unreasonably large. Smaller problems are collected in the document.
    """
    reader = _Reader(environment)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ConfigError(f"{where}not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise ConfigError("nested too deeply to be a configuration") from error
    if node is not None:
        try:
            reader.document.values = reader.read(node, ())
        except RecursionError as error:
            raise ConfigError("nested too deeply to be a configuration") from error
    return reader.document
