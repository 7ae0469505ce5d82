"""What a field expects, in words, instead of pydantic's: which number, which word, which fields."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from streamd.config import elsewhere
from streamd.settings import Settings, marks_of
from streamd.settings.registry import OneOf

_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
_LENGTHS = {"string_too_short": ("min_length", "at least"), "string_too_long": ("max_length", "at most"),
            "too_short": ("min_length", "at least"), "too_long": ("max_length", "at most")}  # fmt: skip
_ADDRESS = ("address", "broker", "endpoint", "host", "hostname", "port", "server", "servers", "uri", "url")
_ADDRESSES = ("broker", "servers", "server", "url", "bind", "listen")
"""Usual names for the address of a server or a port, and the fields that hold one here. A section has one of them."""
_DEEPEST = 3
"""Sections below sections in which a field of an unknown section is looked for."""


def out_of_bounds(kind: str, context: Mapping[str, Any], value: Any) -> str | None:
    """A number outside its range, or text or a list of another length; None for other errors.

    Args:
        kind: pydantic's type of error.
        context: its context.
        value: what is in the file.
    """
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        shown = f", not {value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
        return f"expected {words} {_plain(context[key])}{shown}"
    if kind == "finite_number":
        return "expected a finite number"
    if kind in _LENGTHS:
        key, words = _LENGTHS[kind]
        if kind.startswith("string") or isinstance(value, str):  # of a secret, not even the length is shown
            return f"expected {words} {context[key]} characters"
        actual = context.get("actual_length")
        return f"expected {words} {context[key]}{f', not {actual}' if actual is not None else ''}"
    return None


def _plain(number: float) -> str:
    return f"{number:.10f}".rstrip("0").rstrip(".") if isinstance(number, float) else str(number)


def one_of(expected: str, value: Any) -> str:
    """A word that is none of those expected. The word itself is not shown: it may be a secret in a wrong place.

    Args:
        expected: pydantic's list, `'tcp', 'udp' or 'auto'`.
        value: what is in the file.
    """
    words = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
    message = f"expected {expected.replace(chr(39), '')}"
    if str(value) in words:
        return f"{message}; YAML reads this as a number: put it in quotes"
    if isinstance(value, bool):
        return f"{message}; YAML reads on, off, yes and no as true or false: put it in quotes"
    close = difflib.get_close_matches(str(value).lower(), words, n=1, cutoff=0.5) if isinstance(value, str) else []
    return f"{message}; did you mean {close[0]}?" if close else message


def section_below(name: str | int, value: Any, section: type[Settings] | None, kinds: OneOf | None = None) -> str:
    """What a single value or a list stands for that is to be a section.

    Args:
        name: of the field, or its number in a list.
        value: what is in the file.
        section: what is expected; None if that is unknown.
        kinds: those that may stand here, if there are several.
    """
    fields = section.model_fields if section is not None else {}
    words = {word: key for key, field in fields.items() for word in get_args(field.annotation)}
    names = [kind for kind in kinds.registry.names() if kind not in ("auto", "null")] if kinds is not None else []
    if isinstance(value, str) and value in (*names, *words):
        shown = f"{{{words.get(value, 'kind')}: {value}}}"
    elif kinds is not None and kinds.registry.default in (None, "auto"):
        shown = f"{{kind: {names[0]}}}"
    else:
        needed = [key for key, field in fields.items() if field.is_required()]
        first = [] if value is True else list(fields)[:1]
        shown = f"{{{', '.join(f'{key}: …' for key in needed or first)}}}"
    example = f"{name}: {shown}" if isinstance(name, str) else shown
    return f"expected fields below it, as in {example}, and not a single value or a list"


def numbers_in_brackets(field: FieldInfo | None, depth: int) -> str | None:
    """What an item of a list is that is itself a list of a known length; None if it is none.

    Args:
        field: the field of the outermost list.
        depth: number of lists around the value.
    """
    annotation = field.annotation if field is not None else None
    for _ in range(depth):
        annotation = next(iter(get_args(_list_in(annotation))), None)
    items = get_args(_list_in(annotation))
    if not items or Ellipsis in items:
        return None
    is_number = all(item in (int, float) for item in items)
    example = ", ".join(("0.25", "0.5", "0.75", "1")[: len(items)]) if is_number else "one, another"
    return f"expected {len(items)} {'numbers' if is_number else 'items'} in brackets, as in [{example}]"


def _list_in(annotation: Any) -> Any:
    """The tuple type among the members of a union, or None."""
    if hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if get_origin(annotation) is tuple:
        return annotation
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return next((found for each in get_args(annotation) if (found := _list_in(each)) is not None), None)
    return None


def unknown_field(
    name: str, section: type[Settings] | None, top: type[Settings], kinds: Mapping[str, type[Settings]] | None = None
) -> str:
    """What an unknown field of a section may have been meant for.

    Args:
        name: as it is written.
        section: the section that it stands in; None if that is unknown itself.
        top: the whole configuration.
        kinds: where the section has kinds, all of them.
    """
    if section is None:
        return ""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    address = next((field for field in _ADDRESSES if field in section.model_fields), None)
    meant = elsewhere.FIELDS.get(plain, ())
    usual = [address] if address and plain in _ADDRESS else [*(field for field in meant if "." not in field), plain]
    known = sorted(section.model_fields)
    also = [field for field in meant if "." in field]
    here = [field for field in usual if field in section.model_fields][:1]
    below = [] if here else _first_below(section, usual)
    if not here and not below and (having := _kinds_with(usual, kinds or {})):
        verb = "has" if len(having) == 1 else "have"
        return f" of this kind; {' and '.join(f'kind: {kind}' for kind in having)} {verb} it"
    for found in (
        [*here, *also],
        below,
        [] if meant else difflib.get_close_matches(name, known, n=1, cutoff=0.7),
        _one_of_kind(plain, section) if section is top else [],
        [] if plain in elsewhere.VAGUE else _first_below(top, usual),
    ):
        if found:
            return f"; did you mean {' or '.join(found[:2])}?"
    return f"; expected one of {', '.join(known)}"


def unknown_kind(kind: str, names: Sequence[str], group: str) -> str:
    """The kind that an unknown one may have been meant for, or where one that is not there comes from.

    Args:
        kind: as it is written.
        names: all kinds that may stand there.
        group: the entry points of kinds of other packages.
    """
    plain = kind.lower().replace("-", "_")
    meant = elsewhere.KINDS.get(plain)
    close = [meant] if meant in names else difflib.get_close_matches(plain, names, n=1, cutoff=0.75)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; if it comes from another package, install that here (its entry point is in the group {group})"


def _kinds_with(names: Sequence[str], kinds: Mapping[str, type[Settings]]) -> list[str]:
    """The kinds that have a field of one of these names; those for tests are not suggested."""
    return [
        kind
        for kind, each in kinds.items()
        if kind not in ("null", "synthetic") and any(name in each.model_fields for name in names)
    ]


def _one_of_kind(name: str, section: type[Settings]) -> list[str]:
    """Where a section takes something of the kind `name`, as `sinks: [{kind: mqtt, …}]`."""
    for key, field in section.model_fields.items():
        for mark in marks_of(field, OneOf)[:1]:
            if name in mark.registry.builtin():
                shown = f"{{kind: {name}, …}}"
                return [f"{key}: {f'[{shown}]' if _list_in(field.annotation) is not None else shown}"]
    return []


def _first_below(section: type[Settings], names: Sequence[str]) -> list[str]:
    """Where sections below `section` have a field of the first of the names that any has."""
    return next((found for name in names if (found := _below(section, name))), [])


def _below(section: type[Settings], name: str) -> list[str]:
    """Where sections below `section` have a field of that name: the nearest of them, as `streams[].zones`."""
    level: list[tuple[str, type[Settings]]] = [("", section)]
    for _ in range(_DEEPEST):
        level = [
            (f"{path}{key}{'[]' if is_list else ''}.", each)
            for path, owner in level
            for key, field in owner.model_fields.items()
            for is_list, each in sections_of(field)
        ]
        if found := [f"{path}{name}" for path, owner in level if name in owner.model_fields]:
            return list(dict.fromkeys(found))
    return []


def sections_of(field: FieldInfo) -> Iterator[tuple[bool, type[Settings]]]:
    """The sections that a field holds, without those of other packages, and whether it is a list of them."""
    is_list = _list_in(field.annotation) is not None
    for mark in marks_of(field, OneOf)[:1]:
        for kind in mark.registry.builtin().values():
            yield is_list, kind
    for each in _classes(field.annotation):
        yield is_list, each


def _classes(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _classes(argument)
