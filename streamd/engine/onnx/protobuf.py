"""The part of protobuf's wire format that ONNX files need: a machine that only runs models has no `onnx` package."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Broken(Exception):
    """The bytes are not valid protobuf."""


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and the position after it.

    Raises:
        Broken: it is truncated or longer than 64 bits.
    """
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Broken
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def spans(data: memoryview) -> Iterator[tuple[int, memoryview, int, memoryview]]:
    """Each field as (number, all its bytes, value of a varint, content of one with a length).

    Raises:
        Broken: truncated, or not protobuf.
    """
    at, empty = 0, data[:0]
    while at < len(data):
        begin = at
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        value, body = 0, empty
        if wire == VARINT:
            value, at = varint(data, at)
        elif wire == BYTES:
            size, at = varint(data, at)
            body = data[at : at + size]
            at += size
        elif wire in (FIXED64, FIXED32):
            at += 8 if wire == FIXED64 else 4
        else:
            raise Broken
        if at > len(data) or number == 0:
            raise Broken
        yield number, data[begin:at], value, body


def fields(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Each field as (number, value of a varint, content of one with a length); see `spans`."""
    for number, _, value, body in spans(data):
        yield number, value, body


def text(data: memoryview) -> str:
    """A string field's value."""
    return bytes(data).decode("utf-8", errors="replace")


def packed(value: int) -> bytes:
    """A varint's bytes; `value` is not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(tag: int, value: int | bytes | memoryview) -> bytes:
    """The bytes of a field: a varint for an int, otherwise its length and content."""
    if isinstance(value, int):
        return packed(tag << 3 | VARINT) + packed(value)
    return b"".join((packed(tag << 3 | BYTES), packed(len(value)), value))
