"""Secrets outside of URLs: headers, options of a command, JSON and Python's dictionaries, `name=value`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from streamd.security.names import is_secret

Span = tuple[int, int]

_WITHOUT_SCHEME = re.compile(r"(?<![^\s\"'(\[<,=])(?P<user>[^\s\"'(\[<,=:@]{0,64}:[^\s]{0,256})@(?=[\w\[])")
"""`admin:pass@host`."""
_ASSIGNED = re.compile(r"(?<![A-Za-z0-9])(?P<key>[A-Za-z][\w.-]{0,39})(?:\s?=\s?|%(?:25)*3[Dd])")
_VALUE = re.compile(r"[^\s&;\"']+?(?=[\s&;\"']|%(?:25)*26|$)")
_PAIR = re.compile(r"(?P<quote>\\{0,15}[\"'])(?P<key>[A-Za-z][\w.-]{0,39})(?P=quote)\s{0,2}:\s{0,4}(?=\\{0,15}[\"'])")
"""A secret of a mapping, in JSON (also inside of JSON) or as Python shows it."""
_FLAG = re.compile(r"(?<!\S)--?(?P<key>[A-Za-z][\w-]{0,39})\s{1,4}(?!-)")
_HEADER = re.compile(
    r"(?:(?<![\w.-])|(?<=\\[rn]))(?:(?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]{0,30}?(?:token|key|auth|secret|signature)[\w-]{0,30}|"
    r"(?:private|api|auth)-?(?:token|key))(?:\\{0,15}[\"'])?\s{0,2}:\s{0,4}",
    re.IGNORECASE,
)
_STATED = re.compile(r"(?<![\w.\]-])(?P<key>[A-Za-z][\w-]{0,39}):\s{1,4}(?=\S*\d)(?=\S*[^\W\d_])(?=[^\s\"']{6})")
"""`password: hunter22`; prose that follows a colon begins with a word."""
_BEARER = re.compile(r"(?<!\w)(?:Bearer|Basic)\s{1,4}(?P<value>[\w+/.~-]{6,}=*)", re.IGNORECASE)
_IS_TOKEN = re.compile(r"\d|[^\W\d_]*[a-z][A-Z]|[A-Z]{2}")
"""What a word of prose has not."""
_QUOTE = re.compile(r"\\{0,15}[\"']")
_QUOTE_BEFORE = re.compile(r"\\{0,15}[\"']\Z")
_QUOTE_OR_END = re.compile(r"\\{0,15}[\"']|[\r\n]")
_LINE_END = re.compile(r"[\r\n]|\\{1,15}[rn]")
_TRAILING = ":,.;!)]}>"


def assigned(text: str, begin: int, end: int) -> Iterator[Span]:
    """Secrets between URLs: `admin:pass@host/x`, `password=x`."""
    at = begin
    for match in _WITHOUT_SCHEME.finditer(text, begin, end):
        yield from _assignments(text, at, match.start())
        yield match.start("user"), match.end("user")
        at = match.end()
    yield from _assignments(text, at, end)


def _assignments(text: str, begin: int, end: int) -> Iterator[Span]:
    at = begin
    while (match := _ASSIGNED.search(text, at, end)) is not None:
        at = match.end()
        if is_secret(match["key"]):
            span = _value(text, at, end)
            yield span
            at = max(at, span[1])


def _value(text: str, at: int, end: int) -> Span:
    """The value that begins at `at`, without its quotes and without what follows a word in a sentence."""
    if (quote := _QUOTE.match(text, at, end)) is not None:
        return quote.end(), _closing(text, quote[0], quote.end(), end)
    found = _VALUE.match(text, at, end)
    if found is None:
        return at, at
    stop = found.end()
    while stop > at and text[stop - 1] in _TRAILING:
        stop -= 1
    return at, stop


def _closing(text: str, quote: str, at: int, end: int) -> int:
    """Where the string that `quote` has opened ends: before the next one that is escaped as it is, or with the line."""
    for found in _QUOTE_OR_END.finditer(text, at, end):
        if found[0] == quote or found[0] in "\r\n":
            return found.start()
    return end


def headers(text: str) -> Iterator[Span]:
    """Secrets whose place in a URL or beside it does not matter: headers, pairs of a mapping, flags of a command."""
    if ":" in text:
        yield from _each(_HEADER, text, _header)
        yield from _each(_PAIR, text, _named)
        yield from _each(_STATED, text, _named)
    if "-" in text:
        yield from _each(_FLAG, text, _flag)
    for match in _BEARER.finditer(text):
        if _IS_TOKEN.search(match["value"]):
            yield match.span("value")


def _each(pattern: re.Pattern[str], text: str, of: Callable[[str, re.Match[str]], Span | None]) -> Iterator[Span]:
    """What `of` finds at each match; continues after it, so that the time is linear."""
    at = 0
    while (match := pattern.search(text, at)) is not None:
        at = match.end()
        if (span := of(text, match)) is not None:
            yield span
            at = max(at, span[1])


def _named(text: str, match: re.Match[str]) -> Span | None:
    return _value(text, match.end(), len(text)) if is_secret(match["key"]) else None


def _flag(text: str, match: re.Match[str]) -> Span | None:
    secret = is_secret(match["key"]) or match["key"] in ("headers", "cookies")
    return _value(text, match.end(), len(text)) if secret else None


def _header(text: str, match: re.Match[str]) -> Span:
    """The value of a header: in quotes of its own, up to the end of the quotes around the header, or of the line."""
    at = match.end()
    if (quote := _QUOTE.match(text, at)) is not None:
        return quote.end(), _closing(text, quote[0], quote.end(), len(text))
    line = _LINE_END.search(text, at)
    end = line.start() if line else len(text)
    before = _QUOTE_BEFORE.search(text, max(0, match.start() - 8), match.start())
    return at, _closing(text, before[0], at, end) if before else end
