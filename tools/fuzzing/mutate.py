"""Mutations of bytes: the same seed and number give the same input, on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)
_TEXT_NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"255",
    b"65536",
    b"2147483648",
    b"-2147483649",
    b"9223372036854775808",
    b"1e400",
    b"-1e400",
    b"1e-400",
    b"NaN",
    b"Infinity",
    b"0.5",
    b"99999999999999999999999999999999",
)
MAX_BYTES = 1 << 20


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice((0, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(data: bytearray, rng: random.Random) -> None:
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(_NUMBERS) & ((1 << 8 * width) - 1)
    at = rng.randrange(len(data))
    data[at : at + width] = value.to_bytes(width, rng.choice(("big", "little")))


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _span(data: bytearray, rng: random.Random) -> tuple[int, int]:
    begin = rng.randrange(len(data))
    return begin, min(len(data), begin + rng.choice((1, 2, 4, 16, 64, 1 + rng.randrange(len(data)))))


def _delete(data: bytearray, rng: random.Random) -> None:
    begin, end = _span(data, rng)
    del data[begin:end]


def _repeat(data: bytearray, rng: random.Random) -> None:
    begin, end = _span(data, rng)
    piece = data[begin:end] * rng.choice((1, 1, 2, 8, 1000 if end - begin < 8 else 2))
    at = rng.choice((begin, rng.randrange(len(data) + 1)))
    data[at:at] = piece


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 32)))


def _text_number(data: bytearray, rng: random.Random) -> None:
    """Replaces a number by another one."""
    digits = [i for i, c in enumerate(data) if 0x30 <= c <= 0x39]
    if not digits:
        return _number(data, rng)
    begin = end = rng.choice(digits)
    while end < len(data) and data[end] in b"0123456789.eE+-":
        end += 1
    data[begin:end] = rng.choice(_TEXT_NUMBERS)
    return None


def _lines(data: bytearray, rng: random.Random) -> None:
    """Duplicates, moves or removes a line."""
    lines = bytes(data).split(b"\n")
    i = rng.randrange(len(lines))
    line = lines[i]
    what = rng.randrange(3)
    if what:
        del lines[i]
    if what != 1:
        lines.insert(rng.randrange(len(lines) + 1), line)
        if what == 0:
            lines.insert(i, line)
    data[:] = b"\n".join(lines)


_BINARY = (_flip, _flip, _flip, _byte, _number, _truncate, _delete, _repeat, _insert)
_TEXT = (*_BINARY, _text_number, _text_number, _lines, _lines)


class Mutator:
    """Makes input number N of a target.

    Args:
        seeds: good inputs, and those that once did harm.
        tokens: words of the format.
        text: True for formats that people write.
        seed: of everything random.
    """

    def __init__(self, seeds: Sequence[bytes], tokens: Sequence[bytes], *, text: bool, seed: str) -> None:
        self._seeds, self._tokens, self._seed = seeds, tokens, seed
        self._operations: tuple[Callable[[bytearray, random.Random], None], ...] = _TEXT if text else _BINARY

    def make(self, number: int) -> bytes:
        """The input: first every seed as it is, then mutations of them."""
        if number < len(self._seeds):
            return self._seeds[number]
        rng = random.Random(f"{self._seed}/{number}")
        data = bytearray(rng.choice(self._seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            if not data:
                data += b"\0"
            pick = rng.randrange(10)
            if pick == 0:  # the end of another one
                other = rng.choice(self._seeds)
                data[rng.randrange(len(data)) :] = other[rng.randrange(len(other) + 1) :]
            elif pick <= 2 and self._tokens:
                begin = rng.randrange(len(data) + 1)
                end = begin + rng.choice((0, 0, 1, 4, 16))
                data[begin:end] = rng.choice(self._tokens)
            else:
                rng.choice(self._operations)(data, rng)
        return bytes(data[:MAX_BYTES])
