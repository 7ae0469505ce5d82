"""URLs that contain passwords, in the forms that people and cameras use."""

from __future__ import annotations

import json
from pathlib import Path

from fuzzing.target import Target

_PLACES = (
    "rtsp://admin:{0}@camera:554/Streaming/Channels/101",
    "rtsp://{0}@camera/live",
    "rtsp://camera/user=admin_password={0}_channel=1_stream=0.sdp",
    "http://camera/videostream.cgi?loginuse=admin&loginpas={0}",
    "http://camera/x?p={0}&channel=1",
    "rtsp://camera/live;password={0}",
    "rtmp://camera/live/{0}",
    "http://camera/x?jwt={0}#t",
    "srt://camera:9000?passphrase={0}&mode=caller",
)


class Urls(Target):
    """The first byte selects the place of the password; the rest is the password."""

    name = "urls"
    what = "redaction: passwords in URLs, and any text"
    text = True
    limit_s = 2.0
    tokens = (
        b"://",
        b"@",
        b":",
        b"/",
        b"?",
        b"#",
        b"&",
        b"=",
        b"_channel=1",
        b"%40",
        b" ",
        b"\xff",
        b"***",
        b"[",
        b"\n",
    )

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        passwords = (
            b"hunter2222",
            b"my secret1",
            b"password!@#$%^&*()_-=+[]{}/,.:;<>",
            b"Zq7/wK9?xx#1",
            b"Zq7\xf1wK9xx",
        )
        return [bytes([48 + n]) + password for n in range(len(_PLACES)) for password in passwords]

    def run(self, data: bytes) -> None:
        from streamd.security.redact import credentials, forget, redact, remember

        text = data.decode("utf-8", "surrogateescape")
        told = redact(text)
        told.encode()
        if redact(told) != told:
            raise AssertionError(f"redacted twice, it is another text: {text!a}")
        password = text[1:].strip()
        place = _PLACES[(data[0] if data else 0) % len(_PLACES)]
        if not 6 <= len(password) <= 200 or len(set(password)) < 4 or "***" in password or password in place:
            return
        url = place.format(password)
        forget()
        remember(credentials(url))
        for shown in (url, f"error: {url}: refused", f"error: {url!r}", json.dumps({"detail": url})):
            if password in redact(shown):
                raise AssertionError(f"told: {shown!a} as {redact(shown)!a}")


TARGETS: tuple[type[Target], ...] = (Urls,)
