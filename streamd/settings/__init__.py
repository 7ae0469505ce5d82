"""The base of all configuration classes, and the marks of their fields.

`registry` keeps the kinds of a package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic.fields import FieldInfo

FieldPath = tuple[str | int, ...]
"""The location of a field: `("streams", 0, "url")`."""
Problems = Iterator[tuple[FieldPath, str]]
"""Each invalid field, with the problem."""


class Settings(BaseModel):
    """A strict, frozen configuration section: an unknown key is an error, and so is a wrong type.

    Every field has a `Field(description=…)`: the configuration reference and the JSON schema are generated from them.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        validate_default=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )


class KindSettings(Settings):
    """Settings of one kind, such as a kind of sink. See `settings.registry`."""

    kind: str

    def check(self) -> Problems:
        """Problems across the fields. Paths start at these settings; an empty path means the whole section."""
        yield from ()


@dataclass(frozen=True)
class Pattern:
    """Marks a field whose pattern needs an explanation in an error."""

    expected: str


Seconds = Annotated[float, Field(ge=0.001, le=86_400)]
Milliseconds = Annotated[float, Field(ge=0, le=60_000)]
Unit = Annotated[float, Field(ge=0, le=1)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"


def schema_of(*alternatives: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """For `json_schema_extra` of a field whose type says less than its check: what JSON Schema and the reference say.

    Args:
        alternatives: JSON Schemas; null is added to an optional field.
    """

    def replace(schema: dict[str, Any]) -> None:
        optional = {"type": "null"} in schema.get("anyOf", ())
        schema["anyOf"] = [*alternatives, *([{"type": "null"}] if optional else [])]

    return replace


Name = Annotated[
    str,
    Field(pattern=NAME_PATTERN),
    Pattern(
        "expected at most 63 letters (a to z), digits, dots, dashes and underscores, not beginning with a dot or dash"
    ),
]
"""A name that is safe in a topic, a metric label and a file name."""


@dataclass(frozen=True)
class PathMark:
    """Marks a field that contains a file path, relative to the configuration file.

    URLs and names of bundled models, such as `builtin:road6`, are always left unchanged.
    """

    literals: tuple[str, ...] = ()
    """Values that are not paths."""


PORT_PATTERN = r"(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
LISTEN_PATTERN = rf"^(\[[0-9A-Fa-f:.]+\]|[^:\s\[\]/]+):{PORT_PATTERN}$"
"""HOST:PORT to listen on."""
ConfigPath = Annotated[str, PathMark()]
"""A path relative to the configuration file; absolute once the configuration is loaded."""


@dataclass(frozen=True)
class ExternalMark:
    """Marks an access secret, which must not be written in the configuration file itself."""


ExternalSecret = Annotated[SecretStr, ExternalMark()]
"""A secret that must come from the environment or from a file."""

MarkT = TypeVar("MarkT")


def marked(settings: Settings, mark: type[MarkT], path: FieldPath = ()) -> Iterator[tuple[FieldPath, Any, MarkT]]:
    """Every field below `settings` with a mark of that type: its location, its value, the mark."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        for found in marks_of(field, mark)[:1]:
            yield (*path, name), value, found
        for where, each in _sections(value):
            yield from marked(each, mark, (*path, name, *where))


def marks_of(field: FieldInfo, mark: type[MarkT]) -> list[MarkT]:
    """A field's marks of that type: its own, or those of a member of a union."""
    return [m for m in field.metadata if isinstance(m, mark)] or list(_inner_marks(field.annotation, mark))


def _inner_marks(annotation: Any, mark: type[MarkT]) -> Iterator[MarkT]:
    """Marks of `Annotated` members of a union, as in `ConfigPath | None`."""
    for metadata in getattr(annotation, "__metadata__", ()):
        if isinstance(metadata, mark):
            yield metadata
    for argument in getattr(annotation, "__args__", ()):
        yield from _inner_marks(argument, mark)


def _sections(value: Any) -> Iterator[tuple[FieldPath, Settings]]:
    if isinstance(value, Settings):
        yield (), value
    elif isinstance(value, tuple):
        yield from (((i,), each) for i, each in enumerate(value) if isinstance(each, Settings))


def with_paths(settings: Settings, resolve: Callable[[str], str]) -> Any:
    """A copy of `settings` with `resolve` applied to every field marked as a path."""
    changed: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        new: Any = value
        marks = marks_of(field, PathMark)
        if marks and isinstance(value, str):
            new = value if value in marks[0].literals else resolve(value)
        elif isinstance(value, Settings):
            new = with_paths(value, resolve)
        elif isinstance(value, tuple) and any(isinstance(each, Settings) for each in value):
            new = tuple(with_paths(each, resolve) if isinstance(each, Settings) else each for each in value)
        if new is not value and new != value:
            changed[name] = new
    return settings.model_copy(update=changed) if changed else settings
