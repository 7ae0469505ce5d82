"""Who may see the page and what belongs to it, and what a browser may do with it."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from streamd.telemetry.routes import Handler, Request, Response

GUARDS = {
    # No external and no inline code: a name from a configuration can never be executed.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def known_host(header: str) -> bool:
    """Whether a Host header names this machine by address or as localhost.

    Without a login, other names are rejected: an attacker could point a name at 127.0.0.1 (DNS rebinding), and the
    browser would then give that site's scripts access to our cameras.
    """
    host = header.rsplit(":", 1)[0] if not header.endswith("]") else header
    host = host.strip("[]").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def guard(handler: Handler, *, login: bool) -> Handler:
    """A handler that answers nobody whom a foreign site has sent, and whose answers are guarded.

    Args:
        handler: of a route.
        login: True if a login is required: the page may then be reached by any host name.
    """

    def answer(request: Request) -> Response:
        if not login and not known_host(request.headers.get("Host", "")):
            text = b"host name not allowed without a login: use an IP address or localhost, or set metrics.login\n"
            return Response(text, code=403)
        response = handler(request)
        return replace(response, headers={**GUARDS, **response.headers})

    return answer
