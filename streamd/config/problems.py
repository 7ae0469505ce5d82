"""What a configuration has wrong, in words: the field's name, and what was expected there."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from streamd.config import LISTEN_PATTERN, USER_PATTERN, Config
from streamd.config.yamlfile import Document, Path_
from streamd.settings import NAME_PATTERN
from streamd.sinks import KEY_PATTERN


def dotted(path: Path_) -> str:
    """A field's name as errors have it: streams[1].url."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out or "file"


def _in_file(location: Path_, values: Any) -> Path_:
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


def _value_at(values: Any, path: Path_) -> Any:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def validation_problems(error: ValidationError, document: Document) -> Iterator[tuple[int, str]]:
    """What pydantic refused, in the file's own terms.

    Args:
        error: of `Config`.
        document: what it was validated from.

    Yields:
        Each problem's line, and its field with what is wrong there.
    """
    for item in error.errors(include_url=False, include_input=False):
        path = _in_file(item["loc"], document.values)
        message = item["msg"]
        if item["type"] == "extra_forbidden":
            message = f"unknown field{_suggestion(str(path[-1]), item['loc'])}"
        elif item["type"] == "missing":
            message = "is required"
        elif item["type"] == "string_type" and isinstance(_value_at(document.values, path), bool):
            message = "expected text; YAML reads on, off, yes and no as true or false: put it in quotes"
        elif item["type"] == "string_pattern_mismatch":
            message = _PATTERNS.get(item["ctx"]["pattern"], message)
        elif item["type"] == "union_tag_invalid":
            path = (*path, "kind")
            message = f"expected one of {item['ctx']['expected_tags']}"
        yield document.line(path) or 1, f"{dotted(path)}: {message}"


_PATTERNS = {
    NAME_PATTERN: "expected at most 63 letters, digits, dots, dashes and underscores, not beginning with a dot or dash",
    LISTEN_PATTERN: "expected HOST:PORT, as in 127.0.0.1:9188",
    USER_PATTERN: "expected a name without a colon",
    KEY_PATTERN: "expected a public key of 40 characters, as `streamd keygen` makes them",
}


def _suggestion(name: str, location: Path_) -> str:
    known = sorted(_known_fields(location))
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _known_fields(location: Path_) -> set[str]:
    """Names of the fields beside the one at `location`, found in the JSON schema, which knows the unions."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]

    def options(node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            return options(definitions[node["$ref"].rsplit("/", 1)[1]])
        found = [o for key in ("anyOf", "oneOf", "allOf") for option in node.get(key, ()) for o in options(option)]
        return found or [node]

    nodes = [schema]
    for part in location[:-1]:
        following: list[dict[str, Any]] = []
        for node in nodes:
            if isinstance(part, int):
                following += options(node["items"]) if "items" in node else []
            elif part in node.get("properties", {}):
                following += options(node["properties"][part])
            elif node.get("properties", {}).get("kind", {}).get("const") == part:
                following.append(node)
        nodes = following or nodes
    return {name for node in nodes for name in node.get("properties", {})}
