"""Which parts of a URL are secret, however malformed it is.

Passwords of cameras are rarely percent-encoded, so the end of a malformed password cannot be determined: everything
between `://` and the last `@` is removed, and after the host every value and every long random token that is not known
to be harmless. Plain path segments (`/Streaming/Channels/101`) stay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

from streamd.security.loose import Span, assigned, headers
from streamd.security.names import SECRET_KEYS, USER_KEYS

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}\Z")
_NEXT_URL = re.compile(r"(?<=[\s\"'(\[<,])[A-Za-z][A-Za-z0-9+.-]{0,30}://")
_JOINED = re.compile(r"[:=,;&{}\"'\s]+")
_SPACE = re.compile(r"\s")
_LINE_END = re.compile(r"[\r\n]")
_LAST_AT = re.compile(r"@(?=[\w\[*.])")
_ENCODED = re.compile(
    r"(?<![\w+.-])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30})(?P<mark>(?:%(?:25)*3[Aa]|:)(?:%(?:25)*2[Ff]|/){2})"
)
"""The start of a URL that is percent-encoded as a whole, as in the query of another; also more than once."""
_ENDS_ENCODED = re.compile(r"[\s\"'<>]")
_MOST_ENCODINGS = 5
_REACH = 256
"""How far after a URL's first word to search for its `@`, in characters, for passwords that contain blanks."""
_HOST = re.compile(r"(?:[\w.*-]*|\[[\w:.%*]*\])(?::(?:\d{1,5}|\*|PORT))?")
_ASSIGNED = re.compile(r"[?&;/_][A-Za-z][\w.-]{0,39}=")
_AUTHORITY = re.compile(r"(?:\[(?P<six>[\w:.%]+)\]|(?P<name>[\w.-]*))(?::(?P<port>\d{1,9}))?(?=[/?#]|$)")
_TRAILING = ":,.;!)]}>'\""
"""Characters that follow a URL in a sentence and rarely end one."""
_LOCAL = ("file", "ipc", "inproc", "unix")
"""Schemes with local paths: folders with random names are not secrets."""

_HARMLESS = (
    "channel", "ch", "chn", "cam", "camera", "id", "stream", "subtype", "subtype2", "substream", "profile", "trackid",
    "track", "resolution", "size", "width", "height", "fps", "framerate", "rate", "quality", "compression", "codec",
    "videocodec", "transportmode", "unicast", "multicast", "proto", "transport", "mode", "type", "format", "latency",
    "timeout", "audio", "video", "rotation", "mirror", "line", "inst", "page", "nodelay", "action",
)  # fmt: skip
_HARMLESS_VALUE = (
    r"(?:\d{1,5}|\d{1,4}[xX]\d{1,4}|(?i:main|sub|extra|mobile|tcp|udp|http|rtp|unicast|multicast|h\.?26[45]|hevc|mjpe?g|"
    r"jpe?g|mpeg4|true|false|yes|no|on|off|caller|listener|rendezvous|onvif|media|live|stream|high|low|profile_?\d{1,3}|"
    r"snapshot|videos?))"
)
_HARMLESS_PAIR = re.compile(rf"(?i:{'|'.join(_HARMLESS)})={_HARMLESS_VALUE}(?:\.sdp)?")
_HARMLESS_INSIDE = re.compile(rf"(?<=[_,~|])(?i:{'|'.join(_HARMLESS)})=\d{{1,3}}(?=[_,~|.]|$)(?:\.sdp$)?")
_LEAST_UNKNOWN = 8
"""Characters of a value that is remembered whatever its name; a shorter one might be a word of other messages."""
_IS_HARMLESS = re.compile(_HARMLESS_VALUE)
_FLAGS = frozenset(("real_stream", "tcp", "udp", "unicast", "multicast", "video", "audio", "inst", "sdp", "mjpg"))
_ASSIGNS_SECRET = re.compile(
    rf"(?i:(?<![A-Za-z])(?:{'|'.join(map(re.escape, sorted(SECRET_KEYS, key=len, reverse=True)))})|passw?)="
)
_ENDS_SECRET = re.compile(rf"[&;]|_(?i:{'|'.join(_HARMLESS)})=")
_SECRET_PART = re.compile(r"pass|pwd|token|secret|auth|key|sig|credential", re.IGNORECASE)
_KEY = re.compile(r"[A-Za-z][\w.-]{0,39}")
_LOGIN_SEGMENT = re.compile(r"(?=[^:]*[A-Za-z])(?P<name>[\w.@-]{1,64})(?::|%(?:25)*3[Aa])(?P<rest>.+)")
"""`/0/admin:PASSWORD/main`."""
_USER_SEGMENT = re.compile(
    r"(?i:admin|administrator|root|user|username|guest|operator|viewer|supervisor|service|default|"
    r"password|passwd|pwd|token|key|api_?key|stream_?key|secret)"
)
"""`/live/admin/PASSWORD/1`: what follows such a segment is a password unless it looks like a file or a known word."""
_HOOK_SEGMENT = re.compile(r"(?i:web_?hooks?|hooks?)")
"""`/api/webhook/ID`: whoever knows the rest may call it."""
_FILE_OR_WORD = re.compile(rf"[\w-]*\.[A-Za-z][A-Za-z0-9]{{1,4}}|{_HARMLESS_VALUE}|(?i:{'|'.join(_HARMLESS)})\d{{0,4}}")

_RUNS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_ALNUM = re.compile(r"[^\W_]")
_WORDS = re.compile(r"[A-Za-z0-9]+")
_HEX = re.compile(r"(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}|(?=[A-F]*\d)(?=\d*[A-F])[0-9A-F]{8,}")


def looks_random(text: str) -> bool:
    """True for a string that is longer than a name and alternates between letters and digits more than words do: a key,
    a token."""
    words = _WORDS.findall(text)
    joined = "".join(words)
    return any(map(_random_word, words)) or (len(words) > 2 and len(joined) >= 16 and _restless(joined))


def _random_word(word: str) -> bool:
    if len(word) < 8:
        return False
    if word.isdigit():
        return len(word) >= 12
    if _HEX.fullmatch(word) or _restless(word):
        return True
    longest_run = max(map(len, _RUNS.findall(word)))
    return longest_run >= 20


def _restless(word: str) -> bool:
    runs = len(_RUNS.findall(word))
    return runs > 2 and len(word) / runs < 3


def hidden(text: str) -> list[Span]:
    """The secret parts of `text`, which may contain URLs: non-empty spans, not in order; some may overlap."""
    found: list[Span] = []
    at = 0
    while (mark := text.find("://", at)) >= 0:
        scheme = _scheme(text, mark)
        found += assigned(text, at, mark - len(scheme))
        at = _extent(text, mark + 3)
        found += _of_url(text, scheme, mark + 3, at)
    found += assigned(text, at, len(text))
    found += headers(text)
    if "%" in text:
        found += _encoded(text)
    return [(a, b) for a, b in found if a < b]


def _decoded(text: str) -> str:
    for _ in range(_MOST_ENCODINGS):
        plain = unquote(text)
        if plain == text:
            break
        text = plain
    return text


def _encoded(text: str) -> Iterator[Span]:
    """Percent-encoded URLs that have a secret: where it begins and ends in there is not looked for."""
    at = 0
    while (match := _ENCODED.search(text, at)) is not None:
        at = match.end()
        if match["mark"] == "://":
            continue
        stop = _ENDS_ENCODED.search(text, at)
        end = stop.start() if stop else len(text)
        while end > at and text[end - 1] in _TRAILING:
            end -= 1
        plain = f"{match['scheme']}://{_decoded(text[at:end])}"
        too_often = "%" in plain and _ENCODED.search(plain)
        if too_often or hidden(plain):
            yield at, end
        at = max(at, end)


def urls_inside(url: str) -> Iterator[str]:
    """The URLs in the path or query of `url`, decoded: those that a proxy or another server is to open."""
    whole = _decoded(url)
    mark = whole.find("://", whole.find("://") + 1)
    if mark >= 0 and (scheme := _scheme(whole, mark)):
        yield whole[mark - len(scheme) :]


def secrets_of(url: str) -> tuple[str, set[str]]:
    """The userinfo of `url` (as a whole), and all secrets in it that are worth remembering."""
    begin = url.find("://") + 3
    if begin < 3:
        loose = [url[a:b] for a, b in assigned(url, 0, len(url))]
        return "", {text.partition(":")[2] or text for text in loose if len(text) >= 4}
    host = url.rfind("@", begin) + 1
    userinfo = url[begin : host - 1] if host else ""
    secrets: set[str] = set()
    if userinfo:
        user, _, password = userinfo.partition(":")
        secrets.add(password or user)  # the user name may be a token
        authority = re.split(r"[/?#]", userinfo, maxsplit=1)[0]
        if authority != userinfo and not _HOST.fullmatch(authority):
            # FFmpeg and others cut it there, and may output either piece.
            secrets.update(_pieces(r"[/?#@\s]+", password))
        elif _SPACE.search(password):
            secrets.update(_pieces(r"\s+", password))
    for a, b, key in _parts(url, _scheme(url, begin - 3), host or begin, len(url)):
        value = url[a:b]
        name = key.lower()
        secret = name in SECRET_KEYS or _SECRET_PART.search(name) is not None
        if looks_random(value) or (secret and _worth(value)) or (_is_unknown(name) and _worth(value, _LEAST_UNKNOWN)):
            secrets.add(value)
        if not name or value in secrets:  # `login=admin:password`, `streamid=publish:cam:admin:password`
            plain = unquote(value)
            if _JOINED.search(plain):
                secrets.update(v for v in _JOINED.split(plain) if _worth(v, _LEAST_UNKNOWN))
        if not name:  # a word without a name, or a name that is none: `q[password]=`
            secrets.update(v for v in (value.rpartition("=")[2], unquote(value)) if _worth(v, _LEAST_UNKNOWN))
        secrets.update(piece for piece in re.split(r"[_&=~]", value) if looks_random(piece))
    tail = url[host or begin :]
    for match in _ASSIGNS_SECRET.finditer(tail):
        # Its end is uncertain: at a delimiter, before XMeye's next name, or at the end of the URL.
        ends = [stop.start() for stop in _ENDS_SECRET.finditer(tail, match.end())]
        secrets.update(v for v in (tail[match.end() : end] for end in (*ends[:3], len(tail))) if _worth(v))
    if _scheme(url, begin - 3).lower().startswith("rtmp"):
        secrets.update(v for v in ("/".join(tail.split("/")[2:]),) if _worth(v))
    return userinfo, secrets


def _worth(value: str, least: int = 4) -> bool:
    return len(value) >= least and not _IS_HARMLESS.fullmatch(value)


def _is_unknown(name: str) -> bool:
    """Whether a parameter may be anything: neither a login name nor known to be harmless."""
    return bool(name) and name not in USER_KEYS and name not in _HARMLESS


def host_of(url: str) -> tuple[str | None, int | None]:
    """Host and port, as far as `url` has them; unlike `urllib.parse.urlsplit`, it accepts any string."""
    begin = url.find("://") + 3
    if begin < 3:
        return None, None
    found = _AUTHORITY.match(url, max(begin, url.rfind("@") + 1))
    if found is None:
        return None, None
    port = int(found["port"] or 0)
    return (found["six"] or found["name"]) or None, port if 0 < port < 65_536 else None


def _pieces(delimiters: str, password: str) -> list[str]:
    return [piece for piece in re.split(delimiters, password) if len(_ALNUM.findall(piece)) >= 4]


def unencoded(url: str) -> str | None:
    """The first raw `/`, `?` or `#` in the password of `url`, which every program treats as the end of the host.

    None if there is none, or if the URL can be interpreted otherwise.
    """
    begin, last = url.find("://") + 3, url.rfind("@")
    if not 3 <= begin <= last:
        return None
    userinfo = url[begin:last]
    cut = re.search(r"[/?#]", userinfo)
    if cut is None or ":" not in userinfo[: cut.start()] or _HOST.fullmatch(userinfo[: cut.start()]):
        return None
    return cut[0]


def _scheme(text: str, mark: int) -> str:
    found = _SCHEME.search(text[max(0, mark - 31) : mark])
    return found[0] if found else ""


def _extent(text: str, begin: int) -> int:
    """The end of the URL whose scheme ends at `begin`: the end of its word, or of the word with a later `@`."""
    space = _SPACE.search(text, begin)
    if space is None:
        return len(text)
    reach = space.start() + _REACH
    for stop in (_LINE_END.search(text, space.start(), reach), _NEXT_URL.search(text, space.start(), reach)):
        reach = stop.start() if stop else reach
    last = -1
    for match in _LAST_AT.finditer(text, space.start(), reach):
        last = match.end()
    if last < 0:
        return space.start()
    space = _SPACE.search(text, last)
    return space.start() if space else len(text)


def _of_url(text: str, scheme: str, begin: int, end: int) -> Iterator[Span]:
    host = begin
    at = text.rfind("@", begin, end)
    if at >= 0:
        if _ASSIGNED.search(text, begin, at) or (scheme.lower().startswith("rtmp") and "/" in text[begin:at]):
            yield begin, end  # the @ may belong to a value: what follows would be the end of a password, not a host
            return
        yield begin, at
        host = at + 1
    while end > host and text[end - 1] in _TRAILING:
        end -= 1
    yield from ((a, b) for a, b, _ in _parts(text, scheme, host, end))


def _parts(text: str, scheme: str, host: int, end: int) -> Iterator[tuple[int, int, str]]:
    """(begin, end, name) of the secrets after the `@`; the name is empty unless the secret is a value."""
    delimiter = re.compile(r"[/?#]").search(text, host, end)
    path = delimiter.start() if delimiter else end
    if not _HOST.fullmatch(text, host, path) or (text[host : host + 1] == "[" and "]" not in text[host:path]):
        yield host, end, ""  # `admin:pass`, the rest of which was cut off
        return
    query = re.compile(r"[?#]").search(text, path, end)
    path_end = query.start() if query else end
    local = scheme.lower() in _LOCAL
    tainted = after_user = False
    for number, segment in enumerate(re.compile(r"[^/]+").finditer(text, path, path_end)):
        if local:
            continue
        if number and scheme.lower().startswith("rtmp"):
            yield segment.start(), segment.end(), "key"  # the path is application/key
        elif tainted or "=" in segment[0]:
            for part in re.compile(r"[^&;]+").finditer(text, segment.start(), segment.end()):
                first = not tainted and part.start() == segment.start() and "=" not in part[0]
                spans = [*_value(part, tainted)] if not first or looks_random(part[0]) else []
                tainted = tainted or bool(spans)
                yield from spans
        elif looks_random(segment[0]):
            yield segment.start(), segment.end(), ""
        elif (login := _LOGIN_SEGMENT.fullmatch(segment[0])) is not None and not _is_plain(login):
            yield segment.end() - len(login["rest"]), segment.end(), "password"
            tainted = True  # a raw slash may be part of it
        elif after_user and not _FILE_OR_WORD.fullmatch(segment[0]):
            yield segment.start(), segment.end(), "password"
        tainted = tainted or _HOOK_SEGMENT.fullmatch(segment[0]) is not None
        after_user = _USER_SEGMENT.fullmatch(segment[0]) is not None
    for part in re.compile(r"[^?&;#]+").finditer(text, path_end, end):
        spans = [*_value(part, tainted)]
        tainted = tainted or bool(spans)
        yield from spans


def _is_plain(login: re.Match[str]) -> bool:
    """Whether `name:rest` is no login: `trackID:1`."""
    return login["name"].lower() in _HARMLESS or _IS_HARMLESS.fullmatch(login["rest"]) is not None


def _value(part: re.Match[str], tainted: bool) -> Iterator[tuple[int, int, str]]:
    """The secret part of `name=value` or of a single word.

    Args:
        part: the match.
        tainted: a secret precedes it, and this may be its rest.
    """
    begin, end = part.span()
    name, equals, value = part[0].partition("=")
    if not equals:
        if name.lower() not in _FLAGS:
            yield begin, end, ""
        return
    if _HARMLESS_PAIR.fullmatch(part[0]):
        return
    low = name.lower()
    known = low in SECRET_KEYS or low in USER_KEYS or low in _HARMLESS
    if not known and (tainted or not _KEY.fullmatch(name) or looks_random(name)):
        yield begin, end, ""
        return
    at = begin + len(name) + 1
    if at == end:
        yield at, end, name  # whose rest may follow
    for harmless in _HARMLESS_INSIDE.finditer(value):
        if at < begin + len(name) + 1 + harmless.start() - 1:
            yield at, begin + len(name) + 1 + harmless.start() - 1, name
        at = begin + len(name) + 1 + harmless.end()
    if at < end:
        yield at, end, name
