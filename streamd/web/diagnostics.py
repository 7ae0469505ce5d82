"""What an operator looks at when something is wrong: the latest log lines, the configuration, support bundles."""

from __future__ import annotations

import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
import yaml

from streamd.errors import SinkError
from streamd.telemetry.logs import Redactor
from streamd.telemetry.routes import Request, Response
from streamd.telemetry.shared import SharedAnswer
from streamd.telemetry.tail import MAX_LINES, Tail

log = structlog.get_logger(__name__)

AGAIN_S = 10.0
"""Bundles are sent again for this long: however often they are asked for, no more are made."""
PIECE = 256 << 10
_BUSY = Response(b"a bundle is being made; try again in a few seconds\n", code=503, headers={"Retry-After": "5"})
_FOREIGN = Response(b"not for other sites\n", code=403)


class Diagnostics:
    """Serves /log, /config and /bundle.

    Args:
        boot_id: identity of this process.
        settings: the configuration as JSON values; may contain secrets, which are not shown.
        bundles: makes support bundles and returns their files; raises SinkError if it cannot.
        tail: the log.
    """

    def __init__(
        self, boot_id: str, settings: Callable[[], Any], bundles: Callable[[], Sequence[Path]], tail: Tail
    ) -> None:
        self._boot_id, self._settings, self._bundles, self._tail = boot_id, settings, bundles, tail
        self._clean = Redactor().clean
        self._shared = SharedAnswer()
        self._making = threading.Lock()
        self._made: tuple[float, Sequence[Path]] = (-AGAIN_S, ())
        """When bundles were made last (monotonic seconds), and their files."""

    def lines(self, request: Request) -> Response:
        """The newest log lines with numbers above `after`, at most `limit`:
        `{"boot_id": …, "next": number, "lines": [event, …]}`. Another `boot_id` means that the numbers begin again."""
        try:
            after, limit = int(request.query.get("after", "0")), int(request.query.get("limit", str(MAX_LINES)))
        except ValueError:
            return Response(b"expected after=NUMBER and limit=LINES\n", code=400)
        if not 1 <= limit <= MAX_LINES:
            return Response(f"limit: expected 1 to {MAX_LINES}\n".encode(), code=400)
        found = self._tail.after(after, limit)
        following = found[-1][0] if found else after
        body = f'{{"boot_id":"{self._boot_id}","next":{following},"lines":[{",".join(line for _, line in found)}]}}\n'
        return Response(body.encode(), "application/json")

    def config(self, request: Request) -> Response:
        """The configuration in effect with all defaults, as YAML, without secrets."""
        headers = {"Content-Disposition": 'attachment; filename="streamd.yaml"'} if "download" in request.query else {}
        return Response(self._shared.get("yaml", self._yaml), "text/plain; charset=utf-8", headers=headers)

    def _yaml(self) -> bytes:
        # Redacted before it is written: quotes and line breaks of YAML would hide a secret.
        text = yaml.safe_dump(self._clean(self._settings()), sort_keys=False, allow_unicode=True, width=100)
        return str(text).encode()

    def bundle(self, request: Request) -> Response:
        """A support bundle: a .tar.gz, or with several processes a .tar of one for each."""
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return _FOREIGN  # makes a file: not for an image of somebody's page
        if not self._making.acquire(blocking=False):
            return _BUSY
        try:
            at, files = self._made
            if time.monotonic() - at >= AGAIN_S:
                files = self._bundles()
                self._made = time.monotonic(), files
        except SinkError as error:
            return Response(f"{error}\n".encode(), code=503)
        finally:
            self._making.release()
        name, kind = files[0].name, "application/gzip"
        if len(files) > 1:
            name, kind = time.strftime("streamd-%Y%m%dT%H%M%SZ.tar", time.gmtime()), "application/x-tar"
        body = _tar(files) if len(files) > 1 else _pieces(files[0])
        return Response(body, kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _tar(files: Sequence[Path]) -> Iterator[bytes]:
    """An archive of files that do not change."""
    for path in files:
        entry = tarfile.TarInfo(path.name)
        status = path.stat()
        entry.size, entry.mtime, entry.mode = status.st_size, int(status.st_mtime), 0o600
        yield entry.tobuf(tarfile.GNU_FORMAT)
        yield from _pieces(path)
        yield bytes(-entry.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
