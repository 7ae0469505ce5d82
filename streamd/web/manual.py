"""The documentation that is installed with streamd, for the page."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import msgspec

import streamd
from streamd.telemetry.routes import Request, Response


def folder() -> Path | None:
    """Where the documentation is: beside the package in a source tree, else in the prefix; None if it is nowhere."""
    tree = Path(streamd.__file__).parent.parent
    places = [tree / "docs"] if (tree / "pyproject.toml").is_file() else []
    places.append(Path(sys.prefix) / "share" / "streamd" / "docs")
    return next((place for place in places if (place / "README.md").is_file()), None)


class Manual:
    """Serves /docs/, the names of all pages as JSON, and /docs/NAME.md as Markdown.

    Args:
        place: the folder; None if there is none.
    """

    def __init__(self, place: Path | None) -> None:
        self._pages = {page.stem: page for page in sorted(place.glob("*.md"))} if place is not None else {}

    def answer(self, request: Request) -> Response:
        """The handler for `HttpServer.route`."""
        name = request.path.removeprefix("/docs/")
        if not name:
            return Response(msgspec.json.encode(list(self._pages)), "application/json")
        page = self._pages.get(name.removesuffix(".md")) if name.endswith(".md") else None
        if page is not None:
            with contextlib.suppress(OSError):
                return Response(page.read_bytes(), "text/markdown; charset=utf-8")
        return Response(b"no such page; /docs/ has the names of all\n", code=404)
