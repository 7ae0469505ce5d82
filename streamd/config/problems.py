"""Describes problems of a configuration: the field's name, and what was expected."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from streamd.config import Config, expected
from streamd.config.yamlfile import Document
from streamd.settings import FieldPath, Pattern, Settings, marks_of
from streamd.settings.registry import OneOf, Registry

_NUMBERS = ("float_type", "float_parsing", "int_type", "int_parsing", "int_from_float")
_UNITS = {"_s": "seconds", "_ms": "milliseconds", "_mb": "megabytes", "_gb": "gigabytes", "_days": "days",
          "fps": "frames a second"}  # fmt: skip
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
        elif not last or not isinstance(values, (dict, list, tuple)):
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
    errors = error.errors(include_url=False, include_input=False)
    paths = [_in_file(item["loc"], document.values) for item in errors]
    below = {path[:i] for path in paths for i in range(len(path))}
    found: dict[FieldPath, list[str]] = {}
    for item, path in zip(errors, paths, strict=True):
        kind, value = item["type"], _value_at(document.values, path)
        if kind == "too_short" and path in below:
            continue  # pydantic does not count the items that are invalid themselves
        if kind.startswith(("string_", "too_")) and document.unreplaced(value):
            continue
        message = _in_words(item, path, value, document)
        if kind == "extra_forbidden":
            unknown += 1
            section = _section_at(path[:-1], document.values) if unknown <= MOST_SUGGESTIONS else None
            registry = _registry_at(path[:-1], document.values) if section is not None else None
            kinds = registry.builtin() if registry is not None else None
            message = f"unknown field{expected.unknown_field(str(path[-1]), section, Config, kinds)}"
        elif kind in ("unknown_kind", "broken_plugin"):
            registry, named = _registry_at(path, document.values), _value_at(value, ("kind",))
            if kind == "unknown_kind" and registry is not None and isinstance(named, str):
                message += expected.unknown_kind(named, registry.names(), f"{registry.group}.{registry.contract}")
            path = (*path, "kind")
        found.setdefault(path, []).append(message)
    for path, messages in found.items():
        # Of a field that takes several types, pydantic tells what is wrong for each.
        rest = [message.removeprefix("expected ") for message in dict.fromkeys(messages[1:]) if message != messages[0]]
        yield document.line(path) or 1, f"{dotted(path)}: {', or '.join([messages[0], *rest])}"


def _in_words(item: Any, path: FieldPath, value: Any, document: Document) -> str:
    """One of pydantic's errors as a sentence."""
    kind, context = item["type"], item.get("ctx", {})
    if kind == "missing":
        return f"is required{_in_next_item(path, document.values)}"
    if kind in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        field = _field_at(path, document.values)
        marks = marks_of(field, OneOf) if field is not None else []
        return expected.section_below(path[-1], value, _section_at(path, document.values), next(iter(marks), None))
    if kind == "tuple_type":
        depth = next((i for i, part in enumerate(reversed(path)) if isinstance(part, str)), 0)
        pair = expected.numbers_in_brackets(_field_at(path, document.values), depth)
        return pair or "expected a list: one item a line, each after a dash and a space, or [one, another]"
    if kind in _NUMBERS:
        return f"expected a {'whole ' if kind.startswith('int') else ''}number{_unit(path)}"
    if kind in ("bool_type", "bool_parsing"):
        return "expected true or false"
    if kind == "literal_error":
        return expected.one_of(context["expected"], value)
    if kind == "string_type":
        field = _field_at(path, document.values)
        if field is not None and type(value) in (int, float) and not _would_do(field, str(value)):
            return next((mark.expected for mark in marks_of(field, Pattern)), "expected text")
        return f"expected text{_read_as(value)}"
    if kind == "string_pattern_mismatch":
        field = _field_at(path, document.values)
        marked = marks_of(field, Pattern) if field is not None else []
        return next((mark.expected for mark in marked), f"expected text that matches {context['pattern']}")
    if kind == "multiple_of":
        return f"expected a multiple of {context['multiple_of']:g}"
    if kind in ("value_error", "assertion_error"):  # of a validator in a plugin: its own words
        return str(context["error"]) or str(item["msg"])
    return expected.out_of_bounds(kind, context, value) or str(item["msg"])


def _in_next_item(path: FieldPath, values: Any) -> str:
    """Why a required field of a list's item may be missing: a dash too many has put it into the next item."""
    if len(path) < 2 or not isinstance(path[-2], int):
        return ""
    following = _value_at(values, (*path[:-2], path[-2] + 1))
    if isinstance(following, dict) and path[-1] in following and "id" not in following and "kind" not in following:
        return "; it stands in the next item, since each dash begins another one: write it without a dash"
    return ""


def _would_do(field: FieldInfo, text: str) -> bool:
    """Whether the field takes `text`: else quotes around it would not help."""
    annotation: Any = Annotated[field.annotation, field]
    try:
        TypeAdapter(annotation).validate_python(text)
    except ValidationError:
        return False
    return True


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


_SWITCHES = {"camera_health": ("enabled", "true"), "look": ("when", "motion")}
"""Sections of a stream that are off unless a field has this value."""


def doubtful(document: Document) -> Iterator[tuple[int, str]]:
    """What is valid, but hardly meant: times that look like another unit (`open_timeout_s: 5000`, `latency_ms: 0.2`),
    settings of what is not switched on.

    Yields:
        The line of each, and the field with what it means as it stands.
    """

    def look(value: Any, path: FieldPath) -> Iterator[tuple[int, str]]:
        if isinstance(value, dict):
            name = str(path[-1]) if path else ""
            switch, on = _SWITCHES.get(name, ("", ""))
            if switch and len(path) == 3 and switch not in value:
                yield document.line(path) or 1, f"{dotted(path)}: has no effect without {switch}: {on}"
            for key, below in value.items():
                yield from look(below, (*path, str(key)))
        elif isinstance(value, list):
            for i, below in enumerate(value):
                yield from look(below, (*path, i))
        elif path and isinstance(value, (int, float)) and not isinstance(value, bool):
            name = str(path[-1])
            if name.endswith("_ms") and 0 < value < 1:
                yield document.line(path) or 1, f"{dotted(path)}: is {value:g} milliseconds; check the unit"
            elif name.endswith("_s") and value >= 1000 and value % 1000 == 0 and value % 3600:
                long = f"{value:g} seconds, {value / 60:.0f} minutes"
                yield document.line(path) or 1, f"{dotted(path)}: is {long}; check the unit"

    yield from look(document.values, ())


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


def _field_at(path: FieldPath, values: Any) -> FieldInfo | None:
    """The field at `path`, whatever the kinds of its sections."""
    names = [part for part in path if isinstance(part, str)]
    section = _section_at(path[: path.index(names[-1])] if names else (), values)
    return section.model_fields.get(names[-1]) if section is not None and names else None


def _registry_at(path: FieldPath, values: Any) -> Registry[Any] | None:
    """The kinds of the section at `path`; None if it has none."""
    field = _field_at(path, values)
    return next((mark.registry for mark in marks_of(field, OneOf)), None) if field is not None else None


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
