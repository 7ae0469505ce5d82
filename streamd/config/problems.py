"""Describes problems of a configuration: the field's name, and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from streamd.config import Config
from streamd.config.yamlfile import Document
from streamd.settings import FieldPath, Pattern, Settings, marks_of
from streamd.settings.registry import OneOf


def dotted(path: FieldPath) -> str:
    """A field's name as shown in errors: streams[1].url."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out or "file"


def _in_file(location: FieldPath, values: Any) -> FieldPath:
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


def _value_at(values: Any, path: FieldPath) -> Any:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def validation_problems(error: ValidationError, document: Document) -> Iterator[tuple[int, str]]:
    """Pydantic's errors in terms of the file.

    Args:
        error: from validating `Config`.
        document: the validated document.

    Yields:
        The line of each problem, and its field with the message.
    """
    for item in error.errors(include_url=False, include_input=False):
        path = _in_file(item["loc"], document.values)
        message = item["msg"]
        if item["type"] == "extra_forbidden":
            message = f"unknown field{_suggestion(path, document.values)}"
        elif item["type"] == "missing":
            message = "is required"
        elif item["type"] == "string_type":
            message = f"expected text{_read_as(_value_at(document.values, path))}"
        elif item["type"] == "string_pattern_mismatch":
            field = _field_at(path, document.values)
            message = next((mark.expected for mark in marks_of(field, Pattern)), message) if field else message
        elif item["type"] in ("unknown_kind", "broken_plugin"):
            path = (*path, "kind")
        yield document.line(path) or 1, f"{dotted(path)}: {message}"


def _read_as(value: Any) -> str:
    """Why what was meant as text is none."""
    if isinstance(value, bool):
        return "; YAML reads on, off, yes and no as true or false: put it in quotes"
    if isinstance(value, (int, float)):
        return "; YAML reads this as a number: put it in quotes"
    return ""


def _suggestion(path: FieldPath, values: Any) -> str:
    section = _section_at(path[:-1], values)
    known = sorted(section.model_fields) if section is not None else []
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(known)}"


def _field_at(path: FieldPath, values: Any) -> FieldInfo | None:
    """The field at `path`, whatever the kinds of its sections."""
    names = [part for part in path if isinstance(part, str)]
    section = _section_at(path[: path.index(names[-1])] if names else (), values)
    return section.model_fields.get(names[-1]) if section is not None and names else None


def _section_at(path: FieldPath, values: Any) -> type[Settings] | None:
    """The class of the section at `path`."""
    section: type[Settings] | None = Config
    value = values
    field: FieldInfo | None = None
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
        if isinstance(part, str):
            field = section.model_fields.get(part) if section is not None else None
        if field is None:
            return None
        section = _class_of(field, value)
    return section


def _class_of(field: FieldInfo, value: Any) -> type[Settings] | None:
    """The class of a field's value: that of its kind, if it has kinds."""
    for one_of in marks_of(field, OneOf):
        registry = one_of.registry
        kind = value.get("kind", registry.default) if isinstance(value, Mapping) else registry.default
        try:
            found: type[Settings] = registry.find(str(kind))
        except ValueError:
            return None
        return found
    return next(_classes(field.annotation), None)


def _classes(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _classes(argument)
