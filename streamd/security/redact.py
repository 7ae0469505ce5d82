"""Keeps credentials out of all output.

There are two mechanisms: anything that looks like a credential in a URL, however malformed (decided by
`streamd.security.address`), or in a header, option or mapping (`streamd.security.loose`); and known secrets (everything
passed to `remember`), wherever and in whichever encoding they appear."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus, unquote

from streamd.security.address import hidden, secrets_of, urls_inside
from streamd.security.loose import Span
from streamd.security.text import printable, to_bytes, visible

MIN_LENGTH = 4
"""Shorter values would blank out half of every message."""

_MAY_TELL = re.compile(r"[=@:%]|(?:^|\s)-|(?i:bearer|basic)\s")

_known: tuple[str, ...] = ()
"""Known secrets, the longest first."""


def _encodings(secret: str) -> set[str]:
    raw = to_bytes(secret)
    encoded = (quote(raw), quote(raw, safe=""), quote_plus(raw))
    forms = {
        secret, *encoded, *map(_lower, encoded), quote(quote(raw, safe=""), safe=""), unquote(secret),
        repr(secret)[1:-1], json.dumps(secret)[1:-1], printable(secret),  # escaped as in exceptions and JSON
    }  # fmt: skip
    return forms | set(map(visible, forms))


def _lower(encoded: str) -> str:
    return re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), encoded)


def remember(secrets: Iterable[str]) -> None:
    """From now until the process ends, `redact` removes these secrets from every text."""
    global _known
    forms = {form for secret in secrets for form in _encodings(secret) if len(form) >= MIN_LENGTH}
    _known = tuple(sorted(forms.union(_known), key=len, reverse=True))


def known() -> tuple[str, ...]:
    """The remembered secrets, in each encoding. For passing on to a worker process, and for tests."""
    return _known


def forget() -> None:
    """Forgets all remembered secrets. For tests."""
    global _known
    _known = ()


def credentials(url: str) -> set[str]:
    """The secrets in `url`, including any blanks in it, for `remember`.

    These are the password (also its pieces if it has raw delimiters, and with the user name as in HTTP basic
    authentication), values of secret-looking names, and long random tokens in path or query; also those of a URL inside
    of it."""
    userinfo, found = secrets_of(url)
    if userinfo:
        user, _, password = userinfo.partition(":")
        basic = to_bytes(unquote(user, errors="surrogateescape")) + b":"
        basic += to_bytes(unquote(password, errors="surrogateescape"))
        found.add(base64.b64encode(basic).decode())
    for inner in urls_inside(url):
        found |= credentials(inner)
    return {secret for secret in found if secret}


def redact(text: str) -> str:
    """Returns `text` with every secret replaced by `***`, and without anything that cannot be encoded as UTF-8 or that
    a terminal obeys.

    It replaces all known secrets and what `streamd.security.address.hidden` finds.
    """
    text = visible(printable(text))  # first: a ? in place of a control character begins a query
    spans = [span for secret in _known if secret in text for span in _places(secret, text)]
    if _MAY_TELL.search(text):
        spans += hidden(text)
    if spans:
        at, pieces = 0, []
        for begin, end in sorted(spans):
            if begin >= at:
                pieces += [text[at:begin], "***"]
            at = max(at, end)
        text = "".join([*pieces, text[at:]])
    return text


def _places(secret: str, text: str) -> Iterator[Span]:
    at = text.find(secret)
    while at >= 0:
        yield at, at + len(secret)
        at = text.find(secret, at + len(secret))
