#!/usr/bin/env python3
"""Receives the requests of a `webhook` sink and tells a chat about events that begin. Needs Python alone.

usage: WEBHOOK_KEY=KEY webhook_bot.py [--port PORT] [--post URL]

Without --post, the messages are printed. With it, each is the body of a POST request to URL, as ntfy and many bots take
it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import time
import urllib.request
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = os.environ["WEBHOOK_KEY"]
OLDEST_S = 300
REMEMBERED = 10_000
seen: OrderedDict[str, None] = OrderedDict()


def verified(id_: str, timestamp: str, signature: str, body: bytes) -> bool:
    """Whether the request comes from somebody who has the key, and is not an old one that is repeated."""
    key = base64.b64decode(KEY[len("whsec_") :]) if KEY.startswith("whsec_") else KEY.encode()
    digest = hmac.digest(key, f"{id_}.{timestamp}.".encode() + body, hashlib.sha256)
    expected = "v1," + base64.b64encode(digest).decode()
    return hmac.compare_digest(expected, signature) and abs(time.time() - int(timestamp)) < OLDEST_S


def tell(text: str, post: str | None) -> None:
    """Says it."""
    if post is None:
        print(text, flush=True)
        return
    request = urllib.request.Request(post, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310
        pass


class Hook(BaseHTTPRequestHandler):
    """Answers one connection of the sink."""

    protocol_version = "HTTP/1.1"
    post: str | None = None

    def log_message(self, *_: object) -> None:
        """Nothing: the messages are the output."""

    def do_POST(self) -> None:
        """One event."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        id_, stamp, signature = (self.headers.get(f"webhook-{n}", "") for n in ("id", "timestamp", "signature"))
        if not stamp.isdecimal() or not verified(id_, stamp, signature, body):
            return self.answer(401)
        if id_ not in seen:
            event = json.loads(body)["data"]
            if event["kind"] in ("begin", "instant"):
                try:
                    tell(f"{event['stream']}: {event['label']} {event['type']} {event['rule']}", self.post)
                except OSError:
                    return self.answer(503)  # the sink sends it again
            seen[id_] = None
            while len(seen) > REMEMBERED:
                seen.popitem(last=False)
        return self.answer(204)

    def answer(self, status: int) -> None:
        """Ends the request."""
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> None:
    """Runs until it is stopped."""
    parser = argparse.ArgumentParser(description="Tells a chat about events.")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--post", help="URL to post each message to")
    args = parser.parse_args()
    Hook.post = args.post
    ThreadingHTTPServer(("127.0.0.1", args.port), Hook).serve_forever()


if __name__ == "__main__":
    main()
