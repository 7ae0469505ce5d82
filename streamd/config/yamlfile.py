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
from streamd.security.names import is_secret, is_secret_option
from streamd.security.redact import credentials
from streamd.security.text import is_encodable
from streamd.security.trust import read_text
from streamd.settings import FieldPath

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 32

MAX_SCALAR = 64
"""Characters of a number or date: converting a longer one takes time that grows with its square."""
_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MAX_SECRET_BYTES = 65_536
UNREAD = "x" * 40
"""A placeholder that has a valid form for any password or key."""


_SECRET_SECTIONS = ("headers", "cookies")
_HEADER_VALUE = re.compile(r"(?<=[:=\s])[^\s;,=:]{8,}")
"""The part of a header or cookie that may appear on its own: `Authorization: Bearer VALUE`, `session=VALUE`."""
_SUBSTITUTION = re.compile(r"\$(?:\$|\{(?P<name>file:[^}]+?|[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})")
_WITHOUT_BRACES = re.compile(r"\$[A-Z][A-Z0-9_]{2,}")
_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")

_FILE_FIELDS = ("path", "url")
"""Fields whose value is a file's name if it is no URL."""
_NO_FILE = frozenset("@:")
"""In a URL, or a login that lacks its scheme."""


@dataclass
class Document:
    """A parsed file: plain values, their lines, and the secrets that were substituted into it."""

    values: Any
    lines: dict[FieldPath, int] = field(default_factory=dict)
    """Path of keys and indices -> line, counted from 1."""
    secrets: set[str] = field(default_factory=set)
    """Values that came from the environment or from files: never to be logged."""
    inline: set[str] = field(default_factory=set)
    """Passwords written in the file itself, in URLs or under names such as `password`: never to be logged."""
    switches: list[FieldPath] = field(default_factory=list)
    """Where YAML has read true or false."""
    problems: list[tuple[int, str]] = field(default_factory=list)
    """(line, message) of values that could not be read."""
    unreplaced_at: set[FieldPath] = field(default_factory=set)
    """Paths of values with a `${…}` for which there was no text."""
    warnings: list[tuple[int, str]] = field(default_factory=list)
    """(line, message) of values that may mean something else."""

    def unreplaced(self, value: Any) -> bool:
        """Whether `value` begins with a `${…}` for which there was no text: a problem that is told already."""
        return bool(self.problems) and isinstance(value, str) and value.startswith("${")

    def line(self, path: FieldPath) -> int | None:
        """The line of `path`, or of its nearest ancestor that is in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def _is_secret(path: FieldPath) -> bool:
    """Whether the value at `path` is a secret, by its name or the name of its section."""
    names = [part for part in path[-2:] if isinstance(part, str)]
    if len(names) == 2 and names[0] == "options":
        return is_secret_option(names[1])
    return any(name.lower() in _SECRET_SECTIONS or is_secret(name) for name in names)


class _Reader:
    def __init__(self, environment: Mapping[str, str], folder: Path, *, secrets: bool) -> None:
        self._environment = environment
        self._folder = folder
        self._secrets = secrets
        self._nodes = 0
        self._loader = yaml.SafeLoader("")
        self.document = Document(None)

    def problem(self, node: yaml.Node, message: str) -> None:
        self.document.problems.append((node.start_mark.line + 1, message))

    def _count(self, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigError(f"more than {MAX_NODES} values or {MAX_DEPTH} levels; expected a streamd configuration")

    def read(self, node: yaml.Node, path: FieldPath) -> Any:
        # Aliases let a small file expand without limit ("billion laughs"): count the values built, not those written.
        self._count(len(path))
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
        if node.tag == "tag:yaml.org,2002:str":
            return self._substitute(node, path)
        if _is_secret(path):
            self.document.inline.add(str(node.value))
        if len(node.value) > MAX_SCALAR:
            self.problem(node, f"a number or date of more than {MAX_SCALAR} characters; put text in quotes")
            return None
        if node.tag in _NUMBERS and ":" in node.value:
            return str(node.value)  # YAML 1.1 takes 22:22 for a number of base 60, which nobody means
        try:
            value = self._loader.construct_object(node)
            if isinstance(value, bool):
                self.document.switches.append(path)
            return value
        except Exception:  # noqa: BLE001 - a tag that does not fit (`!!timestamp x`, `!!bool x`) raises anything
            # Show neither the value nor the error, which contains it: an unquoted password can look like a bad date.
            core, _, kind = str(node.tag).rpartition(":")
            self.problem(
                node, f"cannot be read{f' as {kind}' if core else ''}; if it is meant as text, put it in quotes"
            )
            return None

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Any]:
        out: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problem(key_node, "a list or mapping stands where a name is expected")
                continue
            key = str(key_node.value)
            if key_node.tag == _MERGE:
                merged.append(value_node)
                continue
            if not is_encodable(key):
                self.problem(key_node, "a name holds half a surrogate pair; write it as UTF-8")
                continue
            if not path and key.startswith("x-"):
                continue  # a place for what is used elsewhere by anchors, as in Compose files
            if key in out:
                self.problem(key_node, f"{key}: given twice; keep one")
            out[key] = self.read(value_node, (*path, key))
            where = (*path, key)
            self.document.lines[where] = key_node.start_mark.line + 1
        for value_node in merged:
            self._merge(value_node, path, out)
        return out

    def _merge(self, node: yaml.Node, path: FieldPath, out: dict[str, Any], depth: int = 0) -> None:
        """`<<: *name` or `<<: [*one, *other]`: what `out` does not have yet."""
        for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            self._count(len(path) + depth)
            if not isinstance(each, yaml.MappingNode):
                self.problem(each, "<<: expected a mapping, or a list of mappings")
                continue
            further: list[yaml.Node] = []
            for key_node, value_node in each.value:
                self._count(len(path) + depth)
                key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else None
                if key_node.tag == _MERGE:
                    further.append(value_node)
                elif key is not None and key not in out:
                    out[key] = self.read(value_node, (*path, key))
                    self.document.lines.setdefault((*path, key), key_node.start_mark.line + 1)
            for value_node in further:
                self._merge(value_node, path, out, depth + 1)

    def _substitute(self, node: yaml.Node, path: FieldPath) -> str:
        substituted = False

        def value(match: re.Match[str]) -> str:
            nonlocal substituted
            name = match["name"]
            if name is None:
                return "$"
            if name.startswith("file:"):
                found, problem = self._secret_file(name[5:])
            else:
                found = self._environment.get(name)
                problem = f"environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            if found is None:
                if match["default"] is not None:
                    return match["default"]
                self.problem(node, problem)
                self.document.unreplaced_at.add(path)
                return match[0]  # a placeholder: the field itself is not at fault
            # The path of a model or clip may come from the environment, too, and messages have to name it.
            is_file = (found.startswith("/") and os.path.exists(found)) or (
                str(node.value) == match[0] and bool(path) and path[-1] in _FILE_FIELDS and _NO_FILE.isdisjoint(found)
            )
            if found and not is_file:
                self.document.secrets.add(found)
            substituted = True
            return found

        out = _SUBSTITUTION.sub(value, str(node.value))
        if _WITHOUT_BRACES.search(_SUBSTITUTION.sub("", str(node.value))):
            # It may be part of a password: it is not shown.
            message = "a $ before a name is read as text; a variable is ${NAME}, and $$ is a dollar sign"
            self.document.warnings.append((node.start_mark.line + 1, message))
        if "${" in _SUBSTITUTION.sub("", str(node.value)):
            # What follows may be a password: it is not shown.
            self.problem(node, "${ that begins no ${NAME}, ${NAME:-default} or ${file:PATH}; write $${ for the text")
        if "\0" in out:
            self.problem(node, "contains a NUL character, which is not allowed in a path, name or address")
            return ""
        if not is_encodable(out):
            self.document.secrets.update(credentials(out) | ({out} if substituted or _is_secret(path) else set()))
            self.problem(node, "holds bytes that are not UTF-8 text, or half a surrogate pair; write it as UTF-8")
            return ""
        found = credentials(out)
        if out and _is_secret(path):
            found |= {out, *_HEADER_VALUE.findall(out)}
        (self.document.secrets if substituted else self.document.inline).update(found)
        return out

    def _secret_file(self, name: str) -> tuple[str | None, str]:
        """The file's content, and the problem if it cannot be read."""
        if not self._secrets:
            return UNREAD, ""
        missing = [v for v in _VARIABLE.findall(name) if v not in self._environment]
        if missing:
            hint = "; systemd sets it if the unit has LoadCredential=" if "CREDENTIALS_DIRECTORY" in missing else ""
            return None, f"${{file:{name}}}: environment variable {missing[0]} is not set{hint}"
        file = self._folder / os.path.expanduser(_VARIABLE.sub(lambda match: self._environment[match[1]], name))
        try:
            return read_text(file, MAX_SECRET_BYTES, what=str(file), expected="a file with one secret").strip(), ""
        except ConfigError as error:
            return None, str(error)


class InvalidYaml(ConfigError):
    """A text that is not YAML.

    Args:
        problem: what is wrong.
        line: where, counted from 1; None if that is unknown.
    """

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(f"not valid YAML: {problem}" if line is None else f"line {line}: not valid YAML: {problem}")
        self.problem, self.line = f"not valid YAML: {problem}", line


def _in_words(error: yaml.YAMLError) -> str:
    """What PyYAML found, and what it usually means.

    No part of the text is shown: an unquoted password that begins with * is an alias in YAML, which errors would name.
    """
    problem, context = str(getattr(error, "problem", None) or "not text"), str(getattr(error, "context", None) or "")
    begin = getattr(error, "context_mark", None)
    since = f" in line {begin.line + 1}" if begin is not None else ""
    if problem == "second occurrence":
        return "the name of an anchor (&) is given twice"
    if "'\\t'" in problem:
        return "a tab where YAML expects spaces; indent with spaces"
    if problem == "mapping values are not allowed here":
        return "a colon where none is expected; put the value that holds it in quotes, or check the indentation"
    if problem.startswith("expected <block end>"):
        return f"a line with another indentation than the section that begins{since}"
    if "quoted scalar" in context and problem == "found unexpected end of stream":
        return f"a quote that is opened{since} is not closed"
    if problem.startswith("expected ',' or"):
        bracket = "brace" if "mapping" in context else "bracket"
        return f"a {bracket} that is opened{since} is not closed here, or a value in it needs quotes"
    if problem.startswith("could not find expected ':'"):
        return f"expected NAME: VALUE{since}; put text in quotes"
    if problem.startswith(("found character", "found undefined alias")):
        return "a value begins with a character that has a meaning in YAML; put it in quotes"
    if problem.startswith("found unknown escape character"):
        return "a backslash in double quotes begins an escape; use single quotes"
    return re.sub(r"'.{4,}'", "'…'", problem)


def read_yaml(text: str, environment: Mapping[str, str], folder: Path = Path(), *, secrets: bool = True) -> Document:
    """Parses `text`; `${NAME}`, `${NAME:-default}` and `${file:PATH}` in strings are substituted, `$$` is a dollar.

    Substitution happens after parsing, so no value can change the structure. `$NAME` in a file's path is an environment
    variable (`${file:$CREDENTIALS_DIRECTORY/camera}`); a relative path is relative to `folder`. Without `secrets`, such
    files are not read, and `UNREAD` replaces their content.

    Raises:
        InvalidYaml: not YAML.
        ConfigError: too large. Other problems are collected in the document.
    """
    reader = _Reader(environment, folder, secrets=secrets)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise InvalidYaml(_in_words(error), None if mark is None else mark.line + 1) from error
    except RecursionError as error:
        raise ConfigError("nested too deeply to be a configuration") from error
    if node is not None:
        try:
            reader.document.values = reader.read(node, ())
        except RecursionError as error:
            raise ConfigError("nested too deeply to be a configuration") from error
    return reader.document
