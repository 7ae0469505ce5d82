"""Describes problems of a configuration: the field's name, and what was expected."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Union

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from streamd.config import Config
from streamd.config.yamlfile import Document
from streamd.settings import FieldPath, Pattern, Settings, marks_of
from streamd.settings.registry import OneOf

_NUMBERS = ("float_type", "float_parsing", "int_type", "int_parsing", "int_from_float")
_UNITS = {"_s": "seconds", "_ms": "milliseconds", "_mb": "megabytes", "fps": "frames a second"}
MOST_SUGGESTIONS = 100
"""After so many unknown fields, no similar name is looked for: that takes a millisecond each."""


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
    unknown = 0
    for item in error.errors(include_url=False, include_input=False):
        path = _in_file(item["loc"], document.values)
        message = item["msg"]
        if item["type"] == "extra_forbidden":
            unknown += 1
            message = f"unknown field{_suggestion(path, document.values) if unknown <= MOST_SUGGESTIONS else ''}"
        elif item["type"] == "missing":
            message = "is required"
        elif item["type"] == "tuple_type":
            message = "expected a list: one item a line, each after a dash and a blank"
        elif item["type"] in ("model_type", "model_attributes_type", "dict_type"):
            message = "expected fields below it, as in NAME: VALUE, and not a single value or a list"
        elif item["type"] == "too_short" and (context := item.get("ctx", {})).get("field_type") == "Tuple":
            message = f"expected at least {context['min_length']}, not {context['actual_length']}"
        elif item["type"] == "too_long" and "actual_length" in (context := item.get("ctx", {})):
            message = f"expected at most {context['max_length']}, not {context['actual_length']}"
        elif item["type"] in _NUMBERS:
            message = f"expected a {'whole ' if item['type'].startswith('int') else ''}number{_unit(path)}"
        elif item["type"] == "string_type":
            message = f"expected text{_read_as(_value_at(document.values, path))}"
        elif item["type"] == "string_pattern_mismatch":
            field = _field_at(path, document.values)
            message = next((mark.expected for mark in marks_of(field, Pattern)), message) if field else message
        elif item["type"] in ("unknown_kind", "broken_plugin"):
            path = (*path, "kind")
        yield document.line(path) or 1, f"{dotted(path)}: {message}"


def _unit(path: FieldPath) -> str:
    name = str(path[-1]) if path else ""
    return next((f" of {unit}, without the unit" for end, unit in _UNITS.items() if name.endswith(end)), "")


def misread_numbers(document: Document) -> Iterator[tuple[int, str]]:
    """Numbers for which YAML has read true or false, which would count as 1 and 0.

    Yields:
        The line of each problem, and its field with the message.
    """
    for path in document.switches:
        field = _field_at(path, document.values)
        if field is None or not isinstance(path[-1], str):
            continue
        types = set(_members(field.annotation))
        if types & {int, float} and bool not in types:
            yield (
                document.line(path) or 1,
                f"{dotted(path)}: expected a number{_unit(path)}; YAML reads on, off, yes and no as true or false",
            )


def _members(annotation: Any) -> Iterator[Any]:
    """The types of a union, without what is inside of them."""
    if hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    arguments = getattr(annotation, "__args__", ())
    origin = getattr(annotation, "__origin__", None)
    if arguments and (origin is None or origin is Union):
        for each in arguments:
            yield from _members(each)
    else:
        yield origin or annotation


def _read_as(value: Any) -> str:
    """Why what was meant as text is none."""
    if isinstance(value, bool):
        return "; YAML reads on, off, yes and no as true or false: put it in quotes"
    if isinstance(value, (int, float)):
        return "; YAML reads this as a number: put it in quotes"
    if isinstance(value, datetime.date):
        return "; YAML reads this as a date: put it in quotes"
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
