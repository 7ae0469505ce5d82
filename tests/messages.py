"""Every message that a test receives is held against the published schema."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema_rs
import msgspec

from streamd.sinks.message import DetectionsMessage, StatusMessage, decode
from tests.conftest import ROOT


@cache
def validators() -> tuple[Any, Any]:
    """For detections, for a status."""
    schema = json.loads((ROOT / "docs" / "messages.schema.json").read_text())
    detections, status = (
        jsonschema_rs.validator_for({**schema, "anyOf": [{"$ref": f"#/$defs/{name}"}]})
        for name in ("DetectionsMessage", "StatusMessage")
    )
    return detections, status


def checked(parts: list[bytes]) -> DetectionsMessage | StatusMessage:
    """Decodes a multipart message that docs/messages.schema.json allows; any other one raises."""
    payload = (json.loads if parts[1][:1] == b"{" else msgspec.msgpack.decode)(parts[1])
    validators()[parts[0].endswith(b"/status")].validate(payload)
    message = decode(parts)
    assert isinstance(message, (DetectionsMessage, StatusMessage))
    return message
