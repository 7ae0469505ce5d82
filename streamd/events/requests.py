"""Requests of the command line to a daemon that has the journal open, as files in the state folder: the journal has
only one writer.

The folder belongs to the daemon: anyone who can write there could also modify the journal.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from streamd.errors import NoAnswerError, SinkError
from streamd.events.upkeep import Deletion

if TYPE_CHECKING:
    from streamd.events.writer import Writer

log = structlog.get_logger(__name__)

FOLDER = "requests"
MAX_BYTES = 4096
STALE_S = 3600.0


class DeleteRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Delete the events of a stream."""

    stream: str | None
    since_ns: int
    until_ns: int


class Answer(msgspec.Struct, frozen=True):
    """The result of a request."""

    error: str
    events: int = 0
    pending: int = 0
    paths: list[str] = []


def ask(folder: Path, request: DeleteRequest, timeout: float) -> Deletion:
    """Asks the daemon that has locked `folder` to delete events.

    Args:
        folder: the state folder.
        request: what to delete.
        timeout: seconds.

    Raises:
        NoAnswerError: the daemon does not answer in time.
        SinkError: it cannot be asked, or refuses.
    """
    place, name = folder / FOLDER, uuid.uuid4().hex
    asked, answered = place / f"{name}.request", place / f"{name}.answer"
    try:
        temporary = place / f".{name}"
        temporary.write_bytes(msgspec.json.encode(request))
        # The daemon may run as another user than the one who asks (root), and only it may access the folder.
        temporary.chmod(0o644)
        temporary.rename(asked)
    except OSError as error:
        advice = "run this as the daemon's user, or as root"
        raise SinkError(f"{place}: the daemon cannot be asked: {error.strerror}; {advice}") from error
    deadline = time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                answer = msgspec.json.decode(answered.read_bytes(), type=Answer)
                if answer.error:
                    raise SinkError(f"the daemon has not deleted anything: {answer.error}")
                return Deletion(answer.events, answer.pending, answer.paths)
            time.sleep(0.05)
    finally:
        for path in (asked, answered):
            with contextlib.suppress(OSError):
                path.unlink()
    message = f"the daemon has not answered within {timeout:g} s; its log says why"
    raise NoAnswerError(f"{folder}: {message}")


def prepare(folder: Path) -> None:
    """Creates the folder for requests, and removes requests that nobody waits for any more."""
    place = folder / FOLDER
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
        for entry in os.scandir(place):
            if time.time() - entry.stat().st_mtime > STALE_S:
                os.unlink(entry.path)


def answer(writer: Writer) -> None:
    """Carries out pending requests, and answers them. Only for the writer's thread."""
    place = writer.folder / FOLDER
    try:
        found = [entry.name for entry in os.scandir(place) if entry.name.endswith(".request")]
    except OSError:
        return
    for name in found:
        path = place / name
        try:
            with path.open("rb") as file:
                text = file.read(MAX_BYTES)
            path.unlink()
        except OSError:
            continue
        to = path.with_suffix(".answer")
        try:
            request = msgspec.json.decode(text, type=DeleteRequest)
        except msgspec.DecodeError as error:
            _answer(to, Answer(f"not a request: {error}"))
            continue
        log.info("events are to be deleted", stream=request.stream, since=request.since_ns, until=request.until_ns)
        future = writer.ask_to_delete(request.stream, request.since_ns, request.until_ns)
        future.add_done_callback(lambda done, to=to: _done(to, done))  # type: ignore[misc]


def _done(to: Path, done: Future[Deletion]) -> None:
    error = done.exception()
    _answer(to, Answer(repr(error)) if error is not None else Answer("", *done.result()))


def _answer(to: Path, what: Answer) -> None:
    temporary = to.with_suffix(".tmp")
    try:
        temporary.write_bytes(msgspec.json.encode(what))
        temporary.rename(to)
    except OSError as error:
        log.error("cannot answer a request", error=str(error))
